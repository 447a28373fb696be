//! The storefront's HTTP surface: an axum [`Router`] from a builder over ports, and a server that stops gracefully.
//!
//! ```
//! use std::sync::Arc;
//! use hybrid_cloud::storefront::Storefront;
//! use hybrid_core::{memory::ScriptedBackend, task::Classify};
//!
//! # fn main() -> hybrid_core::Result<()> {
//! let backend = Arc::new(ScriptedBackend::<Classify>::new("messages", []));
//! let storefront = Storefront::builder()
//!     .classify("messages", backend)
//!     .ready_when("model", || Ok(()))
//!     .build()?;
//! let router: axum::Router = storefront.router();
//! # drop(router);
//! # Ok(())
//! # }
//! ```
//!
//! # Routes
//! | route | body | answer |
//! |---|---|---|
//! | `POST /v1/chat/completions` | the OpenAI API's | its completion, or with `stream` its chunks as server-sent events |
//! | `POST /v1/responses` | the OpenAI API's, where nothing needs to be kept | its response, or with `stream` its named events |
//! | `POST /v1/embeddings` | the OpenAI API's, texts alone | its list of vectors, as numbers or base64 |
//! | `POST /v1/audio/transcriptions`, `…/translations` | the OpenAI API's form | `json`, `verbose_json`, `text`, `srt` or `vtt` |
//! | `POST /v1/images/generations` | the OpenAI API's | its list of pictures, in base64 |
//! | `POST /v1/classify` | `{"model"?, "input": "text" or ["text", …], "top_k"?}` | 200 `{"object": "classification.list", "model", "version", "manifest", "results": [{"label", "confidence", "scores": [{"label", "score"}]}], "usage"?, "notes"?}` |
//! | `POST /v1/judgments` | `{"input": "text" or {"text"}, "label", "model"?, "version"?, "manifest"?, "answer"?, "request_id"?, "by"?, "tags"?, "idempotency_key"?}` | 201 `{"object": "judgment", "id"}` once durable |
//! | `POST /v1/judgments` | `{"judgments": [as above, …]}` | 201 `{"object": "list", "data": [{"object": "judgment", "id"}, …]}` |
//! | `POST /v1/jobs` | `{"kind", "payload"?, "input_file_id"?, "idempotency_key"?}` | 202 `{"object": "job", "id", "kind", "status": "queued"}` once durable |
//! | `GET /v1/jobs/{id}` | | `{"object": "job", "id", "kind", "status": "queued", "succeeded" or "failed", "request_id"?, "created_at", "finished_at"?, "output"?, "error"?: {"code", "message"}}` |
//! | `POST /v1/files` | the OpenAI API's form: `file`, `purpose`, `expires_after`? | its file, once durable |
//! | `GET /v1/files` | `after`?, `limit`?, `order`?, `purpose`? in the query | its list, the newest first |
//! | `GET`, `DELETE /v1/files/{id}`, `GET /v1/files/{id}/content` | | its file, that it is gone, its bytes |
//! | `POST /v1/vectors` | `{"documents": [{"id", "text"?, "embedding"?, "metadata"?}, …]}` | `{"object": "list", "data": [{"object": "vector.document", "id"}, …], "usage"?}` once durable |
//! | `POST /v1/vectors/query` | `{"text" or "embedding", "k"?, "filter"?}` | `{"object": "list", "data": [{"object": "vector.neighbor", "id", "distance", "metadata"}, …], "usage"?}`, the nearest first |
//! | `POST /v1/vectors/get`, `…/delete` | `{"ids": […]}` | the documents; that they are gone |
//! | `GET`, `DELETE /v1/vectors` | | what the index is; that all of the tenant's documents are gone |
//! | `POST /v1/records/{collection}` | `{"key", "value", "expires_at"?, "if_absent"?, "if_version"?}` | `{"object": "record", "collection", "key", "version"}` once durable |
//! | `GET /v1/records/{collection}` | `prefix`?, `after`?, `order`?, `limit`? in the query | `{"object": "list", "data": [record, …], "has_more", "next_after"?}` |
//! | `GET`, `DELETE /v1/records/{collection}/{key}` | | the record; that it is gone |
//! | `GET`, `DELETE /v1/records` | | all of the tenant's records, one a line, `{"object": "records.end", "records"}` after the last; that all are gone |
//! | `GET /v1/models`, `GET /v1/models/{id}` | | `{"id", "object": "model", "created", "owned_by", "task", "version", "manifest", "locality"}`, alone or in a list |
//! | `GET /openapi.json` | | an OpenAPI 3.1 document of these routes, as far as they are offered |
//! | `GET /healthz` | | 200 while the process is alive |
//! | `GET /readyz` | | 200, or 503 with the reasons: a check given to the builder fails, or the storefront drains |
//!
//! A route exists where its port was given. `model` may be left out; the first model that the caller may see answers then. `version` and `manifest`
//! are `null` where the model comes from no registry. `notes` holds what the caller would not expect of an answer, such as a fallback.
//!
//! A field of our own routes that this version does not know is refused, as everywhere in the crate family: a misspelt `tags` would otherwise lose
//! what evaluation slices by, in silence. Bodies are UTF-8 JSON without content coding, or a form for recordings.
//!
//! # The OpenAI API
//! The official clients work unchanged: `base_url` is the storefront's `/v1`. Fields that nobody here knows are ignored on these routes, since new
//! ones come all the time; fields that would change the answer's meaning and cannot be honoured are refused with 400 by name: `functions`,
//! `function_call`, `web_search_options`, `moderation`, tools that a provider runs, tokens as input of embeddings, images by address, whatever in
//! `/v1/responses` needs a memory (`previous_response_id`, `conversation`, `store: true`, `background: true`).
//!
//! A streamed answer begins with the model's first piece; a failure before it has its status. Its call holds its place among the
//! [requests](StorefrontLimits::requests) to its end. A comment goes out after 15 s of silence. The stream fails where the model is silent for
//! [`stream_stall`](StorefrontLimits::stream_stall), and is given up where the client does not read for as long. A failure on the way is an event
//! with an `error` object (`response.failed` in `/v1/responses`) and no `[DONE]`; why the model stopped is told only once the whole call has
//! succeeded, so that nothing that is cut looks complete. Answers say `version`, `manifest` and `notes` besides the API's own fields, where there are any.
//!
//! # Identity
//! With an [`Authenticator`] every request but the probes must send `authorization: Bearer <token>`, and everything that it sees and makes is its
//! [`Principal`]'s tenant's: the models [offered](Offer::only_for) to that tenant or to all, judgments below `t/<tenant>/`, the log. A handler has no
//! other way to a model or a sink. What belongs to others answers exactly like what does not exist. Strangers do not learn which routes there are.
//!
//! Without one there is a single tenant and nobody is asked: for a listener on loopback, behind a gateway that authenticates, and for tests. Nobody
//! has [`Admin`](Scope::Admin) then.
//!
//! # Audit
//! With an [`AuditSink`] each call of a model and each recording of judgments leaves an [`AuditEntry`]. The entry is durable before the answer
//! leaves; an error waits for its entry 5 seconds at most, and leaves whatever becomes of it. What could not be kept is
//! [counted](Storefront::unaudited). [`AuditLog`] keeps entries in a folder, chained by hashes, and ships them to the bucket; [`verify_folder`] and
//! [`verify_bucket`] prove that none is missing or changed. Requests that are refused before a call begins leave none.
//!
//! # Quotas
//! What a tenant may use ([`TenantQuota`]) is held before a call begins: the tokens that it is likely to use, and the most that it can cost, by the
//! bytes sent, the request's own limit of tokens and the backend's limits and price. It is settled when the call ends: with the reply's own usage
//! and cost, with nothing where it is certain that nothing was done, and otherwise, as when the client hangs up, with what was held. Money is held by
//! all instances together: see [`Budget`].
//!
//! # Judgments
//! A judgment counts once for each text, whatever is repeated: the latest decision is the one that trains. With an `idempotency_key` (1 to 128
//! characters of `A-Z`, `a-z`, `0-9`, `.`, `_` and `-`, such as the row id of the client's own table) a retry is the very same event: it keeps its
//! id and its first time, so it can neither count twice nor outlive a correction made between the tries. The event's id is made of key and content;
//! one key with two contents is two events. In a list each judgment is checked before any is recorded; if recording fails part of the way, the
//! error says so, and the whole list may be sent again.
//!
//! # Files
//! [`Files`](hybrid_core::Files) are a tenant's own. An upload is streamed into the bucket, as is a download out of it, within
//! [`stream_timeout`](StorefrontLimits::stream_timeout) and [`stream_stall`](StorefrontLimits::stream_stall); each counts among the tenant's streams and the
//! requests at work. A file is there once it is whole; what breaks off leaves nothing. A download that fails on its way ends before its announced length.
//! `DELETE` removes the bytes before it answers. A job names its file as `input_file_id`, and the kitchen reads it from the bucket.
//!
//! # Documents
//! A [`VectorIndex`](hybrid_core::VectorIndex) holds documents of each tenant. A text is embedded by the one model that the index was
//! [given](StorefrontBuilder::vectors), in a call that is metered, priced and audited as any other, and kept in the metadata field `text` where the
//! index declares it. What is deleted is in no answer from then on.
//!
//! # Records
//! A [`RecordStore`](hybrid_core::RecordStore) holds a tenant's live data, such as conversations and judgments that await review: JSON under a key, in
//! one of the collections that are [offered](StorefrontBuilder::records). `if_absent` and `if_version` write under a condition (409 where it does not
//! hold), `expires_at` ends a record by itself. The JSON comes back as it was sent, but for blanks between its parts: numbers to the digit, names that come twice
//! too. It may be nested as deep as other JSON here. With the scope [`Admin`](Scope::Admin) a tenant takes everything with it that the store holds of it, other
//! collections too, or has it removed; the same for its documents.
//!
//! # Every request
//! - Has an `x-request-id`: the client's if it sent one that is a valid [`RequestId`](hybrid_core::RequestId), else a fresh one. Every answer carries it.
//! - Runs under a [`CallContext`](hybrid_core::CallContext) with tenant, data policy, deadline, the client's W3C `traceparent`, and a cancellation that
//!   is raised when the client disconnects or the time is up.
//! - Is one `tracing` span `request` with `method`, `route` (the pattern, never the path), `status`, `latency_ms`, `request_id`, `trace`, `tenant`, the
//!   `code` of an error and the `quota` that refused it. What it does is a span `call` within, with the model asked, the version that answered, tokens,
//!   cost and the time to the first piece. What customers write is in no span and no event, but by
//!   [`trace_content`](StorefrontBuilder::trace_content). The feature `telemetry` exports all this.
//! - Is held to [`StorefrontLimits`].
//!
//! # Errors
//! Errors have the OpenAI API's shape, also for unknown routes, wrong methods and panics:
//! `{"error": {"message", "type", "param", "code"}}`.
//!
//! | status | `type` | `code` | when |
//! |---|---|---|---|
//! | 400 | `invalid_request_error` | `invalid_utf8`, `invalid_json`, `invalid_body`, `invalid_request`, `unsupported`, `unknown_label`, `unknown_kind`, `too_many_files` | the request can never succeed as it is; [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) and [`Unsupported`](hybrid_core::ErrorKind::Unsupported) of a backend |
//! | 400 | `invalid_request_error` | `credentials_in_url` | the query names a key or a token |
//! | 401 | `authentication_error` | `missing_credentials`, `invalid_api_key` | there is no token, or it does not hold |
//! | 403 | `permission_error` | `missing_scope` | the principal lacks the route's [`Scope`] |
//! | 403 | `permission_error` | `policy_denied` | [`PolicyDenied`](hybrid_core::ErrorKind::PolicyDenied) |
//! | 404 | `invalid_request_error` | `not_found`, `model_not_found`, `job_not_found`, `file_not_found`, `collection_not_found`, `record_not_found` | no such route, model, job, file, collection or record |
//! | 405 | `invalid_request_error` | `method_not_allowed` | the route has other methods; `allow` lists them |
//! | 400 | `invalid_request_error` | `invalid_form` | an upload that is no form, or breaks off |
//! | 408 | `timeout_error` | `body_timeout` | the body did not arrive within the request's time |
//! | 409 | `invalid_request_error` | `conflict` | a record is not as the request's condition says |
//! | 413 | `invalid_request_error` | `body_too_large`, `too_large` | over a limit of the storefront, or [`TooLarge`](hybrid_core::ErrorKind::TooLarge) |
//! | 415 | `invalid_request_error` | `unsupported_media_type`, `unsupported_encoding` | not `application/json`, no form where a form is asked for, or compressed |
//! | 429 | `rate_limit_error` | `rate_limit_exceeded` | the tenant's requests, tokens or streams are at their [quota](TenantQuota); `x-should-retry: true` |
//! | 429 | `insufficient_quota` | `insufficient_quota` | the tenant's [budget](Budget) is used up until midnight UTC; `x-should-retry: false` |
//! | 500 | `server_error` | `internal_error` | a panic, or any kind not in this table: what a backend does not find or may not do is not the customer's fault |
//! | 503 | `server_error` | `unavailable`, `overloaded`, `not_ready` | [`Unavailable`](hybrid_core::ErrorKind::Unavailable), [`ResourceExhausted`](hybrid_core::ErrorKind::ResourceExhausted), [`Cancelled`](hybrid_core::ErrorKind::Cancelled); `overloaded`: too many requests at once, or a port is [`RateLimited`](hybrid_core::ErrorKind::RateLimited); not ready |
//! | 504 | `server_error` | `timeout` | [`Timeout`](hybrid_core::ErrorKind::Timeout), or the request's time is up |
//! | 507 | `server_error` | `storage_full` | [`StorageFull`](hybrid_core::ErrorKind::StorageFull) |
//!
//! The message of a 5xx says what kind of failure it is and the request id, never a path, a key or a cause; those go to `tracing` under the same
//! id. `Retry-After` stands on errors that are temporary. What is not HTTP at all is answered by the server below, without a body.

use std::sync::Arc;

use axum::Router;

mod alarm;
mod audit;
mod body;
mod builder;
mod chat;
mod classify;
mod edge;
mod embeddings;
mod error;
mod files;
mod front;
mod health;
mod identity;
mod images;
mod jobs;
mod judgments;
#[cfg(feature = "lambda")]
mod lambda;
mod models;
mod openapi;
mod quota;
mod records;
mod responses;
mod routes;
mod serve;
mod sse;
mod transcriptions;
mod vectors;

pub use audit::{
    AuditEntry, AuditFailure, AuditLog, AuditLogOptions, AuditOptions, AuditSink, AuditedModel, Outcome, Verified,
    audit_prefix, verify_bucket, verify_folder,
};
pub use builder::{StorefrontBuilder, StorefrontLimits};
pub use front::Offer;
pub use identity::{
    ApiKeys, Authenticator, CredentialFile, CredentialSource, KeyList, KeyRecord, NewKey, Principal, Scope,
};
#[cfg(feature = "jwt")]
pub use identity::{JwksUrl, JwtAlgorithm, JwtAuthenticator, JwtOptions, TenantFrom};
#[cfg(feature = "lambda")]
pub use lambda::Answers;
pub use quota::{Budget, Held, TenantQuota};
pub use routes::Route;
pub use serve::Drained;

#[cfg(feature = "telemetry")]
use crate::telemetry::traceparent;
use front::Front;

/// Without the feature `telemetry` no span has a context that others could continue.
#[cfg(not(feature = "telemetry"))]
fn traceparent(_: &tracing::Span) -> Option<String> {
    None
}

/// The storefront: what a customer's request meets first.
///
/// Cheap to clone; clones are the same storefront.
#[derive(Clone, Debug)]
pub struct Storefront {
    front: Arc<Front>,
}

impl Storefront {
    /// A storefront with nothing to offer yet.
    pub fn builder() -> StorefrontBuilder {
        StorefrontBuilder::default()
    }

    /// The routes, ready to be served or called. Routes merged into it afterwards have none of the [limits](StorefrontLimits), ids and spans, and
    /// nobody is asked who they are.
    ///
    /// An application may nest it, as in `Router::new().nest("/api", storefront.router())`: each route asks there for what it asks for anywhere, and
    /// spans name it with the prefix, `/api/v1/models`. [`routes`](Self::routes) and the OpenAPI document do not know of the prefix.
    pub fn router(&self) -> Router {
        routes::router(&self.front).with_state(Arc::clone(&self.front))
    }

    /// Every route that [`router`](Self::router) serves, with what a caller must be allowed to do there.
    pub fn routes(&self) -> Vec<Route> {
        routes::table(&self.front).into_iter().map(|(route, _)| route).collect()
    }

    /// How many calls left no [audit](StorefrontBuilder::audit) entry because it could not be kept.
    pub fn unaudited(&self) -> u64 {
        self.front.unaudited()
    }

    /// Makes `/readyz` answer 503 from now on, so that a load balancer looks elsewhere before the storefront stops. Everything else goes on.
    pub fn drain(&self) {
        self.front.drain();
    }
}
