//! The servers.

use std::{fs, path::Path, sync::OnceLock, time::Duration};

use hybrid_core::{Error, Result};

use super::{
    process::{Program, free_ports, kit_folder, status, sweep, unique},
    python::Python,
};

/// How long a server may take to get ready: a second as a rule, but a machine may be busy.
const START_LIMIT: Duration = Duration::from_secs(90);
/// How many times other ports are tried.
const TRIES: usize = 5;

macro_rules! server {
    ($(#[$doc:meta])* $name:ident, $log_name:literal, $access_key:literal, $secret_key:literal) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name {
            program: Program,
            endpoint: String,
        }

        impl $name {
            /// The access key's id that the server knows.
            pub const ACCESS_KEY: &'static str = $access_key;
            /// The secret access key that goes with it.
            pub const SECRET_KEY: &'static str = $secret_key;

            /// Starts a server of one's own, empty; it ends when dropped.
            ///
            /// # Errors
            /// [`Unavailable`](hybrid_core::ErrorKind::Unavailable) if it cannot be installed (see [`Python::environment`]) or does not get ready; it names the log.
            pub fn start() -> Result<Self> {
                let python = Python::servers()?;
                sweep(&kit_folder("logs")?);
                let mut tries = 1;
                loop {
                    match Self::try_start(&python) {
                        // Another process may have taken a port meanwhile.
                        Err(_) if tries < TRIES => tries += 1,
                        other => return other,
                    }
                }
            }

            /// The server that all tests of this process share; it ends with the process. Let each test use a bucket or queue of its own.
            ///
            /// # Errors
            /// As [`start`](Self::start), the same for each caller.
            pub fn shared() -> Result<&'static Self> {
                static SHARED: OnceLock<Result<$name>> = OnceLock::new();
                SHARED.get_or_init(Self::start).as_ref().map_err(|error| {
                    Error::unavailable("share test server", "its start failed before").with("server", $log_name).with_source(error.to_string())
                })
            }

            /// The URL where it listens, such as `http://127.0.0.1:11234`.
            pub fn endpoint(&self) -> &str {
                &self.endpoint
            }

            /// Where it logs.
            pub fn log(&self) -> &Path {
                self.program.log()
            }

            /// Options for its endpoint, or for that of a proxy before it.
            #[cfg(feature = "aws")]
            pub fn options(endpoint: &str) -> crate::aws::AwsOptions {
                crate::aws::AwsOptions::local(endpoint, Self::ACCESS_KEY, Self::SECRET_KEY)
            }

            /// A configuration for its endpoint, or for that of a proxy before it.
            ///
            /// # Errors
            /// As [`AwsConfig::load`](crate::aws::AwsConfig::load).
            #[cfg(feature = "aws")]
            pub async fn config(&self, endpoint: &str) -> Result<crate::aws::AwsConfig> {
                crate::aws::AwsConfig::load(Self::options(endpoint)).await
            }
        }
    };
}

server!(
    /// SeaweedFS: S3 by a real distributed store, with true signatures, atomic conditional puts and checked checksums.
    Seaweed,
    "seaweedfs",
    "storefront",
    "storefront-secret"
);

server!(
    /// ministack: an emulator of AWS. Its S3 keeps conditions but takes any secret; its SQS is right with parallel FIFO consumers; its Bedrock gives canned replies.
    Ministack,
    "ministack",
    "test",
    "test"
);

server!(
    /// moto: an emulator of AWS. Its S3 takes wrong checksums; its SQS FIFO queues are out of order with parallel consumers.
    Moto,
    "moto",
    "test",
    "test"
);

impl Seaweed {
    fn try_start(python: &Python) -> Result<Self> {
        let folder = kit_folder("run")?.join(unique("seaweedfs"));
        let data = folder.join("data");
        let identities = folder.join("identities.json");
        let text = format!(
            r#"{{"identities":[{{"name":"tests","credentials":[{{"accessKey":"{}","secretKey":"{}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#,
            Self::ACCESS_KEY,
            Self::SECRET_KEY
        );
        fs::create_dir_all(&data).and_then(|()| fs::write(&identities, text)).map_err(|error| {
            Error::internal("start test server", "its folder cannot be made")
                .with("path", folder.display())
                .with_source(error)
        })?;
        let ports = free_ports(5)?;
        let [s3, master, volume, filer, admin] = ports[..] else {
            return Err(Error::internal("start test server", "five ports were asked for").with("found", ports.len()));
        };
        let mut command: Vec<String> = vec![
            python.program("weed").display().to_string(),
            "mini".to_owned(),
            format!("-dir={}", data.display()),
            format!("-s3.config={}", identities.display()),
        ];
        let ports = [("s3", s3), ("master", master), ("volume", volume), ("filer", filer), ("admin", admin)];
        command.extend(ports.map(|(part, port)| format!("-{part}.port={port}")));
        command.extend(
            [
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                // Each bucket takes several volumes, which are empty files at first; by default the free disk space says how many there may be.
                "-volume.max=10000",
                "-webdav=false",
                "-admin.ui=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
            ]
            .map(str::to_owned),
        );
        let mut program = Program::start("seaweedfs", &python.program("python"), &command, &[], Some(&folder))?;
        program.wait_until(START_LIMIT, |program| {
            let all_parts = program.log_text().contains("components are running and ready");
            (all_parts && status(s3, "/healthz") == Some(200)).then_some(())
        })?;
        Ok(Self { program, endpoint: format!("http://127.0.0.1:{s3}") })
    }
}

impl Ministack {
    fn try_start(python: &Python) -> Result<Self> {
        let ports = free_ports(1)?;
        let port = ports.first().copied().unwrap_or_default();
        let folder = kit_folder("run")?.join(unique("ministack"));
        fs::create_dir_all(&folder).map_err(|error| {
            Error::internal("start test server", "its folder cannot be made")
                .with("path", folder.display())
                .with_source(error)
        })?;
        let environment = [
            ("AWS_ACCESS_KEY_ID", Self::ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", Self::SECRET_KEY.to_owned()),
            ("BIND_HOST", "127.0.0.1".to_owned()),
            ("MINISTACK_HOST", "127.0.0.1".to_owned()),
            ("GATEWAY_PORT", port.to_string()),
            ("TMPDIR", folder.display().to_string()),
            // Listeners that nobody here needs, and that would be open to the network.
            ("IOT_MTLS_ENABLED", "0".to_owned()),
            ("SFTP_ENABLED", "0".to_owned()),
        ];
        let command = [python.program("ministack").display().to_string()];
        let mut program =
            Program::start("ministack", &python.program("python"), &command, &environment, Some(&folder))?;
        program.wait_until(START_LIMIT, |_| (status(port, "/_ministack/health") == Some(200)).then_some(()))?;
        Ok(Self { program, endpoint: format!("http://127.0.0.1:{port}") })
    }
}

impl Moto {
    fn try_start(python: &Python) -> Result<Self> {
        let command = [
            python.program("moto_server").display().to_string(),
            "-H".to_owned(),
            "127.0.0.1".to_owned(),
            "-p".to_owned(),
            "0".to_owned(),
        ];
        let mut program = Program::start("moto", &python.program("python"), &command, &[], None)?;
        // It chooses the port and says which.
        let port = program.wait_until(START_LIMIT, |program| {
            let log = program.log_text();
            let after = log.split("Running on http://127.0.0.1:").nth(1)?;
            let digits = after.split(|digit: char| !digit.is_ascii_digit()).next()?;
            // The number is whole once something stands behind it.
            let port = (after.len() > digits.len()).then(|| digits.parse().ok())??;
            (status(port, "/moto-api/") == Some(200)).then_some(port)
        })?;
        Ok(Self { program, endpoint: format!("http://127.0.0.1:{port}") })
    }
}
