//! A collector on a loopback port: takes traces and metrics over OTLP/HTTP, in protobuf, and shows what came.
//!
//! ```
//! use hybrid_cloud::{telemetry::Telemetry, testkit::otlp::Collector};
//!
//! let collector = Collector::start()?;
//! let telemetry = Telemetry::builder("shop").otlp(collector.endpoint()).start()?;
//! // … work, `telemetry.flush(…)`, then look at `collector.spans()`.
//! # Ok::<(), hybrid_core::Error>(())
//! ```

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use hybrid_core::{Error, Result};
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, KeyValue, any_value::Value},
    metrics::v1::{Metric, metric::Data, number_data_point},
    resource::v1::Resource,
};
use prost::Message;

use super::http::{Head, pass_body};

/// A collector that keeps what it takes.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    received: Arc<Received>,
}

#[derive(Debug, Default)]
struct Received {
    /// Path and body of each export.
    exports: Mutex<Vec<(String, Vec<u8>)>>,
    /// Whether exports are read and never answered.
    hangs: AtomicBool,
    closed: AtomicBool,
}

/// A span as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedSpan {
    /// Its name.
    pub name: String,
    /// Its kind by the protocol: 1 internal, 2 server, 3 client, 4 producer, 5 consumer.
    pub kind: i32,
    /// The trace's id, in hexadecimal.
    pub trace: String,
    /// Its id, in hexadecimal.
    pub id: String,
    /// Its parent's id; empty for the first of a trace.
    pub parent: String,
    /// Its attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// Whether its status is an error.
    pub failed: bool,
    /// The `service.name` that sent it.
    pub service: String,
}

/// One series of a metric as it came last.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedPoint {
    /// The metric.
    pub metric: String,
    /// Its unit.
    pub unit: String,
    /// Its attributes as text.
    pub attributes: BTreeMap<String, String>,
    /// How many measurements there were; 1 for a sum or a gauge.
    pub count: u64,
    /// Their sum; a sum's or a gauge's value.
    pub sum: f64,
}

impl Collector {
    /// Starts a collector.
    ///
    /// # Errors
    /// [`Internal`](hybrid_core::ErrorKind::Internal) if there is no port.
    pub fn start() -> Result<Self> {
        let failed = |error| Error::internal("start collector", "there is no loopback port").with_source(error);
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let received = Arc::<Received>::default();
        let shared = Arc::clone(&received);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.closed.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(stream), shared) = (stream, Arc::clone(&shared)) else { continue };
                thread::spawn(move || shared.serve(stream));
            }
        });
        Ok(Self { address, received })
    }

    /// Where exports go.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on exports are read and never answered.
    pub fn hang(&self) {
        self.received.hangs.store(true, Ordering::Relaxed);
    }

    /// Each export as it came: its path and its body.
    pub fn exports(&self) -> Vec<(String, Vec<u8>)> {
        self.received.exports().clone()
    }

    /// Every span that came, in the order in which they ended.
    ///
    /// # Errors
    /// [`Corrupt`](hybrid_core::ErrorKind::Corrupt) for a body that is no protobuf of OTLP.
    pub fn spans(&self) -> Result<Vec<ReceivedSpan>> {
        let mut spans = Vec::new();
        for body in self.received.at("/v1/traces") {
            let request = ExportTraceServiceRequest::decode(&*body).map_err(undecodable)?;
            for resource in request.resource_spans {
                let service = service(resource.resource.as_ref());
                let ended = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                spans.extend(ended.map(|span| ReceivedSpan {
                    kind: span.kind,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    attributes: texts(&span.attributes),
                    // STATUS_CODE_ERROR.
                    failed: span.status.as_ref().is_some_and(|status| status.code == 2),
                    service: service.clone(),
                    name: span.name,
                }));
            }
        }
        Ok(spans)
    }

    /// Every series of the latest export of metrics.
    ///
    /// # Errors
    /// As [`spans`](Self::spans).
    pub fn points(&self) -> Result<Vec<ReceivedPoint>> {
        let Some(body) = self.received.at("/v1/metrics").pop() else { return Ok(Vec::new()) };
        let request = ExportMetricsServiceRequest::decode(&*body).map_err(undecodable)?;
        let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
        Ok(scopes.flat_map(|scope| scope.metrics).flat_map(points).collect())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.received.closed.store(true, Ordering::Relaxed);
        // Wakes the listener, which sees that it is over.
        let _ = TcpStream::connect(self.address);
    }
}

impl Received {
    fn exports(&self) -> MutexGuard<'_, Vec<(String, Vec<u8>)>> {
        self.exports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, path: &str) -> Vec<Vec<u8>> {
        let exports = self.exports();
        exports.iter().filter(|(at, _)| at == path).map(|(_, body)| body.clone()).collect()
    }

    /// Serves one connection to its end; what ends it is the other side's affair.
    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        let mut answers = stream.try_clone()?;
        let mut requests = BufReader::new(stream);
        while let Some(head) = Head::read(&mut requests)? {
            let mut body = Vec::new();
            pass_body(&mut requests, head.request_framing(), |piece, _| body.write_all(piece))?;
            if self.hangs.load(Ordering::Relaxed) {
                // Until the other side gives up.
                return requests.read_to_end(&mut Vec::new()).map(drop);
            }
            self.exports().push((head.word(1).to_owned(), body));
            answers
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n")?;
        }
        Ok(())
    }
}

fn points(metric: Metric) -> Vec<ReceivedPoint> {
    let (name, unit) = (metric.name, metric.unit);
    let point = |attributes: &[KeyValue], count: u64, sum: f64| ReceivedPoint {
        metric: name.clone(),
        unit: unit.clone(),
        attributes: texts(attributes),
        count,
        sum,
    };
    let number = |value: Option<number_data_point::Value>| match value {
        Some(number_data_point::Value::AsDouble(value)) => value,
        Some(number_data_point::Value::AsInt(value)) => value as f64,
        None => 0.0,
    };
    match metric.data {
        Some(Data::Histogram(histogram)) => {
            let series = histogram.data_points.iter();
            series.map(|at| point(&at.attributes, at.count, at.sum.unwrap_or_default())).collect()
        }
        Some(Data::Sum(sum)) => sum.data_points.iter().map(|at| point(&at.attributes, 1, number(at.value))).collect(),
        Some(Data::Gauge(gauge)) => {
            gauge.data_points.iter().map(|at| point(&at.attributes, 1, number(at.value))).collect()
        }
        _ => Vec::new(),
    }
}

fn service(resource: Option<&Resource>) -> String {
    let attributes = resource.map(|resource| texts(&resource.attributes)).unwrap_or_default();
    attributes.get("service.name").cloned().unwrap_or_default()
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        Some(Value::DoubleValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn undecodable(error: prost::DecodeError) -> Error {
    Error::corrupt("read export", "the body is no protobuf of OTLP").with_source(error)
}
