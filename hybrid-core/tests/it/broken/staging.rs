use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hybrid_core::{
    BoxStream, Error, ErrorKind, FileName, Key, MAX_OBJECT_BYTES, Result, StagedFile, Staging, Timestamp,
    conformance::{
        Report,
        staging::{self, StagingHarness},
    },
};
use tempfile::TempDir;

#[derive(Clone, Copy, Debug, PartialEq)]
enum StagingFault {
    EndsAtAZero,
    ReadsAnySize,
    KeepsTheOld,
    WritesInTwoSteps,
    RefusesTheSecond,
    MakesRoomFirst,
    ListsInTheOrderOfLength,
    TakesFoldersForPrefixes,
    MissesWhatIsDeleted,
    FindsEverything,
    HasOneLocation,
}

use StagingFault::*;

const PLANTED: &[super::Planted<StagingFault>] = &[
    (EndsAtAZero, &["files_come_back_as_put"]),
    (ReadsAnySize, &["a_large_file_is_whole"]),
    (KeepsTheOld, &["a_later_file_takes_the_place"]),
    (WritesInTwoSteps, &["readers_see_the_old_file_or_the_new", "a_dropped_put_leaves_a_whole_file"]),
    (RefusesTheSecond, &["two_who_put_at_once_leave_one_whole"]),
    (MakesRoomFirst, &["a_failed_put_leaves_what_was_there"]),
    (ListsInTheOrderOfLength, &["a_listing_is_in_order"]),
    (TakesFoldersForPrefixes, &["folders_are_apart"]),
    (MissesWhatIsDeleted, &["deleted_files_are_gone"]),
    (FindsEverything, &["what_is_not_there_is_not_found"]),
    (HasOneLocation, &["locations_tell_folders_apart"]),
];

#[tokio::test]
async fn the_suite_notices_broken_staging_places() {
    super::check(PLANTED, |fault| run(Some(fault))).await;
}

#[tokio::test]
async fn the_suite_passes_a_place_without_a_fault() {
    run(None).await.assert();
}

async fn run(fault: Option<StagingFault>) -> Report {
    staging::run(&Harness { fault, scratch: tempfile::tempdir().unwrap() }).await
}

#[derive(Debug)]
struct Harness {
    fault: Option<StagingFault>,
    scratch: TempDir,
}

#[async_trait]
impl StagingHarness for Harness {
    async fn staging(&self) -> Result<Arc<dyn Staging>> {
        Ok(Arc::new(Toy { fault: self.fault, files: Arc::default(), busy: AtomicBool::new(false) }))
    }

    fn folder(&self) -> PathBuf {
        tempfile::tempdir_in(&self.scratch).unwrap().keep()
    }
}

/// Files in memory, by folder and name joined.
#[derive(Debug)]
struct Toy {
    fault: Option<StagingFault>,
    files: Arc<Mutex<BTreeMap<String, Bytes>>>,
    busy: AtomicBool,
}

impl Toy {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, fault: StagingFault) -> bool {
        self.fault == Some(fault)
    }
}

fn path_of(folder: &Key, name: &FileName) -> String {
    format!("{folder}/{name}")
}

#[async_trait]
impl Staging for Toy {
    async fn put_file(&self, folder: &Key, name: &FileName, source: &Path) -> Result<()> {
        let path = path_of(folder, name);
        if self.has(MakesRoomFirst) {
            self.lock().remove(&path);
        }
        if self.has(RefusesTheSecond) && self.busy.swap(true, Ordering::SeqCst) {
            return Err(Error::unavailable("stage file", "another put is in the way"));
        }
        let mut bytes = fs::read(source).map_err(|error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let kind = if missing { ErrorKind::NotFound } else { ErrorKind::InvalidInput };
            Error::new(kind, "stage file", "the file cannot be read").with("path", source.display())
        })?;
        if self.has(EndsAtAZero) {
            bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
        }
        if self.has(WritesInTwoSteps) {
            self.lock().insert(path.clone(), bytes[..bytes.len() / 2].to_vec().into());
        }
        tokio::task::yield_now().await;
        self.busy.store(false, Ordering::SeqCst);
        if !(self.has(KeepsTheOld) && self.lock().contains_key(&path)) {
            self.lock().insert(path, bytes.into());
        }
        Ok(())
    }

    async fn read_file(&self, folder: &Key, name: &FileName) -> Result<Bytes> {
        match self.lock().get(&path_of(folder, name)) {
            Some(bytes) if bytes.len() > MAX_OBJECT_BYTES && !self.has(ReadsAnySize) => {
                Err(Error::too_large("read staged file", "the file is over the limit").with("name", name))
            }
            Some(bytes) => Ok(bytes.clone()),
            None if self.has(FindsEverything) => Ok(Bytes::new()),
            None => Err(Error::not_found("read staged file", "no such file").with("name", name)),
        }
    }

    fn list(&self, folder: &Key) -> BoxStream<'static, Result<StagedFile>> {
        let prefix = if self.has(TakesFoldersForPrefixes) { folder.to_string() } else { format!("{folder}/") };
        let files = self.lock();
        let mut found: Vec<_> = files
            .iter()
            .filter_map(|(path, bytes)| {
                let name = FileName::new(path.strip_prefix(&prefix)?.trim_start_matches('/')).ok()?;
                Some(StagedFile { name, size: bytes.len() as u64, modified: Timestamp::UNIX_EPOCH })
            })
            .collect();
        if self.has(ListsInTheOrderOfLength) {
            found.sort_by_key(|file| file.name.as_str().len());
        }
        stream::iter(found.into_iter().map(Ok)).boxed()
    }

    async fn delete(&self, folder: &Key, name: &FileName) -> Result<()> {
        match self.lock().remove(&path_of(folder, name)) {
            None if self.has(MissesWhatIsDeleted) => Err(Error::not_found("delete staged file", "no such file")),
            _ => Ok(()),
        }
    }

    fn location(&self, folder: &Key) -> String {
        if self.has(HasOneLocation) { "memory:a/m/".to_owned() } else { format!("memory:{folder}/") }
    }
}
