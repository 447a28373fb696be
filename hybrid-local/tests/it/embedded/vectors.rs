//! What a vector index in a file promises.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::future::join_all;
use hybrid_core::{
    ErrorKind, Result, TenantId, VectorIndex, VectorKey, VectorQuery, VectorRecord, VectorSchema,
    conformance::vectors::{self, VectorHarness},
    vector::{FieldKind, Filter, Metric},
};
use hybrid_local::{SqliteOutbox, SqliteVectorIndex, SqliteVectorOptions};

use super::Random;

#[derive(Debug)]
struct InFile {
    scratch: tempfile::TempDir,
    made: AtomicUsize,
    options: SqliteVectorOptions,
}

impl InFile {
    fn new(options: SqliteVectorOptions) -> Self {
        Self { scratch: tempfile::tempdir().unwrap(), made: AtomicUsize::new(0), options }
    }

    fn open(&self, number: usize, schema: VectorSchema) -> Result<Arc<dyn VectorIndex>> {
        let path = self.scratch.path().join(number.to_string());
        Ok(Arc::new(SqliteVectorIndex::open(path, schema, self.options.clone())?))
    }
}

#[async_trait]
impl VectorHarness for InFile {
    async fn index(&self, schema: VectorSchema) -> Result<Arc<dyn VectorIndex>> {
        self.open(self.made.fetch_add(1, Ordering::SeqCst), schema)
    }

    async fn restart(&self, index: Arc<dyn VectorIndex>) -> Result<Option<Arc<dyn VectorIndex>>> {
        let schema = index.profile().schema.clone();
        drop(index);
        self.open(self.made.load(Ordering::SeqCst) - 1, schema).map(Some)
    }
}

#[tokio::test]
async fn a_file_keeps_the_contract_of_a_vector_index() {
    vectors::run(&InFile::new(SqliteVectorOptions::default())).await.assert();
}

#[tokio::test]
async fn a_file_keeps_the_contract_with_hardly_any_memory() {
    vectors::run(&InFile::new(SqliteVectorOptions { memory: 1 })).await.assert();
}

fn schema(dimension: usize, metric: Metric) -> VectorSchema {
    let schema = VectorSchema::new(dimension, metric).unwrap();
    schema.with_field("n", FieldKind::Number).unwrap().with_field("text", FieldKind::Stored).unwrap()
}

fn open(path: &Path, schema: VectorSchema) -> SqliteVectorIndex {
    SqliteVectorIndex::open(path, schema, SqliteVectorOptions::default()).unwrap()
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn key(name: &str) -> VectorKey {
    VectorKey::new(name).unwrap()
}

/// Vectors around few centres, some of them the same: what bounds find hard.
fn clustered(random: &mut Random, dimension: usize, count: usize) -> Vec<VectorRecord> {
    let mut component = |size: f32| size * (random.below(2_000_001) as f32 / 1_000_000.0 - 1.0);
    let centres: Vec<Vec<f32>> = (0..7).map(|_| (0..dimension).map(|_| component(1.0)).collect()).collect();
    let mut records = Vec::new();
    for i in 0..count {
        let centre = &centres[i % centres.len()];
        let spread = [0.0, 1e-6, 1e-3, 0.1][i / 7 % 4];
        let vector: Vec<f32> = centre.iter().map(|x| x + component(spread)).collect();
        records.push(VectorRecord::new(format!("{i:05}"), vector).unwrap().with("n", i % 10));
    }
    records
}

#[tokio::test]
async fn the_nearest_are_the_true_nearest_among_close_ones() {
    let scratch = tempfile::tempdir().unwrap();
    let bakery = tenant("bakery");
    for (i, (dimension, metric)) in
        [(384, Metric::Cosine), (384, Metric::Euclidean), (17, Metric::Cosine), (1, Metric::Euclidean)]
            .into_iter()
            .enumerate()
    {
        let index = open(&scratch.path().join(i.to_string()), schema(dimension, metric));
        let records = clustered(&mut Random::new(i as u64), dimension, 2_000);
        index.upsert(&bakery, records.clone()).await.unwrap();
        for (wanted, filter) in [(3, None), (100, Some(Filter::equals("n", 4))), (1_999, None)] {
            let wanted = &records[wanted].vector;
            let mut truth: Vec<_> = records
                .iter()
                .filter(|record| filter.as_ref().is_none_or(|filter| filter.matches(&record.metadata)))
                .map(|record| metric.distance(wanted, &record.vector))
                .collect();
            truth.sort_by(f32::total_cmp);
            let query = VectorQuery { vector: wanted.clone(), k: 50, filter: filter.clone() };
            let found = index.query(&bakery, query).await.unwrap();
            assert_eq!(found.len(), 50);
            for (neighbor, truth) in found.iter().zip(&truth) {
                assert!((neighbor.distance - truth).abs() < 1e-5, "{metric:?}: {neighbor:?} where {truth} is nearer");
            }
        }
    }
}

#[tokio::test]
async fn another_process_sees_every_change() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("vectors");
    // Two handles that share nothing but the file.
    let [ours, theirs] = [(); 2].map(|()| open(&path, schema(2, Metric::Euclidean)));
    let bakery = tenant("bakery");
    let nearest = async |index: &SqliteVectorIndex| {
        let found = index.query(&bakery, VectorQuery::new([0.0, 0.0], 3)).await.unwrap();
        found.into_iter().map(|neighbor| neighbor.key.to_string()).collect::<Vec<_>>()
    };
    let record = |name: &str, x: f32| VectorRecord::new(name, [x, 0.0]).unwrap().with("text", name);
    ours.upsert(&bakery, vec![record("a", 1.0)]).await.unwrap();
    assert_eq!(nearest(&theirs).await, ["a"]);
    theirs.upsert(&bakery, vec![record("b", 0.5)]).await.unwrap();
    assert_eq!(nearest(&ours).await, ["b", "a"]);
    ours.upsert(&bakery, vec![record("c", 0.1)]).await.unwrap();
    theirs.delete(&bakery, &[key("b")]).await.unwrap();
    assert_eq!(
        (nearest(&ours).await, nearest(&theirs).await),
        (vec!["c".into(), "a".into()], vec!["c".into(), "a".into()])
    );
    ours.drop_tenant(&bakery).await.unwrap();
    assert_eq!(nearest(&theirs).await, [""; 0]);
    theirs.upsert(&bakery, vec![record("d", 0.2)]).await.unwrap();
    assert_eq!((nearest(&ours).await, nearest(&theirs).await), (vec!["d".into()], vec!["d".into()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn queries_beside_changes_see_whole_records_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let index = open(&scratch.path().join("vectors"), schema(8, Metric::Euclidean));
    let bakery = tenant("bakery");
    // A record's number, vector and text always say the same.
    let record = |slot: usize, value: usize| {
        let vector = [value as f32; 8];
        VectorRecord::new(slot.to_string(), vector).unwrap().with("n", value).with("text", value.to_string())
    };
    index.upsert(&bakery, (0..20).map(|slot| record(slot, slot)).collect()).await.unwrap();
    let writers = (0..4).map(|writer| {
        let (index, bakery) = (index.clone(), bakery.clone());
        tokio::spawn(async move {
            for value in 0..40 {
                index.upsert(&bakery, vec![record(writer, value * 7 % 40)]).await.unwrap();
            }
        })
    });
    let readers = (0..4).map(|reader| {
        let (index, bakery) = (index.clone(), bakery.clone());
        tokio::spawn(async move {
            for _ in 0..60 {
                let found = match index.query(&bakery, VectorQuery::new([reader as f32; 8], 20)).await {
                    // The writers were faster eight times running, which the contract allows.
                    Err(error) if error.is_temporary() => continue,
                    found => found.unwrap(),
                };
                assert_eq!(found.len(), 20);
                for neighbor in found {
                    let n = neighbor.metadata["n"].as_f64().unwrap();
                    let expected = (n as f32 - reader as f32).abs() * 8.0_f32.sqrt();
                    assert!((neighbor.distance - expected).abs() < 1e-3, "{neighbor:?}");
                    assert_eq!(neighbor.metadata["text"], n.to_string());
                }
            }
        })
    });
    for task in join_all(writers.chain(readers)).await {
        task.unwrap();
    }
}

/// Whether any file of the index holds these bytes.
#[tokio::test]
async fn what_came_and_went_since_the_file_was_last_written_anew_leaves_no_room_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("vectors");
    let (index, size) = (open(&path, schema(64, Metric::Cosine)), || fs::metadata(&path).unwrap().len());
    let fill = async |tenant: &TenantId| {
        index.upsert(tenant, clustered(&mut Random::new(1), 64, 500)).await.unwrap();
        index.drop_tenant(tenant).await.unwrap();
        size()
    };
    let once = fill(&tenant("bakery")).await;
    assert_eq!(fill(&tenant("florist")).await, once);
}

fn holds(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| fs::read(path).unwrap().windows(bytes.len()).any(|window| window == bytes)).collect()
}

#[tokio::test]
async fn nothing_of_a_deleted_record_or_tenant_is_left_in_the_files() {
    let scratch = tempfile::tempdir().unwrap();
    let index = open(&scratch.path().join("vectors"), schema(64, Metric::Euclidean));
    let [bakery, other] = ["bakery", "other"].map(tenant);
    let mark = |name: &str| format!("passage-{name}-").repeat(3);
    // Three components that no other vector has, as they lie in the file.
    let vector = |first: f32| (0..64).map(|i| first + i as f32 / 128.0).collect::<Vec<_>>();
    let trace = |first: f32| vector(first)[..3].iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let record = |name: &str, first: f32, size: usize| {
        let text = mark(name) + &"x".repeat(size);
        VectorRecord::new(name, vector(first)).unwrap().with("text", text)
    };
    // Rows of all sizes, within pages and over several, in both tenants by turns, so that pages split and merge.
    for i in 0..300_usize {
        let size = i * 97 % 9_000;
        index.upsert(&bakery, vec![record(&format!("mine-{i:03}"), 1_000.0 + i as f32, size)]).await.unwrap();
        index.upsert(&other, vec![record(&format!("theirs-{i:03}"), 5_000.0 + i as f32, size)]).await.unwrap();
    }
    assert!(!holds(scratch.path(), mark("mine-007").as_bytes()).is_empty(), "the test does not find what is there");
    assert!(!holds(scratch.path(), &trace(1_007.0)).is_empty(), "the test does not find what is there");

    // One replaced, one deleted.
    index.upsert(&bakery, vec![record("mine-008", 9_000.0, 10)]).await.unwrap();
    index.delete(&bakery, &[key("mine-007")]).await.unwrap();
    for gone in [mark("mine-007").as_bytes(), &trace(1_007.0), &trace(1_008.0)] {
        assert_eq!(holds(scratch.path(), gone), [""; 0].map(PathBuf::from));
    }
    index.compact().await.unwrap();
    for gone in [mark("mine-007").as_bytes(), b"mine-007", &trace(1_007.0), &trace(1_008.0)] {
        assert_eq!(holds(scratch.path(), gone), [""; 0].map(PathBuf::from));
    }

    index.drop_tenant(&bakery).await.unwrap();
    for gone in [&b"passage-mine"[..], b"mine-", b"bakery"] {
        assert_eq!(holds(scratch.path(), gone), [""; 0].map(PathBuf::from), "{:?}", String::from_utf8_lossy(gone));
    }
    for i in 0..300 {
        assert_eq!(holds(scratch.path(), &trace(1_000.0 + i as f32)), [""; 0].map(PathBuf::from), "vector {i}");
    }
    assert_eq!(index.count(&other).await.unwrap(), 300);
    assert!(!holds(scratch.path(), mark("theirs-299").as_bytes()).is_empty());
}

#[tokio::test]
async fn a_file_opens_with_its_own_schema_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("vectors");
    drop(open(&path, schema(3, Metric::Cosine)));
    drop(open(&path, schema(3, Metric::Cosine).with_field("new", FieldKind::Text).unwrap()));
    for other in [schema(4, Metric::Cosine), schema(3, Metric::Euclidean), schema(3, Metric::Cosine)] {
        let error = SqliteVectorIndex::open(&path, other, SqliteVectorOptions::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert_eq!(SqliteOutbox::open(&path).unwrap_err().kind(), ErrorKind::InvalidInput);
}
