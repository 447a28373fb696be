//! A decoder on the processor beside llama.cpp: each side a process of its own that has read the same file, with as many threads.

use std::{
    io::{BufRead, BufReader, Lines, Write, stdin},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use futures_util::StreamExt;
use hybrid_core::{
    Event, InferenceBackend, ServedModel,
    task::{Chat, ChatRequest},
};
use hybrid_local::{DecoderLoader, Device};
use serde::{Deserialize, Serialize};

use crate::{context, must, noise, runtime};

/// Kinds of blocks, as the files are named.
pub const KINDS: [&str; 3] = ["q4_k_m", "q4_0", "q8_0"];
/// What the program is called with to be one of the two sides.
pub const SIDE: &str = "--side";
/// The environment's Python that has what `peers/llama.py` asks for.
pub const PYTHON: &str = "HYBRID_LLAMA_CPP";
/// Tokens of a prompt and of an answer.
const PROMPT: u64 = 512;
const ANSWER: u64 = 64;

/// What one round gives.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Rates {
    /// Tokens of the prompt a second.
    pub prefill: f64,
    /// Tokens of the answer a second.
    pub decode: f64,
    /// The most memory that the process has had, MiB.
    pub peak_mib: f64,
}

/// A process that measures itself when it is asked.
#[derive(Debug)]
pub struct Side {
    child: Child,
    ask: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Side {
    /// Ours, with the model in `file`.
    pub fn ours(file: &Path, threads: usize) -> Self {
        let mut command = Command::new(must(std::env::current_exe()));
        command.arg(SIDE).arg(file).env("RAYON_NUM_THREADS", threads.to_string());
        Self::start(command)
    }

    /// llama.cpp, with the same.
    pub fn peer(python: &Path, file: &Path, threads: usize) -> Self {
        let mut command = Command::new(python);
        command.arg(script()).arg("run").arg(file).arg(threads.to_string());
        Self::start(command)
    }

    fn start(mut command: Command) -> Self {
        let mut child = must(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn());
        let (Some(ask), Some(answers)) = (child.stdin.take(), child.stdout.take()) else { panic!("no pipes") };
        Self { child, ask, answers: BufReader::new(answers).lines() }
    }

    /// One round.
    pub fn measure(&mut self) -> Rates {
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

/// Writes the models into `folder`, unless they are there.
pub fn make(python: &Path, folder: &Path) -> Vec<PathBuf> {
    must(std::fs::create_dir_all(folder));
    let made = must(Command::new(python).arg(script()).arg("make").arg(folder).status());
    assert!(made.success(), "the models were not written: {made}");
    KINDS.iter().map(|kind| folder.join(format!("qwen3-{kind}.gguf"))).collect()
}

/// Is our side: reads the model, and for every line of input a prompt of its own.
pub fn run(file: &Path) {
    let runtime = runtime();
    let loader = DecoderLoader::new(Device::cpu()).with_context(1_024);
    let backend = must(runtime.block_on(loader.open(file, ServedModel::named("random"))));
    // So many letters make about so many tokens as are wanted.
    // Each prompt is of its own, or it would be found read.
    let mut letters = 2 * PROMPT as usize;
    for seed in 0..3 {
        let (tokens, _) = runtime.block_on(round(&*backend, letters, seed, 1));
        letters = letters * PROMPT as usize / tokens as usize;
    }
    for (number, _) in stdin().lines().enumerate() {
        let (_, rates) = runtime.block_on(round(&*backend, letters, number as u64 + 3, ANSWER + 1));
        println!("{}", must(serde_json::to_string(&rates)));
    }
}

/// The tokens of the prompt, and the rates.
async fn round(backend: &dyn InferenceBackend<Chat>, letters: usize, seed: u64, answer: u64) -> (u64, Rates) {
    let text: String = noise(letters, seed + 1).iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    let words: Vec<&str> = (0..letters).step_by(8).map(|from| &text[from..letters.min(from + 8)]).collect();
    let mut request = ChatRequest::user(words.join(" "));
    request.sampling.max_tokens = Some(answer as u32);
    request.sampling.temperature = Some(0.0);
    let started = Instant::now();
    let mut read = None;
    let mut events = must(backend.stream(&context(), request).await);
    while let Some(event) = events.next().await {
        match must(event) {
            Event::Delta(_) => {
                read.get_or_insert_with(Instant::now);
            }
            Event::Done(meta) => {
                let (done, read) = (Instant::now(), read.unwrap_or_else(Instant::now));
                let seconds = |from: Instant, to: Instant| (to - from).as_secs_f64();
                let (input, output) = (meta.usage.input_tokens, meta.usage.output_tokens);
                // The first token is drawn of what the prompt gave.
                let rates = Rates {
                    prefill: input as f64 / seconds(started, read),
                    decode: (output - 1) as f64 / seconds(read, done),
                    peak_mib: peak_mib(),
                };
                return (input, rates);
            }
        }
    }
    panic!("the answer has no end");
}

/// The most memory that this process has had, where the system says it in a file.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1_024.0
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/llama.py")
}
