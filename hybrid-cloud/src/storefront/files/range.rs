//! Which bytes of a file a request asks for: RFC 9110, section 14, for one range.

use std::ops::Range;

use axum::http::{HeaderMap, HeaderValue, header};

/// What a request asks for of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Whole,
    Part(Range<u64>),
    /// Nothing that is there.
    Beyond,
}

impl Asked {
    /// What `headers` ask of a file of so many bytes, whose content is named by `tag`. Several ranges, and what is no range of bytes, ask for the whole.
    pub(super) fn of(headers: &HeaderMap, bytes: u64, tag: &HeaderValue) -> Self {
        let Some(range) = headers.get(header::RANGE).and_then(|range| range.to_str().ok()) else { return Self::Whole };
        if headers.get(header::IF_RANGE).is_some_and(|condition| condition != tag) {
            return Self::Whole;
        }
        let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
            return Self::Whole;
        };
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            // What is too large for a number lies beyond any end.
            true if !text.is_empty() => Some(text.parse().unwrap_or(u64::MAX)),
            _ => None,
        };
        let (start, end) = match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => (first, last.saturating_add(1)),
            (Some(first), None) if last.is_empty() => (first, u64::MAX),
            (None, Some(last)) if first.is_empty() => {
                (bytes.saturating_sub(last), if last == 0 { 0 } else { u64::MAX })
            }
            _ => return Self::Whole,
        };
        let end = end.min(bytes);
        if start < end { Self::Part(start..end) } else { Self::Beyond }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_understood_as_the_standard_says() {
        let tag = HeaderValue::from_static("\"file-1\"");
        for (range, asked) in [
            ("bytes=0-0", Asked::Part(0..1)),
            ("bytes=2-4", Asked::Part(2..5)),
            ("bytes=2-99", Asked::Part(2..10)),
            ("bytes=2-", Asked::Part(2..10)),
            ("bytes=-3", Asked::Part(7..10)),
            ("bytes=-99", Asked::Part(0..10)),
            ("bytes=9-18446744073709551616", Asked::Part(9..10)),
            ("bytes=10-", Asked::Beyond),
            ("bytes=18446744073709551616-", Asked::Beyond),
            ("bytes=-0", Asked::Beyond),
            ("bytes=4-2", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("bytes=-", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("lines=1-2", Asked::Whole),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("range", HeaderValue::from_static(range));
            assert_eq!(Asked::of(&headers, 10, &tag), asked, "{range}");
            headers.insert("if-range", tag.clone());
            assert_eq!(Asked::of(&headers, 10, &tag), asked, "{range}");
            headers.insert("if-range", HeaderValue::from_static("\"file-2\""));
            assert_eq!(Asked::of(&headers, 10, &tag), Asked::Whole, "{range}");
        }
        assert_eq!(Asked::of(&HeaderMap::new(), 10, &tag), Asked::Whole);
    }
}
