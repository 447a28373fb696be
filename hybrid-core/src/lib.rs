//! Ports, vocabulary, in-memory adapters and conformance suites for AI products split in two: a **storefront** in the cloud and a **kitchen** on a
//! machine you own, which share nothing but a queue and a bucket.
//!
//! # Ports
//! | trait | what it is | in memory |
//! |---|---|---|
//! | [`ArtifactStore`] | objects that are created once and never changed | [`memory::MemoryStore`] |
//! | [`JobQueue`] | at-least-once delivery under leases | [`memory::MemoryQueue`] |
//! | [`InferenceBackend`] | a model that answers requests of one [`Task`] | [`memory::ScriptedBackend`] |
//! | [`Trainer`] | plan in, candidate out | |
//! | [`VectorIndex`] | embeddings of a tenant, and the nearest of them | [`memory::MemoryVectorIndex`] |
//! | [`RecordStore`] | a tenant's live records: conditions, an end, export and erasure | [`memory::MemoryRecordStore`] |
//! | [`Outbox`], [`JudgmentSink`], [`Jobs`], [`Clock`], [`IdSource`], [`Signer`], [`ModelLoader`], [`VersionSource`], [`Progress`] | the smaller ones | |
//!
//! [`Files`] keeps customers' files over any [`ArtifactStore`], for both halves.
//!
//! This crate knows no cloud provider, no tensor library, no database, no file system and no runtime.
//!
//! # Features
//! | feature | what it adds |
//! |---|---|
//! | `conformance` | the module `conformance`: suites that prove an adapter keeps its port's contract |

mod context;
mod document;
mod error;
mod file;
mod id;
pub mod inference;
mod jobs;
mod judgment;
pub mod memory;
mod model;
mod money;
mod outbox;
mod presign;
mod progress;
mod queue;
mod record;
mod staging;
mod store;
pub mod task;
mod time;
mod trainer;
pub mod vector;
mod verdict;

#[cfg(feature = "conformance")]
pub mod conformance;

pub use context::{CallContext, Cancellation, DataPolicy, Locality};
pub use document::Document;
pub use error::{Error, ErrorKind, Result};
pub use file::{FILE_PART_BYTES, FilePage, FilePart, FileQuery, FileUpload, Files, NewFile, PartLink, StoredFile};
pub use id::{
    ChannelName, CollectionName, DatasetName, Digest, FileId, Hasher, JobId, JobKind, JudgmentId, ModelName, RequestId,
    TenantId, WriterId,
};
pub use inference::{
    BackendProfile, BoxFuture, BoxStream, Event, InferenceBackend, Limits, Note, Reply, ReplyMeta, ServedModel, Task,
};
pub use jobs::{JobEnd, JobFailure, JobOrder, JobStatus, Jobs};
pub use judgment::{
    DatasetRef, Judgment, JudgmentSink, Segment, SegmentRef, dataset_prefix, fold_judgments, segment_key,
};
pub use model::{
    ChunkRef, FileEntry, FileName, Lineage, LocalVersion, Manifest, ModelLoader, Requirements, Signer, VersionRef,
    VersionSource,
};
pub use money::{Currency, Money, Price, Usage};
pub use outbox::Outbox;
pub use presign::{DownloadOptions, Presign, SignedRequest, UploadOptions};
pub use progress::{NoProgress, Progress, ProgressEvent, ProgressFn};
pub use queue::{
    DeadLetter, DeadLetters, Delivery, Depth, Guarantees, JobQueue, JobQueueExt, MAX_BODY_BYTES, MAX_DELAY, MessageId,
    NewMessage, Receipt, ReceiveOptions, check_delay,
};
pub use record::{
    MAX_PAGE, MAX_RECORD_BYTES, NewRecord, PutCondition, Record, RecordKey, RecordOrder, RecordPage, RecordQuery,
    RecordStore, RecordVersion, prefix_end,
};
pub use staging::{StagedFile, Staging};
pub use store::{
    ArtifactStore, ArtifactStoreExt, Key, ListOptions, MAX_OBJECT_BYTES, ObjectMeta, ReadOptions, check_object_size,
    checked_range,
};
pub use time::{Clock, IdSource, ManualClock, Monotonic, SeededIds, SystemClock, SystemIds, Timestamp};
pub use trainer::{BaseModel, Candidate, CandidateFile, CandidateOutput, TrainPlan, TrainRun, Trainer, TrainerProfile};
pub use vector::{
    Neighbor, VectorGuarantees, VectorIndex, VectorIndexExt, VectorKey, VectorProfile, VectorQuery, VectorRecord,
    VectorSchema,
};
pub use verdict::{Interval, Verdict, VerdictRecord};
