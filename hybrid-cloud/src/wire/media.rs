//! Media in JSON: data URLs, and names of formats.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use hybrid_core::{Result, task::MediaSource};

use super::refuse;

/// Bytes as standard base64 with padding.
pub(crate) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Standard base64, with padding or without.
pub(crate) fn decode(operation: &'static str, field: &str, text: &str) -> Result<Vec<u8>> {
    let engine = if text.ends_with('=') || text.len().is_multiple_of(4) { &STANDARD } else { &STANDARD_NO_PAD };
    engine.decode(text).map_err(|error| refuse(operation, field, "is not base64").with_source(error))
}

/// The media type and the source that a URL stands for: the bytes of a `data:` URL, else the address itself.
pub(crate) fn from_url(
    operation: &'static str,
    field: &str,
    url: &str,
    family: &'static str,
) -> Result<(String, MediaSource)> {
    let Some(data) = strip_scheme(url, "data:") else {
        if strip_scheme(url, "https://").is_none() && strip_scheme(url, "http://").is_none() {
            return Err(refuse(operation, field, "must be an http, https or data URL"));
        }
        let path = url.split(['?', '#']).next().unwrap_or_default();
        let known = path.rsplit_once('.').and_then(|(_, extension)| media_type(family, extension));
        return Ok((known.unwrap_or_else(|| format!("{family}/*")), MediaSource::uri(url)));
    };
    let (head, data) = data
        .split_once(',')
        .ok_or_else(|| refuse(operation, field, "is a data URL without a comma before its data"))?;
    let media_type = head
        .strip_suffix(";base64")
        .ok_or_else(|| refuse(operation, field, "is a data URL without `;base64` before its comma"))?;
    let media_type = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !media_type.contains('/') {
        return Err(refuse(operation, field, "is a data URL without a media type"));
    }
    Ok((media_type, decode(operation, field, data)?.into()))
}

/// A `data:` URL of the bytes, or the address.
pub(crate) fn to_url(media_type: &str, source: &MediaSource) -> Option<String> {
    match source {
        MediaSource::Bytes(bytes) => Some(format!("data:{media_type};base64,{}", encode(bytes))),
        MediaSource::Uri { uri, .. } => Some(uri.clone()),
        _ => None,
    }
}

fn strip_scheme<'a>(url: &'a str, scheme: &str) -> Option<&'a str> {
    let (head, rest) = url.split_at_checked(scheme.len())?;
    head.eq_ignore_ascii_case(scheme).then_some(rest)
}

/// Formats by family: extension, media type, and the other names that the type goes by.
const FORMATS: &[(&str, &str, &str, &[&str])] = &[
    ("image", "png", "image/png", &[]),
    ("image", "jpeg", "image/jpeg", &["image/jpg", "jpg"]),
    ("image", "webp", "image/webp", &[]),
    ("image", "gif", "image/gif", &[]),
    ("audio", "wav", "audio/wav", &["audio/x-wav", "audio/wave", "audio/vnd.wave"]),
    ("audio", "mp3", "audio/mpeg", &["audio/mp3", "mpga", "mpeg"]),
    ("audio", "m4a", "audio/mp4", &["audio/x-m4a", "audio/m4a", "mp4", "video/mp4"]),
    ("audio", "flac", "audio/flac", &["audio/x-flac"]),
    ("audio", "ogg", "audio/ogg", &["oga", "application/ogg"]),
    ("audio", "opus", "audio/opus", &[]),
    ("audio", "webm", "audio/webm", &["video/webm"]),
    ("audio", "aac", "audio/aac", &[]),
    ("audio", "pcm16", "audio/pcm", &["audio/l16"]),
    ("application", "pdf", "application/pdf", &[]),
    ("application", "txt", "text/plain", &[]),
    ("application", "md", "text/markdown", &[]),
    ("application", "csv", "text/csv", &[]),
    ("application", "html", "text/html", &[]),
    ("application", "docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document", &[]),
    ("application", "xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", &[]),
];

/// The media type of a format or file extension.
pub(crate) fn media_type(family: &str, format: &str) -> Option<String> {
    let format = format.to_ascii_lowercase();
    let known = FORMATS
        .iter()
        .find(|(of, name, _, others)| *of == family && (*name == format || others.contains(&format.as_str())));
    known.map(|(_, _, media_type, _)| (*media_type).to_owned())
}

/// The format, which is the file extension too, of a media type.
pub(crate) fn format(media_type: &str) -> Option<&'static str> {
    let essence = media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let known = FORMATS.iter().find(|(_, _, name, others)| *name == essence || others.contains(&essence.as_str()));
    known.map(|(_, format, _, _)| *format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_urls_come_back() {
        let source = MediaSource::from(vec![0xfb, 0xff, 1]);
        let url = to_url("image/png", &source).unwrap();
        assert_eq!(url, "data:image/png;base64,+/8B");
        assert_eq!(from_url("read", "url", &url, "image").unwrap(), ("image/png".to_owned(), source.clone()));
        let odd = "DATA:Image/PNG;charset=x;base64,+/8B";
        assert_eq!(from_url("read", "url", odd, "image").unwrap(), ("image/png".to_owned(), source));
    }

    #[test]
    fn addresses_are_typed_by_their_path_and_never_fetched() {
        let read = |url: &str| from_url("read", "url", url, "image").unwrap();
        assert_eq!(read("https://a/b.JPG?x=.png"), ("image/jpeg".into(), MediaSource::uri("https://a/b.JPG?x=.png")));
        assert_eq!(read("http://a/b").0, "image/*");
    }

    #[test]
    fn what_is_no_url_of_a_medium_is_refused_by_field() {
        for bad in [
            "",
            "loaf.png",
            "file:///etc/passwd",
            "data:image/png,raw",
            "data:;base64,AA==",
            "data:image/png;base64",
            "data:image/png;base64,~",
            "ftp://a",
        ] {
            let error = from_url("read", "messages[0]", bad, "image").unwrap_err();
            assert_eq!(error.context("field"), Some("messages[0]"), "{bad}");
        }
    }

    #[test]
    fn formats_and_media_types_name_each_other() {
        for (family, format_name, media, _) in FORMATS {
            assert_eq!(media_type(family, format_name).as_deref(), Some(*media));
            assert_eq!(format(media), Some(*format_name));
        }
        assert_eq!(format("audio/x-wav; rate=16000"), Some("wav"));
        assert_eq!(media_type("audio", "png"), None);
    }
}
