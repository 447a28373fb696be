use std::path::{Path, PathBuf};

use hybrid_core::{Cancellation, Digest, Error, Progress, ProgressEvent, Result};
use serde::{Deserialize, Serialize};

use crate::{Device, blocking::blocking, decoder::reading::Reading};

const OPERATION: &str = "compare models";
const STAGE: &str = "compare";
/// The fewest predictions that say anything about a model.
const MIN_PREDICTIONS: usize = 32;

/// Compares a model with the one that it was made of, on a text.
///
/// # Behavior
/// - The text is cut into windows of [`with_context`](Self::with_context) tokens, and each is read by both; what each model expects after every token but
///   the window's first is compared. Nothing is drawn by chance: the same files and text give the same report on the same device.
/// - Both models are in memory together, in single precision where they are not in blocks.
///
/// What the figures mean depends on the text: take one like those that the model will read, of some thousand tokens at least, none of
/// which it was trained on. Perplexity beside perplexity, and agreement, say how good an answer will be only roughly; ask a
/// [golden set](crate::evaluation) where there is one.
#[derive(Clone, Debug)]
pub struct Comparison {
    device: Device,
    context: usize,
    memory_limit: Option<u64>,
}

/// What a model lost against the one that it was made of. Divergences are in nats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QualityReport {
    /// The digest of the text.
    pub text: Digest,
    /// The most tokens read at a time.
    pub context: usize,
    /// How many predictions were compared.
    pub predictions: u64,
    /// The perplexity of the original on the text: e to the mean negative log-probability of what came next.
    pub original_perplexity: f64,
    /// That of the smaller model.
    pub perplexity: f64,
    /// The share of places where both hold the same token for the likeliest.
    pub agreement: f64,
    /// The mean Kullback-Leibler divergence of the smaller model's distributions from the original's.
    pub mean_divergence: f64,
    /// The divergence that 99 of 100 places do not exceed.
    pub p99_divergence: f64,
    /// The largest divergence of all.
    pub max_divergence: f64,
    /// What the original takes on the disk, in bytes: its weights.
    pub original_bytes: u64,
    /// What the smaller model takes.
    pub bytes: u64,
}

/// How much a smaller model may lose; `None` sets no limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QualityBudget {
    /// The most that the perplexity may rise, as a share of the original's: 0.05 for 5 %.
    pub perplexity_rise: Option<f64>,
    /// The least share of places where both hold the same token for the likeliest.
    pub agreement: Option<f64>,
    /// The largest mean divergence, in nats.
    pub mean_divergence: Option<f64>,
    /// The largest 99th percentile of the divergences, in nats.
    pub p99_divergence: Option<f64>,
    /// The most bytes on the disk.
    pub bytes: Option<u64>,
}

impl Comparison {
    /// Compares on `device`, with windows of 512 tokens.
    pub fn new(device: Device) -> Self {
        Self { device, context: 512, memory_limit: None }
    }

    /// The same, with windows of `tokens` tokens, as far as both models have so many positions.
    #[must_use]
    pub fn with_context(mut self, tokens: usize) -> Self {
        self.context = tokens;
        self
    }

    /// The same, for models that take at most `bytes` of memory together.
    #[must_use]
    pub fn with_memory_limit(mut self, bytes: u64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Compares `candidate` with `original`, each a folder or a GGUF file. Progress counts tokens, in the stage `compare`.
    ///
    /// Needs a tokio runtime: the work runs on its blocking threads.
    ///
    /// # Errors
    /// - Those of loading the models.
    /// - [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for a text of fewer than 32 predictions, and for models whose vocabularies or tokenizers differ.
    /// - [`Internal`](hybrid_core::ErrorKind::Internal) if a model gives what is not a finite number; [`Cancelled`](hybrid_core::ErrorKind::Cancelled).
    pub async fn run(
        &self,
        original: &Path,
        candidate: &Path,
        text: &str,
        progress: std::sync::Arc<dyn Progress>,
        cancel: Cancellation,
    ) -> Result<QualityReport> {
        let (this, text) = (self.clone(), text.to_owned());
        let paths = [original, candidate].map(PathBuf::from);
        blocking(OPERATION, move || this.compare(&paths, &text, &*progress, &cancel)).await
    }

    pub(super) fn compare(
        &self,
        paths: &[PathBuf; 2],
        text: &str,
        progress: &dyn Progress,
        cancel: &Cancellation,
    ) -> Result<QualityReport> {
        let open = |path| Reading::open(path, &self.device, self.memory_limit, self.context);
        let (original, candidate) = (open(&paths[0])?, open(&paths[1])?);
        let tokens = original.encode(text)?;
        let mut differing = vec![];
        if original.config().vocabulary != candidate.config().vocabulary {
            differing.push("vocabulary");
        }
        if candidate.encode(text)? != tokens || original.first() != candidate.first() {
            differing.push("tokenizer");
        }
        if !differing.is_empty() {
            return Err(Error::invalid(OPERATION, "the models do not read a text as the same tokens")
                .with("original", paths[0].display())
                .with("candidate", paths[1].display())
                .with("differing", differing.join(", ")));
        }
        let context = self.context.min(original.config().context).min(candidate.config().context);
        let room = context.saturating_sub(usize::from(original.first().is_some())).max(2);
        let mut tally = Tally::default();
        let total = Some(tokens.len() as u64);
        progress.report(ProgressEvent::new(STAGE, 0, total, "tokens"));
        let mut done = 0;
        for window in tokens.chunks(room) {
            let window: Vec<u32> = original.first().into_iter().chain(window.iter().copied()).collect();
            done += window.len() - usize::from(original.first().is_some());
            let checked = |at: usize| {
                if cancel.is_cancelled() {
                    return Err(Error::cancelled(OPERATION, "the comparison was cancelled"));
                }
                Ok(window.get(at + 1).copied())
            };
            let mut theirs = Vec::new();
            original.read(&window, |at, logits| {
                theirs.extend(checked(at)?.map(|_| log_softmax(logits)));
                Ok(())
            })?;
            candidate.read(&window, |at, logits| {
                if let Some(next) = checked(at)? {
                    tally.add(&theirs[at], &log_softmax(logits), next as usize);
                }
                Ok(())
            })?;
            progress.report(ProgressEvent::new(STAGE, done as u64, total, "tokens"));
        }
        let bytes = [weights_bytes(&paths[0])?, weights_bytes(&paths[1])?];
        tally.report(Digest::of(text.as_bytes()), context, bytes)
    }
}

/// What is counted over all places.
#[derive(Debug, Default)]
struct Tally {
    /// Sums of the negative log-probabilities of what came next.
    losses: [f64; 2],
    agreed: u64,
    divergences: Vec<f64>,
}

impl Tally {
    fn add(&mut self, original: &[f32], candidate: &[f32], next: usize) {
        self.losses[0] -= f64::from(original[next]);
        self.losses[1] -= f64::from(candidate[next]);
        self.agreed += u64::from(best(original) == best(candidate));
        let parts = original.iter().zip(candidate).map(|(p, q)| f64::from(*p).exp() * f64::from(p - q));
        // Rounding may leave a little less than nothing.
        self.divergences.push(parts.sum::<f64>().max(0.0));
    }

    fn report(mut self, text: Digest, context: usize, [original_bytes, bytes]: [u64; 2]) -> Result<QualityReport> {
        let count = self.divergences.len();
        if count < MIN_PREDICTIONS {
            return Err(Error::invalid(OPERATION, "the text is too short to say anything about a model")
                .with("predictions", count)
                .with("needed", MIN_PREDICTIONS));
        }
        let mean = |sum: f64| sum / count as f64;
        let mean_divergence = mean(self.divergences.iter().sum());
        self.divergences.sort_by(f64::total_cmp);
        let rank = (0.99 * count as f64).ceil() as usize;
        Ok(QualityReport {
            text,
            context,
            predictions: count as u64,
            original_perplexity: mean(self.losses[0]).exp(),
            perplexity: mean(self.losses[1]).exp(),
            agreement: mean(self.agreed as f64),
            mean_divergence,
            p99_divergence: self.divergences[rank.clamp(1, count) - 1],
            max_divergence: self.divergences[count - 1],
            original_bytes,
            bytes,
        })
    }
}

impl QualityReport {
    /// How much the perplexity rose, as a share of the original's.
    pub fn perplexity_rise(&self) -> f64 {
        self.perplexity / self.original_perplexity - 1.0
    }

    /// The report as a table for people.
    pub fn to_markdown(&self) -> String {
        let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        format!(
            "| | original | smaller |\n|---|---|---|\n| size | {} | {} |\n| perplexity | {:.4} | {:.4} ({:+.2} %) |\n\
             | likeliest token the same | | {:.2} % |\n| divergence, mean | | {:.6} |\n| divergence, 99th percentile | | {:.6} |\n\
             | divergence, largest | | {:.6} |\n\n{} predictions in windows of {} tokens; text {}\n",
            mebibytes(self.original_bytes),
            mebibytes(self.bytes),
            self.original_perplexity,
            self.perplexity,
            100.0 * self.perplexity_rise(),
            100.0 * self.agreement,
            self.mean_divergence,
            self.p99_divergence,
            self.max_divergence,
            self.predictions,
            self.context,
            self.text,
        )
    }
}

impl QualityBudget {
    /// Refuses a model that is over the budget.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) that names each limit that is broken, with the limit and the value. What is not a number is over every limit.
    pub fn check(&self, report: &QualityReport) -> Result<()> {
        let Self { perplexity_rise, agreement, mean_divergence, p99_divergence, bytes } = self;
        // What is not a number is within no limit, and within none that is not one.
        let outside = |kept: bool, limit: f64, value: f64| (!kept).then_some((limit, value));
        let most = |limit: Option<f64>, value: f64| limit.and_then(|limit| outside(value <= limit, limit, value));
        let least = |limit: Option<f64>, value: f64| limit.and_then(|limit| outside(value >= limit, limit, value));
        let broken = [
            ("perplexity_rise", most(*perplexity_rise, report.perplexity_rise())),
            ("agreement", least(*agreement, report.agreement)),
            ("mean_divergence", most(*mean_divergence, report.mean_divergence)),
            ("p99_divergence", most(*p99_divergence, report.p99_divergence)),
            ("bytes", most(bytes.map(|bytes| bytes as f64), report.bytes as f64)),
        ];
        let mut broken = broken.into_iter().filter_map(|(name, over)| over.map(|over| (name, over))).peekable();
        if broken.peek().is_none() {
            return Ok(());
        }
        let mut error =
            Error::invalid("judge smaller model", "the model is over its budget; choose more bits or another budget");
        for (name, (limit, value)) in broken {
            error = error.with(name, format_args!("{value} against a limit of {limit}"));
        }
        Err(error)
    }
}

/// Log-probabilities of logits.
fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    let whole = f64::from(largest) + sum.ln();
    logits.iter().map(|logit| (f64::from(*logit) - whole) as f32).collect()
}

/// The place of the largest value; of equal ones the first.
fn best(values: &[f32]) -> usize {
    let better = |best: usize, at: usize| if values[at] > values[best] { at } else { best };
    (0..values.len()).reduce(better).unwrap_or_default()
}

/// The size of a GGUF file, or of a folder's tensors.
fn weights_bytes(path: &Path) -> Result<u64> {
    if path.is_file() {
        return crate::files::size(path);
    }
    let mut bytes = 0;
    let entries = std::fs::read_dir(path).map_err(|error| crate::files::io_error(OPERATION, path, error))?;
    for entry in entries {
        let path = entry.map_err(|error| crate::files::io_error(OPERATION, path, error))?.path();
        if path.extension().is_some_and(|ending| ending == "safetensors" || ending == "gguf") {
            bytes += crate::files::size(&path)?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_distributions() {
        let mut tally = Tally::default();
        let (p, q) = ([0.5f32, 0.25, 0.25], [0.25f32, 0.5, 0.25]);
        let [p, q] = [p, q].map(|shares| shares.map(f32::ln));
        for _ in 0..99 {
            tally.add(&p, &p, 1);
        }
        tally.add(&p, &q, 1);
        let report = tally.report(Digest::of(b""), 8, [10, 5]).unwrap();
        // 0.5 ln(0.5 / 0.25) + 0.25 ln(0.25 / 0.5)
        let divergence = 0.25 * 2f64.ln();
        assert!((report.max_divergence - divergence).abs() < 1e-6 && report.p99_divergence < 1e-6, "{report:?}");
        assert!((report.mean_divergence - divergence / 100.0).abs() < 1e-7);
        assert!(
            (report.original_perplexity - 4.0).abs() < 1e-5 && (report.perplexity - 4.0 / 2f64.powf(0.01)).abs() < 1e-5
        );
        assert_eq!((report.agreement, report.predictions), (0.99, 100));
        assert!(Tally::default().report(Digest::of(b""), 8, [0, 0]).is_err());
    }

    #[test]
    fn a_budget_names_the_limit_and_the_value() {
        let report = QualityReport {
            text: Digest::of(b""),
            context: 512,
            predictions: 100,
            original_perplexity: 10.0,
            perplexity: 11.0,
            agreement: 0.9,
            mean_divergence: 0.02,
            p99_divergence: 0.3,
            max_divergence: 0.5,
            original_bytes: 100,
            bytes: 30,
        };
        assert!(QualityBudget::default().check(&report).is_ok());
        let kept = QualityBudget {
            perplexity_rise: Some(0.11),
            agreement: Some(0.9),
            mean_divergence: Some(0.02),
            p99_divergence: Some(0.3),
            bytes: Some(30),
        };
        assert!(kept.check(&report).is_ok());
        let broken = [
            (QualityBudget { perplexity_rise: Some(0.05), ..kept.clone() }, "perplexity_rise"),
            (QualityBudget { agreement: Some(0.91), ..kept.clone() }, "agreement"),
            (QualityBudget { mean_divergence: Some(0.01), ..kept.clone() }, "mean_divergence"),
            (QualityBudget { p99_divergence: Some(0.29), ..kept.clone() }, "p99_divergence"),
            (QualityBudget { bytes: Some(29), ..kept.clone() }, "bytes"),
            (QualityBudget { agreement: Some(f64::NAN), ..kept.clone() }, "agreement"),
        ];
        for (budget, name) in broken {
            let error = budget.check(&report).unwrap_err();
            assert!(error.context(name).is_some_and(|text| text.contains("limit")), "{name}: {error}");
        }
        let nothing = QualityReport { mean_divergence: f64::NAN, ..report };
        assert!(kept.check(&nothing).is_err());
    }
}
