//! OpenTelemetry's names for what the crate family tells: the one module that changes when the semantic conventions do.
//!
//! HTTP: stable conventions 1.41. Generative AI: the conventions as of 1.41, the last version before they moved to a repository of their own; they are
//! in development there. What no convention names begins with `hybrid.`.

use opentelemetry::{Key, KeyValue, Value, trace::SpanKind};

use super::fields::Fields;

/// The schema to which names and units belong.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.41.0";

pub(super) const METHOD: &str = "http.request.method";
pub(super) const ROUTE: &str = "http.route";
pub(super) const STATUS: &str = "http.response.status_code";
pub(super) const ERROR: &str = "error.type";
pub(super) const OPERATION: &str = "gen_ai.operation.name";
pub(super) const PROVIDER: &str = "gen_ai.provider.name";
pub(super) const REQUEST_MODEL: &str = "gen_ai.request.model";
pub(super) const RESPONSE_MODEL: &str = "gen_ai.response.model";
pub(super) const TOKEN_TYPE: &str = "gen_ai.token.type";
const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
const CACHE_READ: &str = "gen_ai.usage.cache_read.input_tokens";
const CACHE_WRITE: &str = "gen_ai.usage.cache_creation.input_tokens";
const REASONING: &str = "gen_ai.usage.reasoning.output_tokens";
const STREAM: &str = "gen_ai.request.stream";
const FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
const INPUT_MESSAGES: &str = "gen_ai.input.messages";
const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";
const MESSAGE: &str = "messaging.message.id";

pub(super) const TENANT: &str = "hybrid.tenant";
pub(super) const QUOTA: &str = "hybrid.quota";
pub(super) const CURRENCY: &str = "hybrid.currency";
pub(super) const JOB_KIND: &str = "hybrid.job.kind";
pub(super) const JOB_ENDING: &str = "hybrid.job.ending";
pub(super) const MODEL: &str = "hybrid.model.name";
pub(super) const CHANNEL: &str = "hybrid.model.channel";
const MODEL_VERSION: &str = "hybrid.model.version";
const BACKEND: &str = "hybrid.backend";
const REQUEST: &str = "hybrid.request.id";
const JOB: &str = "hybrid.job.id";
const ATTEMPT: &str = "hybrid.job.attempt";
const WORKER: &str = "hybrid.worker";
const COST: &str = "hybrid.cost";
const REFUSED: &str = "hybrid.code";
const INPUT: &str = "hybrid.input";
const OUTPUT: &str = "hybrid.output";

/// Which of the crate family's spans one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An HTTP request at the storefront.
    Request,
    /// A call of a model.
    Model,
    /// Anything else that a request does: recording judgments, ordering jobs.
    Action,
    /// A job at a worker.
    Job,
    /// A span of the application's own.
    Other,
}

impl Kind {
    pub(super) fn of(our_crate: Option<&str>, name: &str, fields: &Fields) -> Self {
        match (our_crate, name) {
            (Some("hybrid_cloud"), "request") => Self::Request,
            (Some("hybrid_cloud"), "call") if fields.get("model").is_some() => Self::Model,
            (Some("hybrid_cloud"), "call") => Self::Action,
            (Some("hybrid_sync"), "job") => Self::Job,
            _ => Self::Other,
        }
    }

    pub(super) fn span_kind(self, fields: &Fields) -> SpanKind {
        match self {
            Self::Request => SpanKind::Server,
            Self::Model if !fields.is_set("in_process") => SpanKind::Client,
            Self::Job => SpanKind::Consumer,
            Self::Model | Self::Action | Self::Other => SpanKind::Internal,
        }
    }

    /// The span's name; `None` where it has the one that it began with.
    pub(super) fn span_name(self, fields: &Fields) -> Option<String> {
        match self {
            Self::Request => Some(match fields.text("route") {
                Some(route) if route != NO_ROUTE => format!("{} {route}", method(fields)),
                _ => method(fields).to_owned(),
            }),
            Self::Model => Some(format!("{} {}", operation(fields), fields.text("model").unwrap_or_default())),
            Self::Action => fields.text("operation").map(str::to_owned),
            Self::Job => Some(match fields.text("kind") {
                Some(kind) => format!("process {kind}"),
                None => "process".to_owned(),
            }),
            Self::Other => None,
        }
    }

    /// Everything that a span of ours may tell, by name: whatever else is recorded in it stays here.
    pub(super) fn attributes(self, fields: Fields) -> Vec<KeyValue> {
        let names: &[(&str, &'static str)] = match self {
            Self::Request => &REQUEST_NAMES,
            Self::Model => &MODEL_NAMES,
            Self::Action => &ACTION_NAMES,
            Self::Job => &JOB_NAMES,
            Self::Other => return fields.into_attributes().collect(),
        };
        let named = |(field, name): &(&str, &'static str)| Some(KeyValue::new(*name, fields.get(field)?.clone()));
        let mut attributes: Vec<_> = names.iter().filter_map(named).collect();
        match self {
            Self::Request => attributes.extend(request(&fields)),
            Self::Model => attributes.extend(model(&fields)),
            _ => {}
        }
        attributes
    }

    /// Whether the span ended in an error that is not the caller's.
    pub(super) fn failed(self, fields: &Fields) -> bool {
        match self {
            Self::Request => fields.integer("status").is_some_and(|status| status >= 500),
            Self::Model | Self::Action => fields.get("error").is_some(),
            Self::Job => matches!(fields.text("ending"), Some("Failed" | "Dead" | "Retried" | "Lost")),
            Self::Other => false,
        }
    }
}

/// What the storefront writes where no route matches.
const NO_ROUTE: &str = "none";

const REQUEST_NAMES: [(&str, &str); 5] =
    [("status", STATUS), ("tenant", TENANT), ("request_id", REQUEST), ("code", REFUSED), ("quota", QUOTA)];

const MODEL_NAMES: [(&str, &str); 17] = [
    ("model", REQUEST_MODEL),
    ("served", RESPONSE_MODEL),
    ("version", MODEL_VERSION),
    ("backend", BACKEND),
    ("streamed", STREAM),
    ("input_tokens", INPUT_TOKENS),
    ("output_tokens", OUTPUT_TOKENS),
    ("cache_read_tokens", CACHE_READ),
    ("cache_write_tokens", CACHE_WRITE),
    ("reasoning_tokens", REASONING),
    ("cost", COST),
    ("currency", CURRENCY),
    ("error", ERROR),
    ("tenant", TENANT),
    ("request_id", REQUEST),
    ("input", INPUT),
    ("output", OUTPUT),
];

const ACTION_NAMES: [(&str, &str); 5] =
    [("error", ERROR), ("tenant", TENANT), ("request_id", REQUEST), ("input", INPUT), ("output", OUTPUT)];

const JOB_NAMES: [(&str, &str); 9] = [
    ("message", MESSAGE),
    ("job", JOB),
    ("kind", JOB_KIND),
    ("ending", JOB_ENDING),
    ("error", ERROR),
    ("attempt", ATTEMPT),
    ("worker", WORKER),
    ("tenant", TENANT),
    ("request", REQUEST),
];

fn request(fields: &Fields) -> impl Iterator<Item = KeyValue> {
    let route = fields.text("route").filter(|route| *route != NO_ROUTE);
    let route = route.map(|route| KeyValue::new(ROUTE, route.to_owned()));
    let failed = Kind::Request.failed(fields).then(|| KeyValue::new(ERROR, error_of_request(fields)));
    [KeyValue::new(METHOD, method(fields))].into_iter().chain(route).chain(failed)
}

fn model(fields: &Fields) -> Vec<KeyValue> {
    let mut attributes = vec![KeyValue::new(OPERATION, operation(fields)), KeyValue::new(PROVIDER, provider(fields))];
    attributes.extend(fields.number("first_ms").map(|first| KeyValue::new(FIRST_CHUNK, first / 1e3)));
    if operation(fields) == "chat" {
        let messages = |field: &str, name: &'static str, read: fn(&str) -> Option<String>| {
            Some(KeyValue::new(name, read(fields.text(field)?)?))
        };
        attributes.extend(messages("input", INPUT_MESSAGES, super::content::input));
        attributes.extend(messages("output", OUTPUT_MESSAGES, super::content::output));
    }
    attributes
}

/// The attributes by which requests are counted. The path never is one, and what no server of HTTP knows is `_OTHER`: customers cannot make series.
pub(super) fn request_labels(fields: &Fields) -> Vec<KeyValue> {
    let status = fields.get("status").map(|status| KeyValue::new(STATUS, status.clone()));
    request(fields).chain(status).collect()
}

/// The attributes by which requests at work are counted: those that a request has from its beginning.
pub(super) fn active_labels(fields: &Fields) -> [KeyValue; 1] {
    [KeyValue::new(METHOD, method(fields))]
}

/// The attributes by which calls of models are counted.
pub(super) fn model_labels(fields: &Fields) -> Vec<KeyValue> {
    let mut labels = vec![KeyValue::new(OPERATION, operation(fields)), KeyValue::new(PROVIDER, provider(fields))];
    for (field, name) in [("model", REQUEST_MODEL), ("served", RESPONSE_MODEL), ("error", ERROR)] {
        labels.extend(label(fields, field, name));
    }
    labels
}

/// One field under its conventional name.
pub(super) fn label(fields: &Fields, field: &str, name: &'static str) -> Option<KeyValue> {
    fields.get(field).map(|value| KeyValue::new(Key::from_static_str(name), value.clone()))
}

/// The methods of RFC 9110 and RFC 5789.
fn method(fields: &Fields) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "CONNECT", "TRACE"];
    let method = fields.text("method").unwrap_or_default();
    KNOWN.into_iter().find(|known| *known == method).unwrap_or("_OTHER")
}

fn error_of_request(fields: &Fields) -> Value {
    match fields.get("code").or_else(|| fields.get("status")) {
        Some(Value::I64(status)) => status.to_string().into(),
        Some(code) => code.clone(),
        None => "_OTHER".into(),
    }
}

fn operation(fields: &Fields) -> String {
    match fields.text("operation").unwrap_or_default() {
        "embed" => "embeddings",
        "generate_image" => "generate_content",
        // `chat` is the convention's own; `classify` and `transcribe` it does not know.
        other => other,
    }
    .to_owned()
}

/// The provider, as far as the backend's name tells it: adapters name themselves `<provider>/<model>` unless told otherwise.
fn provider(fields: &Fields) -> String {
    let backend = fields.text("backend").unwrap_or("_OTHER");
    match backend.split('/').next().unwrap_or(backend) {
        "bedrock" => "aws.bedrock",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(set: &[(&'static str, &'static str)]) -> Fields {
        let mut fields = Fields::default();
        set.iter().for_each(|&(name, value)| fields.set(name, value));
        fields
    }

    #[test]
    fn what_customers_write_makes_no_series() {
        let labels = request_labels(&fields(&[("method", "BREW"), ("route", "none"), ("request_id", "r-1")]));
        assert_eq!(labels, [KeyValue::new(METHOD, "_OTHER")]);
        let wild = fields(&[("method", "BREW"), ("route", "none")]);
        assert_eq!(Kind::Request.span_name(&wild).unwrap(), "_OTHER");
    }

    #[test]
    fn a_span_tells_nothing_that_is_not_named_here() {
        let mut told = fields(&[("operation", "chat"), ("model", "m"), ("backend", "bedrock/x"), ("prompt", "secret")]);
        told.set("first_ms", 250.0);
        assert_eq!(Kind::Model.span_name(&told).unwrap(), "chat m");
        let attributes = Kind::Model.attributes(told);
        assert!(attributes.contains(&KeyValue::new(PROVIDER, "aws.bedrock")));
        assert!(attributes.contains(&KeyValue::new(FIRST_CHUNK, 0.25)));
        assert!(!format!("{attributes:?}").contains("secret"));
    }
}
