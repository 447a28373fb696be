//! `tojson` as `transformers` has it: Python's `json.dumps` without escapes for HTML.

use std::fmt::Write;

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (ascii, sorted) = (options.get::<Option<bool>>("ensure_ascii")?, options.get::<Option<bool>>("sort_keys")?);
    options.assert_all_used()?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(indent)?.min(64)),
        }),
    };
    let [item, key] = match separators.as_deref() {
        None if indent.is_some() => [",", ": "],
        None => [", ", ": "],
        Some([item, key]) => [&**item, &**key],
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "separators are two texts")),
    };
    let mut writer = Writer {
        text: String::new(),
        indent,
        item: item.to_owned(),
        key: key.to_owned(),
        ascii: ascii.unwrap_or(false),
        sorted: sorted.unwrap_or(false),
    };
    writer.value(value, 0)?;
    Ok(Value::from_safe_string(writer.text))
}

/// As deep as values may lie in each other.
const MAX_DEPTH: usize = 128;

struct Writer {
    text: String,
    /// What a level is set in by; `None` for one line.
    indent: Option<String>,
    item: String,
    key: String,
    /// Whether characters beyond ASCII are escaped.
    ascii: bool,
    /// Whether the keys of an object are sorted.
    sorted: bool,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "the value is too deep for JSON"));
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.list(['{', '}'], &keys, depth, |writer, key| {
                    writer.string(&key.to_string());
                    writer.text.push_str(&writer.key.clone());
                    writer.value(&value.get_item(key)?, depth + 1)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(['[', ']'], &items, depth, |writer, item| writer.value(item, depth + 1))?;
            }
            kind => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("a value of kind {kind} is no JSON")));
            }
        }
        Ok(())
    }

    fn list(
        &mut self,
        [open, close]: [char; 2],
        items: &[Value],
        depth: usize,
        mut write: impl FnMut(&mut Self, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.text.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                self.text.push_str(&self.item.clone());
            }
            self.line(depth + 1);
            write(self, item)?;
        }
        if !items.is_empty() {
            self.line(depth);
        }
        self.text.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.text.push('\n');
            self.text.push_str(&indent.repeat(depth));
        }
    }

    /// Whole numbers as they are, others with a point, as Python writes them.
    fn number(&mut self, value: &Value) {
        let text = value.to_string();
        self.text.push_str(&text);
        if !value.is_integer() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
            self.text.push_str(".0");
        }
    }

    fn string(&mut self, text: &str) {
        self.text.push('"');
        for char in text.chars() {
            match char {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                char if char < ' ' || (self.ascii && !char.is_ascii()) => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        // Writing to a text cannot fail.
                        let _ = write!(self.text, "\\u{unit:04x}");
                    }
                }
                char => self.text.push(char),
            }
        }
        self.text.push('"');
    }
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    #[test]
    fn json_is_written_as_python_writes_it() {
        let mut environment = Environment::new();
        environment.add_filter("tojson", super::tojson);
        let value = context! { v => context! { b => vec![1.5, 2.0], a => "<ö\n\"", c => (), d => true } };
        let check = |options: &str, expected: &str| {
            let text = environment.render_str(&format!("{{{{ v | tojson{options} }}}}"), &value).unwrap();
            assert_eq!(text, expected);
        };
        check("", r#"{"b": [1.5, 2.0], "a": "<ö\n\"", "c": null, "d": true}"#);
        check("(sort_keys=true, separators=(',', ':'))", r#"{"a":"<ö\n\"","b":[1.5,2.0],"c":null,"d":true}"#);
        check("(ensure_ascii=true, indent=none)", r#"{"b": [1.5, 2.0], "a": "<\u00f6\n\"", "c": null, "d": true}"#);
        let text = environment.render_str("{{ [1, {}, {'a': []}] | tojson(indent=2) }}", ()).unwrap();
        assert_eq!(text, "[\n  1,\n  {},\n  {\n    \"a\": []\n  }\n]");
    }
}
