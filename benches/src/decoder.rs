//! A decoder on the processor beside llama.cpp: each side a process of its own that has read the same file, with as many threads.

use std::{
    io::stdin,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use futures_util::{StreamExt, future::join_all};
use hybrid_core::{
    Event, InferenceBackend, ServedModel,
    task::{Chat, ChatRequest},
};
use hybrid_local::{DecoderLoader, Device};
use serde::{Deserialize, Serialize};

use crate::{
    context, must, noise, runtime,
    side::{Side, peak_mib},
};

/// Kinds of blocks, as the files are named.
pub const KINDS: [&str; 3] = ["q4_k_m", "q4_0", "q8_0"];
/// What the program is called with to be one of the two sides.
pub const SIDE: &str = "--side";
/// Answers that are written at a time, where there is more than one.
pub const STREAMS: usize = 8;
/// Tokens of a prompt and of an answer.
const PROMPT: u64 = 512;
const ANSWER: u64 = 64;
/// Tokens of a prompt that comes together with others.
const SHORT_PROMPT: u64 = 64;

/// What one round gives.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Rates {
    /// Tokens of the prompt a second; of all prompts, where there are several.
    pub prefill: f64,
    /// Tokens of the answer a second; of several answers those of all, and the time is that of their prompts too.
    pub decode: f64,
    /// The most memory that the process has had, MiB.
    pub peak_mib: f64,
}

/// Ours, with the model in `file`, writing so many answers at a time.
pub fn ours(file: &Path, threads: usize, streams: usize) -> Side<Rates> {
    let mut command = Command::new(must(std::env::current_exe()));
    command.arg(SIDE).arg(file).arg(streams.to_string()).env("RAYON_NUM_THREADS", threads.to_string());
    Side::start(&mut command)
}

/// llama.cpp, with the same.
pub fn peer(python: &Path, file: &Path, threads: usize, streams: usize) -> Side<Rates> {
    let mut command = Command::new(python);
    command.arg(script()).arg("run").arg(file).arg(threads.to_string()).arg(streams.to_string());
    Side::start(&mut command)
}

/// Writes the models into `folder`, unless they are there.
pub fn make(python: &Path, folder: &Path) -> Vec<PathBuf> {
    must(std::fs::create_dir_all(folder));
    let made = must(Command::new(python).arg(script()).arg("make").arg(folder).status());
    assert!(made.success(), "the models were not written: {made}");
    KINDS.iter().map(|kind| folder.join(format!("qwen3-{kind}.gguf"))).collect()
}

/// Is our side: reads the model, and for every line of input as many prompts as `streams`, each of its own.
pub fn run(file: &Path, streams: usize) {
    let runtime = runtime();
    let loader = DecoderLoader::new(Device::cpu()).with_context(1_024).with_streams(streams);
    let backend = must(runtime.block_on(loader.open(file, ServedModel::named("random"))));
    let prompt = if streams == 1 { PROMPT } else { SHORT_PROMPT };
    // So many letters make about so many tokens as are wanted.
    // Each prompt is of its own, or it would be found read.
    let mut letters = 2 * prompt as usize;
    for seed in 0..3 {
        let answer = runtime.block_on(ask(&*backend, letters, seed, 1));
        letters = letters * prompt as usize / answer.input as usize;
    }
    for (number, _) in stdin().lines().enumerate() {
        let seed = (number * streams) as u64 + 3;
        let rates = if streams == 1 {
            runtime.block_on(alone(&*backend, letters, seed))
        } else {
            runtime.block_on(together(&*backend, letters, seed, streams))
        };
        println!("{}", must(serde_json::to_string(&rates)));
    }
}

/// One answer.
async fn alone(backend: &dyn InferenceBackend<Chat>, letters: usize, seed: u64) -> Rates {
    let answer = ask(backend, letters, seed, ANSWER + 1).await;
    let seconds = |from: Instant, to: Instant| (to - from).as_secs_f64();
    Rates {
        prefill: answer.input as f64 / seconds(answer.asked, answer.begun),
        // The first token is drawn of what the prompt gave.
        decode: (answer.output - 1) as f64 / seconds(answer.begun, answer.done),
        peak_mib: peak_mib(),
    }
}

/// Answers that are asked for at once.
async fn together(backend: &dyn InferenceBackend<Chat>, letters: usize, seed: u64, streams: usize) -> Rates {
    let asked = Instant::now();
    let answers = join_all((0..streams as u64).map(|i| ask(backend, letters, seed + i, ANSWER))).await;
    let seconds = asked.elapsed().as_secs_f64();
    let sum = |of: fn(&Answer) -> u64| answers.iter().map(of).sum::<u64>() as f64;
    assert!(answers.iter().all(|answer| answer.output == ANSWER), "an answer ended early: {answers:?}");
    let begun = answers.iter().map(|answer| answer.begun).max().unwrap_or(asked);
    Rates {
        prefill: sum(|answer| answer.input) / (begun - asked).as_secs_f64(),
        decode: sum(|answer| answer.output) / seconds,
        peak_mib: peak_mib(),
    }
}

/// What one answer took.
#[derive(Debug)]
struct Answer {
    /// Tokens of the prompt and of the answer.
    input: u64,
    output: u64,
    asked: Instant,
    /// When the first piece came.
    begun: Instant,
    done: Instant,
}

async fn ask(backend: &dyn InferenceBackend<Chat>, letters: usize, seed: u64, answer: u64) -> Answer {
    let text: String = noise(letters, seed + 1).iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    let words: Vec<&str> = (0..letters).step_by(8).map(|from| &text[from..letters.min(from + 8)]).collect();
    let mut request = ChatRequest::user(words.join(" "));
    request.sampling.max_tokens = Some(answer as u32);
    request.sampling.temperature = Some(0.0);
    let asked = Instant::now();
    let mut begun = None;
    let mut events = must(backend.stream(&context(), request).await);
    while let Some(event) = events.next().await {
        match must(event) {
            Event::Delta(_) => {
                begun.get_or_insert_with(Instant::now);
            }
            Event::Done(meta) => {
                let (done, begun) = (Instant::now(), begun.unwrap_or_else(Instant::now));
                let (input, output) = (meta.usage.input_tokens, meta.usage.output_tokens);
                return Answer { input, output, asked, begun, done };
            }
        }
    }
    panic!("the answer has no end");
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/llama.py")
}
