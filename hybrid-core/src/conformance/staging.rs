//! The suite of [`Staging`].
//!
//! Like the trainer's it uses the file system: what is staged are files.

use std::{
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{
    TryStreamExt,
    future::{join, join_all},
};

use super::{
    Report,
    case::{CASE_LIMIT, CaseResult, Stop, equal, fail, noise, refused, same_bytes, yield_now},
};
use crate::{Error, ErrorKind, FileName, Key, MAX_OBJECT_BYTES, Result, StagedFile, Staging};

/// What the suite needs of an adapter's author.
#[async_trait]
pub trait StagingHarness: Debug + Send + Sync {
    /// A fresh, empty place.
    async fn staging(&self) -> Result<Arc<dyn Staging>>;

    /// A new, empty, existing folder of this machine, different at each call.
    fn folder(&self) -> PathBuf;
}

/// Runs all cases against an adapter, each on a place of its own.
pub async fn run(harness: &dyn StagingHarness) -> Report {
    let mut report = Report::new("staging");
    run_cases!(report, CASE_LIMIT, |_name| harness, [
        cases::files_come_back_as_put => "`read_file` returns what `put_file` copied, to the byte",
        cases::a_large_file_is_whole => "a large file is there whole, and too large to be read in one piece",
        cases::a_later_file_takes_the_place => "`put_file` takes the place of a file that is there",
        cases::readers_see_the_old_file_or_the_new => "readers see the old file or the new one, whole",
        cases::two_who_put_at_once_leave_one_whole => "of two files put at once one is there, whole",
        cases::a_failed_put_leaves_what_was_there => "a put that fails leaves what was there, and names the local file",
        cases::a_dropped_put_leaves_a_whole_file => "a put that is dropped leaves the old file or the new one, whole",
        cases::a_listing_is_in_order => "`list` yields each file once, in byte order of the names, with its size",
        cases::folders_are_apart => "`list` yields the files of the folder and of those below it, and no others",
        cases::deleted_files_are_gone => "a deleted file is gone; a delete of a file that is not there is `Ok`",
        cases::what_is_not_there_is_not_found => "`read_file` of a file that is not there is `NotFound`, a folder that is not there is empty",
        cases::locations_tell_folders_apart => "`location` names the folder, differently for each",
    ]);
    report
}

mod cases {
    use super::*;

    type Harness<'a> = &'a dyn StagingHarness;

    struct Place {
        staging: Arc<dyn Staging>,
        local: PathBuf,
    }

    impl Place {
        async fn open(harness: Harness<'_>) -> CaseResult<Self> {
            Ok(Self { staging: harness.staging().await?, local: harness.folder() })
        }

        fn write(&self, name: &str, bytes: &[u8]) -> CaseResult<PathBuf> {
            let path = self.local.join(name);
            fs::write(&path, bytes).map_err(|error| {
                Stop::from(Error::internal("write file", "the file system refused").with_source(error))
            })?;
            Ok(path)
        }

        async fn put(&self, folder: &str, name: &str, bytes: &[u8]) -> CaseResult {
            let path = self.write("source", bytes)?;
            Ok(self.staging.put_file(&Key::new(folder)?, &FileName::new(name)?, &path).await?)
        }

        async fn read(&self, folder: &str, name: &str) -> Result<Bytes> {
            self.staging.read_file(&Key::new(folder)?, &FileName::new(name)?).await
        }

        async fn list(&self, folder: &str) -> CaseResult<Vec<(String, u64)>> {
            let files: Vec<StagedFile> = self.staging.list(&Key::new(folder)?).try_collect().await?;
            Ok(files.into_iter().map(|file| (file.name.as_str().to_owned(), file.size)).collect())
        }
    }

    fn named(names: &[(&str, u64)]) -> Vec<(String, u64)> {
        names.iter().map(|&(name, size)| (name.to_owned(), size)).collect()
    }

    pub(super) async fn files_come_back_as_put(harness: Harness<'_>) -> CaseResult {
        let place = Place::open(harness).await?;
        let all_bytes: Vec<u8> = (0..=255).collect();
        let files = [("empty", vec![]), ("config.json", all_bytes), ("sub/Model-00001-of-00002.bin", noise(1, 70_000))];
        for (name, bytes) in &files {
            place.put("exports/m", name, bytes).await?;
        }
        for (name, bytes) in &files {
            same_bytes(name, &place.read("exports/m", name).await?, bytes)?;
        }
        Ok(())
    }

    pub(super) async fn a_large_file_is_whole(harness: Harness<'_>) -> CaseResult {
        let place = Place::open(harness).await?;
        let limit = noise(2, MAX_OBJECT_BYTES);
        place.put("m", "limit", &limit).await?;
        same_bytes("a file of the most bytes that are read", &place.read("m", "limit").await?, &limit)?;
        let large = noise(3, MAX_OBJECT_BYTES + 1);
        place.put("m", "limit", &large).await?;
        equal("the files", &place.list("m").await?, &named(&[("limit", large.len() as u64)]))?;
        refused("reading more than the limit", ErrorKind::TooLarge, place.read("m", "limit").await)
    }

    pub(super) async fn a_later_file_takes_the_place(harness: Harness<'_>) -> CaseResult {
        let place = Place::open(harness).await?;
        for bytes in [noise(1, 5_000), noise(2, 10), vec![], noise(3, 9_000)] {
            place.put("m", "a", &bytes).await?;
            same_bytes("the file", &place.read("m", "a").await?, &bytes)?;
            equal("the files", &place.list("m").await?, &named(&[("a", bytes.len() as u64)]))?;
        }
        Ok(())
    }

    pub(super) async fn readers_see_the_old_file_or_the_new(harness: Harness<'_>) -> CaseResult {
        let place = Place::open(harness).await?;
        let (folder, name) = (Key::new("m")?, FileName::new("a")?);
        let versions = [noise(1, 300_000), noise(2, 200_000)];
        let paths = [place.write("v0", &versions[0])?, place.write("v1", &versions[1])?];
        place.staging.put_file(&folder, &name, &paths[0]).await?;
        let write = async {
            for round in 0..10 {
                place.staging.put_file(&folder, &name, &paths[(round + 1) % 2]).await?;
            }
            CaseResult::Ok(())
        };
        let read = async {
            for _ in 0..20 {
                let found = place.staging.read_file(&folder, &name).await?;
                let whole = versions.iter().any(|version| found == *version);
                ensure!(whole, "a reader saw {} bytes that are neither file", found.len());
                yield_now().await;
            }
            CaseResult::Ok(())
        };
        let (written, seen) = join(write, read).await;
        written.and(seen)
    }

    pub(super) async fn two_who_put_at_once_leave_one_whole(harness: Harness<'_>) -> CaseResult {
        let place = Place::open(harness).await?;
        let (folder, name) = (Key::new("m")?, FileName::new("a")?);
        let versions: Vec<_> = (0..4).map(|i| noise(i, 100_000 + i as usize)).collect();
        let mut puts = Vec::new();
        for (i, bytes) in versions.iter().enumerate() {
            let path = place.write(&format!("v{i}"), bytes)?;
            let (staging, folder, name) = (Arc::clone(&place.staging), folder.clone(), name.clone());
            puts.push(async move { staging.put_file(&folder, &name, &path).await });
        }
        for put in join_all(puts).await {
            put?;
        }
        let found = place.read("m", "a").await?;
        ensure!(versions.iter().any(|version| found == *version), "{} bytes that are none of the files", found.len());
        equal("the count of files", &place.list("m").await?.len(), &1)
    }

    pub(super) async fn a_failed_put_leaves_what_was_there(harness: Harness<'_>) -> CaseResult {
        let place = Place::open(harness).await?;
        place.put("m", "a", b"old").await?;
        let missing = place.local.join("no-such-file");
        let sources: [(&Path, ErrorKind); 2] =
            [(&missing, ErrorKind::NotFound), (&place.local, ErrorKind::InvalidInput)];
        for (source, kind) in sources {
            for name in ["a", "b"] {
                let put = place.staging.put_file(&Key::new("m")?, &FileName::new(name)?, source).await;
                if let Err(error) = &put {
                    let names = error.to_string().contains(&source.display().to_string());
                    ensure!(names, "the error does not name {}: {error}", source.display());
                }
                refused(&format!("a put of {}", source.display()), kind, put)?;
            }
        }
        same_bytes("the file that was there", &place.read("m", "a").await?, b"old")?;
        equal("the files", &place.list("m").await?, &named(&[("a", 3)]))
    }

    pub(super) async fn a_dropped_put_leaves_a_whole_file(harness: Harness<'_>) -> CaseResult {
        let place = Place::open(harness).await?;
        let (folder, name) = (Key::new("m")?, FileName::new("a")?);
        let old = noise(1, 1_000);
        place.put("m", "a", &old).await?;
        let new = noise(2, 3 * 1024 * 1024);
        let path = place.write("new", &new)?;
        for turns in [1, 2, 4, 8] {
            let mut put = Box::pin(place.staging.put_file(&folder, &name, &path));
            for _ in 0..turns {
                if futures_util::poll!(&mut put).is_ready() {
                    break;
                }
                yield_now().await;
            }
            drop(put);
            let found = place.read("m", "a").await?;
            ensure!(
                found == old || found == new,
                "after a dropped put there are {} bytes of neither file",
                found.len()
            );
        }
        equal("the count of files", &place.list("m").await?.len(), &1)
    }

    pub(super) async fn a_listing_is_in_order(harness: Harness<'_>) -> CaseResult {
        let place = Place::open(harness).await?;
        let mut expected = Vec::new();
        for (size, name) in ["b", "a/b", "a-b", "A", "a.b", "a/Z/1", "a/b c", "ü"].into_iter().enumerate() {
            place.put("exports/m", name, &vec![7; size]).await?;
            expected.push((name.to_owned(), size as u64));
        }
        expected.sort();
        equal("the files", &place.list("exports/m").await?, &expected)
    }

    pub(super) async fn folders_are_apart(harness: Harness<'_>) -> CaseResult {
        let place = Place::open(harness).await?;
        for (folder, name) in [("m", "a"), ("m", "sub/b"), ("m/sub", "c"), ("m2", "d"), ("m-2", "e"), ("other/m", "f")]
        {
            place.put(folder, name, name.as_bytes()).await?;
        }
        equal("m", &place.list("m").await?, &named(&[("a", 1), ("sub/b", 5), ("sub/c", 1)]))?;
        equal("m/sub", &place.list("m/sub").await?, &named(&[("b", 5), ("c", 1)]))?;
        equal("m2", &place.list("m2").await?, &named(&[("d", 1)]))?;
        same_bytes("m/sub/b by its other name", &place.read("m/sub", "b").await?, b"sub/b")
    }

    pub(super) async fn deleted_files_are_gone(harness: Harness<'_>) -> CaseResult {
        let place = Place::open(harness).await?;
        let folder = Key::new("m")?;
        place.put("m", "a", b"1").await?;
        place.put("m", "sub/b", b"2").await?;
        for name in ["a", "a", "never", "sub/never", "no/such/folder"] {
            place.staging.delete(&folder, &FileName::new(name)?).await?;
        }
        refused("reading a deleted file", ErrorKind::NotFound, place.read("m", "a").await)?;
        equal("the files", &place.list("m").await?, &named(&[("sub/b", 1)]))
    }

    pub(super) async fn what_is_not_there_is_not_found(harness: Harness<'_>) -> CaseResult {
        let place = Place::open(harness).await?;
        place.put("m", "sub/a", b"1").await?;
        for (folder, name) in [("m", "b"), ("m", "sub"), ("m", "sub/b"), ("m2", "sub/a")] {
            let what = format!("reading {name} in {folder}");
            refused(&what, ErrorKind::NotFound, place.read(folder, name).await)?;
        }
        equal("a folder that is not there", &place.list("m2").await?, &vec![])
    }

    pub(super) async fn locations_tell_folders_apart(harness: Harness<'_>) -> CaseResult {
        let place = Place::open(harness).await?;
        let (one, two) = (place.staging.location(&Key::new("a/m")?), place.staging.location(&Key::new("a/m2")?));
        ensure!(one.ends_with("a/m/") && two.ends_with("a/m2/"), "the locations are {one} and {two}");
        equal("the location, asked again", &place.staging.location(&Key::new("a/m")?), &one)?;
        if one == two { fail("two folders have one location") } else { Ok(()) }
    }
}
