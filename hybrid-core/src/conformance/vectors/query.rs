//! Finding the nearest.

use super::{DIMENSION, Shelf, VectorHarness, check_metadata, point, record, some_records, some_vector};
use crate::{
    ErrorKind, Neighbor, VectorQuery, VectorRecord,
    conformance::case::{CaseResult, equal, refused, skip},
    vector::{Filter, Metric},
};

type Harness<'a> = &'a dyn VectorHarness;
const METRICS: [Metric; 2] = [Metric::Cosine, Metric::Euclidean];

/// Checks an answer against a look at every record: true distances, true matches, in order, and with `exact` no nearer one left out.
pub(super) async fn check(
    shelf: &Shelf<'_>,
    records: &[VectorRecord],
    wanted: &[f32],
    k: usize,
    filter: Option<Filter>,
) -> CaseResult {
    let metric = shelf.index.profile().schema.metric();
    let what = format!("the {k} nearest by {metric:?} that match {filter:?}");
    let found = shelf.query(wanted, k, filter.clone()).await?;
    let matching = || {
        let matches = |record: &&VectorRecord| filter.as_ref().is_none_or(|filter| filter.matches(&record.metadata));
        records.iter().filter(matches)
    };
    let mut distances: Vec<f32> = matching().map(|record| metric.distance(wanted, &record.vector)).collect();
    distances.sort_by(f32::total_cmp);
    let count = k.min(distances.len());
    if shelf.index.profile().guarantees.exact {
        ensure!(found.len() == count, "{what}: {} were found where {count} match", found.len());
    } else {
        ensure!(found.len() <= count, "{what}: {} were found where {count} match", found.len());
    }
    for (i, Neighbor { key, distance, metadata }) in found.iter().enumerate() {
        let Some(record) = matching().find(|record| record.key == *key) else {
            ensure!(false, "{what}: {key:?} does not match or does not exist");
            continue;
        };
        let expected = metric.distance(wanted, &record.vector);
        ensure!(close(*distance, expected), "{what}: {key:?} is at {expected}, found at {distance}");
        check_metadata(key, metadata, &record.metadata)?;
        if shelf.index.profile().guarantees.exact {
            ensure!(
                close(*distance, distances[i]),
                "{what}: place {i} is at {distance}, the true one at {}",
                distances[i]
            );
        }
    }
    ensure!(found.is_sorted_by(|a, b| a.distance <= b.distance), "{what}: not in order of distance: {found:?}");
    let mut keys: Vec<_> = found.iter().map(|neighbor| &neighbor.key).collect();
    keys.sort();
    ensure!(keys.is_sorted_by(|a, b| a < b), "{what}: a record comes twice: {keys:?}");
    Ok(())
}

/// Within 1 part in 10,000 of the longer of one and the distance.
fn close(found: f32, expected: f32) -> bool {
    (found - expected).abs() <= 1e-4 * expected.abs().max(1.0)
}

pub(super) async fn the_nearest_come_first(harness: Harness<'_>) -> CaseResult {
    for metric in METRICS {
        let shelf = Shelf::new(harness, metric).await?;
        let records = some_records(700)?;
        shelf.upsert(records.clone()).await?;
        for seed in 1_000..1_010 {
            check(&shelf, &records, &some_vector(seed), 20, None).await?;
        }
    }
    Ok(())
}

pub(super) async fn distances_are_the_metrics(harness: Harness<'_>) -> CaseResult {
    let vectors: [&[f32]; 6] = [&[1.0], &[2.0], &[-1.0], &[0.0, 1.0], &[1.0, 1.0], &[1e-6]];
    for metric in METRICS {
        let shelf = Shelf::new(harness, metric).await?;
        let records: Vec<_> = vectors
            .iter()
            .enumerate()
            .map(|(i, vector)| record(i.to_string(), point(vector)))
            .collect::<CaseResult<_>>()?;
        shelf.upsert(records.clone()).await?;
        for wanted in [&[1.0][..], &[3.0], &[-0.5, 0.5], &[1e6, 1.0]] {
            check(&shelf, &records, &point(wanted), records.len(), None).await?;
        }
    }
    Ok(())
}

pub(super) async fn neighbours_have_their_metadata(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Cosine).await?;
    let records = vec![
        record("all", point(&[1.0]))?.with("text", "ü").with("number", 0.25).with("flag", true).with("stored", "s"),
        record("none", point(&[1.0, 0.1]))?,
    ];
    shelf.upsert(records.clone()).await?;
    let found = shelf.query(&point(&[1.0]), 2, None).await?;
    equal("the count of neighbours", &found.len(), &2)?;
    for (neighbor, record) in found.iter().zip(&records) {
        equal("the neighbour's key", &neighbor.key, &record.key)?;
        check_metadata(&record.key, &neighbor.metadata, &record.metadata)?;
    }
    Ok(())
}

pub(super) async fn k_is_the_most(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Cosine).await?;
    equal("the neighbours in an empty index", &shelf.query(&some_vector(1), 3, None).await?, &vec![])?;
    let records = some_records(12)?;
    shelf.upsert(records.clone()).await?;
    let max = shelf.index.profile().max_k;
    for k in [1, 2, 11, 12, 13, 100, max] {
        if k <= max {
            check(&shelf, &records, &some_vector(50), k, None).await?;
        }
    }
    Ok(())
}

pub(super) async fn ties_come_in_order_of_keys(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Euclidean).await?;
    if !shelf.index.profile().guarantees.ordered_ties {
        return skip("the adapter does not declare it");
    }
    // Written in no order; all at the same place but one that is nearer and one that is farther.
    let mut records: Vec<_> = (0..50_u64)
        .map(|i| record(format!("tie/{}", i * 7 % 50), point(&[1.0, 2.0, 3.0])))
        .collect::<CaseResult<_>>()?;
    records.push(record("z/near", point(&[1.0, 2.0]))?);
    records.push(record("a/far", point(&[9.0]))?);
    shelf.upsert(records.clone()).await?;
    let mut ties: Vec<_> = records[..50].iter().map(|record| record.key.as_str().to_owned()).collect();
    ties.sort();
    for k in [1, 2, 10, 51, 52] {
        let found = shelf.query(&point(&[1.0, 2.0]), k, None).await?;
        let found: Vec<_> = found.iter().map(|neighbor| neighbor.key.as_str().to_owned()).collect();
        let expected = [&["z/near".to_owned()][..], &ties, &["a/far".to_owned()]].concat();
        equal(&format!("the {k} nearest with ties"), &found, &expected[..k].to_vec())?;
    }
    Ok(())
}

pub(super) async fn close_calls_are_told_apart(harness: Harness<'_>) -> CaseResult {
    for metric in METRICS {
        let shelf = Shelf::new(harness, metric).await?;
        if !shelf.index.profile().guarantees.exact {
            return skip("the adapter does not declare it");
        }
        // Steps far below what eight bits a component tell apart, and far above the rounding of single precision.
        let records: Vec<_> = (0..300_u16)
            .map(|i| {
                let step = f32::from(i * 37 % 300) * 1e-4;
                record(format!("step/{i:03}"), [1.0, step, 0.5, -0.25, 0.125, 0.75, -0.5, 1.0])
            })
            .collect::<CaseResult<_>>()?;
        shelf.upsert(records.clone()).await?;
        let wanted = [1.0, 0.0, 0.5, -0.25, 0.125, 0.75, -0.5, 1.0];
        let found = shelf.query(&wanted, 5, None).await?;
        let expected: Vec<_> = (0..5_u16)
            .filter_map(|step| (0..300_u16).find(|i| i * 37 % 300 == step))
            .map(|i| format!("step/{i:03}"))
            .collect();
        let found: Vec<_> = found.iter().map(|neighbor| neighbor.key.as_str().to_owned()).collect();
        // Angles this small vanish in the rounding of a cosine near one; lengths do not.
        match metric {
            Metric::Euclidean => equal("the five nearest of 300 in a row", &found, &expected)?,
            _ => check(&shelf, &records, &wanted, 5, None).await?,
        }
    }
    Ok(())
}

pub(super) async fn queries_see_changes(harness: Harness<'_>) -> CaseResult {
    for metric in METRICS {
        let shelf = Shelf::new(harness, metric).await?;
        let mut records = some_records(50)?;
        shelf.upsert(records.clone()).await?;
        let wanted = some_vector(500);
        check(&shelf, &records, &wanted, 10, None).await?;
        for round in 0..6_u64 {
            // One moves, one comes, one changes its metadata, one goes.
            let index = round as usize * 3;
            records[index].vector = some_vector(600 + round);
            records[index + 1].metadata.insert("text".to_owned(), "changed".into());
            records.push(record(format!("new/{round}"), wanted.iter().map(|x| x * 1.5).collect::<Vec<_>>())?);
            let gone = records.remove(index + 2);
            let changed = vec![records[index].clone(), records[index + 1].clone(), records[records.len() - 1].clone()];
            shelf.upsert(changed).await?;
            shelf.delete(&[gone.key]).await?;
            check(&shelf, &records, &wanted, 10, None).await?;
            check(&shelf, &records, &wanted, 10, Some(Filter::equals("text", "changed"))).await?;
        }
    }
    Ok(())
}

pub(super) async fn what_does_not_fit_is_refused(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Cosine).await?;
    shelf.upsert(some_records(3)?).await?;
    let query = |vector: &[f32], k| shelf.index.query(&shelf.tenant, VectorQuery::new(vector, k));
    let good = some_vector(1);
    let invalid = ErrorKind::InvalidInput;
    refused("a query for none", invalid, query(&good, 0).await)?;
    let max = shelf.index.profile().max_k;
    let over = query(&good, max + 1).await;
    if let Err(error) = &over {
        ensure!(error.to_string().contains(&max.to_string()), "the refusal does not name the limit {max}: {error}");
    }
    refused("a query for more than the limit", invalid, over)?;
    refused("a vector too short", invalid, query(&good[1..], 1).await)?;
    refused("a component that is no number", invalid, query(&[f32::NAN; DIMENSION], 1).await)?;
    refused("a vector of zeros", invalid, query(&[0.0; DIMENSION], 1).await)
}
