//! Hyperparameters: read by name, each with its default and range; what is left over is refused.

use std::{cell::RefCell, collections::BTreeMap, fmt::Display, ops::RangeInclusive};

use hybrid_core::{Error, Result};
use serde_json::Value;

const OPERATION: &str = "check plan";

/// Reads settings out of a plan and remembers which it was asked for.
#[derive(Debug)]
pub(super) struct Settings<'a> {
    values: &'a BTreeMap<String, Value>,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Settings<'a> {
    pub(super) fn new(values: &'a BTreeMap<String, Value>) -> Self {
        Self { values, known: RefCell::default() }
    }

    /// A whole number in `range`.
    pub(super) fn whole(&self, name: &'static str, default: usize, range: RangeInclusive<usize>) -> Result<usize> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        number
            .filter(|number| range.contains(number))
            .ok_or_else(|| out_of_range(name, value, "a whole number", &range))
    }

    /// A finite number in `range`.
    pub(super) fn number(&self, name: &'static str, default: f64, range: RangeInclusive<f64>) -> Result<f64> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let number = value.as_f64().filter(|number| range.contains(number));
        number.ok_or_else(|| out_of_range(name, value, "a number", &range))
    }

    /// Refuses what nobody asked for.
    pub(super) fn finish(self) -> Result<()> {
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
pub(super) fn refuse(name: &'static str, value: impl Display, message: &'static str) -> Error {
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
        for (name, error) in [
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
    fn what_nobody_asked_for_is_refused_by_name() {
        let given = values(&[("epochs", json!(3)), ("epoch", json!(3))]);
        let settings = Settings::new(&given);
        settings.whole("epochs", 9, 1..=10).unwrap();
        let error = settings.finish().unwrap_err();
        assert_eq!((error.context("name"), error.context("known")), (Some("epoch"), Some("epochs")));
    }
}
