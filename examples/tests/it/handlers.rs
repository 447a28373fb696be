//! What the kitchen's jobs keep when things change under them: between two attempts, two versions, two holders of a lease.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, BoxStream, Cancellation, ChannelName, DatasetName, Document, Error, ErrorKind,
    FileId, Files, JobKind, JudgmentSink, Key, ListOptions, ModelName, NewFile, NoProgress, ObjectMeta, ProgressEvent,
    ProgressFn, ReadOptions, Result, SystemIds, TenantId, Verdict, WriterId,
    memory::{MemoryOutbox, MemoryQueue, MemoryQueueOptions},
};
use hybrid_examples::{
    aside::{Aside, set_aside},
    data::Decided,
    judging::{GoldenRef, store_golden},
    label_job::{LabelHandler, LabelJob, Labelled},
    locations::Locations,
    order,
    renewal::{renew_by_hand, renew_each},
    serving::Channels,
    site::Site,
    train_job::{TrainHandler, TrainJob, TrainOutcome, VALID_FOR},
};
use hybrid_local::{DeviceChoice, evaluation::Report};
use hybrid_sync::{
    capture::{Capture, CaptureOptions},
    job::{self, Job},
    registry::{Channel, Namespace, Registry, Release},
    worker::{JobContext, JobHandler, Worker},
};

use crate::away::{Calendar, data};

fn bakery() -> ModelName {
    ModelName::new("bakery").unwrap()
}

/// A kitchen's handlers on a site of their own, without a worker: a test is the worker.
struct Kitchen {
    calendar: Arc<Calendar>,
    site: Site,
    golden: GoldenRef,
    channels: Channels,
    train: TrainHandler,
    label: LabelHandler,
}

impl Kitchen {
    async fn open(folder: &Path) -> Self {
        let calendar = Arc::new(Calendar::default());
        let site = Site::open(&Locations::folder(folder)).await.unwrap().with_clock(calendar.clone());
        let golden = store_golden(&*site.store(), &TenantId::single(), &data("golden.jsonl")).await.unwrap();
        Self::on(site, calendar, golden)
    }

    fn on(site: Site, calendar: Arc<Calendar>, golden: GoldenRef) -> Self {
        let channels = Channels::open(&site).unwrap();
        let train = TrainHandler::open(&site, &channels, DeviceChoice::Cpu).unwrap();
        let label = LabelHandler::open(&site, &channels, DeviceChoice::Cpu).unwrap();
        Self { calendar, site, golden, channels, train, label }
    }

    /// The same as a process that was started anew.
    fn restarted(&self) -> Self {
        Self::on(self.site.clone(), Arc::clone(&self.calendar), self.golden.clone())
    }

    /// Puts a file of judgments into the bucket.
    async fn hear(&self, file: &str) {
        let (outbox, writer) = (Arc::new(MemoryOutbox::default()), WriterId::new(file.replace('.', "-")).unwrap());
        let capture = Capture::new(outbox, self.site.store(), self.site.clock(), writer, CaptureOptions::default());
        let (tenant, dataset) = (TenantId::single(), DatasetName::new("bakery").unwrap());
        for decided in Decided::read(&data(file)).unwrap() {
            capture.record(&tenant, &dataset, decided.judgment(self.site.clock().now())).await.unwrap();
        }
        capture.drain().await.unwrap();
    }

    /// Orders a training over what is in the bucket.
    async fn order(&self) -> (Job, TrainJob) {
        order::training::submit(&self.site, bakery(), self.golden.clone(), Vec::new()).await.unwrap()
    }

    /// Trains on what is in the bucket, and does what the verdict says.
    async fn learn(&self) -> TrainOutcome {
        let (job, order) = self.order().await;
        self.train.run(&self.context(&job), order).await.unwrap()
    }

    /// What a worker gives a handler.
    fn context(&self, job: &Job) -> JobContext {
        self.context_over(job, self.site.store())
    }

    fn context_over(&self, job: &Job, store: Arc<dyn ArtifactStore>) -> JobContext {
        JobContext {
            job: Arc::new(job.clone()),
            attempt: 1,
            last_attempt: false,
            cancel: Cancellation::new(),
            progress: Arc::new(NoProgress),
            store,
            clock: self.site.clock(),
        }
    }

    /// A file of messages, and an order to label it.
    async fn labelling(&self, messages: &str) -> Job {
        let (tenant, ids) = (TenantId::single(), SystemIds::default());
        let mut upload = Files::new(self.site.store(), self.site.clock()).upload(&tenant, FileId::next(&ids));
        upload.write(Bytes::from(messages.to_owned())).await.unwrap();
        let file = upload.finish(NewFile::new("mail.txt", "batch")).await.unwrap();
        let kind = JobKind::new("label").unwrap();
        let job = Job::new(&ids, &*self.site.clock(), tenant, kind, LabelJob { model: bakery() }).unwrap();
        Job { input: Some(file.id), ..job }
    }

    async fn run_label(&self, job: &Job) -> Result<Labelled> {
        self.label.run(&self.context(job), LabelJob { model: bakery() }).await
    }

    fn channel(&self) -> Channel {
        Registry::new(self.site.store(), Namespace::root()).channel(&bakery(), &ChannelName::stable())
    }

    async fn statements(&self) -> usize {
        self.channel().history(self.channels.releases()).await.unwrap().len()
    }

    async fn set_back(&self, to: &TrainOutcome, from: &TrainOutcome) {
        let release = Release::new(to.manifest.unwrap(), from.manifest, "complaints", &SystemIds::default());
        let (_, signer) = self.site.signers().unwrap();
        self.channel().append(release, &signer, self.site.clock().now(), VALID_FOR).await.unwrap();
    }
}

/// A store that asks before it creates.
struct Asking<F> {
    inner: Arc<dyn ArtifactStore>,
    before: F,
}

impl<F> fmt::Debug for Asking<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl<F: Fn(&Key) -> Result<()> + Send + Sync + 'static> ArtifactStore for Asking<F> {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        (self.before)(key)?;
        self.inner.create(key, bytes).await
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        self.inner.read(key, options).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectMeta> {
        self.inner.head(key).await
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix, options)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_job_that_is_begun_again_ends_with_the_version_it_was_begun_with() {
    let folder = tempfile::tempdir().unwrap();
    let kitchen = Kitchen::open(folder.path()).await;
    kitchen.hear("first.jsonl").await;
    let one = kitchen.learn().await;
    kitchen.hear("more.jsonl").await;
    let two = kitchen.learn().await;

    let messages =
        "Two rye loaves for Saturday, please\nAre you open on Sundays?\nDo your rolls contain sesame?\n".repeat(100);
    let job = kitchen.labelling(&messages).await;
    let first = kitchen.run_label(&job).await.unwrap();
    assert_eq!(first.version, 2);
    // It dies before its result is written, and another version comes into service.
    kitchen.set_back(&one, &two).await;
    let again = kitchen.run_label(&job).await.unwrap();
    assert_eq!(again, first);

    let files = Files::new(kitchen.site.store(), kitchen.site.clock());
    let id = again.output_file_id.strip_prefix("file-").unwrap().parse().unwrap();
    let file = files.get(&TenantId::single(), id).await.unwrap().unwrap();
    let parts: Vec<Bytes> =
        futures_util::TryStreamExt::try_collect(files.read(&TenantId::single(), &file)).await.unwrap();
    let lines = String::from_utf8(parts.concat()).unwrap();
    for (label, count) in &again.labels {
        let found = lines.lines().filter(|line| line.contains(&format!("\"label\":\"{label}\""))).count();
        assert_eq!(found as u64, *count, "{label}");
    }
    assert_eq!(kitchen.run_label(&kitchen.labelling(&messages).await).await.unwrap().version, 1);

    // Who can write beside a job does not choose what labels for it.
    let job = kitchen.labelling(&messages).await;
    let forged = format!("{{\"format\":\"hybrid.job-version/1\",\"manifest\":\"{}\"}}", hybrid_core::Digest::of(b"x"));
    let key = kitchen.context(&job).effect_key("version").unwrap();
    kitchen.site.store().create(&key, Bytes::from(forged)).await.unwrap();
    assert_eq!(kitchen.run_label(&job).await.unwrap_err().kind(), ErrorKind::Untrusted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_that_have_their_label_are_labelled_no_more_and_how_far_a_job_is_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let kitchen = Kitchen::open(folder.path()).await;
    kitchen.hear("first.jsonl").await;
    kitchen.learn().await;
    let messages = "Are you open on Sundays?\n\n".repeat(700);
    let job = kitchen.labelling(&messages).await;
    // An earlier attempt has died in the midst, and took fewer at once.
    let kept = "{\"text\":\"?\",\"label\":\"kept\",\"confidence\":1.0}\n".repeat(100);
    let step = kitchen.context(&job).effect_key(&format!("steps/{:020}", 0)).unwrap();
    kitchen.site.store().create(&step, Bytes::from(kept)).await.unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let progress =
        Arc::new(ProgressFn(move |event: ProgressEvent| told.lock().unwrap().push((event.done, event.total))));
    let cx = JobContext { progress, ..kitchen.context(&job) };
    let first = kitchen.label.run(&cx, LabelJob { model: bakery() }).await.unwrap();
    assert_eq!((first.labels["kept"], first.labels.values().sum::<u64>()), (100, 700));
    let total = messages.len() as u64;
    let seen = seen.lock().unwrap().clone();
    assert!(seen.len() >= 4 && seen.is_sorted() && seen.iter().all(|(_, all)| *all == Some(total)), "{seen:?}");
    assert_eq!((seen[0].0, seen[seen.len() - 1].0), (0, total));
    // It dies before its result is written.
    assert_eq!(kitchen.run_label(&job).await.unwrap(), first);
    assert!(!kitchen.site.store().exists(&step).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_was_set_back_gives_the_kitchen_no_old_version_and_one_that_was_away_knows_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let kitchen = Kitchen::open(folder.path()).await;
    kitchen.hear("first.jsonl").await;
    let one = kitchen.learn().await;

    // Nobody was here until long after the release had expired.
    kitchen.calendar.turn_to(95);
    let kitchen = kitchen.restarted();
    let stable = (bakery(), ChannelName::stable());
    assert_eq!(kitchen.channels.in_service(&stable).await.unwrap(), one.manifest);
    kitchen.hear("more.jsonl").await;
    let two = kitchen.learn().await;
    assert_eq!(two.verdict.incumbent, one.manifest);
    assert_eq!(kitchen.channels.in_service(&stable).await.unwrap(), two.manifest);

    std::fs::remove_file(folder.path().join(format!("artifacts/channels/bakery/stable/{:020}", 2))).unwrap();
    let job = kitchen.labelling("Are you open on Sundays?").await;
    for kitchen in [&kitchen, &kitchen.restarted()] {
        assert_eq!(kitchen.run_label(&job).await.unwrap_err().kind(), ErrorKind::Untrusted);
    }
    let (job, order) = kitchen.order().await;
    let refused = kitchen.train.run(&kitchen.context(&job), order).await.unwrap_err();
    assert_eq!((refused.kind(), kitchen.statements().await), (ErrorKind::Untrusted, 1), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kitchen_that_loses_its_lease_while_it_publishes_releases_nothing_and_the_next_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let kitchen = Kitchen::open(folder.path()).await;
    kitchen.hear("first.jsonl").await;
    let (job, _) = kitchen.order().await;
    let queue = Arc::new(MemoryQueue::new(MemoryQueueOptions::default(), kitchen.calendar.clone()));
    job::submit(&*queue, &*kitchen.site.store(), &job).await.unwrap();

    let stop = Cancellation::new();
    let (calendar, left) = (Arc::clone(&kitchen.calendar), stop.clone());
    // The machine sleeps for a day just when the manifest is written.
    let before = move |key: &Key| {
        if key.as_str().strip_prefix("manifests/").is_some_and(|name| !name.contains('.')) {
            calendar.turn_to(1);
            left.cancel();
        }
        Ok(())
    };
    let store = Arc::new(Asking { inner: kitchen.site.store(), before });
    let worker = |store: Arc<dyn ArtifactStore>, handler| {
        Worker::builder(queue.clone(), store).clock(kitchen.site.clock()).handler(handler).build().unwrap()
    };
    let stable = || TrainHandler::open(&kitchen.site, &kitchen.channels, DeviceChoice::Cpu).unwrap();
    worker(store, stable()).run(stop.clone()).await;
    assert!(stop.is_cancelled(), "it never came to publish");
    assert_eq!(kitchen.site.store().list_all("channels/").await.unwrap(), []);
    assert!(job::read_result(&*kitchen.site.store(), &job.tenant, job.id).await.unwrap().is_none());

    let stop = Cancellation::new();
    let next = worker(kitchen.site.store(), stable());
    let store = kitchen.site.store();
    let ends = async {
        let clock = kitchen.site.clock();
        let waited = job::wait_for_result(&*store, &job.tenant, job.id, &*clock, std::time::Duration::from_millis(20));
        let result = tokio::time::timeout(std::time::Duration::from_secs(120), waited).await;
        stop.cancel();
        result.expect("no result").unwrap()
    };
    let (_, result) = tokio::join!(next.run(stop.clone()), ends);
    let outcome: TrainOutcome = result.output().unwrap();
    assert_eq!((outcome.verdict.verdict, kitchen.statements().await), (Verdict::Promote, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_report_that_is_kept_is_the_one_that_the_verdict_is_taken_from() {
    let folder = tempfile::tempdir().unwrap();
    let kitchen = Kitchen::open(folder.path()).await;
    kitchen.hear("first.jsonl").await;
    let (job, order) = kitchen.order().await;
    let refuse = |key: &Key| match key.as_str().starts_with("channels/") {
        true => Err(Error::unavailable("create object", "the network is away")),
        false => Ok(()),
    };
    let cut_off = Arc::new(Asking { inner: kitchen.site.store(), before: refuse });
    let failed = kitchen.train.run(&kitchen.context_over(&job, cut_off), order.clone()).await.unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unavailable, "it was judged, and could not be released");

    // Before it comes again, another job's version is in service.
    let other_order = kitchen.order().await;
    let other = kitchen.train.run(&kitchen.context(&other_order.0), other_order.1.clone()).await.unwrap();
    let outcome = kitchen.train.run(&kitchen.context(&job), order.clone()).await.unwrap();
    assert_eq!((&outcome.verdict.incumbent, &outcome.manifest), (&other.manifest, &None));
    let store = kitchen.site.store();
    let kept = Report::decode(&store.get(&outcome.report).await.unwrap()).unwrap();
    assert_eq!(kept.record(), outcome.verdict);
    let people = Key::new(outcome.report.as_str().replace(".json", ".md")).unwrap();
    assert_eq!(store.get(&people).await.unwrap(), kept.to_markdown());
    assert_ne!(outcome.verdict.incumbent, None);
    // A released version names the report that let it in, also to an attempt that finds it released.
    assert_eq!(Report::decode(&store.get(&other.report).await.unwrap()).unwrap().record(), other.verdict);
    let manifest = Registry::new(store, Namespace::root()).manifest(other.manifest.unwrap()).await.unwrap();
    assert_eq!(manifest.metadata["report"], other.report.as_str());
    let (job, order) = other_order;
    let again = kitchen.train.run(&kitchen.context(&job), order).await.unwrap();
    assert_eq!(again, TrainOutcome { train_seconds: 0.0, bytes_moved: 0, ..other });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_refused_version_had_learnt_from_is_set_aside_whatever_lies_among_the_results() {
    let folder = tempfile::tempdir().unwrap();
    let kitchen = Kitchen::open(folder.path()).await;
    for file in ["first.jsonl", "more.jsonl"] {
        kitchen.hear(file).await;
        assert!(kitchen.learn().await.manifest.is_some(), "{file}");
    }
    kitchen.hear("wrong.jsonl").await;
    let (job, order) = kitchen.order().await;
    let refused = kitchen.train.run(&kitchen.context(&job), order.clone()).await.unwrap();
    assert!(matches!(refused.verdict.verdict, Verdict::Refuse(_)), "{refused:?}");
    assert_eq!(refused.set_aside.len(), 1, "{refused:?}");

    // Its result was never written; its refusal stands nevertheless, and another attempt finds it.
    let (store, tenant) = (kitchen.site.store(), TenantId::single());
    assert_eq!(set_aside(&*store, &tenant, &bakery()).await.unwrap(), refused.set_aside);
    let again = kitchen.train.run(&kitchen.context(&job), order).await.unwrap();
    assert_eq!(again, TrainOutcome { train_seconds: 0.0, ..refused.clone() });

    let stray = Key::new(format!("t/default/jobs/{}/result", hybrid_core::JobId::next(&SystemIds::default()))).unwrap();
    store.create(&stray, Bytes::from_static(b"no result at all")).await.unwrap();
    let (_, next) = kitchen.order().await;
    assert!(next.plan.dataset.segments.iter().all(|segment| !refused.set_aside.contains(&segment.key)));
    assert_eq!(next.plan.dataset.segments.len(), 2);

    // What is set aside and cannot be read is not learnt from unseen.
    let bad = Key::new("t/default/aside/bakery/bad").unwrap();
    store.create(&bad, Bytes::from_static(b"{")).await.unwrap();
    let error = order::training::submit(&kitchen.site, bakery(), kitchen.golden.clone(), Vec::new()).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains(bad.as_str()), "{error}");
    let _: Option<Aside> = Aside::of(&kitchen.context(&job), &bakery()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_cannot_be_renewed_keeps_no_other_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let kitchen = Kitchen::open(folder.path()).await;
    kitchen.hear("first.jsonl").await;
    kitchen.learn().await;
    // Somebody writes what is no statement, and a floor is damaged.
    for name in ["aardvark", "zebra"] {
        let key = Key::new(format!("channels/{name}/stable/{:020}", 1)).unwrap();
        kitchen.site.store().create(&key, Bytes::from_static(b"x")).await.unwrap();
    }
    let floors = kitchen.site.kitchen().join("floors");
    std::fs::create_dir_all(floors.join("aardvark")).unwrap();
    std::fs::write(floors.join("aardvark/stable.json"), "{").unwrap();
    std::fs::write(floors.join("zebra"), "a file where a folder should be").unwrap();

    kitchen.calendar.turn_to(60);
    let renewed = renew_each(&kitchen.channels, kitchen.channels.list().await.unwrap()).await;
    let came: Vec<_> = renewed.iter().map(|((model, _), came)| (model.as_str(), came.is_ok())).collect();
    assert_eq!(came, [("aardvark", false), ("bakery", true), ("zebra", false)]);
    assert_eq!(kitchen.statements().await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_release_that_nobody_remembers_is_kept_in_service_by_who_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let kitchen = Kitchen::open(folder.path()).await;
    kitchen.hear("first.jsonl").await;
    let one = kitchen.learn().await;
    kitchen.calendar.turn_to(95);
    std::fs::remove_dir_all(kitchen.site.kitchen().join("floors")).unwrap();
    let (kitchen, stable) = (kitchen.restarted(), (bakery(), ChannelName::stable()));
    assert_eq!(kitchen.channels.in_service(&stable).await.unwrap_err().kind(), ErrorKind::Untrusted);

    let shown = renew_by_hand(&kitchen.site, &stable, None).await.unwrap().statement;
    assert_eq!((Some(shown.manifest), shown.seq), (one.manifest, 1));
    let other = renew_by_hand(&kitchen.site, &stable, Some(hybrid_core::Digest::of(b"another"))).await.unwrap_err();
    assert_eq!((other.kind(), kitchen.statements().await), (ErrorKind::NotFound, 1), "{other}");
    renew_by_hand(&kitchen.site, &stable, one.manifest).await.unwrap();
    assert_eq!(kitchen.channels.in_service(&stable).await.unwrap(), one.manifest);
}
