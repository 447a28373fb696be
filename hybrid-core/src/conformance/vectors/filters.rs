//! The filter language.

use super::{Shelf, VectorHarness, point, query::check, record, some_records, some_vector};
use crate::{
    ErrorKind, VectorQuery,
    conformance::case::{CaseResult, equal, refused},
    vector::{Filter, Metric},
};

type Harness<'a> = &'a dyn VectorHarness;

/// Each leaf of the language, with matches, misses and missing fields among [`some_records`].
fn leaves() -> Vec<Filter> {
    vec![
        Filter::equals("text", "rye"),
        Filter::equals("text", "Rye"),
        Filter::equals("text", "$ne"),
        Filter::equals("number", 8),
        Filter::equals("number", 8.5),
        Filter::equals("flag", true),
        Filter::equals("flag", false),
        Filter::one_of("text", ["rye", "spelt", "none"]),
        Filter::one_of("number", [1.0, 8.0, 8.5, 1e9]),
        Filter::one_of("flag", [true]),
        Filter::one_of("text", [""; 0]),
        Filter::range("number", 8.0..20.0),
        Filter::range("number", 8.0..=20.0),
        Filter::range("number", ..8.0),
        Filter::range("number", ..=8.0),
        Filter::range("number", 8.0..),
        Filter::Range {
            field: "number".to_owned(),
            from: std::ops::Bound::Excluded(8.0),
            to: std::ops::Bound::Unbounded,
        },
        Filter::range("number", ..),
        Filter::range("number", 20.0..8.0),
        Filter::exists("text"),
        Filter::exists("number"),
        Filter::exists("flag"),
    ]
}

pub(super) async fn filters_mean_what_they_say(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Cosine).await?;
    let records = some_records(60)?;
    shelf.upsert(records.clone()).await?;
    for leaf in leaves() {
        check(&shelf, &records, &some_vector(99), 60, Some(leaf.clone())).await?;
        check(&shelf, &records, &some_vector(99), 60, Some(!leaf)).await?;
    }
    Ok(())
}

pub(super) async fn filters_nest(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Euclidean).await?;
    let records = some_records(60)?;
    shelf.upsert(records.clone()).await?;
    let [rye, flag, middle] =
        [Filter::equals("text", "rye"), Filter::equals("flag", true), Filter::range("number", 5.0..25.0)];
    let filters = [
        Filter::And(vec![]),
        Filter::Or(vec![]),
        !Filter::And(vec![]),
        !Filter::Or(vec![]),
        Filter::And(vec![Filter::Or(vec![]), rye.clone()]),
        Filter::Or(vec![Filter::And(vec![]), rye.clone()]),
        rye.clone() & flag.clone(),
        rye.clone() | flag.clone(),
        rye.clone() & flag.clone() & middle.clone(),
        (rye.clone() | flag.clone()) & middle.clone(),
        rye.clone() | (flag.clone() & middle.clone()),
        !(rye.clone() & flag.clone()),
        !(rye.clone() | flag.clone()),
        !!rye.clone(),
        !(!rye.clone() & (middle.clone() | !flag.clone())),
        !(Filter::exists("text") & !middle.clone()) | (flag & Filter::one_of("text", ["wheat"])),
        Filter::And(vec![rye]),
        Filter::Or(vec![middle]),
    ];
    for filter in filters {
        check(&shelf, &records, &some_vector(98), 60, Some(filter)).await?;
    }
    Ok(())
}

pub(super) async fn a_filter_comes_before_the_choice(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Euclidean).await?;
    // The two that match are the farthest of all.
    let mut records = (0..200_u16)
        .map(|i| Ok(record(format!("near/{i}"), point(&[f32::from(i) / 100.0]))?.with("text", "near")))
        .collect::<CaseResult<Vec<_>>>()?;
    records.push(record("far/1", point(&[50.0]))?.with("text", "far"));
    records.push(record("far/2", point(&[60.0]))?.with("text", "far"));
    shelf.upsert(records.clone()).await?;
    for filter in [Filter::equals("text", "far"), !Filter::equals("text", "near")] {
        let found = shelf.query(&point(&[0.0]), 2, Some(filter)).await?;
        let found: Vec<_> = found.iter().map(|neighbor| neighbor.key.as_str()).collect();
        equal("the two that match", &found, &vec!["far/1", "far/2"])?;
    }
    Ok(())
}

pub(super) async fn a_filter_that_does_not_fit_is_refused(harness: Harness<'_>) -> CaseResult {
    let shelf = Shelf::new(harness, Metric::Cosine).await?;
    shelf.upsert(some_records(3)?).await?;
    let wrong = [
        Filter::equals("other", 1),
        Filter::equals("stored", "passage 0"),
        Filter::equals("number", "1"),
        Filter::equals("text", 1),
        Filter::one_of("flag", ["true"]),
        Filter::range("text", 1.0..),
        Filter::range("number", f64::NAN..),
        Filter::exists("$or"),
        !Filter::exists("other"),
        Filter::exists("text") & Filter::equals("other", 1),
        (0..40).fold(Filter::exists("text"), |filter, _| !filter),
    ];
    for filter in wrong {
        let what = format!("the filter {filter:?}");
        let query = VectorQuery::new(some_vector(1), 1).filtered(filter);
        refused(&what, ErrorKind::InvalidInput, shelf.index.query(&shelf.tenant, query).await)?;
    }
    Ok(())
}
