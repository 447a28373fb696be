//! Image generation: pictures from a prompt.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    ImagePart, MediaSource,
    check::{Check, NOT_NEGATIVE, SHARE},
    is_default,
    open_enum::open_enum,
};
use crate::{Error, Result, Task};

/// The task of making pictures from a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct GenerateImage;

impl Task for GenerateImage {
    const NAME: &'static str = "generate_image";
    type Request = GenerateImageRequest;
    type Response = GenerateImageResponse;
    type Delta = GenerateImageDelta;

    fn validate(request: &GenerateImageRequest) -> Result<()> {
        let check = Check("validate generate_image request");
        check.not_blank("prompt", &request.prompt)?;
        check.not_zero("n", request.n)?;
        if let Some(size) = request.size {
            check.not_zero("size.width", Some(size.width))?;
            check.not_zero("size.height", Some(size.height))?;
        }
        check.not_zero("steps", request.steps)?;
        check.within("guidance", request.guidance, NOT_NEGATIVE)?;
        check.within("strength", request.strength, SHARE)?;
        for (i, image) in request.images.iter().enumerate() {
            image.check(check, format_args!("images[{i}]"))?;
        }
        if let Some(mask) = &request.mask {
            mask.check(check, "mask")?;
            check.that(!request.images.is_empty(), "mask", "needs an image in `images` to lie over")?;
        }
        let compression = request.compression.unwrap_or(0);
        check.that(compression <= 100, "compression", "must be from 0 to 100 percent")?;
        check.not_blank_if_set("media_type", request.media_type.as_deref())
    }

    fn split(response: GenerateImageResponse) -> Vec<GenerateImageDelta> {
        (0..).zip(response.images).map(|(index, image)| GenerateImageDelta::Image { index, image }).collect()
    }

    fn fold(deltas: impl IntoIterator<Item = GenerateImageDelta>) -> Result<GenerateImageResponse> {
        const OPERATION: &str = "fold generate_image deltas";
        let mut images = BTreeMap::new();
        for delta in deltas {
            let GenerateImageDelta::Image { index, image } = delta else { continue };
            if images.insert(index, image).is_some() {
                return Err(Error::corrupt(OPERATION, "an image came twice").with("index", index));
            }
        }
        if let Some((missing, _)) = (0..).zip(images.keys()).find(|(expected, index)| *expected != **index) {
            return Err(Error::corrupt(OPERATION, "an image is missing").with("index", missing));
        }
        if images.is_empty() {
            return Err(Error::corrupt(OPERATION, "the stream has no image"));
        }
        Ok(GenerateImageResponse { images: images.into_values().collect() })
    }
}

/// A description of pictures to be made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateImageRequest {
    /// What the pictures show.
    pub prompt: String,
    /// What the pictures must not show.
    #[serde(skip_serializing_if = "is_default")]
    pub negative_prompt: Option<String>,
    /// How many pictures; `None` for one.
    #[serde(skip_serializing_if = "is_default")]
    pub n: Option<u32>,
    /// How large; `None` for the model's own size.
    #[serde(skip_serializing_if = "is_default")]
    pub size: Option<ImageSize>,
    /// The seed of the first picture; the same seed and request give the same pictures where the backend can promise it.
    #[serde(skip_serializing_if = "is_default")]
    pub seed: Option<u64>,
    /// How many denoising steps.
    #[serde(skip_serializing_if = "is_default")]
    pub steps: Option<u32>,
    /// How closely to follow the prompt (the scale of classifier-free guidance), from 0.
    #[serde(skip_serializing_if = "is_default")]
    pub guidance: Option<f32>,
    /// The IANA media type of the result, such as `image/png`; `None` for the backend's own.
    #[serde(skip_serializing_if = "is_default")]
    pub media_type: Option<String>,
    /// How much to compress a lossy format, in percent.
    #[serde(skip_serializing_if = "is_default")]
    pub compression: Option<u8>,
    /// How much effort to spend.
    #[serde(skip_serializing_if = "is_default")]
    pub quality: Option<ImageQuality>,
    /// A style that the model knows by name.
    #[serde(skip_serializing_if = "is_default")]
    pub style: Option<String>,
    /// What is behind the subject.
    #[serde(skip_serializing_if = "is_default")]
    pub background: Option<ImageBackground>,
    /// Pictures to start from: to edit, to vary or to combine.
    #[serde(skip_serializing_if = "is_default")]
    pub images: Vec<ImagePart>,
    /// Where to change the first of [`images`](Self::images): a picture of its size, transparent where it may change.
    #[serde(skip_serializing_if = "is_default")]
    pub mask: Option<ImagePart>,
    /// How far to go from [`images`](Self::images), from 0 (not at all) to 1 (ignore them).
    #[serde(skip_serializing_if = "is_default")]
    pub strength: Option<f32>,
    /// How the pictures come back; `None` for the backend's own way.
    #[serde(skip_serializing_if = "is_default")]
    pub delivery: Option<ImageDelivery>,
    /// How many unfinished pictures a stream should show before each finished one.
    #[serde(skip_serializing_if = "is_default")]
    pub partial_images: Option<u8>,
    /// The provider's id for the customer on whose behalf this is asked.
    #[serde(skip_serializing_if = "is_default")]
    pub user: Option<String>,
    /// Fields that only the provider knows, put into its request as they are.
    #[serde(skip_serializing_if = "is_default")]
    pub extra: Map<String, Value>,
}

impl GenerateImageRequest {
    /// Asks for one picture, everything else as the model likes it.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self { prompt: prompt.into(), ..Self::default() }
    }
}

/// The size of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageSize {
    /// From left to right, in pixels.
    pub width: u32,
    /// From top to bottom, in pixels.
    pub height: u32,
}

impl ImageSize {
    /// A size in pixels.
    pub fn new(width: u32, height: u32) -> Self {
        Self { width, height }
    }
}

open_enum! {
    /// How much effort to spend on a picture.
    pub enum ImageQuality {
        /// As the model sees fit.
        Auto = "auto",
        /// Quick and cheap.
        Low = "low",
        /// In between.
        Medium = "medium",
        /// Slow and dear.
        High = "high",
        /// The plain setting of models that know two.
        Standard = "standard",
        /// The better setting of models that know two.
        Hd = "hd",
    }
}

/// What is behind the subject of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImageBackground {
    /// As the model sees fit.
    Auto,
    /// Nothing.
    Transparent,
    /// Something.
    Opaque,
}

/// How a picture comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImageDelivery {
    /// As [`MediaSource::Bytes`].
    Bytes,
    /// As [`MediaSource::Uri`].
    Uri,
}

/// The pictures made, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerateImageResponse {
    /// At least one.
    pub images: Vec<GeneratedImage>,
}

/// One picture made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GeneratedImage {
    /// The IANA media type, such as `image/png`.
    pub media_type: String,
    /// The encoded picture; empty where none was made.
    pub source: MediaSource,
    /// Its size, where the backend says so.
    #[serde(default, skip_serializing_if = "is_default")]
    pub size: Option<ImageSize>,
    /// The seed that makes it again, where there is one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub seed: Option<u64>,
    /// The prompt that the model really drew, where it changed the caller's.
    #[serde(default, skip_serializing_if = "is_default")]
    pub revised_prompt: Option<String>,
    /// How it came out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub finish: ImageFinish,
}

impl GeneratedImage {
    /// A finished picture of the given IANA media type.
    pub fn new(media_type: impl Into<String>, source: impl Into<MediaSource>) -> Self {
        Self { media_type: media_type.into(), source: source.into(), ..Self::default() }
    }
}

open_enum! {
    /// How a picture came out.
    #[derive(Default)]
    pub enum ImageFinish {
        /// As asked.
        #[default]
        Success = "success",
        /// Blank, blurred or left out by a content filter.
        ContentFiltered = "content_filtered",
    }
}

/// A piece of the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GenerateImageDelta {
    /// An unfinished picture, to be shown until the next one of its index comes. It is no part of the response.
    Partial {
        /// Which picture, from 0.
        index: u32,
        /// As it looks now.
        image: GeneratedImage,
    },
    /// A finished picture.
    Image {
        /// Which picture, from 0.
        index: u32,
        /// The picture.
        image: GeneratedImage,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::check::testing::{fold_error, over_json, refused},
        *,
    };

    #[test]
    fn requests_that_nobody_could_answer_are_refused() {
        let new = || GenerateImageRequest::new("a loaf");
        let png = |bytes: Vec<u8>| ImagePart::new("image/png", bytes);
        let nan = Some(f32::NAN);
        for (request, field) in [
            (new(), None),
            (GenerateImageRequest::new(" "), Some("prompt")),
            (GenerateImageRequest { n: Some(0), ..new() }, Some("n")),
            (GenerateImageRequest { size: Some(ImageSize::new(0, 8)), ..new() }, Some("size.width")),
            (GenerateImageRequest { size: Some(ImageSize::new(8, 0)), ..new() }, Some("size.height")),
            (GenerateImageRequest { steps: Some(0), ..new() }, Some("steps")),
            (GenerateImageRequest { guidance: nan, ..new() }, Some("guidance")),
            (GenerateImageRequest { strength: Some(1.1), ..new() }, Some("strength")),
            (GenerateImageRequest { images: vec![png(vec![])], ..new() }, Some("images[0].source")),
            (GenerateImageRequest { mask: Some(png(vec![1])), ..new() }, Some("mask")),
            (GenerateImageRequest { compression: Some(101), ..new() }, Some("compression")),
        ] {
            assert_eq!(refused::<GenerateImage>(&request).as_deref(), field, "{request:?}");
        }
    }

    #[test]
    fn requests_come_back_and_read_well() {
        let request =
            GenerateImageRequest { quality: Some("hd".into()), seed: Some(u64::MAX), ..GenerateImageRequest::new("a") };
        let text = serde_json::to_string(&request).unwrap();
        assert_eq!(text, r#"{"prompt":"a","seed":18446744073709551615,"quality":"hd"}"#);
        assert_eq!(over_json(&request), request);
    }

    #[test]
    fn half_an_answer_is_corrupt() {
        let image = |index| GenerateImageDelta::Image { index, image: GeneratedImage::default() };
        assert!(fold_error::<GenerateImage>(vec![]).contains("no image"));
        assert!(fold_error::<GenerateImage>(vec![image(1)]).contains("an image is missing (index: 0)"));
        assert!(fold_error::<GenerateImage>(vec![image(0), image(0)]).contains("twice"));
    }

    #[test]
    fn unfinished_pictures_are_no_part_of_the_answer() {
        let partial = GenerateImageDelta::Partial { index: 0, image: GeneratedImage::default() };
        let image = GeneratedImage::new("image/png", vec![1]);
        let done = GenerateImageDelta::Image { index: 0, image: image.clone() };
        assert_eq!(GenerateImage::fold([partial, done]).unwrap().images, [image]);
    }

    proptest! {
        #[test]
        fn answers_come_back(images in prop::collection::vec((any::<Vec<u8>>(), any::<Option<u64>>()), 1..4)) {
            let images = images
                .into_iter()
                .map(|(bytes, seed)| GeneratedImage { seed, ..GeneratedImage::new("image/png", bytes) })
                .collect();
            let response = GenerateImageResponse { images };
            prop_assert_eq!(&GenerateImage::fold(GenerateImage::split(response.clone())).unwrap(), &response);
            prop_assert_eq!(over_json(&response), response);
        }
    }
}
