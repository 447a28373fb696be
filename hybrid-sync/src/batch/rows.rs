//! The rows of a job's file.

use hybrid_core::{Error, Files, Result, StoredFile};
use serde_json::{Map, Value};

use super::{Line, Lines};
use crate::worker::JobContext;

const OPERATION: &str = "read rows";
/// The longest line of a customer's file, in bytes.
const MAX_LINE_BYTES: usize = 1 << 20;
/// So many bytes of rows end a step, whose answers repeat them: it has to fit into an object.
const MAX_STEP_BYTES: usize = 4 << 20;

/// A job's file.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) files: Files,
    pub(super) file: StoredFile,
    /// The longest line that is read, in bytes.
    max_line: usize,
}

/// One row.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Its line, from one; empty lines count too.
    pub(super) line: u64,
    pub(super) fields: Map<String, Value>,
    /// How long the line is.
    bytes: usize,
}

impl Input {
    /// The file that the job is about.
    ///
    /// # Errors
    /// `InvalidInput` if it names none, or one that is not there.
    pub(super) async fn open(cx: &JobContext) -> Result<Self> {
        let refuse = |message: &'static str| Error::invalid(OPERATION, message).with("job", cx.job.id);
        let id = cx.job.input.ok_or_else(|| refuse("the job names no input file"))?;
        let files = Files::new(cx.store.clone(), cx.clock.clone());
        let file = files.get(&cx.job.tenant, id).await?;
        let file = file.ok_or_else(|| refuse("the input file is there no more").with("file", id))?;
        Ok(Self { files, file, max_line: MAX_LINE_BYTES })
    }

    /// A file that the job itself has written: a row of it holds a row of the input and more.
    pub(super) fn own(files: Files, file: StoredFile) -> Self {
        Self { files, file, max_line: usize::MAX }
    }

    pub(super) fn rows(&self, cx: &JobContext) -> Rows {
        Rows(Lines::new(self.files.read(&cx.job.tenant, &self.file), self.max_line))
    }

    /// Reads all rows, so that a line that is none is told before work has gone into others; answers with how many there are.
    ///
    /// # Errors
    /// `InvalidInput` with the line's number, or if there is no row at all; those of the store.
    pub(super) async fn count(&self, cx: &JobContext) -> Result<u64> {
        let (mut rows, mut count) = (self.rows(cx), 0);
        while rows.next().await?.is_some() {
            count += 1;
        }
        if count == 0 {
            return Err(Error::invalid(OPERATION, "the file has no rows").with("file", self.file.id));
        }
        Ok(count)
    }

    /// Brings `rows`, which is `read` rows behind the first `done`, to the end of a step of `made` rows: another attempt may have cut them otherwise.
    pub(super) async fn follow(&self, cx: &JobContext, rows: &mut Rows, done: u64, read: u64, made: u64) -> Result<()> {
        if read <= made {
            return rows.skip(made - read).await;
        }
        *rows = self.rows(cx);
        rows.skip(done + made).await
    }
}

/// The rows one after the other.
pub(super) struct Rows(Lines);

impl Rows {
    /// The next row; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Row>> {
        let Some(Line { number, bytes }) = self.0.next().await? else { return Ok(None) };
        let fields = serde_json::from_slice(&bytes).map_err(|error| {
            Error::invalid(OPERATION, "the line is no JSON object").with("line", number).with_source(error)
        })?;
        Ok(Some(Row { line: number, fields, bytes: bytes.len() }))
    }

    /// The next rows: `most` of them, or fewer if these have enough bytes for a step, or there are no more.
    pub(super) async fn take(&mut self, most: usize) -> Result<Vec<Row>> {
        let (mut some, mut bytes) = (Vec::new(), 0);
        while some.len() < most
            && bytes < MAX_STEP_BYTES
            && let Some(row) = self.next().await?
        {
            bytes += row.bytes;
            some.push(row);
        }
        Ok(some)
    }

    async fn skip(&mut self, count: u64) -> Result<()> {
        for _ in 0..count {
            self.next().await?;
        }
        Ok(())
    }
}
