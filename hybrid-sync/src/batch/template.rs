use std::fmt;

use hybrid_core::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A text with places for a row's fields.
///
/// `{{name}}` is the field of that name, `{{customer.city}}` one within an object, `{{.}}` the whole row as JSON. A text is put in as it is, anything
/// else as JSON, and a field that is absent or null as nothing. What is put in is never read as a template.
///
/// ```
/// use hybrid_sync::batch::Template;
/// use serde_json::json;
///
/// let template: Template = "{{customer.name}} writes: {{text}}".to_owned().try_into()?;
/// let row = json!({"customer": {"name": "Ada"}, "text": "two loaves, {{please}}"});
/// assert_eq!(template.fill(row.as_object().unwrap()), "Ada writes: two loaves, {{please}}");
/// assert!(Template::try_from("Dear {{name".to_owned()).is_err());
/// # Ok::<(), hybrid_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template {
    text: String,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Row,
    Field(Vec<String>),
}

impl Template {
    /// The text for a row.
    pub fn fill(&self, row: &Map<String, Value>) -> String {
        let mut text = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(own) => text.push_str(own),
                Piece::Row => text.push_str(&serde_json::to_string(row).unwrap_or_default()),
                Piece::Field(path) => match find(row, path) {
                    None | Some(Value::Null) => {}
                    Some(Value::String(value)) => text.push_str(value),
                    Some(other) => text.push_str(&other.to_string()),
                },
            }
        }
        text
    }
}

fn find<'a>(row: &'a Map<String, Value>, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(row.get(first)?, |value, name| value.get(name))
}

impl TryFrom<String> for Template {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        let refuse =
            |message: &'static str| Error::invalid("read template", message).with("template", format_args!("{text:?}"));
        let (mut pieces, mut rest) = (Vec::new(), text.as_str());
        while let Some((before, inside)) = rest.split_once("{{") {
            let (name, after) =
                inside.split_once("}}").ok_or_else(|| refuse("a place is opened with {{ and not closed"))?;
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(match name.trim() {
                "" => return Err(refuse("a place names no field")),
                "." => Piece::Row,
                name => Piece::Field(name.split('.').map(str::to_owned).collect()),
            });
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
        Ok(Self { pieces, text })
    }
}

impl From<Template> for String {
    fn from(template: Template) -> Self {
        template.text
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn places_are_filled_with_what_the_row_has() {
        let filled = |template: &str, row: Value| {
            Template::try_from(template.to_owned()).unwrap().fill(row.as_object().unwrap())
        };
        let row = json!({"a": "x", "b": {"c": [1, 2]}, "n": null, "f": 1.5});
        assert_eq!(filled("{{a}}{{ b.c }}-{{n}}{{missing}}{{b.d.e}}{{f}}", row.clone()), "x[1,2]-1.5");
        assert_eq!(filled("{{.}}", json!({"a": 1})), r#"{"a":1}"#);
        assert_eq!(filled("no place", row.clone()), "no place");
        assert_eq!(filled("{{a}} {{a}}}}", row), "x x}}");
        for bad in ["{{", "{{a", "{{}}", "{{ }}"] {
            assert!(Template::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
