//! Programs that end with the process that started them.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use hybrid_core::{Error, Result};

const WATCHDOG: &str = include_str!("watchdog.py");
/// How often a condition is looked at for which there is no event.
const GLANCE: Duration = Duration::from_millis(20);

/// Cargo's target folder: of the running test binary, else `CARGO_TARGET_DIR`, else a folder below the system's temporary one.
pub fn target_folder() -> PathBuf {
    // Cargo marks the folder that it builds into.
    let of_binary = std::env::current_exe().ok().and_then(|binary| {
        binary.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file()).map(Path::to_path_buf)
    });
    of_binary
        .or_else(|| std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from))
        .unwrap_or_else(|| std::env::temp_dir().join("hybrid-target"))
}

/// The folder `name` of the test kit, made if it does not exist.
pub(super) fn kit_folder(name: &str) -> Result<PathBuf> {
    let folder = target_folder().join("testkit").join(name);
    fs::create_dir_all(&folder).map_err(|error| {
        Error::internal("use test kit", "its folder cannot be made").with("path", folder.display()).with_source(error)
    })?;
    Ok(folder)
}

/// A name that no other process and no other call uses at this time.
pub(super) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{:x}-{}-{number}", since_epoch.as_millis(), std::process::id())
}

/// A program under the watchdog, with its log.
#[derive(Debug)]
pub(super) struct Program {
    name: &'static str,
    watchdog: Child,
    log: PathBuf,
}

impl Program {
    /// Starts `program` by the watchdog, which `python` runs and which removes `folder` when the program has ended.
    pub(super) fn start(
        name: &'static str,
        python: &Path,
        program: &[String],
        environment: &[(&str, String)],
        folder: Option<&Path>,
    ) -> Result<Self> {
        let log = kit_folder("logs")?.join(format!("{}.log", unique(name)));
        let failed = |error: io::Error| {
            Error::internal("start test server", "the program could not be started")
                .with("server", name)
                .with("python", python.display())
                .with_source(error)
        };
        let out = File::create(&log).map_err(failed)?;
        let mut command = Command::new(python);
        command
            .args(["-I", "-u", "-c", WATCHDOG])
            .arg(folder.unwrap_or(Path::new("")))
            .args(program)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stderr(out.try_clone().map_err(failed)?)
            .stdout(out);
        // A key pressed at the terminal ends the tests, not the one that cleans up after them.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(Self { name, watchdog: command.spawn().map_err(failed)?, log })
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    pub(super) fn log_text(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Waits until `ready` gives something, or the program ends, or the time is up.
    pub(super) fn wait_until<T>(&mut self, limit: Duration, mut ready: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let started = Instant::now();
        loop {
            if let Some(found) = ready(self) {
                return Ok(found);
            }
            if let Ok(Some(status)) = self.watchdog.try_wait() {
                return Err(self.failure(format!("the program ended with {status}")));
            }
            if started.elapsed() > limit {
                return Err(self.failure(format!("the program was not ready after {limit:?}")));
            }
            thread::sleep(GLANCE);
        }
    }

    /// Waits until the program has ended by itself.
    pub(super) fn wait(mut self) -> Result<ExitStatus> {
        // Its input stays open until then: closing it would end the program.
        let input = self.watchdog.stdin.take();
        let status = self.watchdog.wait();
        drop(input);
        status.map_err(|error| self.failure("waiting for the program failed".to_owned()).with_source(error))
    }

    /// An error that shows the end of the log and where the rest is.
    pub(super) fn failure(&self, message: String) -> Error {
        let text = self.log_text();
        let lines: Vec<&str> = text.split(['\n', '\r']).filter(|line| !line.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(8)..].join(" | ");
        Error::unavailable("run test server", message)
            .with("server", self.name)
            .with("log", self.log.display())
            .with("log ends", tail)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// `count` loopback ports that are free now, as is each port plus 10,000, which SeaweedFS opens too.
///
/// They lie below the range from which systems take the ports of outgoing connections. Two processes may still be given the same one, so who uses
/// them must be ready to try others.
pub(super) fn free_ports(count: usize) -> Result<Vec<u16>> {
    const FIRST: u16 = 11_000;
    const SPAN: u16 = 10_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Each process begins elsewhere.
    let base = (std::process::id() % 1_000 * 10) as u16;
    let free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let mut ports = Vec::with_capacity(count);
    for _ in 0..SPAN {
        if ports.len() == count {
            break;
        }
        let port = FIRST + (base + NEXT.fetch_add(1, Ordering::Relaxed) % SPAN) % SPAN;
        if free(port) && free(port + 10_000) {
            ports.push(port);
        }
    }
    if ports.len() < count {
        return Err(Error::unavailable("start test server", "no free loopback ports between 11000 and 21000"));
    }
    Ok(ports)
}

/// The status that `GET path` answers on a loopback port, if anything answers.
pub(super) fn status(port: u16, path: &str) -> Option<u16> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n").ok()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).ok()?;
    std::str::from_utf8(head.get(9..)?).ok()?.parse().ok()
}

/// Removes what is older than a day from a folder of logs.
pub(super) fn sweep(folder: &Path) {
    const KEPT: Duration = Duration::from_secs(24 * 60 * 60);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let old = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age > KEPT));
        if old {
            let _ = fs::remove_file(entry.path());
        }
    }
}
