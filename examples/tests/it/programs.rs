//! The programs as a shell sees them: how they end, and what they say.

use std::{
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use hybrid_core::{
    Clock, DatasetName, ErrorKind, Judgment, JudgmentId, JudgmentSink, ModelName, SystemClock, SystemIds, TenantId,
    WriterId, memory::MemoryOutbox,
};
use hybrid_examples::{locations::Locations, order, site::Site, train_job::store_golden};
use hybrid_sync::capture::{Capture, CaptureOptions};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
};

fn program(path: &str, arguments: &[&str], site: &Path) -> Command {
    let mut command = Command::new(path);
    command.args(arguments).arg("--site").arg(site).kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::piped());
    command
}

async fn ends(mut child: Child) -> ExitStatus {
    // `wait` would close its input.
    let input = child.stdin.take();
    let status = tokio::time::timeout(Duration::from_secs(60), child.wait()).await.expect("it does not end").unwrap();
    drop(input);
    status
}

#[cfg(unix)]
#[tokio::test]
async fn a_kitchen_ends_when_it_is_told_to_though_its_input_stays_open() {
    let site = tempfile::tempdir().unwrap();
    let arguments = ["--events", "--until-input-ends"];
    let mut kitchen = program(env!("CARGO_BIN_EXE_kitchen"), &arguments, site.path()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(kitchen.stdout.as_mut().unwrap()).read_line(&mut said).await.unwrap();
    assert!(said.contains("ready"), "{said}");
    let id = kitchen.id().unwrap().to_string();
    assert!(Command::new("kill").arg(id).status().await.unwrap().success());
    assert!(ends(kitchen).await.success());
}

#[tokio::test]
async fn a_program_that_nobody_reads_ends_as_if_somebody_did() {
    let site = tempfile::tempdir().unwrap();
    let mut quickstart = program(env!("CARGO_BIN_EXE_quickstart"), &["--json"], site.path()).spawn().unwrap();
    drop(quickstart.stdout.take());
    let mut first = [0; 1];
    quickstart.stderr.as_mut().unwrap().read_exact(&mut first).await.unwrap();
    drop(quickstart.stderr.take());
    assert!(ends(quickstart).await.success());
}

#[tokio::test]
async fn an_error_is_one_line_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [env!("CARGO_BIN_EXE_kitchen"), env!("CARGO_BIN_EXE_storefront")] {
        let output = program(path, &[], &file).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.starts_with("error: "), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

#[tokio::test]
async fn trainings_that_are_ordered_side_by_side_have_numbers_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::open(&Locations::folder(folder.path())).await.unwrap();
    let golden = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/data/bakery/golden.jsonl"));
    let golden = store_golden(&*site.store(), &TenantId::single(), golden).await.unwrap();
    let model = ModelName::new("bakery").unwrap();
    let nothing = order::training(&site, model.clone(), golden.clone()).await.unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::NotFound, "{nothing}");

    let clock = SystemClock;
    let writer = WriterId::new("test").unwrap();
    let capture =
        Capture::new(Arc::new(MemoryOutbox::default()), site.store(), site.clock(), writer, CaptureOptions::default());
    let judgment = Judgment {
        id: JudgmentId::next(&SystemIds::default()),
        task: "classify".to_owned(),
        input: json!({ "text": "two rolls" }),
        decision: json!({ "label": "order" }),
        answer: None,
        model: None,
        request: None,
        by: None,
        at: clock.now(),
        tags: [].into(),
    };
    capture.record(&TenantId::single(), &DatasetName::new("bakery").unwrap(), judgment).await.unwrap();
    capture.drain().await.unwrap();
    // None of them has a result yet: no kitchen is there.
    let orders = (0..4).map(|_| order::training(&site, model.clone(), golden.clone()));
    let mut versions: Vec<u64> =
        futures_util::future::try_join_all(orders).await.unwrap().into_iter().map(|(_, order)| order.version).collect();
    versions.sort_unstable();
    assert_eq!(versions, [1, 2, 3, 4]);
}

#[tokio::test]
async fn a_storefront_apart_from_its_kitchen_makes_no_keys_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let url = url::Url::from_directory_path(folder.path().join("bucket")).unwrap();
    let locations = Locations { artifacts: Some(url), ..Locations::folder(folder.path().join("site")) };
    let site = Site::open(&locations).await.unwrap();
    let error = site.trust().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("release.pub.pem") && error.to_string().contains("builder.pub.pem"), "{error}");
    assert_eq!(std::fs::read_dir(site.keys()).unwrap().count(), 0);
    site.signers().unwrap();
    site.trust().unwrap();
}

/// A disk of a few mebibytes over a folder, where the system lets this user mount it.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    async fn mount(folder: &'a Path) -> Option<Self> {
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(folder).output().await;
        match mount {
            Ok(output) if output.status.success() => Some(Self(folder)),
            other => {
                println!("skipped: no small disk can be mounted: {other:?}");
                None
            }
        }
    }

    async fn grow(&self) {
        let grown = Command::new("mount").args(["-o", "remount,size=64m"]).arg(self.0).status().await.unwrap();
        assert!(grown.success());
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_ends_the_quickstart_with_the_reason_and_it_goes_on_once_there_is_space() {
    let site = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(site.path()).await else { return };
    let run = program(env!("CARGO_BIN_EXE_quickstart"), &["--json"], site.path()).output();
    let full = tokio::time::timeout(Duration::from_secs(60), run).await.expect("it does not end").unwrap();
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    let error = said.lines().rfind(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(!full.status.success() && error.contains("free space"), "{said}");

    disk.grow().await;
    let run = program(env!("CARGO_BIN_EXE_quickstart"), &["--json"], site.path()).output().await.unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
