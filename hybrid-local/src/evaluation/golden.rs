use std::collections::{BTreeMap, HashMap};

use hybrid_core::{Digest, Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

const OPERATION: &str = "read golden set";

/// Cases with the answer that is known to be right, never shown to a trainer.
///
/// # Format
/// JSONL in UTF-8: each line one JSON object, with no other field than these.
///
/// | field | what it holds |
/// |---|---|
/// | `input` | what the model is asked: an object that the [`Scorer`](super::Scorer) reads, for classification `{"text": …}` |
/// | `expected` | what is right: an object that the scorer reads, for classification `{"label": …}` |
/// | `tags` | optional: text by name, such as `{"language": "en"}`; reports are sliced by them |
/// | `id` | optional: the case's name in reports and errors, `line-<n>` if left out |
///
/// ```
/// use hybrid_local::evaluation::GoldenSet;
///
/// let golden = GoldenSet::from_jsonl("bakery", concat!(
///     r#"{"input": {"text": "Two rye loaves, please"}, "expected": {"label": "order"}, "tags": {"language": "en"}}"#, "\n",
///     r#"{"input": {"text": "Wann macht ihr auf?"}, "expected": {"label": "hours"}, "tags": {"language": "de"}}"#, "\n",
/// ))?;
/// assert_eq!(golden.cases()[1].id, "line-2");
/// # Ok::<_, hybrid_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GoldenSet {
    name: String,
    digest: Digest,
    cases: Vec<GoldenCase>,
}

/// One case of a [`GoldenSet`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoldenCase {
    /// The line it stands on, counted from 1.
    pub line: usize,
    /// Its name, unique in the set.
    pub id: String,
    /// What the model is asked, as the file says it.
    pub input: Value,
    /// What is right, as the file says it.
    pub expected: Value,
    /// What reports are sliced by.
    pub tags: BTreeMap<String, String>,
}

impl GoldenSet {
    /// Reads a set from the bytes of a JSONL file; `name` is for people.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) that names the set and the line: text that is not UTF-8, a blank line, a line that is not
    /// such an object or has a field too many, the same input or id twice; or a set without cases.
    pub fn from_jsonl(name: impl Into<String>, bytes: impl AsRef<[u8]>) -> Result<Self> {
        let (name, bytes) = (name.into(), bytes.as_ref());
        let cases = parse(bytes)
            .and_then(|cases| check_unique(&cases).map(|()| cases))
            .map_err(|error| error.with("golden set", &name))?;
        Ok(Self { name, digest: Digest::of(bytes), cases })
    }

    /// The name given to the set.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The digest of the file's exact bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The cases, in the file's order; at least one.
    pub fn cases(&self) -> &[GoldenCase] {
        &self.cases
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    input: Map<String, Value>,
    expected: Map<String, Value>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    id: Option<String>,
}

fn parse(bytes: &[u8]) -> Result<Vec<GoldenCase>> {
    let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if text.is_empty() {
        return Err(Error::invalid(OPERATION, "the set has no cases; give one JSON object a line"));
    }
    text.split(|&byte| byte == b'\n')
        .zip(1..)
        .map(|(line, number)| parse_line(line, number).map_err(|error| error.with("line", number)))
        .collect()
}

fn parse_line(line: &[u8], number: usize) -> Result<GoldenCase> {
    let text = std::str::from_utf8(line).map_err(|error| {
        Error::invalid(OPERATION, "the line is not UTF-8; save the file as UTF-8")
            .with("valid bytes of the line", error.valid_up_to())
    })?;
    if text.trim().is_empty() {
        return Err(Error::invalid(OPERATION, "the line is blank; leave it out"));
    }
    let Line { input, expected, tags, id } = serde_json::from_str(text).map_err(|error| {
        // The parser counts lines of its own.
        let said = error.to_string();
        let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said).to_owned();
        Error::invalid(
            OPERATION,
            format!("expected {{\"input\": {{…}}, \"expected\": {{…}}}} with \"tags\" and \"id\" if wanted: {said}"),
        )
        .with("column", error.column())
    })?;
    let id = id.unwrap_or_else(|| format!("line-{number}"));
    if id.trim().is_empty() {
        return Err(Error::invalid(OPERATION, "the id is blank; leave it out to name the case by its line"));
    }
    Ok(GoldenCase { line: number, id, input: Value::Object(input), expected: Value::Object(expected), tags })
}

fn check_unique(cases: &[GoldenCase]) -> Result<()> {
    let (mut inputs, mut ids) = (HashMap::new(), HashMap::new());
    for case in cases {
        if let Some(first) = inputs.insert(&case.input, case.line) {
            return Err(Error::invalid(OPERATION, "two cases have the same input; keep one")
                .with("line", case.line)
                .with("first on line", first));
        }
        if let Some(first) = ids.insert(&case.id, case.line) {
            return Err(Error::invalid(OPERATION, "two cases have the same id")
                .with("id", &case.id)
                .with("line", case.line)
                .with("first on line", first));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hybrid_core::ErrorKind;

    use super::*;

    const GOOD: &str = r#"{"input": {"text": "a"}, "expected": {"label": "x"}}"#;

    #[test]
    fn a_set_keeps_its_order_and_is_known_by_its_bytes() {
        let text = format!(
            "{GOOD}\r\n{}\n",
            r#"{"id":"b","tags":{"language":"de"},"expected":{"label":"y"},"input":{"text":"b"}}"#
        );
        let golden = GoldenSet::from_jsonl("g", &text).unwrap();
        assert_eq!(golden.cases().iter().map(|case| case.id.as_str()).collect::<Vec<_>>(), ["line-1", "b"]);
        assert_eq!(golden.cases()[1].tags["language"], "de");
        assert_eq!(golden.digest(), Digest::of(text.as_bytes()));
        assert_ne!(golden.digest(), GoldenSet::from_jsonl("g", text.trim_end()).unwrap().digest());
    }

    #[test]
    fn a_bad_line_is_named_with_what_is_wrong_with_it() {
        let second = |bad: &[u8]| {
            let error = GoldenSet::from_jsonl("bakery", [GOOD.as_bytes(), b"\n", bad, b"\n"].concat()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert_eq!((error.context("line"), error.context("golden set")), (Some("2"), Some("bakery")), "{error}");
            error.to_string()
        };
        assert!(second(br#"{"text": "b", "label": "x"}"#).contains("unknown field `text`"));
        assert!(second(br#"{"input": {"text": "b"}}"#).contains("missing field `expected`"));
        assert!(second(br#"{"input": "b", "expected": {}}"#).contains("invalid type"));
        assert!(second(br#"{"input": {}, "expected": {}, "tags": {"hard": true}}"#).contains("expected a string"));
        assert!(second(br#"{"input": {"text": "b"}, "expected": {"#).contains("EOF"));
        assert!(second(br#"{"input": {"text": "b"}, "expected": {}, "id": " "}"#).contains("id is blank"));
        assert!(second(b" ").contains("blank"));
        assert!(second(b"{\"input\": {\"text\": \"\xff\"}, \"expected\": {}}").contains("not UTF-8"));
        // The same input, whatever its spelling.
        let same = second(br#"{"id": "z", "expected": {"label": "y"}, "input": {"text":"\u0061"}}"#);
        assert!(same.contains("same input") && same.contains("first on line: 1"), "{same}");
        assert!(second(br#"{"id": "line-1", "input": {"text": "b"}, "expected": {}}"#).contains("same id"));
    }

    #[test]
    fn an_empty_set_is_refused() {
        for empty in ["", "\n"] {
            let error = GoldenSet::from_jsonl("g", empty).unwrap_err();
            assert!(error.to_string().contains("no cases") && error.context("golden set") == Some("g"), "{error}");
        }
        assert!(GoldenSet::from_jsonl("g", "\u{feff}{}").is_err());
    }
}
