//! Where models come from. The hub is a server here that speaks its protocol, and fails as connections do.

#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod processes;
#[cfg(feature = "hub")]
mod server;
mod version;

use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decoder").join(name)
}
