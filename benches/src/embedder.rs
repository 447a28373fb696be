//! An embedder on the processor beside onnxruntime: each side a process of its own that has read the same weights, with as many threads.

use std::{
    io::stdin,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use hybrid_core::{
    InferenceBackend, ServedModel,
    task::{Embed, EmbedInput, EmbedRequest},
};
use hybrid_local::{Device, EmbedderLoader};
use serde::{Deserialize, Serialize};

use crate::{context, must, runtime, side::Side};

/// What the program is called with to be our side.
pub const SIDE: &str = "--side";
/// Texts of a batch.
pub const TEXTS: usize = 32;
/// Tokens of each text, marks included.
pub const TOKENS: [usize; 2] = [32, 128];
/// How long batches are embedded for one measure.
const SPAN: Duration = Duration::from_millis(1_500);
/// Tokens that the tokenizer puts around a text.
const MARKS: usize = 2;

/// What one round gives.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Measures {
    /// Texts a second, for each of [`TOKENS`].
    pub rates: [f64; 2],
    /// The first numbers of the first text's vector, for each of [`TOKENS`].
    pub vectors: [Vec<f32>; 2],
}

/// Ours, with the model in `folder`.
pub fn ours(folder: &Path, threads: usize) -> Side<Measures> {
    let mut command = Command::new(must(std::env::current_exe()));
    Side::start(command.arg(SIDE).arg(folder).env("RAYON_NUM_THREADS", threads.to_string()))
}

/// onnxruntime, with the same.
pub fn peer(python: &Path, folder: &Path, threads: usize) -> Side<Measures> {
    let mut command = Command::new(python);
    Side::start(command.arg(script()).arg("run").arg(folder).arg(threads.to_string()))
}

/// Writes the model into `folder`, unless it is there.
pub fn make(python: &Path, folder: &Path) {
    must(std::fs::create_dir_all(folder));
    let made = must(Command::new(python).arg(script()).arg("make").arg(folder).status());
    assert!(made.success(), "the model was not written: {made}");
}

/// Is our side: reads the model, and measures for every line of input.
pub fn run(folder: &Path) {
    let runtime = runtime();
    let loader = EmbedderLoader::new(Device::cpu());
    let backend = must(runtime.block_on(loader.open(folder, ServedModel::named("random"))));
    for _ in stdin().lines() {
        let [(short, of_short), (long, of_long)] = TOKENS.map(|tokens| runtime.block_on(rate(&*backend, tokens)));
        let measures = Measures { rates: [short, long], vectors: [of_short, of_long] };
        println!("{}", must(serde_json::to_string(&measures)));
    }
}

/// Texts a second, and the beginning of the first vector.
async fn rate(backend: &dyn InferenceBackend<Embed>, tokens: usize) -> (f64, Vec<f32>) {
    let text = |text: usize| (0..tokens - MARKS).map(|i| id(text, i)).collect();
    let inputs: Vec<EmbedInput> = (0..TEXTS).map(|i| EmbedInput::Tokens(text(i))).collect();
    let cx = context();
    let embed = || async { must(backend.infer(&cx, EmbedRequest::many(inputs.clone())).await).response.embeddings };
    let vector = embed().await.swap_remove(0)[..8].to_vec();
    let (started, mut texts) = (Instant::now(), 0);
    while started.elapsed() < SPAN {
        texts += embed().await.len();
    }
    (texts as f64 / started.elapsed().as_secs_f64(), vector)
}

/// The peer has the same.
fn id(text: usize, i: usize) -> u32 {
    (1_000 + (text * 7_919 + i * 977) % 29_000) as u32
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/minilm.py")
}
