mod audit;
mod audited;
mod budget;
mod chat;
mod classify;
#[cfg(feature = "jwt")]
mod credentials;
mod edge;
#[cfg(all(feature = "bedrock", feature = "testkit"))]
mod embeddings;
mod files;
mod identity;
mod jobs;
mod judgments;
#[cfg(all(feature = "s3", feature = "testkit"))]
mod links;
mod media;
mod openapi;
mod operations;
#[cfg(feature = "openai")]
mod policy;
#[cfg(feature = "testkit")]
mod python;
mod quota;
mod ranges;
mod records;
mod refusals;
mod responses;
pub(crate) mod rig;
mod shutdown;
mod sockets;
mod vectors;
