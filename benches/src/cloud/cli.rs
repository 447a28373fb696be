//! AWS's own command line, as PyPI has it.

use std::{path::PathBuf, process::Command, time::Duration};

use hybrid_cloud::testkit::{Python, Seaweed};

use crate::{must, timed};

/// The command line, set up for one server and nothing else.
#[derive(Debug)]
pub struct Cli {
    program: PathBuf,
    endpoint: String,
}

impl Cli {
    /// Installs it where the test kit keeps its virtual environments, unless it is there.
    pub fn install(server: &Seaweed) -> Self {
        let python = must(Python::environment(include_str!("awscli.txt")));
        Self { program: python.program("aws"), endpoint: server.endpoint().to_owned() }
    }

    /// Its version, which says itself.
    pub fn version(&self) -> String {
        let said = must(self.command().arg("--version").output());
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        said.split_whitespace().next().unwrap_or_default().to_owned()
    }

    /// How long it takes to start and do nothing.
    pub fn start(&self) -> Duration {
        self.run(&["--version"])
    }

    /// `aws s3 cp`; one of the two is a URL.
    pub fn copy(&self, from: &str, to: &str) -> Duration {
        self.run(&["s3", "cp", "--only-show-errors", from, to])
    }

    fn run(&self, arguments: &[&str]) -> Duration {
        let (took, output) = timed(|| must(self.command().args(arguments).output()));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "aws {arguments:?} failed: {said}");
        took
    }

    /// With its defaults: what this machine is configured for counts for nothing.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        let nowhere = "/nonexistent";
        command.env_clear().envs([
            ("AWS_ACCESS_KEY_ID", Seaweed::ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", Seaweed::SECRET_KEY),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_CONFIG_FILE", nowhere),
            ("AWS_SHARED_CREDENTIALS_FILE", nowhere),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]);
        command
    }
}
