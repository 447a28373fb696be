//! `POST /v1/images/generations`.

use hybrid_core::{
    Error, Result,
    task::{
        GenerateImageRequest, GenerateImageResponse, ImageBackground, ImageDelivery, ImageFinish, ImageSize,
        MediaSource,
    },
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{media, refuse, unsupported};

const READ: &str = "read image request";

/// The body of a request for images.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct ImageRequest {
    /// The model; the first one that makes images where none is named.
    pub(crate) model: Option<String>,
    pub(crate) prompt: String,
    pub(crate) n: Option<u32>,
    /// `auto` or, in pixels, such as `1024x1024`.
    pub(crate) size: Option<String>,
    pub(crate) quality: Option<String>,
    /// `b64_json`, which is the default here.
    pub(crate) response_format: Option<String>,
    /// `png`, `webp` or `jpeg`.
    pub(crate) output_format: Option<String>,
    /// In percent.
    pub(crate) output_compression: Option<u8>,
    /// `auto`, `transparent` or `opaque`.
    pub(crate) background: Option<String>,
    pub(crate) style: Option<String>,
    pub(crate) user: Option<String>,
    /// No field of OpenAI's own.
    pub(crate) seed: Option<u64>,
    /// Refused where it is true.
    pub(crate) stream: Option<bool>,
    /// Refused where it is there and not 0.
    pub(crate) partial_images: Option<u32>,
    /// Refused where it is not `auto`.
    pub(crate) moderation: Option<Value>,
}

impl ImageRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) or [`Unsupported`](hybrid_core::ErrorKind::Unsupported) that names the field.
    pub(crate) fn read(self) -> Result<GenerateImageRequest> {
        let moderated = self.moderation.is_some_and(|value| value != "auto");
        for (field, there, message) in [
            ("stream", self.stream == Some(true), "must be false or left out"),
            ("partial_images", self.partial_images.is_some_and(|n| n > 0), "must be 0 or left out"),
            ("moderation", moderated, "must be auto or left out"),
        ] {
            if there {
                return Err(unsupported(READ, field, message));
            }
        }
        match self.response_format.as_deref() {
            None | Some("b64_json") => {}
            Some("url") => return Err(unsupported(READ, "response_format", "must be b64_json: no image is kept here")),
            Some(_) => return Err(refuse(READ, "response_format", "must be b64_json")),
        }
        let media_type = self
            .output_format
            .map(|format| match format.as_str() {
                "png" | "webp" | "jpeg" => Ok(format!("image/{format}")),
                _ => Err(refuse(READ, "output_format", "must be png, webp or jpeg")),
            })
            .transpose()?;
        let background = match self.background.as_deref() {
            None => None,
            Some("auto") => Some(ImageBackground::Auto),
            Some("transparent") => Some(ImageBackground::Transparent),
            Some("opaque") => Some(ImageBackground::Opaque),
            Some(_) => return Err(refuse(READ, "background", "must be auto, transparent or opaque")),
        };
        Ok(GenerateImageRequest {
            prompt: self.prompt,
            n: self.n,
            size: self.size.as_deref().map_or(Ok(None), read_size)?,
            seed: self.seed,
            media_type,
            compression: self.output_compression,
            quality: self.quality.map(Into::into),
            style: self.style,
            background,
            delivery: Some(ImageDelivery::Bytes),
            user: self.user,
            ..GenerateImageRequest::default()
        })
    }
}

fn read_size(text: &str) -> Result<Option<ImageSize>> {
    if text == "auto" {
        return Ok(None);
    }
    let pixels = |text: &str| text.parse::<u32>().ok();
    let size = text.split_once('x').and_then(|(width, height)| Some(ImageSize::new(pixels(width)?, pixels(height)?)));
    size.map(Some)
        .ok_or_else(|| refuse(READ, "size", "must be auto or a width and a height in pixels such as 1024x1024"))
}

/// The field that the caller sent, for one that [`Task::validate`](hybrid_core::Task::validate) names.
pub(crate) fn caller_field(field: &str) -> &str {
    match field {
        "size.width" | "size.height" => "size",
        "compression" => "output_compression",
        "media_type" => "output_format",
        other => other,
    }
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub(crate) struct ImageList {
    /// Unix seconds.
    pub(crate) created: i64,
    pub(crate) data: Vec<Image>,
    /// `png`, `webp` or `jpeg`, where all are of one format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) output_format: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<ImageUsage>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub(crate) struct Image {
    /// Base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) b64_json: Option<String>,
    /// Where a backend keeps it, if it gave no bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revised_prompt: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub(crate) struct ImageUsage {
    pub(crate) input_tokens: u64,
    pub(crate) input_tokens_details: ImageTokens,
    pub(crate) output_tokens: u64,
    pub(crate) total_tokens: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub(crate) struct ImageTokens {
    pub(crate) image_tokens: u64,
    pub(crate) text_tokens: u64,
}

/// Writes the pictures.
///
/// # Errors
/// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) where a content filter left a picture out: what comes back would look like all there is.
pub(crate) fn write_images(
    created: i64,
    response: GenerateImageResponse,
    usage: &hybrid_core::Usage,
) -> Result<ImageList> {
    const WRITE: &str = "write images";
    let of_all = |values: Vec<Option<String>>| match values.split_first() {
        Some((first, rest)) if rest.iter().all(|other| other == first) => first.clone(),
        _ => None,
    };
    let output_format =
        of_all(response.images.iter().map(|image| media::format(&image.media_type).map(str::to_owned)).collect());
    let size = of_all(
        response.images.iter().map(|image| image.size.map(|size| format!("{}x{}", size.width, size.height))).collect(),
    );
    let data = response.images.into_iter().map(|image| {
        let (b64_json, url) = match &image.source {
            MediaSource::Bytes(bytes) if !bytes.is_empty() => (Some(media::encode(bytes)), None),
            MediaSource::Uri { uri, .. } => (None, Some(uri.clone())),
            _ if image.finish == ImageFinish::ContentFiltered => {
                return Err(refuse(WRITE, "prompt", "was refused by a content filter"));
            }
            _ => return Err(Error::corrupt(WRITE, "the backend gave a picture without bytes")),
        };
        Ok(Image { b64_json, url, revised_prompt: image.revised_prompt })
    });
    let data = data.collect::<Result<_>>()?;
    let (input, output) = (usage.total_input_tokens(), usage.output_tokens);
    let usage = (input + output > 0).then(|| ImageUsage {
        input_tokens: input,
        input_tokens_details: ImageTokens { image_tokens: 0, text_tokens: input },
        output_tokens: output,
        total_tokens: input.saturating_add(output),
    });
    Ok(ImageList { created, data, output_format, size, usage })
}
