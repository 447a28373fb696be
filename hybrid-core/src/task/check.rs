//! What the tasks' `validate` and `fold` share.

use std::{borrow::Cow, fmt::Display, ops::RangeInclusive};

use crate::{Error, Result};

/// Any finite number from zero up.
pub(super) const NOT_NEGATIVE: RangeInclusive<f32> = 0.0..=f32::MAX;
/// Any finite number.
pub(super) const FINITE: RangeInclusive<f32> = f32::MIN..=f32::MAX;
/// A share or a probability.
pub(super) const SHARE: RangeInclusive<f32> = 0.0..=1.0;

/// Refuses fields of one kind of request, by name.
#[derive(Clone, Copy)]
pub(super) struct Check(pub(super) &'static str);

impl Check {
    pub(super) fn refuse(self, field: impl Display, message: impl Into<Cow<'static, str>>) -> Error {
        Error::invalid(self.0, message).with("field", field)
    }

    pub(super) fn that(self, holds: bool, field: impl Display, message: &'static str) -> Result<()> {
        if holds { Ok(()) } else { Err(self.refuse(field, message)) }
    }

    pub(super) fn not_blank(self, field: impl Display, text: &str) -> Result<()> {
        self.that(!text.trim().is_empty(), field, "must not be blank")
    }

    pub(super) fn not_blank_if_set(self, field: impl Display, text: Option<&str>) -> Result<()> {
        text.map_or(Ok(()), |text| self.not_blank(field, text))
    }

    pub(super) fn not_zero<N: Copy + Into<u64>>(self, field: impl Display, value: Option<N>) -> Result<()> {
        self.that(value.is_none_or(|value| value.into() > 0), field, "must be at least 1; leave it out for the default")
    }

    /// NaN is in no range and so is refused.
    pub(super) fn within(self, field: impl Display, value: Option<f32>, range: RangeInclusive<f32>) -> Result<()> {
        let Some(value) = value.filter(|value| !range.contains(value)) else { return Ok(()) };
        let message = match (*range.start(), *range.end()) {
            (f32::MIN, f32::MAX) => Cow::Borrowed("must be a finite number"),
            (low, f32::MAX) => format!("must be a finite number of at least {low}").into(),
            (low, high) => format!("must be a number from {low} to {high}").into(),
        };
        Err(self.refuse(field, message).with("value", value))
    }
}

/// The one delta of a task that does not stream.
pub(super) fn only<T>(operation: &'static str, deltas: impl IntoIterator<Item = T>) -> Result<T> {
    let mut deltas = deltas.into_iter();
    match (deltas.next(), deltas.next()) {
        (Some(delta), None) => Ok(delta),
        (None, _) => Err(Error::corrupt(operation, "the stream has no delta; one was expected")),
        (Some(_), Some(_)) => Err(Error::corrupt(operation, "the stream has several deltas; one was expected")),
    }
}

/// What the tests of every task do.
#[cfg(test)]
pub(super) mod testing {
    use crate::{ErrorKind, Task};

    /// Serialises to JSON and back.
    pub(crate) fn over_json<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
        serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
    }

    /// The field that `validate` refuses, or `None` if it accepts.
    pub(crate) fn refused<T: Task>(request: &T::Request) -> Option<String> {
        let error = T::validate(request).err()?;
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        Some(error.context("field").unwrap_or_else(|| panic!("no field named: {error}")).to_owned())
    }

    /// What folding fails with; panics if it succeeds.
    pub(crate) fn fold_error<T: Task>(deltas: Vec<T::Delta>) -> String {
        let error = T::fold(deltas).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_refused_by_name_and_value() {
        let error = Check("check").within("top_p", Some(1.5), SHARE).unwrap_err();
        assert_eq!(error.to_string(), "check: must be a number from 0 to 1 (field: top_p, value: 1.5)");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(Check("check").within("x", Some(bad), FINITE).is_err());
            assert!(Check("check").within("x", Some(bad), NOT_NEGATIVE).is_err());
        }
        assert!(Check("check").within("x", Some(-0.0), NOT_NEGATIVE).is_ok());
        assert!(Check("check").within("x", None, SHARE).is_ok());
    }

    #[test]
    fn a_task_that_does_not_stream_has_one_delta() {
        assert_eq!(only("fold", [1]).unwrap(), 1);
        assert!(only("fold", [0; 0]).is_err());
        assert!(only("fold", [1, 2]).is_err());
    }
}
