//! Models that others serve, by URL.

use std::{fmt, str::FromStr, sync::Arc};

use hybrid_cloud::openai::{ApiKey, OpenAiCompatible, OpenAiConfig};
use hybrid_core::{
    Error, InferenceBackend, Locality, Result,
    task::{Chat, Embed},
};
use url::{Host, Url};

/// Where a model is: `openai+http://host:port/v1#model`, or `bedrock://model-id?region=…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelUrl {
    /// On a server that speaks the OpenAI API.
    OpenAi {
        /// Where the API begins.
        base_url: Url,
        /// The model, as the server spells it.
        model: String,
    },
    /// On Amazon Bedrock.
    Bedrock {
        /// The id of a model or an inference profile, or the ARN of a model that was imported or fine-tuned there.
        model: String,
        /// What stands behind the question mark, as in a bucket's URL.
        query: String,
    },
}

/// A model with the name under which customers ask for it: `name=url`, or the URL alone, whose model is the name then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedModel {
    /// The customers' name for it.
    pub name: String,
    /// Where it is.
    pub url: ModelUrl,
}

impl FromStr for OfferedModel {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('=') {
            // An equals sign behind a colon is a part of the URL.
            Some((name, url)) if !name.contains(':') => Ok(Self { name: name.to_owned(), url: url.parse()? }),
            _ => {
                let url: ModelUrl = text.parse()?;
                Ok(Self { name: url.model().to_owned(), url })
            }
        }
    }
}

/// A secret that no log shows.
#[derive(Clone, Debug)]
pub struct OpenAiKey(ApiKey);

impl FromStr for OpenAiKey {
    type Err = Error;

    fn from_str(key: &str) -> Result<Self> {
        Ok(Self(key.into()))
    }
}

impl ModelUrl {
    /// The model as whoever serves it calls it.
    pub fn model(&self) -> &str {
        match self {
            Self::OpenAi { model, .. } | Self::Bedrock { model, .. } => model,
        }
    }

    /// The model as one that chats. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Unsupported`](hybrid_core::ErrorKind::Unsupported) for Bedrock in a build without AWS; a setting that is missing, by name.
    pub async fn chat(&self, key: Option<&OpenAiKey>) -> Result<Arc<dyn InferenceBackend<Chat>>> {
        match self {
            Self::OpenAi { base_url, model } => Ok(Arc::new(openai(base_url, model, key)?)),
            Self::Bedrock { model, query } => bedrock::chat(model, query).await,
        }
    }

    /// The same as one that embeds.
    ///
    /// # Errors
    /// As [`chat`](Self::chat).
    pub async fn embed(&self, key: Option<&OpenAiKey>) -> Result<Arc<dyn InferenceBackend<Embed>>> {
        match self {
            Self::OpenAi { base_url, model } => Ok(Arc::new(openai(base_url, model, key)?)),
            Self::Bedrock { model, query } => bedrock::embed(model, query).await,
        }
    }
}

fn openai(base_url: &Url, model: &str, key: Option<&OpenAiKey>) -> Result<OpenAiCompatible> {
    let here = match base_url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    // Of a server elsewhere nobody knows here where it takes the data: only the policy "anywhere" admits it.
    let locality = if here { Locality::Device } else { Locality::Regions(Vec::new()) };
    let config = OpenAiConfig::new(format!("openai/{model}"), base_url.as_str().trim_end_matches('/'), model, locality);
    OpenAiCompatible::new(OpenAiConfig { api_key: key.map(|OpenAiKey(key)| key.clone()), ..config })
}

impl FromStr for ModelUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |message: &'static str| Error::invalid("parse model URL", message).with("url", text);
        if let Some(rest) = text.strip_prefix("bedrock://") {
            // A model's id may have colons and slashes, which URLs read otherwise.
            let (model, query) = rest.split_once('?').unwrap_or((rest, ""));
            if model.is_empty() {
                return Err(refuse("the URL names no model; write bedrock://model-id"));
            }
            return Ok(Self::Bedrock { model: model.to_owned(), query: query.to_owned() });
        }
        let rest = text
            .strip_prefix("openai+")
            .ok_or_else(|| refuse("expected openai+http://host:port/v1#model or bedrock://model-id"))?;
        let mut base_url: Url = rest.parse().map_err(|error| refuse("this is no URL").with_source(error))?;
        let model = base_url.fragment().unwrap_or_default().to_owned();
        base_url.set_fragment(None);
        if model.is_empty() {
            return Err(refuse("the URL names no model; write it behind a #"));
        }
        if !matches!(base_url.scheme(), "http" | "https") {
            return Err(refuse("the server must speak http or https"));
        }
        Ok(Self::OpenAi { base_url, model })
    }
}

impl fmt::Display for ModelUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenAi { base_url, model } => write!(f, "openai+{base_url}#{model}"),
            Self::Bedrock { model, query } if query.is_empty() => write!(f, "bedrock://{model}"),
            Self::Bedrock { model, query } => write!(f, "bedrock://{model}?{query}"),
        }
    }
}

#[cfg(feature = "aws")]
mod bedrock {
    use hybrid_cloud::bedrock::{Bedrock, BedrockOptions, ModelOptions};

    use super::{Arc, Chat, Embed, InferenceBackend, Result};
    use crate::locations;

    pub(super) async fn chat(model: &str, query: &str) -> Result<Arc<dyn InferenceBackend<Chat>>> {
        let (bedrock, options) = (connect(query).await?, ModelOptions::new(model));
        // Of the models that were imported Converse knows some alone; InvokeModel knows all.
        match model.contains(":imported-model/") {
            true => Ok(Arc::new(bedrock.imported_chat(options)?)),
            false => Ok(Arc::new(bedrock.chat(options)?)),
        }
    }

    pub(super) async fn embed(model: &str, query: &str) -> Result<Arc<dyn InferenceBackend<Embed>>> {
        Ok(Arc::new(connect(query).await?.embed(ModelOptions::new(model))?))
    }

    async fn connect(query: &str) -> Result<Bedrock> {
        Bedrock::new(&locations::aws_config("connect to Bedrock", query).await?, BedrockOptions::default())
    }
}

#[cfg(not(feature = "aws"))]
mod bedrock {
    use hybrid_core::Error;

    use super::{Arc, Chat, Embed, InferenceBackend, Result};

    pub(super) async fn chat(model: &str, _query: &str) -> Result<Arc<dyn InferenceBackend<Chat>>> {
        Err(not_built(model))
    }

    pub(super) async fn embed(model: &str, _query: &str) -> Result<Arc<dyn InferenceBackend<Embed>>> {
        Err(not_built(model))
    }

    fn not_built(model: &str) -> Error {
        let message = "this program is built without AWS; build it with --features aws";
        Error::unsupported("connect to Bedrock", message).with("model", model)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

    use super::*;

    #[test]
    fn a_url_names_a_server_and_a_model() {
        for (text, model) in [
            ("openai+http://localhost:1234/v1#qwen3-8b", "qwen3-8b"),
            ("openai+https://host/v1#org/model:tag", "org/model:tag"),
            ("bedrock://eu.amazon.nova-lite-v1:0", "eu.amazon.nova-lite-v1:0"),
            ("bedrock://amazon.nova-lite-v1:0?region=us-east-1", "amazon.nova-lite-v1:0"),
        ] {
            let url: ModelUrl = text.parse().unwrap();
            assert_eq!((url.model(), url.to_string()), (model, text.to_owned()));
        }
        for bad in
            ["", "bedrock://", "http://localhost/v1#m", "openai+http://localhost/v1", "openai+ftp://h/v1#m", "openai+x"]
        {
            let error = bad.parse::<ModelUrl>().unwrap_err().to_string();
            assert!(error.contains("model URL"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_model_may_have_a_name_of_its_own_for_customers() {
        for (text, name, url) in [
            (
                "baker=bedrock://arn:aws:bedrock:us-east-1:1:imported-model/a",
                "baker",
                "bedrock://arn:aws:bedrock:us-east-1:1:imported-model/a",
            ),
            ("bedrock://nova?region=us-east-1", "nova", "bedrock://nova?region=us-east-1"),
            ("baker=openai+http://h/v1?a=b#m", "baker", "openai+http://h/v1?a=b#m"),
            ("openai+http://h/v1#m", "m", "openai+http://h/v1#m"),
        ] {
            let offered: OfferedModel = text.parse().unwrap();
            assert_eq!((offered.name.as_str(), offered.url.to_string().as_str()), (name, url), "{text}");
        }
        assert!("baker=".parse::<OfferedModel>().is_err());
    }

    #[tokio::test]
    async fn data_stays_here_only_with_a_server_that_is_here() {
        for (text, here) in [
            ("openai+http://localhost:1/v1#m", true),
            ("openai+http://127.0.0.1:1/v1#m", true),
            ("openai+http://[::1]:1/v1#m", true),
            ("openai+https://api.example.com/v1#m", false),
            ("openai+http://localhost.example.com/v1#m", false),
        ] {
            let chat = text.parse::<ModelUrl>().unwrap().chat(None).await.unwrap();
            assert_eq!(chat.profile().locality == Locality::Device, here, "{text}");
        }
    }
}
