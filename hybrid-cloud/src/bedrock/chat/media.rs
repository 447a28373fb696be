//! Images, sound, video and documents, as Converse takes and gives them: formats instead of media types.

use aws_sdk_bedrockruntime::types::{
    AudioBlock, AudioFormat, AudioSource, CitationsConfig, DocumentBlock, DocumentContentBlock, DocumentFormat,
    DocumentSource as ConverseDocument, ErrorBlock, GuardrailConverseImageBlock, GuardrailConverseImageFormat,
    GuardrailConverseImageSource, ImageBlock, ImageFormat, ImageSource, S3Location, VideoBlock, VideoFormat,
    VideoSource,
};
use aws_smithy_types::Blob;
use hybrid_core::{
    Result,
    task::{AudioPart, DocumentPart, DocumentSource, ImageDetail, ImagePart, MediaSource, VideoPart},
};

use super::request::Mapper;

const IMAGES: &[(&str, &str)] = &[
    ("image/png", "png"),
    ("image/jpeg", "jpeg"),
    ("image/jpg", "jpeg"),
    ("image/gif", "gif"),
    ("image/webp", "webp"),
];

const AUDIO: &[(&str, &str)] = &[
    ("audio/mpeg", "mp3"),
    ("audio/mp3", "mp3"),
    ("audio/opus", "opus"),
    ("audio/wav", "wav"),
    ("audio/x-wav", "wav"),
    ("audio/wave", "wav"),
    ("audio/aac", "aac"),
    ("audio/x-aac", "x-aac"),
    ("audio/flac", "flac"),
    ("audio/x-flac", "flac"),
    ("audio/mp4", "mp4"),
    ("audio/m4a", "m4a"),
    ("audio/x-m4a", "m4a"),
    ("audio/ogg", "ogg"),
    ("audio/matroska", "mka"),
    ("audio/x-matroska", "mka"),
    ("audio/pcm", "pcm"),
    ("audio/l16", "pcm"),
    ("audio/webm", "webm"),
];

const VIDEO: &[(&str, &str)] = &[
    ("video/mp4", "mp4"),
    ("video/quicktime", "mov"),
    ("video/webm", "webm"),
    ("video/matroska", "mkv"),
    ("video/x-matroska", "mkv"),
    ("video/x-flv", "flv"),
    ("video/mpeg", "mpeg"),
    ("video/x-ms-wmv", "wmv"),
    ("video/3gpp", "three_gp"),
];

const DOCUMENTS: &[(&str, &str)] = &[
    ("application/pdf", "pdf"),
    ("text/csv", "csv"),
    ("application/msword", "doc"),
    ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", "docx"),
    ("application/vnd.ms-excel", "xls"),
    ("application/vnd.openxmlformats-officedocument.spreadsheetml.sheet", "xlsx"),
    ("text/html", "html"),
    ("text/plain", "txt"),
    ("text/markdown", "md"),
];

/// Where the provider finds the bytes.
enum Place {
    Bytes(Blob),
    S3(S3Location),
}

fn place(mapper: &Mapper<'_>, field: &str, source: MediaSource) -> Result<Place> {
    match source {
        MediaSource::Bytes(bytes) => Ok(Place::Bytes(Blob::new(bytes))),
        MediaSource::Uri { uri, owner } if uri.starts_with("s3://") => {
            mapper.built(S3Location::builder().uri(uri).set_bucket_owner(owner).build()).map(Place::S3)
        }
        MediaSource::Uri { uri, .. } => {
            let message = "Bedrock fetches from s3:// alone; give the bytes or put them there";
            Err(mapper.unsupported(format_args!("{field}.source"), message).with("uri", uri))
        }
        _ => Err(mapper.unsupported(format_args!("{field}.source"), "Bedrock keeps no files; give the bytes")),
    }
}

fn format(mapper: &Mapper<'_>, field: &str, media_type: &str, known: &[(&str, &'static str)]) -> Result<&'static str> {
    // Parameters such as a character set do not change the format.
    let bare = media_type.split(';').next().unwrap_or_default().trim();
    known.iter().find(|(name, _)| name.eq_ignore_ascii_case(bare)).map(|(_, format)| *format).ok_or_else(|| {
        let types: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        mapper
            .unsupported(format_args!("{field}.media_type"), "Converse does not take this media type")
            .with("found", media_type)
            .with("known", types.join(" "))
    })
}

pub(super) fn media_type(format: &str, known: &[(&'static str, &str)]) -> String {
    known
        .iter()
        .find(|(_, name)| *name == format)
        .map_or_else(|| format.to_owned(), |(media_type, _)| (*media_type).to_owned())
}

pub(super) fn image_type(format: &ImageFormat) -> String {
    media_type(format.as_str(), IMAGES)
}

pub(super) fn image(mapper: &mut Mapper<'_>, field: &str, image: ImagePart) -> Result<ImageBlock> {
    let ImagePart { media_type, source, detail, error } = image;
    if detail.is_some_and(|detail| detail != ImageDetail::Auto) {
        mapper.ignore(format_args!("{field}.detail"), "Converse has no field for it");
    }
    let format = format(mapper, field, &media_type, IMAGES)?;
    let source = match place(mapper, field, source)? {
        Place::Bytes(bytes) => ImageSource::Bytes(bytes),
        Place::S3(location) => ImageSource::S3Location(location),
    };
    let error = error.map(|message| ErrorBlock::builder().message(message).build());
    mapper.built(ImageBlock::builder().format(ImageFormat::from(format)).source(source).set_error(error).build())
}

pub(super) fn guarded_image(mapper: &Mapper<'_>, field: &str, image: ImagePart) -> Result<GuardrailConverseImageBlock> {
    let format = format(mapper, field, &image.media_type, &IMAGES[..3])?;
    let Place::Bytes(bytes) = place(mapper, field, image.source)? else {
        return Err(mapper.unsupported(format_args!("{field}.source"), "a guardrail looks at bytes alone; give them"));
    };
    let image = GuardrailConverseImageBlock::builder()
        .format(GuardrailConverseImageFormat::from(format))
        .source(GuardrailConverseImageSource::Bytes(bytes))
        .build();
    mapper.built(image)
}

pub(super) fn audio(mapper: &mut Mapper<'_>, field: &str, audio: AudioPart) -> Result<AudioBlock> {
    let AudioPart { media_type, source, id, expires_at, transcript, error } = audio;
    for (name, given) in
        [("id", id.is_some()), ("expires_at", expires_at.is_some()), ("transcript", transcript.is_some())]
    {
        if given {
            mapper.ignore(format_args!("{field}.{name}"), "Converse has no field for it");
        }
    }
    let format = format(mapper, field, &media_type, AUDIO)?;
    let source = match place(mapper, field, source)? {
        Place::Bytes(bytes) => AudioSource::Bytes(bytes),
        Place::S3(location) => AudioSource::S3Location(location),
    };
    let error = error.map(|message| ErrorBlock::builder().message(message).build());
    mapper.built(AudioBlock::builder().format(AudioFormat::from(format)).source(source).set_error(error).build())
}

pub(super) fn video(mapper: &Mapper<'_>, field: &str, video: VideoPart) -> Result<VideoBlock> {
    let format = format(mapper, field, &video.media_type, VIDEO)?;
    let source = match place(mapper, field, video.source)? {
        Place::Bytes(bytes) => VideoSource::Bytes(bytes),
        Place::S3(location) => VideoSource::S3Location(location),
    };
    mapper.built(VideoBlock::builder().format(VideoFormat::from(format)).source(source).build())
}

pub(super) fn document(mapper: &mut Mapper<'_>, field: &str, document: DocumentPart) -> Result<DocumentBlock> {
    let DocumentPart { name: given, media_type, source, context, citations } = document;
    let name = document_name(&given);
    if name != given {
        mapper.ignore(format_args!("{field}.name"), "told as Converse spells names");
    }
    // The format of text that is given as text is text.
    let format = match (&source, media_type.as_deref()) {
        (DocumentSource::File(_), None) => Some("txt"),
        (_, None) => None,
        (_, Some(media_type)) => Some(format(mapper, field, media_type, DOCUMENTS)?),
    };
    let source = match source {
        DocumentSource::File(file) => match place(mapper, field, file)? {
            Place::Bytes(bytes) => ConverseDocument::Bytes(bytes),
            Place::S3(location) => ConverseDocument::S3Location(location),
        },
        DocumentSource::Text(text) => ConverseDocument::Text(text),
        DocumentSource::Chunks(chunks) => {
            ConverseDocument::Content(chunks.into_iter().map(DocumentContentBlock::Text).collect())
        }
        _ => return Err(mapper.unsupported(format_args!("{field}.source"), "not a source that this adapter knows")),
    };
    let document = DocumentBlock::builder()
        .name(name)
        .set_format(format.map(DocumentFormat::from))
        .source(source)
        .set_context(context)
        .set_citations(cite(mapper, citations)?)
        .build();
    mapper.built(document)
}

/// A file's name as Converse takes it: without its ending, of at most 200 letters and digits of ASCII, hyphens, brackets and single spaces.
fn document_name(given: &str) -> String {
    let is_ending = |ending: &str| (1..=5).contains(&ending.len()) && ending.bytes().all(|b| b.is_ascii_alphanumeric());
    let stem = given.rsplit_once('.').filter(|(_, ending)| is_ending(ending)).map_or(given, |(stem, _)| stem);
    let known = |c: char| c.is_ascii_alphanumeric() || "-()[]".contains(c);
    let words: String = stem.chars().map(|c| if known(c) || c.is_whitespace() { c } else { '-' }).collect();
    let name: String = words.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect();
    let name = name.trim_end();
    if name.is_empty() { "document".to_owned() } else { name.to_owned() }
}

pub(super) fn cite(mapper: &Mapper<'_>, citations: bool) -> Result<Option<CitationsConfig>> {
    citations.then(|| mapper.built(CitationsConfig::builder().enabled(true).build())).transpose()
}

/// What the model made, back in core's terms.
pub(super) fn read_image(image: ImageBlock) -> Option<ImagePart> {
    let ImageBlock { format, source, error, .. } = image;
    let source = source.map_or(Some(MediaSource::default()), read_image_source)?;
    let error = error.map(|error| error.message.unwrap_or_default());
    Some(ImagePart { error, ..ImagePart::new(image_type(&format), source) })
}

pub(super) fn read_image_source(source: ImageSource) -> Option<MediaSource> {
    match source {
        ImageSource::Bytes(bytes) => Some(bytes.into_inner().into()),
        ImageSource::S3Location(location) => Some(read_location(location)),
        _ => None,
    }
}

pub(super) fn read_audio(audio: AudioBlock) -> Option<AudioPart> {
    let AudioBlock { format, source, error, .. } = audio;
    let source = match source {
        None => MediaSource::default(),
        Some(AudioSource::Bytes(bytes)) => bytes.into_inner().into(),
        Some(AudioSource::S3Location(location)) => read_location(location),
        Some(_) => return None,
    };
    let error = error.map(|error| error.message.unwrap_or_default());
    Some(AudioPart { error, ..AudioPart::new(media_type(format.as_str(), AUDIO), source) })
}

pub(super) fn read_video(video: VideoBlock) -> Option<VideoPart> {
    let source = match video.source? {
        VideoSource::Bytes(bytes) => bytes.into_inner().into(),
        VideoSource::S3Location(location) => read_location(location),
        _ => return None,
    };
    Some(VideoPart::new(media_type(video.format.as_str(), VIDEO), source))
}

pub(super) fn read_document(document: DocumentBlock) -> Option<DocumentPart> {
    let DocumentBlock { format, name, source, context, citations, .. } = document;
    let source = match source? {
        ConverseDocument::Bytes(bytes) => DocumentSource::File(bytes.into_inner().into()),
        ConverseDocument::S3Location(location) => DocumentSource::File(read_location(location)),
        ConverseDocument::Text(text) => DocumentSource::Text(text),
        ConverseDocument::Content(chunks) => DocumentSource::Chunks(
            chunks
                .into_iter()
                .map(|chunk| match chunk {
                    DocumentContentBlock::Text(text) => Some(text),
                    _ => None,
                })
                .collect::<Option<_>>()?,
        ),
        _ => return None,
    };
    let media_type = match &source {
        DocumentSource::File(_) => Some(media_type(format.as_str(), DOCUMENTS)),
        _ => None,
    };
    Some(DocumentPart {
        name,
        media_type,
        source,
        context,
        citations: citations.is_some_and(|citations| citations.enabled),
    })
}

fn read_location(location: S3Location) -> MediaSource {
    MediaSource::Uri { uri: location.uri, owner: location.bucket_owner }
}
