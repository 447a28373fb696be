//! What was done is kept, whole and in order, and whoever changes it is found out.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::body::Bytes;
use futures_util::{FutureExt, future::join_all};
use hybrid_cloud::storefront::{
    AuditEntry, AuditFailure, AuditLog, AuditLogOptions, AuditOptions, AuditSink, Outcome, Principal, Storefront,
    audit_prefix, verify_bucket, verify_folder,
};
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, BoxFuture, BoxStream, Cancellation, Clock, Error, ErrorKind, Key, ListOptions,
    ObjectMeta, ReadOptions, Result, Timestamp, WriterId, memory::MemoryStore,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::rig::{
    Gate, Sink, Tokens, asleep, builder, call, classify, dataset, from, noon, orders, post, soon, tenant,
};
use crate::small_disk::SmallDisk;

fn writer() -> WriterId {
    WriterId::new("shop-1").unwrap()
}

pub(super) fn open(folder: &Path) -> AuditLog {
    AuditLog::open(folder, writer(), AuditLogOptions { sync: false, ..AuditLogOptions::default() }).unwrap()
}

fn entry(number: usize) -> AuditEntry {
    AuditEntry {
        at: Timestamp::UNIX_EPOCH,
        tenant: tenant("bakery"),
        subject: "anna".to_owned(),
        credential: None,
        request: format!("r-{number}").parse().unwrap(),
        action: "classify".to_owned(),
        model: None,
        outcome: Outcome::Done,
        usage: None,
        cost: None,
        notes: Vec::new(),
        content: None,
    }
}

async fn fill(log: &AuditLog, numbers: std::ops::Range<usize>) {
    for number in numbers {
        log.append(entry(number)).await.unwrap();
    }
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    paths.sort();
    paths
}

/// The entries of a folder's log, heads left out.
pub(super) fn entries(folder: &Path) -> Vec<Value> {
    let lines = segments(folder).into_iter().flat_map(|path| {
        let text = fs::read_to_string(path).unwrap();
        text.lines().skip(1).map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    });
    lines.map(|line| line["entry"].clone()).collect()
}

fn shop(log: Arc<dyn AuditSink>, options: AuditOptions) -> Storefront {
    builder(&noon())
        .authenticator(Tokens::new([("a", Principal::new(tenant("a"), "anna"))]))
        .classify("messages", orders())
        .judgments(Arc::new(Sink::default()), dataset())
        .audit(log, options)
        .build()
        .unwrap()
}

#[tokio::test]
async fn an_entry_says_who_did_what_with_which_model_and_no_word_of_what_was_written() {
    let folder = TempDir::new().unwrap();
    let router = shop(Arc::new(open(folder.path())), AuditOptions::default()).router();
    let ask = json!({ "input": "SECRET loaves" });
    assert_eq!(call(&router, from("a", classify(&ask))).await.status, 200);
    let judge = json!({ "input": "SECRET", "label": "order" }).to_string();
    assert_eq!(call(&router, from("a", post("/v1/judgments", judge))).await.status, 201);
    // Kept before the answer left; nothing was closed.
    let entries = entries(folder.path());
    assert_eq!(entries.len(), 2);
    let (asked, judged) = (&entries[0], &entries[1]);
    assert_eq!(
        (&asked["tenant"], &asked["subject"], &asked["action"]),
        (&json!("a"), &json!("anna"), &json!("classify"))
    );
    assert_eq!(asked["model"]["offered"], "messages");
    assert_eq!(asked["model"]["served"]["name"], "scripted");
    assert_eq!((&asked["outcome"], &asked["at"]), (&json!("done"), &json!("2026-03-01T12:00:00Z")));
    assert_eq!((&judged["action"], &judged["outcome"]), (&json!("judgments"), &json!("done")));
    assert!(!fs::read_to_string(&segments(folder.path())[0]).unwrap().contains("SECRET"));
    assert_eq!(verify_folder(folder.path()).unwrap().entries, 2);
}

#[tokio::test]
async fn content_is_kept_where_it_was_asked_for() {
    let folder = TempDir::new().unwrap();
    let options = AuditOptions { content: true, ..AuditOptions::default() };
    let router = shop(Arc::new(open(folder.path())), options).router();
    assert_eq!(call(&router, from("a", classify(&json!({ "input": "two loaves" })))).await.status, 200);
    let content = &entries(folder.path())[0]["content"];
    assert_eq!(content["request"]["inputs"][0], "two loaves");
    assert_eq!(content["response"]["results"][0]["label"], "order");
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_an_entry_too() {
    let (folder, gate) = (TempDir::new().unwrap(), Gate::closed());
    let log = Arc::new(open(folder.path()));
    let storefront = builder(&noon()).classify("m", gate.clone()).audit(log.clone(), AuditOptions::default()).build();
    let router = storefront.unwrap().router();
    let asking = tokio::spawn(async move { call(&router, classify(&json!({ "input": "x" }))).await });
    gate.entered().await;
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    // Orders are carried out in turn: once this one is, so is the entry before it.
    log.seal().await.unwrap();
    assert_eq!(entries(folder.path())[0]["outcome"], "cut");
}

/// A disk that is gone.
#[derive(Debug)]
struct Gone;

impl AuditSink for Gone {
    fn append(&self, _: AuditEntry) -> BoxFuture<'static, Result<()>> {
        Box::pin(async { Err(Error::unavailable("append", "no disk").with("path", "/srv/audit")) })
    }
}

#[tokio::test]
async fn what_cannot_be_audited_is_refused_unless_the_builder_said_go_on() {
    let ask = || from("a", classify(&json!({ "input": "x" })));
    let refusing = shop(Arc::new(Gone), AuditOptions::default());
    let answer = call(&refusing.router(), ask()).await;
    assert_eq!((answer.status, answer.error("code"), refusing.unaudited()), (503, "unavailable", 1));
    assert!(!answer.body.to_string().contains("/srv"), "{answer:?}");
    let going_on = shop(Arc::new(Gone), AuditOptions { on_failure: AuditFailure::Continue, content: false });
    assert_eq!(call(&going_on.router(), ask()).await.status, 200);
    assert_eq!(going_on.unaudited(), 1);
}

#[tokio::test]
async fn many_at_once_are_all_kept_in_one_chain() {
    let folder = TempDir::new().unwrap();
    let options = AuditLogOptions { segment_bytes: 4096, ..AuditLogOptions::default() };
    let log = AuditLog::open(folder.path(), writer(), options).unwrap();
    for outcome in join_all((0..500).map(|number| log.append(entry(number)))).await {
        outcome.unwrap();
    }
    let verified = verify_folder(folder.path()).unwrap();
    assert_eq!((verified.entries, verified.torn), (500, 0));
    assert!(verified.segments > 10, "{verified:?}");
    let kept: Vec<_> = entries(folder.path()).iter().map(|entry| entry["request"].clone()).collect();
    assert_eq!(kept, (0..500).map(|number| json!(format!("r-{number}"))).collect::<Vec<_>>());
    for path in segments(folder.path()) {
        assert!(fs::metadata(&path).unwrap().len() <= 4096 + 200, "{path:?}");
    }
}

#[tokio::test]
async fn who_finds_nobody_writing_has_its_entry_with_the_system_before_it_goes_on() {
    let folder = TempDir::new().unwrap();
    let log = open(folder.path());
    let kept = log.append(entry(1));
    // Nobody has waited for anything.
    assert_eq!(entries(folder.path()).len(), 1);
    kept.now_or_never().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn entries_from_many_threads_are_all_kept_and_each_ones_in_order() {
    const CALLERS: usize = 8;
    const EACH: usize = 150;
    let folder = TempDir::new().unwrap();
    let options = AuditLogOptions { segment_bytes: 200_000, sync: false, ..AuditLogOptions::default() };
    let log = Arc::new(AuditLog::open(folder.path(), writer(), options).unwrap());
    let callers = (0..CALLERS).map(|caller| {
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            for number in 0..EACH {
                // Some are too large for a caller to write, and some end the segment.
                let content = (number % 40 == 7).then(|| json!("x".repeat(50_000)));
                log.append(AuditEntry { content, ..entry(caller * EACH + number) }).await.unwrap();
                if number % 50 == 49 {
                    log.seal().await.unwrap();
                }
            }
        })
    });
    for outcome in join_all(callers).await {
        outcome.unwrap();
    }
    let verified = verify_folder(folder.path()).unwrap();
    assert_eq!((verified.entries, verified.torn), ((CALLERS * EACH) as u64, 0));
    let mut next: Vec<_> = (0..CALLERS).map(|caller| caller * EACH).collect();
    for entry in entries(folder.path()) {
        let number: usize = entry["request"].as_str().unwrap()[2..].parse().unwrap();
        assert_eq!(number, next[number / EACH]);
        next[number / EACH] += 1;
    }
}

#[tokio::test]
async fn a_crash_at_any_byte_loses_nothing_that_was_told_to_be_kept() {
    let folder = TempDir::new().unwrap();
    let log = open(folder.path());
    fill(&log, 0..2).await;
    log.seal().await.unwrap();
    fill(&log, 2..3).await;
    drop(log);
    let [sealed, last] = segments(folder.path()).try_into().unwrap();
    let bytes = fs::read(&last).unwrap();
    for cut in 0..=bytes.len() {
        let crashed = TempDir::new().unwrap();
        fs::copy(&sealed, crashed.path().join(sealed.file_name().unwrap())).unwrap();
        fs::write(crashed.path().join(last.file_name().unwrap()), &bytes[..cut]).unwrap();
        let lines = bytes[..cut].iter().filter(|&&byte| byte == b'\n').count();
        let whole = 2 + lines.saturating_sub(1);
        assert_eq!(verify_folder(crashed.path()).unwrap().entries, whole as u64, "cut at {cut}");
        let log = open(crashed.path());
        fill(&log, 9..10).await;
        drop(log);
        let verified = verify_folder(crashed.path()).unwrap();
        assert_eq!((verified.entries, verified.torn), (whole as u64 + 1, 0), "cut at {cut}");
    }
}

#[tokio::test]
async fn whatever_is_changed_is_found_at_the_first_broken_link() {
    let folder = TempDir::new().unwrap();
    let log = open(folder.path());
    fill(&log, 0..3).await;
    log.seal().await.unwrap();
    fill(&log, 3..6).await;
    log.seal().await.unwrap();
    fill(&log, 6..7).await;
    drop(log);
    let paths = segments(folder.path());
    let texts: Vec<_> = paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let second: Vec<_> = texts[1].lines().collect();
    let join = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let name = paths[1].file_name().unwrap().to_str().unwrap();
    let third = paths[2].file_name().unwrap().to_str().unwrap();
    for (changed, segment, line) in [
        // An entry rewritten, with a good chain up to it: the next line does not follow.
        (join(&[second[0], &second[1].replace("anna", "eve"), second[2], second[3]]), name, "3"),
        (join(&[second[0], second[2], second[3]]), name, "2"),
        (join(&[second[0], second[2], second[1], second[3]]), name, "2"),
        (join(&[second[0], second[1], second[1], second[2], second[3]]), name, "3"),
        (join(&[&second[0].replace("shop-1", "shop-2"), second[1], second[2], second[3]]), name, "2"),
        // Its end cut off: the next segment does not follow.
        (join(&second[..3]), third, ""),
        (join(&[second[0], second[1], second[2], &second[3].replace("anna", "eve")]), third, "1"),
        (join(&[second[0], "{}", second[2], second[3]]), name, "2"),
    ] {
        fs::write(&paths[1], &changed).unwrap();
        let error = verify_folder(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{changed}");
        let found = (error.context("segment").unwrap(), error.context("line").unwrap_or_default());
        assert_eq!(found, (segment, line), "{error}\n{changed}");
    }
    fs::remove_file(&paths[1]).unwrap();
    assert_eq!(verify_folder(folder.path()).unwrap_err().context("segment"), Some(third));
    fs::write(&paths[1], &texts[1]).unwrap();
    assert_eq!(verify_folder(folder.path()).unwrap().entries, 7);
    // A whole line that is broken in the last segment is no torn end: somebody has to look.
    fs::write(&paths[2], texts[2].replace("anna", "\u{0}")).unwrap();
    let damaged = AuditLog::open(folder.path(), writer(), AuditLogOptions::default()).unwrap_err();
    assert_eq!(damaged.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_log_has_one_writer_at_a_time() {
    let folder = TempDir::new().unwrap();
    let log = open(folder.path());
    let second = AuditLog::open(folder.path(), writer(), AuditLogOptions::default()).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::AlreadyExists);
    drop(log);
    let other = AuditLog::open(folder.path(), WriterId::new("shop-2").unwrap(), AuditLogOptions::default());
    assert_eq!(other.unwrap_err().kind(), ErrorKind::Corrupt);
    drop(open(folder.path()));
    let empty = TempDir::new().unwrap();
    assert_eq!(verify_folder(empty.path()).unwrap_err().kind(), ErrorKind::NotFound);
}

/// A store whose creates land and answer that they did not, while it is told to.
#[derive(Debug)]
struct Doubtful(MemoryStore, AtomicBool);

#[async_trait]
impl ArtifactStore for Doubtful {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        let landed = self.0.create(key, bytes).await;
        if self.1.load(Ordering::Relaxed) { Err(Error::unavailable("create object", "no answer")) } else { landed }
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        self.0.read(key, options).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.0.head(key).await
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix, options)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.0.delete(key).await
    }
}

#[tokio::test]
async fn sealed_segments_reach_the_bucket_once_and_can_be_verified_there() {
    let (folder, memory) = (TempDir::new().unwrap(), MemoryStore::default());
    let store = Doubtful(memory.clone(), AtomicBool::new(true));
    let log = open(folder.path());
    fill(&log, 0..3).await;
    assert_eq!(log.ship(&store).await.unwrap(), 0);
    log.seal().await.unwrap();
    assert!(log.ship(&store).await.is_err());
    store.1.store(false, Ordering::Relaxed);
    assert_eq!(log.ship(&store).await.unwrap(), 1);
    fill(&log, 3..5).await;
    log.seal().await.unwrap();
    log.seal().await.unwrap();
    drop(log);
    // After a restart it knows what is there already.
    let log = open(folder.path());
    assert_eq!(log.ship(&store).await.unwrap(), 1);
    assert_eq!(log.ship(&store).await.unwrap(), 0);
    let verified = verify_bucket(&memory, &writer()).await.unwrap();
    assert_eq!((verified.segments, verified.entries), (2, 5));

    let keys: Vec<_> =
        memory.list_all(&audit_prefix(&writer())).await.unwrap().into_iter().map(|object| object.key).collect();
    let good = memory.get(&keys[0]).await.unwrap();
    let mut bad = good.to_vec();
    let at = bad.len() / 2;
    bad[at] ^= 1;
    memory.corrupt(&keys[0], bad.into());
    assert_eq!(verify_bucket(&memory, &writer()).await.unwrap_err().kind(), ErrorKind::Corrupt);
    memory.corrupt(&keys[0], good);
    memory.delete(&keys[0]).await.unwrap();
    let missing = verify_bucket(&memory, &writer()).await.unwrap_err();
    assert_eq!(missing.context("segment"), Some(keys[1].as_str()));
    let nobody = WriterId::new("nobody").unwrap();
    assert_eq!(verify_bucket(&memory, &nobody).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn shipping_goes_on_by_itself_and_once_more_at_the_end() {
    let (folder, store, clock, stop) = (TempDir::new().unwrap(), MemoryStore::default(), noon(), Cancellation::new());
    let log = Arc::new(open(folder.path()));
    fill(&log, 0..2).await;
    let shipping = tokio::spawn({
        let (log, store, clock, stop) = (Arc::clone(&log), store.clone(), clock.clone(), stop.clone());
        async move { log.ship_every(&store, Duration::from_secs(60), &clock as &dyn Clock, stop).await }
    });
    asleep(&clock, 1).await;
    clock.advance(Duration::from_secs(60));
    asleep(&clock, 1).await;
    assert_eq!(verify_bucket(&store, &writer()).await.unwrap().entries, 2);
    fill(&log, 2..3).await;
    stop.cancel();
    soon(shipping).await.unwrap();
    assert_eq!(verify_bucket(&store, &writer()).await.unwrap().entries, 3);
}

#[tokio::test]
async fn a_segment_that_cannot_be_begun_does_not_end_the_log() {
    let folder = TempDir::new().unwrap();
    let log = open(folder.path());
    fill(&log, 0..2).await;
    // What a full disk does, at the very file.
    fs::create_dir(folder.path().join("next")).unwrap();
    for _ in 0..2 {
        log.seal().await.unwrap_err();
    }
    fill(&log, 2..3).await;
    let store = MemoryStore::default();
    assert_eq!(log.ship(&store).await.unwrap(), 0, "the segment that is being written is not shipped");
    fs::remove_dir(folder.path().join("next")).unwrap();
    log.seal().await.unwrap();
    fill(&log, 3..4).await;
    assert_eq!(log.ship(&store).await.unwrap(), 1);
    assert_eq!(verify_bucket(&store, &writer()).await.unwrap().entries, 3);
    drop(log);
    assert_eq!(verify_folder(folder.path()).unwrap().entries, 4);
}

#[tokio::test]
async fn a_segment_never_grows_over_what_a_bucket_takes() {
    let folder = TempDir::new().unwrap();
    let log = open(folder.path());
    fs::create_dir(folder.path().join("next")).unwrap();
    let large = |number| AuditEntry { content: Some(json!("x".repeat(4 << 20))), ..entry(number) };
    let mut kept = 0;
    for number in 0..6 {
        kept += u64::from(log.append(large(number)).await.is_ok());
    }
    assert_eq!(kept, 3, "15 MiB hold three");
    fs::remove_dir(folder.path().join("next")).unwrap();
    log.append(large(6)).await.unwrap();
    log.seal().await.unwrap();
    let store = MemoryStore::default();
    assert_eq!(log.ship(&store).await.unwrap(), 2);
    assert_eq!(verify_bucket(&store, &writer()).await.unwrap().entries, 4);
}

#[tokio::test]
async fn content_that_is_too_much_for_an_entry_is_left_out_and_said_to_be() {
    let folder = TempDir::new().unwrap();
    let log = open(folder.path());
    log.append(AuditEntry { content: Some(json!("x".repeat(26 << 20))), ..entry(1) }).await.unwrap();
    log.append(AuditEntry { content: Some(json!("x".repeat(13 << 20))), ..entry(2) }).await.unwrap();
    log.seal().await.unwrap();
    let store = MemoryStore::default();
    assert_eq!(log.ship(&store).await.unwrap(), 2);
    let [first, second] = entries(folder.path()).try_into().unwrap();
    assert_eq!((&first["content"], &first["notes"][0]["code"]), (&Value::Null, &json!("content_left_out")));
    assert_eq!(second["content"].as_str().map(str::len), Some(13 << 20));
    let whole = AuditEntry { subject: "x".repeat(15 << 20), ..entry(3) };
    assert_eq!(log.append(whole).await.unwrap_err().kind(), ErrorKind::TooLarge);
}

#[tokio::test]
async fn a_full_disk_refuses_entries_keeps_what_it_has_and_goes_on_once_there_is_space() {
    let folder = TempDir::new().unwrap();
    let Some(_disk) = SmallDisk::mount(folder.path(), 1) else { return };
    let options = AuditLogOptions { segment_bytes: 100_000, sync: false, ..AuditLogOptions::default() };
    let log = AuditLog::open(folder.path(), writer(), options.clone()).unwrap();
    let large = |number| AuditEntry { content: Some(json!("x".repeat(30_000))), ..entry(number) };
    let mut kept = 0;
    let error = loop {
        match log.append(large(kept)).await {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    assert!(kept > 20);
    // Shipped segments go to the bucket, and their files may go from here.
    let store = MemoryStore::default();
    log.ship(&store).await.unwrap_or_default();
    fs::remove_file(&segments(folder.path())[0]).unwrap();
    log.append(large(kept)).await.unwrap();
    log.seal().await.unwrap();
    log.ship(&store).await.unwrap();
    assert_eq!(verify_bucket(&store, &writer()).await.unwrap().entries, kept as u64 + 1);
    drop(log);
    AuditLog::open(folder.path(), writer(), options).unwrap();
}
