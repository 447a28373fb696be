//! The provider's side of [`hybrid_core`]: what faces the customer, and adapters for what a cloud provider runs.
//!
//! This crate sees the ports of `hybrid-core` alone. It knows no tensor library, no embedded database and no kitchen: a model in this process and
//! a model across the world are both an [`InferenceBackend`](hybrid_core::InferenceBackend) here.
//!
//! # Features
//! | feature | default | what it adds |
//! |---|---|---|
//! | `storefront` | yes | [`storefront`]: the HTTP surface as an axum `Router` from a builder over ports, and a server for it |
//! | `aws` | no | `aws`: region, endpoint, credentials, retries and time limits that the AWS adapters share |
//! | `bedrock` | no | `bedrock`: chat and embedding on Amazon Bedrock, imported models too |
//! | `bedrock-trainer` | no | `bedrock::custom`: models fine-tuned by Bedrock, and models of one's own imported into it |
//! | `dynamodb` | no | `dynamodb`: live records on DynamoDB |
//! | `jwt` | no | JSON Web Tokens as credentials of the storefront: `JwtAuthenticator` |
//! | `lambda` | no | the storefront as a cloud function: `Storefront::serve_lambda` |
//! | `object-store` | no | `object_store`: artifacts on GCS, Azure, R2, MinIO and the like |
//! | `openai` | no | `openai`: chat, embeddings and transcription on any server that speaks the OpenAI API |
//! | `s3-vectors` | no | `s3_vectors`: embeddings on Amazon S3 Vectors |
//! | `s3` | no | `s3`: artifacts, links and staged files on S3 and on servers that speak its protocol |
//! | `sqs` | no | `sqs`: the job queue on Amazon SQS, with its dead letters, claim checks, FIFO and fair queues |
//! | `sso` | no | profiles that log in by AWS IAM Identity Center, or whose credentials another program gives |
//! | `telemetry` | no | `telemetry`: traces and metrics over OTLP, and metrics for Prometheus |
//! | `testkit` | no | `testkit`: real protocol servers and a proxy that breaks connections, for tests |

#[cfg(feature = "aws")]
pub mod aws;
#[cfg(feature = "bedrock")]
pub mod bedrock;
#[cfg(feature = "dynamodb")]
pub mod dynamodb;
#[cfg(feature = "object-store")]
pub mod object_store;
#[cfg(feature = "openai")]
pub mod openai;
#[cfg(feature = "s3")]
pub mod s3;
#[cfg(feature = "s3-vectors")]
pub mod s3_vectors;
#[cfg(feature = "sqs")]
pub mod sqs;
#[cfg(feature = "storefront")]
pub mod storefront;
#[cfg(feature = "telemetry")]
pub mod telemetry;
#[cfg(feature = "testkit")]
pub mod testkit;
#[cfg(any(feature = "bedrock", feature = "openai", feature = "storefront"))]
mod wire;
