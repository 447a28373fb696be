//! As much of HTTP/1.1 as the SDKs ask of a server, with every byte of the body under control.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::{Body, Fault, Reply, Request, exception_frame};

pub(super) struct Connection {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { writer: stream.try_clone()?, reader: BufReader::new(stream) })
    }

    /// The next request; `None` where the client has hung up.
    pub(super) fn request(&mut self) -> io::Result<Option<Request>> {
        let Some(first) = self.line()? else { return Ok(None) };
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        let (method, path) = (method.to_owned(), percent_decode_str(path).decode_utf8_lossy().into_owned());
        let mut headers = Vec::new();
        while let Some(line) = self.line()?.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let header = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        if header("expect").is_some() {
            self.writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        self.reader.read_exact(&mut body)?;
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(Some(Request { method, path, headers, body }))
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line)?;
        Ok((read > 0).then(|| line.trim_end().to_owned()))
    }

    /// Sends a reply. An error means that the connection is of no more use.
    pub(super) fn answer(&mut self, request: &Request, reply: Reply, stopped: &AtomicBool) -> io::Result<()> {
        let Reply { body, fault, gate: _, headers } = reply;
        if fault == Some(Fault::HangUp) {
            return self.cut();
        }
        let streams = request.operation().ends_with("-stream");
        let (status, content_type, mut bytes) = match body {
            Body::Answer(answer) if streams => (200, EVENT_STREAM, answer.stream()),
            Body::Answer(answer) => (200, JSON, answer.json().to_string().into_bytes()),
            Body::Json(status, value) => (status, JSON, value.to_string().into_bytes()),
            Body::Stream(bytes) => (200, EVENT_STREAM, bytes),
        };
        let whole = bytes.len();
        let mut end = End::Good;
        match fault {
            None | Some(Fault::HangUp) => {}
            Some(Fault::EndAt(at)) => bytes.truncate(at),
            Some(Fault::CutAt(at)) => {
                bytes.truncate(at);
                end = End::Cut;
            }
            Some(Fault::StallAt(at)) => {
                bytes.truncate(at);
                end = End::Stall;
            }
            Some(Fault::GarbleAt(at)) => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 0x55;
                }
            }
            Some(Fault::ExceptionAt(at, code)) => {
                bytes.truncate(at);
                bytes.extend(exception_frame(&code, "scripted"));
            }
        }
        let mut head = format!("HTTP/1.1 {status} Scripted\r\ncontent-type: {content_type}\r\n");
        head.push_str("x-amzn-requestid: 11111111-2222-4333-8444-555555555555\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        // A stream's length is not known when it begins.
        let chunked = content_type == EVENT_STREAM;
        if chunked {
            head.push_str("transfer-encoding: chunked\r\n\r\n");
        } else {
            let length = if end == End::Good { bytes.len() } else { whole };
            head.push_str(&format!("content-length: {length}\r\n\r\n"));
        }
        self.writer.write_all(head.as_bytes())?;
        if chunked && !bytes.is_empty() {
            write!(self.writer, "{:x}\r\n", bytes.len())?;
        }
        self.writer.write_all(&bytes)?;
        if chunked && !bytes.is_empty() {
            self.writer.write_all(b"\r\n")?;
        }
        match end {
            End::Good if chunked => self.writer.write_all(b"0\r\n\r\n"),
            End::Good => Ok(()),
            End::Cut => self.cut(),
            End::Stall => {
                self.hold(stopped)?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
        }
    }

    fn cut(&mut self) -> io::Result<()> {
        self.writer.shutdown(Shutdown::Both).and(Err(io::ErrorKind::ConnectionAborted.into()))
    }

    /// Holds the connection until the client hangs up or the server stops.
    fn hold(&mut self, stopped: &AtomicBool) -> io::Result<()> {
        self.writer.set_nonblocking(true)?;
        let mut byte = [0];
        while !stopped.load(Ordering::SeqCst) {
            match self.writer.read(&mut byte) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => break,
                _ => thread::sleep(Duration::from_millis(5)),
            }
        }
        Ok(())
    }
}

const EVENT_STREAM: &str = "application/vnd.amazon.eventstream";
const JSON: &str = "application/json";

#[derive(PartialEq, Eq)]
enum End {
    Good,
    Cut,
    Stall,
}
