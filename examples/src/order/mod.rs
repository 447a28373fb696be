//! Ordering work by hand. Customers order by the storefront's `/v1/jobs`; what concerns the kitchen's own models is ordered here alone.

pub mod training;

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Parser, Subcommand};
use futures_util::TryStreamExt;
#[cfg(feature = "decoder")]
use hybrid_core::FileName;
use hybrid_core::{
    ChannelName, Digest, Error, FileId, JobKind, ModelName, NewFile, Result, SystemIds, TenantId,
    task::{Sampling, Truncate},
};
#[cfg(feature = "decoder")]
use hybrid_local::quantize::{Mix, QualityBudget};
use hybrid_sync::{
    batch::{EmbedJob, EmbedRows, Enrich, EnrichJob, Summarise, SummariseJob, Template},
    job::{self, Job},
    worker::JobHandler,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

#[cfg(feature = "decoder")]
use crate::quantize_job::{QuantizeHandler, QuantizeJob};
use crate::{
    evaluate_job::{EvaluateHandler, EvaluateJob},
    judging::store_golden,
    label_job::{LabelHandler, LabelJob},
    locations::Locations,
    log::say,
    site::{Site, io},
};

/// How often a result is looked for.
const POLL: Duration = Duration::from_millis(200);

/// Orders work from the kitchen, which carries it out whenever it is there. Trainings are ordered by `train`.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Where the site is.
    #[command(flatten)]
    pub locations: Locations,
    /// Wait for the result and print it, as JSON.
    #[arg(long)]
    pub wait: bool,
    /// Wait, and write the file of answers here: what enrich and label leave.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub work: Work,
}

/// What can be ordered.
#[derive(Clone, Debug, Subcommand)]
pub enum Work {
    /// Ask a model about each row of a JSON Lines file; the answers fit a schema and keep the rows' order.
    Enrich(EnrichArgs),
    /// Make one text of all rows of a JSON Lines file, such as a week's conversations.
    Summarise(SummariseArgs),
    /// Put a vector of each row of a JSON Lines file into the kitchen's own index, kitchen/vectors.db, which no customer queries.
    Embed(EmbedArgs),
    /// Label each line of a text file with the version in service.
    Label(LabelArgs),
    /// Judge a version on a golden set, against the one in service; nothing is released by it.
    Evaluate(EvaluateArgs),
    /// Make a GGUF file of a model in kitchen/bases, and measure what it lost by it.
    #[cfg(feature = "decoder")]
    Quantize(QuantizeArgs),
}

/// An order of `enrich`.
#[derive(Clone, Debug, clap::Args)]
pub struct EnrichArgs {
    /// The rows: a JSON object on each line.
    pub rows: PathBuf,
    /// What the model is asked of a row; {{name}} stands for the row's field of that name.
    #[arg(long, value_parser = template)]
    pub prompt: Template,
    /// A file with the JSON Schema that each answer has to fit.
    #[arg(long, value_name = "FILE")]
    pub schema: PathBuf,
    /// What the model is told before each row.
    #[arg(long)]
    pub system: Option<String>,
    /// How often a row is asked before it is given up, from 1 to 10.
    #[arg(long, default_value_t = 3)]
    pub tries: u32,
    /// How tokens are drawn.
    #[command(flatten)]
    pub drawn: Drawn,
}

/// An order of `summarise`.
#[derive(Clone, Debug, clap::Args)]
pub struct SummariseArgs {
    /// The rows: a JSON object on each line.
    pub rows: PathBuf,
    /// The text of a row; {{name}} stands for the row's field of that name.
    #[arg(long, value_parser = template)]
    pub text: Template,
    /// What the model is to make of the texts, such as "what customers asked for, and what went wrong".
    #[arg(long)]
    pub instruction: String,
    /// The most bytes of text in one request, at least 1,000.
    #[arg(long, default_value_t = 12_000)]
    pub part_bytes: usize,
    /// How tokens are drawn.
    #[command(flatten)]
    pub drawn: Drawn,
}

/// An order of `embed`.
#[derive(Clone, Debug, clap::Args)]
pub struct EmbedArgs {
    /// The rows: a JSON object on each line.
    pub rows: PathBuf,
    /// The text of a row; {{name}} stands for the row's field of that name.
    #[arg(long, value_parser = template)]
    pub text: Template,
    /// A row's name in the index, made in the same way; its file and line where left out.
    #[arg(long, value_parser = template)]
    pub key: Option<Template>,
    /// A field that goes into the index beside the vector; once for each.
    #[arg(long, value_name = "FIELD")]
    pub metadata: Vec<String>,
}

/// An order of `label`.
#[derive(Clone, Debug, clap::Args)]
pub struct LabelArgs {
    /// The messages: one on each line.
    pub messages: PathBuf,
    /// The model.
    #[arg(long, default_value = "bakery")]
    pub model: ModelName,
}

/// An order of `evaluate`.
#[derive(Clone, Debug, clap::Args)]
pub struct EvaluateArgs {
    /// The golden set: JSON Lines of input and expected answer.
    #[arg(long, value_name = "FILE")]
    pub golden: PathBuf,
    /// The model.
    #[arg(long, default_value = "bakery")]
    pub model: ModelName,
    /// The channel that says which version is in service.
    #[arg(long, default_value = "stable")]
    pub channel: ChannelName,
    /// The version to judge, by its manifest's digest; the one in service where left out.
    #[arg(long, value_name = "DIGEST")]
    pub candidate: Option<Digest>,
}

/// An order of `quantize`.
#[cfg(feature = "decoder")]
#[derive(Clone, Debug, clap::Args)]
pub struct QuantizeArgs {
    /// The model's folder below kitchen/bases.
    pub model: FileName,
    /// How many bits its numbers get: f16, q8_0, q6_k, q5_k_m, q4_k_m or q4_0.
    #[arg(long, default_value = "q4_k_m")]
    pub mix: Mix,
    /// A text like those that the model will read: what it lost is measured on it.
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Refuse the file if it has more bytes.
    #[arg(long, value_name = "BYTES")]
    pub max_bytes: Option<u64>,
    /// Refuse it if perplexity rises by more, as a share: 0.05 for 5 %.
    #[arg(long, value_name = "SHARE", requires = "text")]
    pub max_perplexity_rise: Option<f64>,
    /// Refuse it if it agrees with the original on the likeliest token less often, as a share.
    #[arg(long, value_name = "SHARE", requires = "text")]
    pub min_agreement: Option<f64>,
}

/// How tokens are drawn.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Drawn {
    /// The most tokens of an answer.
    #[arg(long, value_name = "TOKENS")]
    pub max_tokens: Option<u32>,
    /// How freely tokens are drawn, from 0 (always the likeliest).
    #[arg(long)]
    pub temperature: Option<f32>,
}

impl Drawn {
    fn sampling(&self) -> Sampling {
        Sampling { max_tokens: self.max_tokens, temperature: self.temperature, ..Sampling::default() }
    }
}

/// Orders work, and waits for it if asked to.
///
/// # Errors
/// A file that cannot be read, those of bucket and queue; with `--wait` the job's own failure.
pub async fn run(args: Args) -> Result<()> {
    // Before anything is ordered: hours of work are not lost to a path that cannot be written.
    let answers = match &args.output {
        Some(path) => Some((open_answers(&args.work, path)?, path)),
        None => None,
    };
    let site = Site::open(&args.locations).await?;
    let job = args.work.send(&site).await?;
    let Job { id, tenant, kind, .. } = &job;
    let line = format!("job {id} is to {kind}; its result will be t/{tenant}/jobs/{id}/result in the bucket");
    if !args.wait && args.output.is_none() {
        say(std::io::stdout(), line);
        return Ok(());
    }
    say(std::io::stderr(), line);
    let result = job::wait_for_result(&*site.store(), tenant, *id, &*site.clock(), POLL).await?;
    let output: Value = result.output()?;
    say(std::io::stdout(), format_args!("{output:#}"));
    match answers {
        Some((file, path)) => download(&site, tenant, &output, file, path).await,
        None => Ok(()),
    }
}

impl Work {
    /// Sends the order; its files go to the bucket first.
    ///
    /// # Errors
    /// As [`run`], but for the job's own.
    pub async fn send(&self, site: &Site) -> Result<Job> {
        match self {
            Self::Enrich(EnrichArgs { rows, prompt, schema, system, tries, drawn }) => {
                let payload = EnrichJob {
                    system: system.clone(),
                    prompt: prompt.clone(),
                    schema: read_json(schema)?,
                    sampling: drawn.sampling(),
                    tries: *tries,
                };
                submit(site, Enrich::KIND, payload, Some(rows)).await
            }
            Self::Summarise(SummariseArgs { rows, text, instruction, part_bytes, drawn }) => {
                let (text, instruction, part_bytes) = (text.clone(), instruction.clone(), *part_bytes);
                let payload = SummariseJob { text, instruction, part_bytes, sampling: drawn.sampling() };
                submit(site, Summarise::KIND, payload, Some(rows)).await
            }
            Self::Embed(EmbedArgs { rows, text, key, metadata }) => {
                let (text, key, metadata) = (text.clone(), key.clone(), metadata.clone());
                let payload = EmbedJob { text, key, metadata, truncate: Truncate::default() };
                submit(site, EmbedRows::KIND, payload, Some(rows)).await
            }
            Self::Label(LabelArgs { messages, model }) => {
                submit(site, LabelHandler::KIND, LabelJob { model: model.clone() }, Some(messages)).await
            }
            Self::Evaluate(EvaluateArgs { golden, model, channel, candidate }) => {
                let golden = store_golden(&*site.store(), &TenantId::single(), golden).await?;
                let (model, channel) = (model.clone(), channel.clone());
                let payload = EvaluateJob { model, channel, candidate: *candidate, golden };
                submit(site, EvaluateHandler::KIND, payload, None).await
            }
            #[cfg(feature = "decoder")]
            Self::Quantize(QuantizeArgs { model, mix, text, max_bytes, max_perplexity_rise, min_agreement }) => {
                let budget = QualityBudget {
                    bytes: *max_bytes,
                    perplexity_rise: *max_perplexity_rise,
                    agreement: *min_agreement,
                    ..QualityBudget::default()
                };
                let payload = QuantizeJob { model: model.clone(), mix: *mix, budget };
                submit(site, QuantizeHandler::KIND, payload, text.as_deref()).await
            }
        }
    }
}

async fn submit(site: &Site, kind: &str, payload: impl Serialize, input: Option<&Path>) -> Result<Job> {
    let (ids, tenant) = (SystemIds::default(), TenantId::single());
    let mut job = Job::new(&ids, &*site.clock(), tenant.clone(), JobKind::new(kind)?, payload)?;
    if let Some(path) = input {
        job.input = Some(upload(site, &tenant, path, FileId::next(&ids)).await?);
    }
    job::submit(&*site.queue().await?.jobs, &*site.store(), &job).await?;
    Ok(job)
}

/// Carries a file to the bucket.
async fn upload(site: &Site, tenant: &TenantId, path: &Path, id: FileId) -> Result<FileId> {
    let fail = |error| io("read file", path, error);
    let mut file = File::open(path).map_err(fail)?;
    let (mut upload, mut buffer) = (site.files().upload(tenant, id), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(fail)? {
            0 => break,
            read => upload.write(buffer[..read].to_vec().into()).await?,
        }
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    upload.finish(NewFile::new(name, "batch")).await.map(|file| file.id)
}

/// Opens the file at `path` for the answers of `work`. What is in it stays until they are there.
fn open_answers(work: &Work, path: &Path) -> Result<File> {
    if !matches!(work, Work::Enrich(_) | Work::Label(_)) {
        return Err(Error::invalid("order work", "this kind of work leaves no file; leave --output out"));
    }
    let opened = File::options().write(true).create(true).truncate(false).open(path);
    opened.map_err(|error| io("open file of answers", path, error))
}

/// Carries the file that a job has left to `written`, the file at `path`.
async fn download(site: &Site, tenant: &TenantId, output: &Value, mut written: File, path: &Path) -> Result<()> {
    let refuse = |message: &'static str| Error::invalid("write answers", message);
    let id = output["output_file_id"].as_str().and_then(|id| id.strip_prefix("file-")?.parse::<FileId>().ok());
    let id = id.ok_or_else(|| refuse("the result names no file of answers"))?;
    let files = site.files();
    let file = files.get(tenant, id).await?.ok_or_else(|| refuse("the file of answers is there no more"))?;
    let fail = |error| io("write answers", path, error);
    written.set_len(0).map_err(fail)?;
    let mut parts = files.read(tenant, &file);
    while let Some(part) = parts.try_next().await? {
        std::io::Write::write_all(&mut written, &part).map_err(fail)?;
    }
    written.sync_all().map_err(fail)
}

fn template(text: &str) -> Result<Template> {
    text.to_owned().try_into()
}

/// A JSON file as a `D`.
fn read_json<D: DeserializeOwned>(path: &Path) -> Result<D> {
    let bytes = std::fs::read(path).map_err(|error| io("read file", path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::invalid("read file", "this is not the JSON that is expected")
            .with("path", path.display())
            .with_source(error)
    })
}
