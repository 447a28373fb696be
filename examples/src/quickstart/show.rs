//! The transcript: what a person sees, on standard error; standard output stays for `--json`.

use std::time::Duration;

use console::style;
use hybrid_core::ProgressEvent;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::summary::{Summary, VersionRow};
use crate::{log::say, storefront::PickUp};

/// Writes the transcript.
#[derive(Debug)]
pub struct Show {
    bar: ProgressBar,
}

impl Default for Show {
    fn default() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        Self { bar }
    }
}

impl Show {
    /// A line of the story.
    pub fn line(&self, text: impl AsRef<str>) {
        // Bars hide without a terminal and take their lines with them; the story must not.
        if self.bar.is_hidden() { say(std::io::stderr(), text.as_ref()) } else { self.bar.println(text) }
    }

    /// The heading of a chapter.
    pub fn chapter(&self, number: usize, title: &str) {
        self.line(format!("\n{} {}", style(format!("{number}.")).cyan().bold(), style(title).bold()));
    }

    /// A fact below a heading.
    pub fn fact(&self, text: impl std::fmt::Display) {
        self.line(format!("   {text}"));
    }

    /// A customer's message with the model's answer.
    pub fn answer(&self, text: &str, label: &str, confidence: f32) {
        let short: String =
            if text.chars().count() > 64 { text.chars().take(63).chain(['…']).collect() } else { text.to_owned() };
        self.fact(format_args!(
            "{} {} {}",
            style(format!("{short:<64}")).dim(),
            style(format!("{label:<9}")).green(),
            style(format!("{:.0}%", confidence * 100.0)).dim()
        ));
    }

    /// Starts a bar of `total` units.
    pub fn begin(&self, what: &str, total: u64) {
        self.bar.reset();
        self.bar.set_length(total);
        self.bar.set_style(bar_style());
        self.bar.set_message(what.to_owned());
    }

    /// One more unit is done.
    pub fn step(&self) {
        self.bar.inc(1);
    }

    /// Moves the bar to where a stage of the kitchen's work is.
    pub fn progress(&self, event: &ProgressEvent) {
        let message = format!("{} {}", event.stage, event.message);
        if let Some(total) = event.total {
            self.bar.set_length(total);
        }
        self.bar.set_style(bar_style());
        self.bar.set_message(message);
        self.bar.set_position(event.done);
    }

    /// Clears the bar.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }

    /// A version's verdict.
    pub fn verdict(&self, row: &VersionRow, reason: Option<&str>) {
        let colour = match row.verdict.as_str() {
            "promote" => style(row.verdict.as_str()).green().bold(),
            "refuse" => style(row.verdict.as_str()).red().bold(),
            other => style(other).yellow().bold(),
        };
        self.fact(format_args!(
            "version {}: {colour}   accuracy {:.1}% (95% interval {:.1} to {:.1}) on the golden set",
            row.version,
            row.accuracy * 100.0,
            row.low * 100.0,
            row.high * 100.0
        ));
        if let Some(p) = row.p {
            self.fact(format_args!(
                "against the version in service: {} fixed, {} broken, p = {}",
                row.fixes,
                row.regressions,
                p_value(p)
            ));
        }
        for reason in reason.iter().flat_map(|reason| reason.split("; ")) {
            self.fact(format_args!("- {}", style(reason).red()));
        }
    }

    /// The storefront serves a new version.
    pub fn picked_up(&self, version: u64, pick_up: Option<PickUp>) {
        match pick_up {
            Some(PickUp { bytes_moved, fetch, load, swap }) => self.fact(format_args!(
                "the storefront serves version {version}: fetched and verified {} in {}, loaded in {}, swapped in {} between two requests",
                bytes(bytes_moved),
                time(fetch),
                time(load),
                time(swap)
            )),
            None => self.fact(format_args!("the storefront serves version {version}")),
        }
    }

    /// The table at the end.
    pub fn table(&self, summary: &Summary) {
        self.line(format!(
            "\n{}",
            style("version  verdict   accuracy (95% interval)     ECE    train      moved   swap").bold()
        ));
        for row in &summary.versions {
            self.line(format!(
                "{:>7}  {:<8}  {:>5.1}%   ({:>5.1} to {:>5.1})   {:>6.3}  {:>5.1} s  {:>9}  {}",
                row.version,
                row.verdict,
                row.accuracy * 100.0,
                row.low * 100.0,
                row.high * 100.0,
                row.ece,
                row.train_seconds,
                bytes(row.bytes_moved),
                row.swap_ms.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.3} ms")),
            ));
        }
        self.line(format!(
            "\nin service: version {}    requests served {}, failed {}    {:.0} s in all",
            summary.serving.map_or_else(|| "none".to_owned(), |version| version.to_string()),
            summary.requests.served,
            summary.requests.failed,
            summary.seconds
        ));
    }
}

fn bar_style() -> ProgressStyle {
    // The template is fixed, so it cannot be wrong at run time; the default bar stands in if it were.
    ProgressStyle::with_template("   {bar:32.cyan/dim} {pos}/{len} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}

fn p_value(p: f64) -> String {
    if p < 0.001 { format!("{p:.1e}") } else { format!("{p:.3}") }
}

/// A number of bytes for a person.
pub fn bytes(count: u64) -> String {
    match count {
        0..1_000 => format!("{count} B"),
        1_000..1_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

/// A duration for a person.
pub fn time(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.1} s"),
        seconds if seconds >= 0.001 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{:.0} µs", seconds * 1e6),
    }
}
