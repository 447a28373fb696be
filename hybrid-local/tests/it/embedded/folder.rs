//! What a store in a folder promises beyond the port.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::PathBuf, process::Command, sync::Arc};

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, ErrorKind, Key, ListOptions, ReadOptions, Result,
    conformance::artifacts::{self, ArtifactHarness},
};
use hybrid_local::FolderStore;

use super::{child::Child, key, temporary_files};

#[derive(Debug)]
struct InFolder {
    store: FolderStore,
    path: PathBuf,
}

#[async_trait]
impl ArtifactHarness for InFolder {
    fn store(&self) -> Arc<dyn ArtifactStore> {
        Arc::new(self.store.clone())
    }

    async fn corrupt(&self, key: &Key) -> bool {
        let path = self.path.join(key.as_str());
        let mut bytes = fs::read(&path).unwrap();
        bytes[0] ^= 1;
        // Objects are read-only files, so the damaged one takes its place.
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        true
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_keeps_the_contract_of_a_store() {
    let scratch = tempfile::tempdir().unwrap();
    let harness = InFolder { store: FolderStore::open(scratch.path()).unwrap(), path: scratch.path().to_owned() };
    let report = artifacts::run(&harness).await;
    report.assert();
    let skipped: Vec<_> =
        report.cases().iter().filter(|case| case.outcome != hybrid_core::conformance::Outcome::Passed).collect();
    assert!(skipped.is_empty(), "{skipped:?}");
    drop(harness);
    assert_eq!(temporary_files(scratch.path()), 0, "a store that closes leaves nothing");
}

#[tokio::test]
async fn of_racers_in_many_processes_one_wins() {
    let scratch = tempfile::tempdir().unwrap();
    let mut racers: Vec<_> = (1..=16).map(|seed| Child::start("racer", scratch.path(), seed)).collect();
    racers.iter_mut().for_each(|racer| assert_eq!(racer.hear().as_deref(), Some("ready")));
    racers.iter_mut().for_each(Child::go);
    let mut winners: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in racers.into_iter().flat_map(Child::hear_all) {
        let (name, seed) = line.split_once(' ').unwrap();
        winners.entry(name.to_owned()).or_default().push(seed.to_owned());
    }
    assert_eq!(winners.len(), 20);
    let store = FolderStore::open(scratch.path()).unwrap();
    for (name, winners) in winners {
        let [winner] = &winners[..] else { panic!("{name} was won by {winners:?}") };
        assert_eq!(store.get(&key(&name)).await.unwrap(), *winner);
    }
    assert_eq!(store.list_all("").await.unwrap().len(), 20);
}

async fn names(store: &FolderStore, prefix: &str, start_after: Option<&str>) -> Vec<String> {
    let options = ListOptions { start_after: start_after.map(key) };
    store.list(prefix, options).map_ok(|meta| meta.key.to_string()).try_collect().await.unwrap()
}

#[tokio::test]
async fn a_listing_from_any_place_is_that_part_of_the_whole() {
    let scratch = tempfile::tempdir().unwrap();
    let store = FolderStore::open(scratch.path()).unwrap();
    let mut all: Vec<String> = Vec::new();
    for base in ["a", "a-b", "a.b", "ab", "b", "a/x", "a/x-y", "a/x.y", "a0"] {
        for end in ["/0", "/1-", "/1.", "/1/0", "-end", ".end"] {
            all.push(format!("{base}{end}"));
        }
    }
    for name in &all {
        store.create(&key(name), name.clone().into()).await.unwrap();
    }
    all.sort();
    assert_eq!(names(&store, "", None).await, all);
    let probes: Vec<String> = all.iter().flat_map(|name| (1..=name.len()).map(|end| name[..end].to_owned())).collect();
    for prefix in &probes {
        let expected: Vec<_> = all.iter().filter(|name| name.starts_with(prefix)).cloned().collect();
        assert_eq!(names(&store, prefix, None).await, expected, "prefix {prefix}");
    }
    for after in probes.iter().filter(|probe| Key::new(probe).is_ok()) {
        for prefix in ["", "a/", "a/x", "b"] {
            let expected: Vec<_> =
                all.iter().filter(|name| name.starts_with(prefix) && *name > after).cloned().collect();
            assert_eq!(names(&store, prefix, Some(after)).await, expected, "prefix {prefix} after {after}");
        }
    }
}

#[tokio::test]
async fn what_others_put_into_the_folder_harms_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let (root, outside) = (scratch.path().join("store"), scratch.path().join("outside"));
    let store = FolderStore::open(&root).unwrap();
    store.create(&key("a/object"), "mine".into()).await.unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink(&outside, root.join("linked")).unwrap();
    symlink(outside.join("secret"), root.join("link")).unwrap();
    fs::write(root.join("UPPER"), "").unwrap();
    fs::write(root.join("white space"), "").unwrap();
    fs::create_dir(root.join(".Trash")).unwrap();
    fs::write(root.join(".Trash/x"), "").unwrap();
    assert!(Command::new("mkfifo").arg(root.join("pipe")).status().unwrap().success());

    assert_eq!(names(&store, "", None).await, ["a/object"]);
    for prefix in
        ["linked", "linked/", "linked/s", "../", "../outside/", "a/../../outside/", "/", "a//", ".hybrid~tmp/"]
    {
        assert_eq!(names(&store, prefix, None).await, [""; 0], "{prefix}");
    }
    let kind = |result: Result<()>| result.map_err(|error| error.kind());
    for through in ["linked/secret", "link"] {
        assert_eq!(kind(store.get(&key(through)).await.map(drop)), Err(ErrorKind::PermissionDenied), "{through}");
        assert_eq!(kind(store.head(&key(through)).await.map(drop)), Err(ErrorKind::PermissionDenied), "{through}");
    }
    assert_eq!(kind(store.create(&key("linked/new"), "x".into()).await), Err(ErrorKind::PermissionDenied));
    assert_eq!(kind(store.delete(&key("linked/secret")).await), Err(ErrorKind::PermissionDenied));
    assert_eq!(kind(store.create(&key("link"), "x".into()).await), Err(ErrorKind::InvalidInput));
    store.delete(&key("link")).await.unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
    // A pipe has no end to wait for.
    assert_eq!(kind(store.get(&key("pipe")).await.map(drop)), Err(ErrorKind::NotFound));
}

#[tokio::test]
async fn an_object_and_a_folder_cannot_share_a_name() {
    let scratch = tempfile::tempdir().unwrap();
    let store = FolderStore::open(scratch.path()).unwrap();
    store.create(&key("a/b"), "x".into()).await.unwrap();
    let above = store.create(&key("a"), "x".into()).await.unwrap_err();
    assert_eq!(above.kind(), ErrorKind::InvalidInput, "{above}");
    let below = store.create(&key("a/b/c"), "x".into()).await.unwrap_err();
    assert_eq!(below.kind(), ErrorKind::InvalidInput, "{below}");
    for nothing in ["a", "a/b/c"] {
        assert_eq!(store.get(&key(nothing)).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(store.head(&key(nothing)).await.unwrap_err().kind(), ErrorKind::NotFound);
        store.delete(&key(nothing)).await.unwrap();
    }
    assert_eq!(names(&store, "", None).await, ["a/b"]);
}

#[tokio::test]
async fn a_store_goes_on_when_its_temporary_files_are_cleaned_away() {
    let scratch = tempfile::tempdir().unwrap();
    let store = FolderStore::open(scratch.path()).unwrap();
    store.create(&key("a"), "x".into()).await.unwrap();
    fs::remove_dir_all(scratch.path().join(".hybrid~tmp")).unwrap();
    store.create(&key("b"), "x".into()).await.unwrap();
    assert_eq!(names(&store, "", None).await, ["a", "b"]);
}

#[tokio::test]
async fn a_file_too_large_to_be_an_object_is_refused_but_for_its_parts() {
    let scratch = tempfile::tempdir().unwrap();
    let store = FolderStore::open(scratch.path()).unwrap();
    fs::File::create(scratch.path().join("huge")).unwrap().set_len(1 << 40).unwrap();
    let error = store.get(&key("huge")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(store.read(&key("huge"), ReadOptions::range(1 << 39..(1 << 39) + 3)).await.unwrap(), vec![0; 3]);
}

#[tokio::test]
async fn a_listing_can_be_left_at_any_time() {
    let scratch = tempfile::tempdir().unwrap();
    let store = FolderStore::open(scratch.path()).unwrap();
    for i in 0..5 {
        store.create(&key(&format!("a/{i}")), "x".into()).await.unwrap();
    }
    let first = store.list("a/", ListOptions::default()).take(1).try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(first[0].key, key("a/0"));
}

#[test]
fn a_path_that_is_no_folder_is_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = FolderStore::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    }
}
