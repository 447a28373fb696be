//! A virtual environment with pinned packages.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
};

use hybrid_core::{Digest, Error, Result};

use super::process::{Program, kit_folder, unique};

const SERVERS: &str = include_str!("requirements.txt");

/// A virtual environment below Cargo's target folder, installed once for each list of packages.
#[derive(Clone, Debug)]
pub struct Python {
    folder: PathBuf,
}

impl Python {
    /// The environment with the test servers and boto3.
    ///
    /// # Errors
    /// As [`environment`](Self::environment).
    pub fn servers() -> Result<Self> {
        Self::environment(SERVERS)
    }

    /// The environment with `requirements` (the text of a `requirements.txt`; pin every version), which is installed now if it is not there yet.
    ///
    /// # Errors
    /// [`Unavailable`](hybrid_core::ErrorKind::Unavailable) if there is no Python, it has no `venv`, or `pip` cannot install the packages; it says which.
    pub fn environment(requirements: &str) -> Result<Self> {
        let parent = kit_folder("python")?;
        let name = &Digest::of(requirements.as_bytes()).to_string()[..12];
        let failed = |error: io::Error| {
            Error::internal("install test servers", "the folder of virtual environments cannot be used")
                .with("path", parent.display())
                .with_source(error)
        };
        // Held until this returns; the system releases it if the process dies.
        let lock = File::create(parent.join(format!("{name}.lock"))).map_err(failed)?;
        lock.lock().map_err(failed)?;
        let marker = parent.join(format!("{name}.ready"));
        if let Some(folder) = installed(&parent, &marker) {
            return Ok(Self { folder });
        }
        // What a killed installation has left, perhaps with a pip still at work in it for a moment: hence a new folder.
        for entry in fs::read_dir(&parent).map_err(failed)?.flatten() {
            if entry.path().is_dir() && entry.file_name().to_string_lossy().starts_with(name) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let folder_name = unique(name);
        let folder = parent.join(&folder_name);
        install(&folder, requirements)?;
        // Written last, and under its name only when whole.
        let unfinished = parent.join(format!("{folder_name}.tmp"));
        fs::write(&unfinished, &folder_name).and_then(|()| fs::rename(&unfinished, &marker)).map_err(failed)?;
        Ok(Self { folder })
    }

    /// The path of a program of the environment, such as `moto_server`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// A command that runs the environment's interpreter.
    pub fn command(&self) -> Command {
        Command::new(self.program("python"))
    }

    /// Runs a script with arguments and gives what it has printed.
    ///
    /// # Errors
    /// [`Internal`](hybrid_core::ErrorKind::Internal) with what it wrote to its standard error, if it fails.
    pub fn run(&self, script: &str, arguments: &[&str]) -> Result<String> {
        const OPERATION: &str = "run Python script";
        let output = self.command().args(["-I", "-c", script]).args(arguments).output();
        let output = output.map_err(|error| Error::internal(OPERATION, "it did not start").with_source(error))?;
        if !output.status.success() {
            return Err(Error::internal(OPERATION, "it failed")
                .with("status", output.status)
                .with_source(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn installed(parent: &Path, marker: &Path) -> Option<PathBuf> {
    let folder = parent.join(fs::read_to_string(marker).ok()?);
    folder.join("bin/python").exists().then_some(folder)
}

fn install(folder: &Path, requirements: &str) -> Result<()> {
    const OPERATION: &str = "install test servers";
    let interpreter = std::env::var("HYBRID_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let missing = |message: &'static str| Error::unavailable(OPERATION, message).with("python", &interpreter);
    let check = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))";
    match Command::new(&interpreter).args(["-I", "-c", check]).output() {
        Err(error) => {
            return Err(missing(
                "these tests run against real servers, which need Python 3.10 or newer; install it, or name it in HYBRID_PYTHON",
            )
            .with_source(error));
        }
        Ok(output) if !output.status.success() => {
            return Err(missing(
                "these tests run against real servers, which need Python 3.10 or newer with the modules venv and ensurepip (Debian: python3-venv)",
            )
            .with_source(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        Ok(_) => {}
    }
    let text = |path: &Path| path.display().to_string();
    let run = |program: &[String], message: &'static str| {
        let run = Program::start("install", Path::new(&interpreter), program, &[], None)?;
        let log = run.log().to_owned();
        if run.wait()?.success() {
            return Ok(());
        }
        let said = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        let tail = lines[lines.len().saturating_sub(6)..].join(" | ");
        Err(missing(message).with("log", log.display()).with_source(tail))
    };
    run(
        &[interpreter.clone(), "-I".into(), "-m".into(), "venv".into(), text(folder)],
        "the virtual environment could not be made",
    )?;
    let list = folder.join("requirements.txt");
    fs::write(&list, requirements).map_err(|error| {
        Error::internal(OPERATION, "the list of packages could not be written")
            .with("path", list.display())
            .with_source(error)
    })?;
    let pip = [
        text(&folder.join("bin/python")),
        "-m".into(),
        "pip".into(),
        "install".into(),
        "--quiet".into(),
        "--disable-pip-version-check".into(),
        "--no-input".into(),
        "-r".into(),
        text(&list),
    ];
    run(&pip, "pip could not install the packages; is a package registry reachable (PIP_INDEX_URL names another)?")
}
