//! What passes between storefront and kitchen, over the ports of `hybrid-core` alone.
//!
//! | module | what it does |
//! |---|---|
//! | `batch` | job kinds over files of rows: enrich, embed, summarise (feature `batch`) |
//! | [`capture`] | carries judgments from a local outbox to datasets in the bucket |
//! | [`job`] | the job and result documents, submitting and waiting |
//! | [`live`] | follows a channel and swaps versions between two requests |
//! | [`registry`] | publishes, fetches and verifies model versions; channels and signatures |
//! | [`worker`] | runs jobs under leases, one result for each |

mod backoff;
#[cfg(feature = "batch")]
pub mod batch;
pub mod capture;
pub mod job;
pub mod live;
pub mod registry;
pub mod worker;

pub use backoff::Backoff;
