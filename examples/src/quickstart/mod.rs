//! The whole loop on one machine: capture, train, judge, publish, pick up, serve; three times, the last with judgments that are wrong.

pub mod client;
pub mod kitchen_process;
pub mod show;
pub mod summary;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::Parser;
use hybrid_core::{Error, ModelName, Result, TenantId, Verdict};
use hybrid_local::DeviceChoice;
use hybrid_sync::job;

use self::{
    client::{Client, Traffic},
    kitchen_process::KitchenProcess,
    show::Show,
    summary::{Requests, Summary, VersionRow},
};
use crate::{
    data::Decided, judging, kitchen::KitchenEvent, locations::Locations, log::say, order, site::Site,
    storefront::Storefront, train_job::TrainOutcome,
};

/// Shows the whole loop on one machine.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Where the site is; run again in the same place and it goes on from the version in service.
    #[command(flatten)]
    pub locations: Locations,
    /// The folder of the bakery's messages.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/data/bakery"))]
    pub data: PathBuf,
    /// Where the storefront listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Where the kitchen computes: auto, cpu, metal or cuda:n.
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
    /// Print the outcome as one JSON object on the last line of standard output.
    #[arg(long)]
    pub json: bool,
}

/// What happens in a run: judgments that arrive, and what is hoped of the version that learns from them.
const CHAPTERS: [(&str, &str); 3] = [
    ("first.jsonl", "The head baker decides about the first messages"),
    ("more.jsonl", "A few weeks later there is much more judgment"),
    ("wrong.jsonl", "A trainee files allergy questions and complaints as orders"),
];

/// Runs the quickstart.
///
/// # Errors
/// Whatever keeps the loop from closing, with the way out.
pub async fn run(args: Args) -> Result<Summary> {
    let start = std::time::Instant::now();
    let show = Arc::new(Show::default());
    let site = Site::open(&args.locations).await?;
    // Both halves are here, whatever lies between them.
    site.signers()?;
    let chapters = CHAPTERS
        .map(|(file, title)| Decided::read(&args.data.join(file)).map(|decided| (title, decided)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;

    let model = ModelName::new("bakery")?;
    let storefront = Storefront::start(&site, model.clone(), args.listen).await?;
    show.line(format!("storefront  http://{}   (site folder {})", storefront.address(), site.root().display()));
    let mut kitchen = start_kitchen(&args, &show);
    kitchen.ready().await?;
    show.line("kitchen     a process of its own, sharing nothing with the storefront but a queue and a bucket");

    let golden = judging::store_golden(&*site.store(), &TenantId::single(), &args.data.join("golden.jsonl")).await?;
    let client = Client::new(format!("http://{}", storefront.address()))?;
    let questions = Decided::read(&args.data.join("honest.jsonl"))?.into_iter().map(|one| one.text).collect();
    let mut run =
        Run { site, model, storefront, kitchen, client, show, golden, questions, traffic: None, versions: Vec::new() };
    for (index, (title, decided)) in chapters.iter().enumerate() {
        run.show.chapter(index + 1, title);
        // A failed chapter still stops the processes below.
        run.chapter(decided).await?;
    }
    run.finish(start).await
}

/// Runs the quickstart and prints its outcome as `--json` asks.
///
/// # Errors
/// As [`run`].
pub async fn run_and_print(args: Args) -> Result<()> {
    let json = args.json;
    let summary = run(args).await?;
    if json {
        let line = serde_json::to_string(&summary).map_err(|error| {
            Error::internal("print summary", "the summary cannot be written as JSON").with_source(error)
        })?;
        say(std::io::stdout(), line);
    }
    Ok(())
}

fn start_kitchen(args: &Args, show: &Arc<Show>) -> KitchenProcess {
    let device = args.device.to_string();
    let arguments = ["--events", "--until-input-ends", "--lease-ms", "2000", "--device", &device];
    let mut arguments: Vec<String> = arguments.map(str::to_owned).into();
    arguments.extend(args.locations.arguments());
    let show = Arc::clone(show);
    KitchenProcess::start(
        arguments,
        Arc::new(move |event| {
            if let KitchenEvent::Progress(event) = event {
                show.progress(&event);
            }
        }),
    )
}

/// A run on its way.
struct Run {
    site: Site,
    model: ModelName,
    storefront: Storefront,
    kitchen: KitchenProcess,
    client: Client,
    show: Arc<Show>,
    golden: judging::GoldenRef,
    /// Messages that no version has learnt from.
    questions: Vec<String>,
    traffic: Option<Traffic>,
    versions: Vec<VersionRow>,
}

impl Run {
    /// Captures judgments, has a version trained on all there are, and waits until it is in service or refused.
    async fn chapter(&mut self, decided: &[Decided]) -> Result<()> {
        self.show.begin("judgments", decided.len() as u64);
        self.client.judge_all(decided, || self.show.step()).await?;
        self.show.end();
        let drained = self.storefront.drain().await?;
        self.show.fact(format_args!(
            "{} judgments captured through the API and carried to the bucket as {} segment(s)",
            decided.len(),
            drained.segments
        ));

        let outcome = self.train().await?;
        let mut row = outcome.row();
        let reason = match &outcome.verdict.verdict {
            Verdict::Refuse(reason) => Some(reason.as_str()),
            _ => None,
        };
        self.show.verdict(&row, reason);
        if let Some(manifest) = outcome.manifest {
            let pick_up = self.storefront.serving(manifest, Duration::from_secs(30)).await?;
            row.swap_ms = pick_up.map(|pick_up| pick_up.swap.as_secs_f64() * 1e3);
            self.show.picked_up(outcome.version, pick_up);
        } else if let Some(version) = self.storefront.version() {
            self.show.fact(format_args!("version {version} stays in service"));
        }
        self.versions.push(row);
        self.ask().await
    }

    /// Sends a training job over all judgments but those set aside, and waits for its result.
    async fn train(&mut self) -> Result<TrainOutcome> {
        let (store, clock) = (self.site.store(), self.site.clock());
        let (job, _) = order::training::submit(&self.site, self.model.clone(), self.golden.clone(), Vec::new()).await?;
        let waiting = job::wait_for_result(&*store, &job.tenant, job.id, &*clock, Duration::from_millis(50));
        let result = tokio::select! {
            result = waiting => result?,
            error = self.kitchen.failed() => return Err(error),
        };
        self.show.end();
        result.output()
    }

    /// Asks about a few messages, and from the first version on keeps a customer asking.
    async fn ask(&mut self) -> Result<()> {
        let few: Vec<&str> = self.questions.iter().take(4).map(String::as_str).collect();
        let answer = self.client.classify(&few).await?;
        for (text, result) in few.iter().zip(&answer.results) {
            self.show.answer(text, &result.label, result.confidence);
        }
        if self.traffic.is_none() {
            self.traffic = Some(Traffic::start(self.client.clone(), self.questions.clone()));
            self.show.fact("a customer keeps asking from here on");
        }
        Ok(())
    }

    /// Stops everything and shows what it came to.
    async fn finish(self, start: std::time::Instant) -> Result<Summary> {
        let seen = match self.traffic {
            Some(traffic) => traffic.stop().await,
            None => client::Seen::default(),
        };
        let serving = self.storefront.version();
        let restarts = self.kitchen.restarts();
        self.kitchen.stop().await?;
        self.storefront.stop().await?;
        let summary = Summary {
            versions: self.versions,
            requests: Requests { served: seen.served, failed: seen.failed },
            serving,
            seconds: start.elapsed().as_secs_f64(),
        };
        self.show.table(&summary);
        self.show.line(format!(
            "slowest answer {:.1} ms while versions were trained, published and swapped",
            seen.slowest.as_secs_f64() * 1e3
        ));
        if restarts > 0 {
            self.show.line(format!("the kitchen died {restarts} times and went on each time"));
        }
        let (bucket, queue) = self.site.locations().described();
        self.show.line(format!(
            "\nLook around in {bucket}\n  channels/   what was in service when, signed\n  manifests/  each version: files, lineage, verdict\n  \
             t/default/  judgments, job results, evaluation reports (reports/*.md)\nThe queue is {queue}"
        ));
        Ok(summary)
    }
}
