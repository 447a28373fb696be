//! Runs the programs, and reads what the quickstart leaves.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use hybrid_core::{Document, Verdict};
use hybrid_examples::{quickstart::summary::Summary, train_job::TrainOutcome};
use hybrid_sync::job::JobResult;
use reqwest::RequestBuilder;
use serde_json::Value;

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

/// A program that ends with the test.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) fn start(program: &str, arguments: &[&str]) -> Self {
        Self::with(Command::new(program).args(arguments))
    }

    pub(crate) fn with(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(mut self) {
        let asked = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status().unwrap();
        assert!(asked.success() && self.0.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long another program may take for what a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again and again until there is an answer to `what`; for what other programs do, which tell nobody when they have.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            match ask().await {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// The status and the body of an answer.
pub(crate) async fn answer(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.json().await.unwrap())
}
