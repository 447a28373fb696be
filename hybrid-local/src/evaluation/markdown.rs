use std::fmt::Write;

use hybrid_core::{Interval, Verdict};

pub(crate) use super::decide::p_text;
use super::{
    LabelMetrics,
    decide::{percent, points},
    report::{Change, Measured, Report},
};

/// The most labels for which the confusion is a matrix; with more it is a list.
const MATRIX: usize = 12;
/// The most lines of that list.
const CONFUSED: usize = 20;

impl Report {
    /// The report for people, as Markdown with tables (GitHub's).
    pub fn to_markdown(&self) -> String {
        let mut page = Page(String::new());
        self.summary(&mut page);
        self.versions(&mut page);
        self.paired(&mut page);
        self.slice_table(&mut page);
        if let Some(labels) = &self.candidate.labels {
            label_table(&mut page, labels);
            confusion(&mut page, labels);
            calibration(&mut page, labels);
        }
        if let Some(comparison) = &self.comparison {
            changes(&mut page, "Fixes", &self.fixes, comparison.fixes);
            changes(&mut page, "Regressions", &self.regressions, comparison.regressions);
        }
        let options = &self.options;
        page.line(format_args!(
            "\n---\nTests at α = {}, intervals at 95 %, bootstrap seed {} with {} resamples, slices from {} cases. Golden set `{}`.",
            options.alpha, options.seed, options.resamples, options.min_slice, self.golden.digest
        ));
        page.0
    }

    fn summary(&self, page: &mut Page) {
        let verdict = match self.verdict {
            Verdict::Promote => "Promote",
            Verdict::Hold => "Hold",
            Verdict::Refuse(_) => "Refuse",
            // A later kind of verdict names itself.
            _ => "Verdict",
        };
        page.line(format_args!("# {verdict}: {} on {}\n", plain(&self.task), plain(&self.golden.name)));
        page.line(format_args!("**{verdict}**: {}.", plain(&self.reason)));
        if let Some(labels) = self.candidate.labels.as_ref().filter(|labels| !labels.unknown.is_empty()) {
            let unknown: Vec<String> = labels.unknown.iter().map(|label| plain(label)).collect();
            page.line(format_args!(
                "\nThe candidate cannot answer with {}: it has no score for {}.",
                unknown.join(", "),
                if unknown.len() == 1 { "it" } else { "them" }
            ));
        }
    }

    fn versions(&self, page: &mut Page) {
        let both: Vec<&Measured> = [Some(&self.candidate), self.incumbent.as_ref()].into_iter().flatten().collect();
        page.heading(format_args!("Versions"));
        let headings: &[&str] = if both.len() == 2 { &["", "candidate", "in service"] } else { &["", "candidate"] };
        page.table(headings, 1);
        let mut row = |name: &str, cell: &dyn Fn(&Measured) -> Option<String>| {
            let cells: Vec<Option<String>> = both.iter().map(|version| cell(version)).collect();
            if cells.iter().any(Option::is_some) {
                page.row(
                    [name.to_owned()]
                        .into_iter()
                        .chain(cells.into_iter().map(|cell| cell.unwrap_or_else(|| "–".to_owned()))),
                );
            }
        };
        row("model", &|version| {
            let number = version.model.version.map_or(String::new(), |number| format!(" {number}"));
            Some(format!("{}{number}", plain(&version.model.name)))
        });
        row("manifest", &|version| {
            version.manifest.map(|digest| format!("`{}`", digest.to_string().get(..12).unwrap_or_default()))
        });
        row(&self.metric, &|version| Some(with_interval(version.score)));
        let labels = |value: fn(&LabelMetrics) -> Option<f64>, text: fn(f64) -> String| {
            move |version: &Measured| version.labels.as_ref().and_then(value).map(text)
        };
        row("macro F1", &labels(|labels| Some(labels.macro_f1), percent));
        row(
            "expected calibration error",
            &labels(|labels| labels.calibration.as_ref().map(|calibration| calibration.ece), percent),
        );
        row("log loss", &labels(|labels| labels.log_loss, |loss| format!("{loss:.3}")));
        row("Brier score", &labels(|labels| labels.brier, |brier| format!("{brier:.3}")));
        row("p95 latency", &|version| version.latency_p95.map(|latency| format!("{latency:.1?}")));
        row("memory", &|version| {
            version.memory_bytes.map(|bytes| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)))
        });
        row("cost", &|version| version.cost.map(|cost| cost.to_string()));
        row("notes", &|version| {
            let notes: Vec<String> =
                version.notes.iter().map(|(code, count)| format!("{} × {count}", plain(code))).collect();
            (!notes.is_empty()).then(|| notes.join(", "))
        });
        page.line(format_args!(
            "\n{} cases. Always answering \"{}\" gives {}.",
            self.golden.cases,
            cell(&self.baseline.answer),
            percent(self.baseline.score)
        ));
    }

    fn paired(&self, page: &mut Page) {
        let Some(comparison) = &self.comparison else { return };
        page.heading(format_args!("Comparison"));
        let Interval { value, low, high } = comparison.difference;
        page.line(format_args!(
            "- difference: {:+.1} points, 95 % interval [{:+.1}, {:+.1}]",
            100.0 * value,
            100.0 * low,
            100.0 * high
        ));
        let changed = comparison.fixes + comparison.regressions;
        page.line(format_args!(
            "- {} fixes and {} regressions; the other {} cases score the same",
            comparison.fixes,
            comparison.regressions,
            self.golden.cases - changed.min(self.golden.cases)
        ));
        page.line(format_args!("- {} test, two-sided: {}", comparison.test, p_text(comparison.p)));
        match comparison.detectable {
            Some(least) => page.line(format_args!("- minimum detectable effect at power 0.8: {}", points(least))),
            None => page.line(format_args!("- minimum detectable effect: none can be stated; the versions differ too little or there are too few cases")),
        }
    }

    fn slice_table(&self, page: &mut Page) {
        if self.slices.is_empty() && self.small_slices == 0 {
            return;
        }
        page.heading(format_args!("Slices"));
        match self.comparison {
            Some(_) => page
                .table(&["slice", "cases", "candidate", "in service", "fixes", "regressions", "p", "p (Holm)", ""], 1),
            None => page.table(&["slice", "cases", "candidate"], 1),
        }
        for slice in &self.slices {
            let mut cells = vec![cell(&slice.to_string()), slice.cases.to_string(), with_interval(slice.candidate)];
            if let Some(there) = &slice.comparison {
                let number = |p: f64| p_text(p).trim_start_matches("p = ").trim_start_matches("p ").to_owned();
                let mark = match () {
                    () if there.is_worse(slice.candidate, self.options.alpha) => "**worse**",
                    () if there.adjusted_p < self.options.alpha => "better",
                    () => "",
                };
                cells.extend([percent(there.incumbent.value), there.fixes.to_string(), there.regressions.to_string()]);
                cells.extend([number(there.p), number(there.adjusted_p), mark.to_owned()]);
            }
            page.row(cells);
        }
        if self.small_slices > 0 {
            page.line(format_args!(
                "\n{} more with fewer than {} cases are not looked at on their own.",
                self.small_slices, self.options.min_slice
            ));
        }
    }
}

fn label_table(page: &mut Page, labels: &LabelMetrics) {
    page.heading(format_args!("Labels"));
    page.table(&["label", "cases", "answered", "precision", "recall", "F1"], 1);
    for label in &labels.labels {
        let counts = [cell(&label.label), label.cases.to_string(), label.answered.to_string()];
        page.row(counts.into_iter().chain([label.precision, label.recall, label.f1].map(percent)));
    }
}

fn confusion(page: &mut Page, labels: &LabelMetrics) {
    page.heading(format_args!("Confusion"));
    let names: Vec<String> = labels.labels.iter().map(|label| cell(&label.label)).collect();
    if names.len() <= MATRIX {
        page.line(format_args!("Rows are expected, columns answered.\n"));
        let headings: Vec<&str> = [""].into_iter().chain(names.iter().map(String::as_str)).collect();
        page.table(&headings, 1);
        for (at, counts) in labels.confusion.iter().enumerate().filter(|(at, _)| labels.labels[*at].cases > 0) {
            let count = |(column, count): (usize, &u64)| match count {
                0 => "·".to_owned(),
                count if column == at => format!("**{count}**"),
                count => count.to_string(),
            };
            page.row([names[at].clone()].into_iter().chain(counts.iter().enumerate().map(count)));
        }
        return;
    }
    let mut confused: Vec<(u64, usize, usize)> = Vec::new();
    for (row, counts) in labels.confusion.iter().enumerate() {
        confused.extend(
            counts
                .iter()
                .enumerate()
                .filter(|&(column, &count)| column != row && count > 0)
                .map(|(column, &count)| (count, row, column)),
        );
    }
    confused.sort_by(|a, b| b.0.cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    page.table(&["expected", "answered", "cases"], 2);
    for (count, row, column) in confused.iter().take(CONFUSED) {
        page.row([names[*row].clone(), names[*column].clone(), count.to_string()]);
    }
    if confused.len() > CONFUSED {
        page.line(format_args!("\n{} rarer pairs are not shown.", confused.len() - CONFUSED));
    }
}

fn calibration(page: &mut Page, labels: &LabelMetrics) {
    let Some(calibration) = &labels.calibration else { return };
    page.heading(format_args!("Calibration"));
    page.table(&["confidence", "answers", "mean confidence", "right"], 1);
    for bin in &calibration.bins {
        page.row([
            format!("{:.2} to {:.2}", bin.low, bin.high),
            bin.cases.to_string(),
            percent(bin.confidence),
            percent(bin.accuracy),
        ]);
    }
}

fn changes(page: &mut Page, heading: &str, shown: &[Change], all: u64) {
    if all == 0 {
        return;
    }
    page.heading(format_args!("{heading}"));
    if (shown.len() as u64) < all {
        page.line(format_args!("{} of {all}.\n", shown.len()));
    }
    page.table(&["case", "input", "expected", "in service", "candidate"], 5);
    for change in shown {
        let Change { id, input, expected, incumbent, candidate } = change;
        page.row([id, input, expected, incumbent, candidate].map(|text| cell(text)));
    }
}

#[derive(Default)]
pub(crate) struct Page(pub(crate) String);

impl Page {
    pub(crate) fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{text}");
    }

    pub(crate) fn heading(&mut self, text: std::fmt::Arguments<'_>) {
        self.line(format_args!("\n## {text}\n"));
    }

    /// The head of a table: the first `left` columns are texts, the others numbers.
    pub(crate) fn table(&mut self, headings: &[&str], left: usize) {
        self.row(headings.iter().map(|heading| (*heading).to_owned()));
        self.row((0..headings.len()).map(|column| if column < left { "---" } else { "---:" }.to_owned()));
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let row: String = cells.into_iter().map(|cell| format!(" {cell} |")).collect();
        self.line(format_args!("|{row}"));
    }
}

pub(crate) fn with_interval(Interval { value, low, high }: Interval) -> String {
    format!("{} [{:.1}, {:.1}]", percent(value), 100.0 * low, 100.0 * high)
}

/// A text from outside, so that it is shown and never read as Markdown or HTML.
pub(crate) fn plain(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' | '!' | '$' => escaped.extend(['\\', c]),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A text from outside in a cell of a table.
pub(crate) fn cell(text: &str) -> String {
    const LENGTH: usize = 80;
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", plain(text[..end].trim_end())),
        None => plain(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_customer_text_cannot_break_a_table_or_become_markup() {
        assert_eq!(cell("a|b\n<script> **x** [l](u)"), "a\\|b &lt;script&gt; \\*\\*x\\*\\* \\[l\\](u)");
        assert_eq!(cell(&"ä".repeat(81)), format!("{}…", "ä".repeat(80)));
        assert_eq!(cell(&"ä".repeat(80)), "ä".repeat(80));
    }
}
