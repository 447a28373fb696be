//! Whole files in a folder.

use std::{fs, os::unix::fs::symlink, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use hybrid_core::{
    ErrorKind, FileName, Result, Staging,
    conformance::staging::{self, StagingHarness},
};
use hybrid_local::FolderStore;

use super::{key, set_mode, temporary_files};

#[derive(Debug)]
struct Harness(tempfile::TempDir);

#[async_trait]
impl StagingHarness for Harness {
    async fn staging(&self) -> Result<Arc<dyn Staging>> {
        Ok(Arc::new(FolderStore::open(self.folder())?.staging()))
    }

    fn folder(&self) -> PathBuf {
        tempfile::tempdir_in(&self.0).unwrap().keep()
    }
}

fn name(text: &str) -> FileName {
    FileName::new(text).unwrap()
}

#[tokio::test]
async fn the_contract_is_kept() {
    staging::run(&Harness(tempfile::tempdir().unwrap())).await.assert();
}

#[tokio::test]
async fn no_put_leads_out_of_the_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let (site, outside) = (scratch.path().join("site"), scratch.path().join("outside"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "theirs").unwrap();
    fs::write(scratch.path().join("ours"), "ours").unwrap();
    let store = FolderStore::open(&site).unwrap();
    let staging = store.staging();
    staging.put_file(&key("m"), &name("a"), &scratch.path().join("ours")).await.unwrap();
    symlink(&outside, site.join("m/link")).unwrap();
    symlink(outside.join("secret"), site.join("m/file")).unwrap();

    let error = staging.put_file(&key("m"), &name("link/b"), &scratch.path().join("ours")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    let error = staging.read_file(&key("m"), &name("file")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    let listed: Vec<_> = staging.list(&key("m")).try_collect().await.unwrap();
    assert_eq!(listed.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["a"]);
    // A put takes a link's place and leaves alone what it points to.
    staging.put_file(&key("m"), &name("file"), &scratch.path().join("ours")).await.unwrap();
    assert_eq!(staging.read_file(&key("m"), &name("file")).await.unwrap(), "ours");
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "theirs");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}

#[tokio::test]
async fn a_put_that_fails_leaves_no_temporary_file() {
    let scratch = tempfile::tempdir().unwrap();
    let site = scratch.path().join("site");
    let source = scratch.path().join("source");
    fs::write(&source, "bytes").unwrap();
    let staging = FolderStore::open(&site).unwrap().staging();
    staging.put_file(&key("m"), &name("sub/a"), &source).await.unwrap();
    // A folder has the name.
    let error = staging.put_file(&key("m"), &name("sub"), &source).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    set_mode(&source, 0o000);
    if fs::read(&source).is_err() {
        let error = staging.put_file(&key("m"), &name("b"), &source).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }
    drop(staging);
    assert_eq!(temporary_files(&site), 0);
}
