//! Writing, reading by key, deleting; tenants.

use serde_json::json;

use super::{Shelf, VectorHarness, check_record, key, point, record, some_records, some_vector};
use crate::{
    ErrorKind, TenantId, VectorKey, VectorRecord, VectorSchema,
    conformance::case::{CaseResult, equal, refused, skip},
    vector::{MAX_FILTERABLE_BYTES, MAX_METADATA_BYTES, MAX_VECTOR_DIMENSION, Metric},
};

type Harness<'a> = &'a dyn VectorHarness;

pub(super) async fn records_come_back_as_written(harness: Harness<'_>) -> CaseResult {
    for metric in [Metric::Cosine, Metric::Euclidean] {
        let shelf = Shelf::new(harness, metric).await?;
        let mut records = some_records(30)?;
        records.push(
            record("everything", [0.1, -0.0, 1.0 / 3.0, 1e15, -1e15, 1e-10, f32::MIN_POSITIVE, 123.456])?
                .with("text", "ü 🥐 \"quoted\"\n\t\\ $eq")
                .with("number", json!(-1.5e-7))
                .with("flag", false)
                .with("stored", "x".repeat(30_000)),
        );
        records.push(record("whole", some_vector(99))?.with("number", (1_u64 << 53) as i64).with("text", ""));
        shelf.upsert(records.clone()).await?;
        shelf.check_all(&records).await?;
    }
    let widest = VectorSchema::new(MAX_VECTOR_DIMENSION, Metric::Cosine)?;
    let (index, tenant) = (harness.index(widest).await?, TenantId::single());
    let wide = record("wide", (0..MAX_VECTOR_DIMENSION).map(|i| (i as f32).sin()).collect::<Vec<_>>())?;
    index.upsert(&tenant, vec![wide.clone()]).await?;
    harness.settle().await;
    check_record(index.get(&tenant, std::slice::from_ref(&wide.key)).await?[0].as_ref(), &wide)
}

pub(super) async fn upsert_replaces_whole(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Euclidean).await?;
    let first = record("a", point(&[1.0]))?.with("text", "old").with("number", 1).with("stored", "old");
    let second = record("a", point(&[0.0, 1.0]))?.with("text", "new");
    shelf.upsert(vec![first, record("b", point(&[5.0]))?]).await?;
    shelf.upsert(vec![second.clone()]).await?;
    shelf.check_all(&[second, record("b", point(&[5.0]))?]).await?;
    let nearest = shelf.query(&point(&[0.0, 1.0]), 2, None).await?;
    let keys: Vec<_> = nearest.iter().map(|neighbor| neighbor.key.as_str()).collect();
    equal("the neighbours of the new vector", &keys, &vec!["a", "b"])?;
    equal("the new vector's distance to itself", &nearest[0].distance, &0.0)
}

pub(super) async fn get_answers_per_key_in_order(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Cosine).await?;
    shelf.upsert(some_records(10)?).await?;
    let names = ["record/0007", "missing", "record/0002", "record/0007", "record", "record/00020"];
    let keys = names.into_iter().map(key).collect::<CaseResult<Vec<_>>>()?;
    let found = shelf.index.get(&shelf.tenant, &keys).await?;
    let found: Vec<_> = found.iter().map(|record| record.as_ref().map(|record| record.key.as_str())).collect();
    let expected = vec![Some(names[0]), None, Some(names[2]), Some(names[0]), None, None];
    equal("the keys of the answers", &found, &expected)?;
    equal("the answers to no keys", &shelf.index.get(&shelf.tenant, &[]).await?, &Vec::new())
}

pub(super) async fn a_key_may_be_anything_legal(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Cosine).await?;
    let names =
        ["a", "A", " ", "a ", "a/b", "../a", "%2F", "ä", "a\u{308}", "🥐", "'; --", "*", "x".repeat(1024).as_str()]
            .map(str::to_owned);
    let wide = "ü".repeat(VectorKey::MAX_BYTES / 2);
    let records = names
        .into_iter()
        .chain([wide])
        .enumerate()
        .map(|(i, name)| record(name, some_vector(i as u64)))
        .collect::<CaseResult<Vec<_>>>()?;
    shelf.upsert(records.clone()).await?;
    shelf.check_all(&records).await?;
    shelf.delete(&[records[0].key.clone()]).await?;
    shelf.check_all(&records[1..]).await
}

pub(super) async fn many_records_in_one_call(harness: Harness<'_>) -> CaseResult {
    // More than one batch or page of any service that we know.
    let shelf = Shelf::new(harness, Metric::Cosine).await?;
    let records = some_records(1_234)?;
    shelf.upsert(records.clone()).await?;
    shelf.check_all(&records).await?;
    let (gone, left) = records.split_at(1_111);
    shelf.delete(&gone.iter().map(|record| record.key.clone()).collect::<Vec<_>>()).await?;
    shelf.check_all(left).await?;
    shelf.upsert(Vec::new()).await?;
    shelf.delete(&[]).await?;
    shelf.check_all(left).await
}

fn illegal() -> CaseResult<Vec<(&'static str, ErrorKind, VectorRecord)>> {
    use ErrorKind::{InvalidInput, TooLarge};
    let good = || record("bad", some_vector(1));
    Ok(vec![
        ("a vector too short", InvalidInput, record("bad", [1.0; 7])?),
        ("a vector too long", InvalidInput, record("bad", [1.0; 9])?),
        ("an empty vector", InvalidInput, record("bad", [])?),
        ("a component that is no number", InvalidInput, record("bad", point(&[1.0, f32::NAN]))?),
        ("an infinite component", InvalidInput, record("bad", point(&[1.0, f32::NEG_INFINITY]))?),
        ("a component out of range", InvalidInput, record("bad", point(&[1e20]))?),
        ("a field that is not declared", InvalidInput, good()?.with("other", 1)),
        ("text for a number", InvalidInput, good()?.with("number", "1")),
        ("a number for text", InvalidInput, good()?.with("text", 1)),
        ("a null", InvalidInput, good()?.with("text", json!(null))),
        ("a list", InvalidInput, good()?.with("text", json!(["a"]))),
        ("a number that a float does not hold", InvalidInput, good()?.with("number", u64::MAX)),
        ("too much to filter by", TooLarge, good()?.with("text", "x".repeat(MAX_FILTERABLE_BYTES))),
        ("too much metadata", TooLarge, good()?.with("stored", "x".repeat(MAX_METADATA_BYTES))),
    ])
}

pub(super) async fn what_the_schema_forbids_is_refused(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Cosine).await?;
    for (what, kind, bad) in illegal()? {
        refused(what, kind, shelf.index.upsert(&shelf.tenant, vec![bad]).await)?;
    }
    let zeros = vec![record("bad", [0.0; super::DIMENSION])?];
    refused("a vector of zeros", ErrorKind::InvalidInput, shelf.index.upsert(&shelf.tenant, zeros.clone()).await)?;
    shelf.check_all(&[]).await?;
    // With a distance that needs no direction zeros are a place like any other.
    let shelf = Shelf::new(harness, Metric::Euclidean).await?;
    shelf.upsert(zeros.clone()).await?;
    shelf.check_all(&zeros).await
}

pub(super) async fn a_refused_upsert_writes_nothing(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Cosine).await?;
    let before = some_records(3)?;
    shelf.upsert(before.clone()).await?;
    for (what, kind, bad) in illegal()? {
        let records = vec![record("record/0001", some_vector(50))?, record("new", some_vector(51))?, bad];
        refused(what, kind, shelf.index.upsert(&shelf.tenant, records).await)?;
    }
    let twice = vec![record("new", some_vector(1))?, record("new", some_vector(2))?];
    refused("a key that comes twice", ErrorKind::InvalidInput, shelf.index.upsert(&shelf.tenant, twice).await)?;
    shelf.settle().await;
    shelf.check_all(&before).await
}

pub(super) async fn deletes_delete(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Cosine).await?;
    let records = some_records(40)?;
    shelf.upsert(records.clone()).await?;
    // The query before makes sure that what an adapter remembers of it does not outlive the records.
    let wanted = some_vector(7);
    shelf.query(&wanted, 40, None).await?;
    let gone = |i: usize| i % 3 == 1;
    let keys: Vec<_> =
        records.iter().enumerate().filter(|(i, _)| gone(*i)).map(|(_, record)| record.key.clone()).collect();
    shelf.delete(&keys).await?;
    let left: Vec<_> =
        records.iter().enumerate().filter(|(i, _)| !gone(*i)).map(|(_, record)| record.clone()).collect();
    shelf.check_all(&left).await?;
    ensure!(
        shelf.index.get(&shelf.tenant, &keys).await?.iter().all(Option::is_none),
        "`get` still finds deleted records"
    );
    let found = shelf.query(&wanted, 40, None).await?;
    if let Some(neighbor) = found.iter().find(|neighbor| keys.contains(&neighbor.key)) {
        ensure!(false, "`query` still finds the deleted record {:?}", neighbor.key);
    }
    if shelf.index.profile().guarantees.exact {
        equal("the count of neighbours", &found.len(), &left.len())?;
    }
    // A key that was deleted may be used again, and then has nothing of what it was.
    let again = record(keys[0].as_str(), some_vector(100))?;
    shelf.upsert(vec![again.clone()]).await?;
    shelf.check_all(&[left, vec![again]].concat()).await
}

pub(super) async fn delete_of_nothing_is_ok(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Cosine).await?;
    shelf.delete(&[key("missing")?]).await?;
    shelf.index.drop_tenant(&shelf.tenant).await?;
    let records = some_records(2)?;
    shelf.upsert(records.clone()).await?;
    shelf.delete(&[key("missing")?, records[0].key.clone(), records[0].key.clone()]).await?;
    shelf.delete(&[records[0].key.clone()]).await?;
    shelf.check_all(&records[1..]).await
}

pub(super) async fn tenants_share_nothing(harness: Harness<'_>) -> CaseResult {
    let ours = Shelf::new(harness, Metric::Cosine).await?;
    let names = ["bakery2", "baker", "b", "bakery-", "bakery_"];
    let (mine, mut others) = (some_records(5)?, Vec::new());
    ours.upsert(mine.clone()).await?;
    for (i, name) in names.into_iter().enumerate() {
        let other = Shelf { harness, index: ours.index.clone(), tenant: TenantId::new(name)? };
        other.check_all(&[]).await?;
        equal("the neighbours of a tenant without records", &other.query(&some_vector(1), 5, None).await?, &vec![])?;
        // The same keys, other contents.
        let theirs = vec![record("record/0000", some_vector(200 + i as u64))?.with("stored", name)];
        other.upsert(theirs.clone()).await?;
        others.push((other, theirs));
    }
    ours.check_all(&mine).await?;
    for (other, theirs) in &others {
        other.check_all(theirs).await?;
        let found = other.query(&some_vector(1), 5, None).await?;
        equal("the count of another tenant's neighbours", &found.len(), &1)?;
        equal("what another tenant finds", &found[0].metadata["stored"], &json!(other.tenant.as_str()))?;
    }
    others[0].0.delete(&[key("record/0000")?, key("record/0001")?]).await?;
    others[0].0.check_all(&[]).await?;
    ours.check_all(&mine).await
}

pub(super) async fn a_dropped_tenant_is_gone(harness: Harness<'_>) -> CaseResult {
    let ours = Shelf::new(harness, Metric::Cosine).await?;
    let other = Shelf { harness, index: ours.index.clone(), tenant: TenantId::new("other")? };
    let records = some_records(600)?;
    ours.upsert(records.clone()).await?;
    other.upsert(records[..3].to_vec()).await?;
    ours.query(&some_vector(1), 10, None).await?;
    ours.index.drop_tenant(&ours.tenant).await?;
    ours.settle().await;
    ours.check_all(&[]).await?;
    equal("the neighbours after the drop", &ours.query(&some_vector(1), 10, None).await?, &vec![])?;
    ensure!(
        ours.index.get(&ours.tenant, &[records[0].key.clone()]).await?[0].is_none(),
        "`get` finds a record of the dropped tenant"
    );
    other.check_all(&records[..3]).await?;
    ours.upsert(vec![records[5].clone()]).await?;
    ours.check_all(&records[5..6]).await?;
    equal("the neighbours of the tenant's new life", &ours.query(&some_vector(1), 10, None).await?.len(), &1)
}

pub(super) async fn a_restart_keeps_records(harness: Harness<'_>) -> CaseResult {
    let mut shelf = Shelf::new(harness, Metric::Cosine).await?;
    let records = some_records(20)?;
    shelf.upsert(records.clone()).await?;
    shelf.delete(&[records[0].key.clone()]).await?;
    let Some(index) = harness.restart(shelf.index).await? else {
        return skip("the index does not outlive its process");
    };
    shelf = Shelf { harness, index, tenant: shelf.tenant };
    shelf.check_all(&records[1..]).await?;
    equal("the count of neighbours", &shelf.query(&some_vector(1), 19, None).await?.len(), &19)
}
