//! Hyperparameters: read by name, each with its default and range; what is left over is refused.

use std::{cell::RefCell, collections::BTreeMap, fmt::Display, ops::RangeInclusive};

use hybrid_core::{Error, Result};
use serde_json::Value;

const OPERATION: &str = "check plan";

/// Reads settings out of a plan and remembers which it was asked for.
#[derive(Debug)]
pub(crate) struct Settings<'a> {
    values: &'a BTreeMap<String, Value>,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Settings<'a> {
    pub(crate) fn new(values: &'a BTreeMap<String, Value>) -> Self {
        Self { values, known: RefCell::default() }
    }

    /// A whole number in `range`.
    pub(crate) fn whole(&self, name: &'static str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| out_of_range(name, value, "a whole number", &range))
    }

    /// A finite number in `range`.
    pub(crate) fn number(&self, name: &'static str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let number = value.as_f64().filter(|number| range.contains(number));
        number.ok_or_else(|| out_of_range(name, value, "a number", &range))
    }

    /// True or false.
    pub(crate) fn flag(&self, name: &'static str, default: bool) -> Result<bool> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| not_of(name, value, "one of", &["true", "false"]))
    }

    /// One of the words `known`, by default the first.
    pub(crate) fn one_of(&self, name: &'static str, known: &[&'static str]) -> Result<&'static str> {
        let Some(value) = self.get(name) else { return Ok(known.first().copied().unwrap_or_default()) };
        let word = known.iter().find(|word| value.as_str() == Some(word));
        word.copied().ok_or_else(|| not_of(name, value, "one of", known))
    }

    /// A list of different words out of `known`, at least one.
    pub(crate) fn some_of(
        &self,
        name: &'static str,
        default: &[&'static str],
        known: &[&'static str],
    ) -> Result<Vec<String>> {
        let Some(value) = self.get(name) else { return Ok(default.iter().map(|&word| word.to_owned()).collect()) };
        let words: Option<Vec<&str>> = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        let fits = |words: &Vec<&str>| {
            let known = |(i, word): (usize, &&str)| known.contains(word) && !words[..i].contains(word);
            !words.is_empty() && words.iter().enumerate().all(known)
        };
        let words = words.filter(fits).ok_or_else(|| not_of(name, value, "a list of different words out of", known))?;
        Ok(words.into_iter().map(str::to_owned).collect())
    }

    /// Refuses what nobody asked for.
    pub(crate) fn finish(self) -> Result<()> {
        let known = self.known.into_inner();
        match self.values.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(unknown) => Err(Error::invalid(OPERATION, "the method does not know this hyperparameter")
                .with("name", unknown)
                .with("known", known.join(", "))),
        }
    }

    fn get(&self, name: &'static str) -> Option<&'a Value> {
        self.known.borrow_mut().push(name);
        self.values.get(name)
    }
}

/// The refusal of a setting whose value alone or beside another makes no sense.
pub(crate) fn refuse(name: &'static str, value: impl Display, message: &'static str) -> Error {
    Error::invalid(OPERATION, message).with("name", name).with("value", value)
}

fn not_of(name: &'static str, value: &Value, kind: &str, known: &[&str]) -> Error {
    let message = format!("the hyperparameter has to be {kind} {}", known.join(", "));
    Error::invalid(OPERATION, message).with("name", name).with("value", value)
}

fn out_of_range<N: Display>(name: &'static str, value: &Value, kind: &str, range: &RangeInclusive<N>) -> Error {
    let message = format!("the hyperparameter has to be {kind} from {} to {}", range.start(), range.end());
    Error::invalid(OPERATION, message).with("name", name).with("value", value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values(pairs: &[(&str, Value)]) -> BTreeMap<String, Value> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    #[test]
    fn what_is_absent_has_its_default_and_what_is_out_of_range_is_named() {
        let given = values(&[("epochs", json!(3)), ("rate", json!(0.5)), ("many", json!(-1)), ("odd", json!("x"))]);
        let settings = Settings::new(&given);
        assert_eq!(settings.whole("epochs", 9, 1..=10).unwrap(), 3);
        assert_eq!(settings.whole("other", 9, 1..=10).unwrap(), 9);
        assert_eq!(settings.number("rate", 0.1, 0.0..=1.0).unwrap(), 0.5);
        assert!(settings.flag("absent", true).unwrap());
        for (name, error) in [
            ("odd", settings.flag("odd", true).unwrap_err()),
            ("epochs", settings.whole("epochs", 9, 4..=10).unwrap_err()),
            ("many", settings.whole("many", 9, 0..=10).unwrap_err()),
            ("rate", settings.number("rate", 0.1, 0.6..=1.0).unwrap_err()),
            ("odd", settings.number("odd", 0.1, 0.0..=1.0).unwrap_err()),
        ] {
            assert_eq!(error.context("name"), Some(name));
        }
        assert!(settings.finish().is_ok());
    }

    #[test]
    fn words_are_those_known_and_each_comes_once() {
        let given =
            values(&[("one", json!("b")), ("some", json!(["b", "a"])), ("odd", json!(["b", "b"])), ("no", json!(1))]);
        let settings = Settings::new(&given);
        assert_eq!(settings.one_of("one", &["a", "b"]).unwrap(), "b");
        assert_eq!(settings.one_of("absent", &["a", "b"]).unwrap(), "a");
        assert_eq!(settings.some_of("some", &["c"], &["a", "b", "c"]).unwrap(), ["b", "a"]);
        assert_eq!(settings.some_of("absent", &["c"], &["a", "b", "c"]).unwrap(), ["c"]);
        for name in ["some", "odd", "no"] {
            assert_eq!(settings.one_of(name, &["a"]).unwrap_err().context("name"), Some(name));
        }
        for name in ["one", "odd", "no"] {
            assert_eq!(settings.some_of(name, &[], &["a", "b"]).unwrap_err().context("name"), Some(name));
        }
        assert_eq!(settings.some_of("some", &[], &["a"]).unwrap_err().context("name"), Some("some"));
    }

    #[test]
    fn what_nobody_asked_for_is_refused_by_name() {
        let given = values(&[("epochs", json!(3)), ("epoch", json!(3))]);
        let settings = Settings::new(&given);
        settings.whole("epochs", 9, 1..=10).unwrap();
        let error = settings.finish().unwrap_err();
        assert_eq!((error.context("name"), error.context("known")), (Some("epoch"), Some("epochs")));
    }
}
