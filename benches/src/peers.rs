//! The peers: those in Rust are a package of their own, because two versions of SQLite do not link together; the others are Python's.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    must,
    queue::{BATCH, Load},
};

/// Connections of the peer's pool. With more of them its writers meet at SQLite's lock and sleep, and it is slower.
const CONNECTIONS: u32 = 1;

/// The Python that has the peers: the one that `HYBRID_PEERS` names, or that of `benches/peers/install`, which installs them now if they are not there.
pub fn python() -> OsString {
    if let Some(python) = std::env::var_os("HYBRID_PEERS") {
        return python;
    }
    let install = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/install");
    let said = must(Command::new(install).stderr(Stdio::inherit()).output());
    assert!(said.status.success(), "{install} failed: {}", said.status);
    String::from_utf8_lossy(&said.stdout).trim_end().into()
}

/// The built program of the peers.
#[derive(Debug)]
pub struct Peers {
    program: PathBuf,
}

impl Peers {
    /// The program named by `HYBRID_BENCH_PEERS`, or that of `benches/peers`, built now.
    ///
    /// # Errors
    /// What to do, for a person.
    pub fn build() -> Result<Self, String> {
        if let Some(program) = std::env::var_os("HYBRID_BENCH_PEERS") {
            return Ok(Self { program: program.into() });
        }
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
        let target = package.join("target");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--release", "--locked", "--quiet", "--manifest-path"])
            .arg(package.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .status();
        match built {
            Ok(status) if status.success() => Ok(Self { program: target.join("release/hybrid-bench-peers") }),
            failed => Err(format!(
                "the peers were not built ({}); run `cargo build --release` in {}, with a network or a filled cargo cache, \
                 and name the program in HYBRID_BENCH_PEERS",
                failed.map_or_else(|error| error.to_string(), |status| status.to_string()),
                package.display()
            )),
        }
    }

    /// Carries messages through `apalis-sqlite` in the empty `folder`; the time until the last is acknowledged.
    pub fn queue(&self, folder: &Path, load: Load) -> Duration {
        let Load { messages, callers, per_send } = load;
        let plan = json!({
            "folder": folder,
            "messages": messages,
            "callers": callers,
            "per_send": per_send,
            "batch": BATCH,
            "connections": CONNECTIONS,
        });
        let output = must(Command::new(&self.program).arg(plan.to_string()).output());
        assert!(output.status.success(), "the peer failed: {}", String::from_utf8_lossy(&output.stderr));
        let measured: Value = must(serde_json::from_slice(&output.stdout));
        let seconds = must(measured["seconds"].as_f64().ok_or("the peer did not say how long it took"));
        Duration::from_secs_f64(seconds)
    }
}
