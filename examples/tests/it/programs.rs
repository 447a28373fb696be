//! The programs as a shell sees them: how they end, and what they say.

use std::{
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use clap::{CommandFactory, Parser};
use hybrid_core::{
    Clock, DataPolicy, DatasetName, ErrorKind, JobKind, JobOrder, JobQueue, JobQueueExt, Jobs, Judgment, JudgmentId,
    JudgmentSink, ModelName, ReceiveOptions, SystemClock, SystemIds, TenantId, WriterId, memory::MemoryOutbox,
};
use hybrid_examples::{
    judging::store_golden, kitchen, locations::Locations, order, site::Site, telemetry::TelemetryArgs,
};
use hybrid_local::{SqliteQueue, SqliteQueueOptions};
use hybrid_sync::{
    capture::{Capture, CaptureOptions},
    job::QueuedJobs,
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
};

use crate::{app::until, small_disk::SmallDisk};

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
    let nothing = order::training::submit(&site, model.clone(), golden.clone(), Vec::new()).await.unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::NotFound, "{nothing}");

    let clock = SystemClock;
    let writer = WriterId::new("test").unwrap();
    let capture =
        Capture::new(Arc::new(MemoryOutbox::default()), site.store(), site.clock(), writer, CaptureOptions::default());
    let judgment = Judgment::new(
        JudgmentId::next(&SystemIds::default()),
        "classify",
        json!({ "text": "two rolls" }),
        json!({ "label": "order" }),
        clock.now(),
    );
    capture.record(&TenantId::single(), &DatasetName::new("bakery").unwrap(), judgment).await.unwrap();
    capture.drain().await.unwrap();
    // None of them has a result yet: no kitchen is there.
    let orders = (0..4).map(|_| order::training::submit(&site, model.clone(), golden.clone(), Vec::new()));
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

#[tokio::test]
async fn a_public_key_that_a_power_cut_left_empty_heals() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::open(&Locations::folder(folder.path())).await.unwrap();
    let builders = site.trust().unwrap().builders;
    for cut in [Site::signers as fn(&Site) -> _, |site: &Site| site.trust().and_then(|_| site.signers())] {
        std::fs::write(site.keys().join("builder.pub.pem"), "").unwrap();
        cut(&site).unwrap();
        assert_eq!(site.trust().unwrap().builders, builders);
    }
    let mut names: Vec<_> = std::fs::read_dir(site.keys()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["builder.pem", "builder.pub.pem", "release.pem", "release.pub.pem"]);
}

fn deployment(file: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    std::fs::read_to_string(folder.join(file)).unwrap()
}

#[test]
fn the_service_starts_a_kitchen_with_what_its_environment_file_says() {
    let (service, environment) = (deployment("systemd/hybrid-kitchen.service"), deployment("systemd/kitchen.env"));
    let start = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    // Without its file the kitchen would start with an empty bucket's name: systemd has to say that the file is missing.
    assert!(service.lines().any(|line| line == "EnvironmentFile=/etc/hybrid/kitchen.env"), "{service}");
    let value = |word: &str| match word.strip_prefix("${").and_then(|word| word.strip_suffix('}')) {
        Some(name) => {
            let line = environment.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("{name} is in no file")).to_owned()
        }
        None => word.replace("%H", "host"),
    };
    let kitchen = kitchen::Args::try_parse_from(start.split_whitespace().map(value)).unwrap();
    assert!(kitchen.locations.artifacts.is_some() && kitchen.locations.queue.is_some());
    // What else it takes from its environment stands there too.
    for command in [kitchen::Args::command(), TelemetryArgs::command()] {
        for name in command.get_arguments().filter_map(|argument| argument.get_env()?.to_str()) {
            assert!(environment.contains(&format!("\n#{name}=")), "{name} is in no file");
        }
    }
}

#[test]
fn the_commands_of_a_deployment_hold_nothing_that_a_shell_takes_for_a_pattern() {
    let readme = deployment("README.md");
    let blocks = readme.split("```").skip(1).step_by(2);
    for line in blocks.flat_map(str::lines) {
        // What stands outside of quotes, up to a comment.
        let bare: String = line.split('\'').step_by(2).flat_map(|part| part.split('"').step_by(2)).collect();
        let bare = bare.split(" #").next().unwrap_or_default();
        assert!(!bare.contains(['?', '*', '[']), "{line}");
    }
}

#[tokio::test]
async fn a_job_that_fails_too_often_is_told_to_stand_still_and_an_operator_decides() {
    let folder = tempfile::tempdir().unwrap();
    let site = Site::open(&Locations::folder(folder.path())).await.unwrap();
    // A queue that gives up sooner than the programs' own.
    let options = SqliteQueueOptions { max_deliveries: 1, ..SqliteQueueOptions::default() };
    let queue = Arc::new(SqliteQueue::open(folder.path().join("queue.db"), options).unwrap());
    let ids = Arc::new(SystemIds::default());
    let desk = QueuedJobs::new(queue.clone(), site.store(), site.clock(), ids);
    let tenant = TenantId::single();
    let order = |payload: &str| JobOrder {
        tenant: tenant.clone(),
        kind: JobKind::new("nobody-knows").unwrap(),
        payload: payload.into(),
        input: None,
        policy: DataPolicy::Anywhere,
        key: None,
        request: None,
        trace: None,
    };
    let (first, second) = (desk.submit(order("a")).await.unwrap(), desk.submit(order("b")).await.unwrap());
    for delivery in queue.receive(ReceiveOptions::default()).await.unwrap() {
        queue.nack_one(&delivery.receipt, Duration::ZERO).await.unwrap();
    }
    let dead = async |arguments: &[&str]| {
        let output = program(env!("CARGO_BIN_EXE_dead"), &[], folder.path()).args(arguments).output().await.unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (_, listed) = dead(&["list"]).await;
    let lines: Vec<_> = listed.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains(&format!("{first}  nobody-knows  default")), "{listed}");

    // A kitchen notices by itself.
    let mut kitchen = program(env!("CARGO_BIN_EXE_kitchen"), &["--until-input-ends"], folder.path()).spawn().unwrap();
    let stalled = async |id| desk.status(&tenant, id).await.unwrap().unwrap().stalled.is_some();
    until("the kitchen tells", async || (stalled(first).await && stalled(second).await).then_some(())).await;
    drop(kitchen.stdin.take());
    assert!(ends(kitchen).await.success());

    let message = |line: &str| line.split("  ").next().unwrap().to_owned();
    assert_eq!(dead(&["redrive", &message(lines[0])]).await, (true, "1 of 1 went back to the queue\n".to_owned()));
    assert_eq!((stalled(first).await, queue.depth().await.unwrap().ready), (false, 1));
    assert_eq!(dead(&["give-up", "--all"]).await, (true, "1 of 1 were given up\n".to_owned()));
    let ended = desk.status(&tenant, second).await.unwrap().unwrap().end.unwrap();
    assert_eq!(ended.outcome.unwrap_err().kind, ErrorKind::ResourceExhausted);
    assert_eq!(dead(&["redrive", &message(lines[0])]).await, (false, "0 of 1 went back to the queue\n".to_owned()));
}

#[tokio::test]
async fn a_full_disk_ends_the_quickstart_with_the_reason_and_it_goes_on_once_there_is_space() {
    let site = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(site.path(), 4) else { return };
    let run = program(env!("CARGO_BIN_EXE_quickstart"), &["--json"], site.path()).output();
    let full = tokio::time::timeout(Duration::from_secs(60), run).await.expect("it does not end").unwrap();
    let said = String::from_utf8_lossy(&full.stderr).into_owned();
    let error = said.lines().rfind(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(!full.status.success() && error.contains("free space"), "{said}");

    disk.grow(64);
    let run = program(env!("CARGO_BIN_EXE_quickstart"), &["--json"], site.path()).output().await.unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
}
