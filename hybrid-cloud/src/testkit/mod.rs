//! Real protocol servers, and faults on the wire: what the adapters' tests, the reference apps' tests and the benches run against.
//!
//! | server | what it is | serves |
//! |---|---|---|
//! | [`Seaweed`] | SeaweedFS, a distributed store | S3 with true signatures, atomic conditional puts, checksums |
//! | [`Ministack`] | an emulator of AWS | S3, SQS, DynamoDB, CloudFormation, plain Bedrock calls |
//! | [`S3VectorsServer`] | written here, in memory | S3 Vectors, whose queries no emulator serves |
//! | [`Moto`] | an emulator of AWS | S3, SQS, DynamoDB, S3 Vectors without queries, CloudFormation, IAM, KMS, STS, Secrets Manager |
//!
//! `otlp` (with the feature `telemetry`) takes traces and metrics, and shows what came.
//!
//! `bedrock` (with the feature of that name) is a server of our own, for what no emulator does: it says what a script tells it, on Bedrock's true wire.
//!
//! The others are Python packages of pinned versions. The first test that wants one installs them into a virtual environment below Cargo's target folder;
//! test processes that run at once wait for the one that installs, and an installation that was killed is made again. All that is needed is Python
//! 3.10 or newer with `venv` (`HYBRID_PYTHON` names another interpreter than `python3`), and a package registry that `pip` reaches. What is missing, the error says.
//!
//! A server listens on a free loopback port and writes its log to a file that every failure names. It ends when it is dropped, and also when the process that
//! started it dies, whatever of.
//!
//! ```no_run
//! use hybrid_cloud::testkit::{Fault, FaultProxy, Seaweed};
//!
//! # fn main() -> hybrid_core::Result<()> {
//! // One for all tests of this process.
//! let server = Seaweed::shared()?;
//! // The next PUT acts, and its answer is lost.
//! let proxy = FaultProxy::start(server.endpoint())?;
//! proxy.once("PUT", Fault::DropAnswer);
//! println!("point the client at {}", proxy.endpoint());
//! # Ok(())
//! # }
//! ```
//!
//! Everything here blocks the thread that calls it: a start takes about a second, an installation about half a minute.

#[cfg(feature = "bedrock")]
pub mod bedrock;
mod http;
#[cfg(feature = "openai")]
pub mod openai;
#[cfg(feature = "telemetry")]
pub mod otlp;
mod process;
mod proxy;
mod python;
mod s3_vectors;
mod servers;

pub use process::target_folder;
pub use proxy::{Fault, FaultProxy, ProxiedRequest};
pub use python::Python;
pub use s3_vectors::{MissingField, S3VectorsServer};
pub use servers::{Ministack, Moto, Seaweed};

/// Makes the bucket `name` on a server for tests.
///
/// # Errors
/// What the server says.
#[cfg(feature = "s3")]
pub async fn create_bucket(config: &crate::aws::AwsConfig, name: &str) -> hybrid_core::Result<()> {
    let client = aws_sdk_s3::config::Builder::from(config.sdk()).force_path_style(true).build();
    let made = aws_sdk_s3::Client::from_conf(client).create_bucket().bucket(name).send().await;
    made.map(drop).map_err(|error| crate::aws::aws_error("s3", "create bucket", error).with("bucket", name))
}
