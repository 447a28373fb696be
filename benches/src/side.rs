//! A side of a measurement as a process of its own, which measures itself when it is asked.

use std::{
    fs,
    io::{BufRead, BufReader, Lines, Write},
    marker::PhantomData,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde::de::DeserializeOwned;

use crate::must;

/// A process that answers each empty line with a line of JSON.
#[derive(Debug)]
pub struct Side<T> {
    child: Child,
    ask: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    measured: PhantomData<T>,
}

impl<T: DeserializeOwned> Side<T> {
    /// Starts the process.
    pub fn start(command: &mut Command) -> Self {
        let mut child = must(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn());
        let (Some(ask), Some(answers)) = (child.stdin.take(), child.stdout.take()) else { panic!("no pipes") };
        Self { child, ask, answers: BufReader::new(answers).lines(), measured: PhantomData }
    }

    /// One round.
    pub fn measure(&mut self) -> T {
        must(self.ask.write_all(b"\n").and_then(|()| self.ask.flush()));
        let Some(answer) = self.answers.next() else { panic!("the process ended: {:?}", self.child.wait()) };
        must(serde_json::from_str(&must(answer)))
    }

    /// Ends the process.
    pub fn end(self) {
        let Self { mut child, ask, .. } = self;
        drop(ask);
        must(child.wait());
    }
}

/// The most memory that this process has had, MiB, where the system says it in a file.
pub fn peak_mib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1_024.0
}
