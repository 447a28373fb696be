//! Runs the quickstart's program and reads what it leaves.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use hybrid_core::{Document, Verdict};
use hybrid_examples::{quickstart::summary::Summary, train_job::TrainOutcome};
use hybrid_sync::job::JobResult;

pub(crate) fn quickstart(site: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quickstart"));
    command.arg("--json").arg("--site").arg(site).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The summary on the last line of standard output.
pub(crate) fn summary(output: &Output) -> Summary {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{errors}", output.status);
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}\n{text}\n{errors}"))
}

/// The outcomes of all training jobs of a site, by version, without what may differ between two runs: times and bytes.
pub(crate) fn outcomes(site: &Path) -> Vec<(u64, String, Verdict, u64, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(site.join("artifacts/t/default/jobs")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path().join("result")).unwrap();
        let outcome: TrainOutcome = JobResult::decode(&bytes).unwrap().output().unwrap();
        found.push((
            outcome.version,
            outcome.weights.to_string(),
            outcome.verdict.verdict,
            outcome.verdict.fixes,
            outcome.verdict.regressions,
        ));
    }
    found.sort_by_key(|outcome| outcome.0);
    found
}
