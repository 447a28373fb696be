//! The storefront under load: a process of its own, so that its memory is its own.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use hybrid_cloud::{
    openai::{OpenAiCompatible, OpenAiConfig},
    storefront::{AuditLog, AuditLogOptions, AuditOptions, Storefront},
};
use hybrid_core::{
    Cancellation, ChannelName, Clock, DatasetName, Error, JobKind, Locality, SystemClock, SystemIds, WriterId,
    task::ClassifyRequest,
};
use hybrid_local::SqliteOutbox;
use hybrid_sync::{
    capture::{Capture, CaptureOptions},
    job::QueuedJobs,
    live::LiveModel,
    registry::{Namespace, PublicKey, Registry, Trust},
};
use tokio::{io::AsyncReadExt, net::TcpListener};

use super::{
    servers::{Places, Wire},
    until,
};
use crate::{linear::LinearLoader, must, registry::model, swap::TEXT};

/// The kind of the jobs.
pub const KIND: &str = "echo";
/// The name under which clients chat.
pub const CHAT: &str = "baker-1";
/// Whose sealed segments of the audit lie in the bucket.
pub const WRITER: &str = "storefront-1";
const GRACE: Duration = Duration::from_secs(20);

/// Serves until standard input ends, then carries away what is left.
pub async fn serve(places: Places) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (folder, writer) = (places.folder.join("storefront"), must(WriterId::new(WRITER)));
    let Wire { store, queue } = places.wire().await;
    let stop = Cancellation::new();

    let outbox = |name: &str| Arc::new(must(SqliteOutbox::open(folder.join(name))));
    let (judged, ordered) = (outbox("judgments.db"), outbox("orders.db"));
    let capture = Capture::new(judged, store.clone(), clock.clone(), writer.clone(), CaptureOptions::default());
    let capture = Arc::new(capture);
    let ids = Arc::new(SystemIds::default());
    let jobs = Arc::new(QueuedJobs::new(queue, store.clone(), clock.clone(), ids).with_outbox(ordered));
    let audit = Arc::new(must(AuditLog::open(folder.join("audit"), writer, AuditLogOptions::default())));
    let key = |name: &str| must(PublicKey::open(&places.folder.join(name)));
    let trust = Trust { builders: vec![key("builder.pub.pem")], releases: vec![key("release.pub.pem")] };
    let registry = Registry::new(store.clone(), Namespace::root());
    let (cache, loader) = (folder.join("models"), Arc::new(LinearLoader));
    let live = LiveModel::builder(registry, model(), ChannelName::stable(), trust, loader, cache)
        .poll_interval(Duration::from_millis(500))
        .warm_up(ClassifyRequest::one(TEXT));
    let live = must(live.build().await);
    let chat = OpenAiConfig::new("scripted", &places.chat, CHAT, Locality::Device);

    let status = live.watch();
    let http = Storefront::builder()
        .classify("messages", Arc::new(live.clone()))
        .chat(CHAT, Arc::new(must(OpenAiCompatible::new(chat))))
        .judgments(capture.clone(), dataset())
        .jobs(jobs.clone(), [must(JobKind::new(KIND))])
        .audit(audit.clone(), AuditOptions::default())
        .ready_when("model", move || match status.borrow().serving {
            Some(_) => Ok(()),
            None => Err(Error::unavailable("check readiness", "no version is in service yet")),
        });
    let http = must(http.build());
    let listener = must(TcpListener::bind("127.0.0.1:0").await);
    println!("{}", must(listener.local_addr()));

    let (at_once, five_seconds) = (stop.clone(), Duration::from_secs(5));
    tokio::join!(
        async {
            let mut input = tokio::io::stdin();
            while matches!(input.read(&mut [0; 64]).await, Ok(1..)) {}
            at_once.cancel();
        },
        http.serve(listener, http.router(), stop.clone().cancelled_owned(), GRACE),
        live.run(stop.clone()),
        capture.run(stop.clone(), five_seconds),
        jobs.run(stop.clone(), Duration::from_secs(10)),
        audit.ship_every(&*store, five_seconds, &*clock, stop.clone()),
    );
    must(capture.drain().await);
    must(jobs.drain().await);
    must(audit.seal().await);
    must(audit.ship(&*store).await);
}

/// The dataset that judgments go to.
pub fn dataset() -> DatasetName {
    must(DatasetName::new("load"))
}

/// The process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    input: Option<ChildStdin>,
    address: SocketAddr,
}

impl Process {
    /// Starts this very program as a storefront.
    pub fn start(arguments: &[String]) -> Self {
        let program: PathBuf = must(std::env::current_exe());
        let mut command = Command::new(program);
        command.arg("storefront").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = must(command.spawn());
        let mut line = String::new();
        let output = must(child.stdout.take().ok_or("the storefront has no output"));
        must(std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line));
        let input = child.stdin.take();
        Self { child, input, address: must(line.trim().parse()) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until a version is in service.
    pub async fn until_ready(&mut self) {
        let at = format!("http://{}/readyz", self.address);
        until(Duration::from_secs(60), "the first version", async || {
            let ready = reqwest::get(&at).await.is_ok_and(|answer| answer.status() == 200);
            ready.then_some(())
        })
        .await;
    }

    /// Asks it to end; whether it carried away what was left.
    pub async fn stop(mut self) -> bool {
        drop(self.input.take());
        let child = &mut self.child;
        until(Duration::from_secs(120), "the end of the storefront", async || must(child.try_wait())).await.success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
