//! Files of models with something changed, drawn from a seed: whatever they say, they are read or refused, and no length that they lie about is believed.
//!
//! The tests run in a process of their own that may take little memory, so that an allocation which follows a lie ends it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use hybrid_core::{Cancellation, Error, ErrorKind, NoProgress, ServedModel};
use hybrid_local::{
    DecoderLoader, Device,
    quantize::{Mix, Quantizer},
};

use crate::decoder::write_adapter;

const STARTED: &str = "HYBRID_TEST_MUTATED";
/// In KiB. Threads set aside some for themselves.
const MEMORY: u64 = 4 << 20;
/// A model of the fixtures takes a hundredth of it.
const MODEL_MEMORY: u64 = 64 << 20;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Whether this is the process that may take little memory; else the test is run in one, and has to succeed there.
fn is_limited(test: &str) -> bool {
    if std::env::var_os(STARTED).is_some() || cfg!(not(unix)) {
        return true;
    }
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -v {MEMORY} && exec \"$0\" --exact mutated::{test} --nocapture")]);
    let output = command.arg(std::env::current_exe().unwrap()).env(STARTED, "1").output().unwrap();
    let [said, failed] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert!(output.status.success() && said.contains("1 passed"), "{said}\n{failed}");
    print!("{said}");
    false
}

/// SplitMix64, Steele, Lea and Flood 2014.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// Changes something within the first `head` bytes.
    fn mutate(&mut self, bytes: &mut Vec<u8>, head: usize) {
        if bytes.is_empty() {
            return;
        }
        let at = self.below(head.min(bytes.len()));
        let length = (1 + self.below(40)).min(bytes.len() - at);
        match self.below(8) {
            0 => bytes[at] ^= 1 << self.below(8),
            1 => bytes[at] = self.of(b"\0\x01\x7f\xff09-\"{}[],:"),
            2 | 3 => {
                let lies = [u64::MAX, 1 << 63, i64::MAX as u64, 1 << 40, 1 << 33, u64::from(u32::MAX), 1 << 28, 0];
                let lie = self.of(&lies).to_le_bytes();
                let width = self.of(&[4, 8]).min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&lie[..width]);
            }
            4 => drop(bytes.drain(at..at + length)),
            5 => {
                let again = bytes[at..at + length].to_vec();
                bytes.splice(at..at, again);
            }
            6 => bytes.truncate(at),
            // A number of a text is made longer.
            _ => {
                if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                    let more = self.of(&["9", "99999999", "18446744073709551615", "-", ".5", "e9"]);
                    bytes.splice(at + digit..at + digit, more.bytes());
                }
            }
        }
    }
}

/// How often each came of it.
type Outcomes = BTreeMap<String, usize>;

#[track_caller]
fn count(outcomes: &mut Outcomes, what: &str, outcome: Result<(), Error>) {
    let named = match &outcome {
        Ok(()) => "read".to_owned(),
        Err(error) => {
            // A panic is `Internal` by then.
            use ErrorKind::{Corrupt, NotFound, ResourceExhausted, Unsupported};
            assert!([Corrupt, NotFound, ResourceExhausted, Unsupported].contains(&error.kind()), "{what}: {error:?}");
            format!("{:?}", error.kind())
        }
    };
    *outcomes.entry(named).or_default() += 1;
}

async fn open_decoder(path: &Path) -> Result<(), Error> {
    let loader = DecoderLoader::new(Device::cpu()).with_memory_limit(MODEL_MEMORY);
    loader.open(path, ServedModel::named("tiny")).await.map(drop)
}

/// A copy of the model in a folder of the fixtures.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "expected.safetensors" {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

/// How many bytes of a file say what the rest is.
fn head_of(name: &str, bytes: &[u8]) -> usize {
    match name.ends_with(".safetensors") {
        true => 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize,
        false => bytes.len(),
    }
}

/// Changes the files of a folder, one after the other.
async fn mutate<F: Future<Output = Result<(), Error>>>(
    name: &str,
    folder: &Path,
    tries: usize,
    open: impl Fn(PathBuf) -> F,
) {
    open(folder.to_owned()).await.unwrap();
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for path in files {
        let file = path.file_name().unwrap().to_str().unwrap();
        let (whole, mut draws, mut outcomes) = (fs::read(&path).unwrap(), Draws(7), Outcomes::new());
        for i in 0..tries {
            let mut changed = whole.clone();
            for _ in 0..=draws.below(2) {
                draws.mutate(&mut changed, head_of(file, &whole));
            }
            fs::write(&path, &changed).unwrap();
            count(&mut outcomes, &format!("{name}/{file} {i}"), open(folder.to_owned()).await);
        }
        fs::write(&path, &whole).unwrap();
        println!("{name}/{file}: {outcomes:?}");
    }
}

#[tokio::test]
async fn folders_of_decoders_do_no_harm() {
    if is_limited("folders_of_decoders_do_no_harm") {
        for name in ["decoder/qwen3", "decoder/phi3"] {
            mutate(name, copy(name).path(), 60, |path| async move { open_decoder(&path).await }).await;
        }
    }
}

#[tokio::test]
async fn folders_of_adapters_do_no_harm() {
    if is_limited("folders_of_adapters_do_no_harm") {
        let folder = tempfile::tempdir().unwrap();
        write_adapter(folder.path(), 2.0);
        let model = DecoderLoader::new(Device::cpu()).open_model(&fixture("decoder/qwen2")).await.unwrap();
        let open = |path: PathBuf| {
            let model = model.clone();
            async move {
                let adapter = model.adapter(&path, ServedModel::named("tiny")).await;
                // Of another shape than its model's is the caller's mistake, not the file's.
                match adapter {
                    Err(error) if error.kind() != ErrorKind::InvalidInput => Err(error),
                    _ => Ok(()),
                }
            }
        };
        mutate("adapter", folder.path(), 120, open).await;
    }
}

#[cfg(feature = "embedder")]
#[tokio::test]
async fn folders_of_encoders_do_no_harm() {
    if is_limited("folders_of_encoders_do_no_harm") {
        let open = |path: PathBuf| async move {
            let loader = hybrid_local::EmbedderLoader::new(Device::cpu()).with_memory_limit(MODEL_MEMORY);
            loader.open(&path, ServedModel::named("tiny")).await.map(drop)
        };
        mutate("bert/bert", copy("bert/bert").path(), 80, open).await;
        // Without its kinds of layers their number alone says how many there are.
        let modern = copy("bert/modernbert");
        let path = modern.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().remove("layer_types").unwrap();
        fs::write(&path, config.to_string()).unwrap();
        mutate("bert/modernbert", modern.path(), 80, open).await;
    }
}

#[cfg(feature = "classifier")]
#[tokio::test]
async fn versions_with_heads_do_no_harm() {
    use hybrid_core::{BaseModel, ModelLoader};
    use hybrid_local::TextClassifierLoader;

    use crate::classifier::{Site, judgments, manifest, messages, plan};

    if is_limited("versions_with_heads_do_no_harm") {
        let site = Site::with(judgments(&messages(12))).await;
        let mut plan = plan("decoder-head-lora", site.dataset.clone(), serde_json::json!({"epochs": 1}));
        plan.base = Some(BaseModel::Folder(fixture("decoder/qwen3")));
        let candidate = site.train(&plan).await.unwrap();
        let (manifest, digest) = manifest(&plan, &candidate);
        let open = |path: PathBuf| {
            let manifest = manifest.clone();
            async move {
                let loader = TextClassifierLoader::new(Device::cpu()).with_memory_limit(MODEL_MEMORY);
                loader.load(&manifest, digest, &path).await.map(drop)
            }
        };
        mutate("head", &site.files(), 60, open).await;
    }
}

#[tokio::test]
async fn gguf_files_do_no_harm() {
    if !is_limited("gguf_files_do_no_harm") {
        return;
    }
    for name in ["decoder/qwen3", "decoder/gemma2"] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        let quantizer = Quantizer::new(Mix::Q8_0);
        quantizer.run(&fixture(name), &path, Arc::new(NoProgress), Cancellation::new()).await.unwrap();
        open_decoder(&path).await.unwrap();
        let whole = fs::read(&path).unwrap();
        // The tensors are behind the names of the last of them.
        let head =
            whole.windows(8).rposition(|bytes| bytes == b".weight\0" || bytes.starts_with(b".weight")).unwrap() + 40;
        let (mut draws, mut outcomes) = (Draws(11), Outcomes::new());
        for i in 0..400 {
            let mut changed = whole.clone();
            for _ in 0..=draws.below(2) {
                // Half of them among the keys, which come first.
                let head = draws.of(&[head, 1_500]);
                draws.mutate(&mut changed, head);
            }
            fs::write(&path, &changed).unwrap();
            count(&mut outcomes, &format!("{name} {i}"), open_decoder(&path).await);
        }
        println!("{name}: {outcomes:?}");
        assert!(outcomes["Corrupt"] > 100, "{outcomes:?}");
    }
}
