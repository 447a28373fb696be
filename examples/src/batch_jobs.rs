//! Work over files of rows: which models the kitchen asks, and where vectors go.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use clap::Args;
use hybrid_core::{Error, Result, VectorIndex, VectorSchema};
use hybrid_local::{SqliteVectorIndex, SqliteVectorOptions};
use hybrid_sync::batch::{BatchOptions, EmbedRows, Enrich, Summarise};

use crate::{
    models::Models,
    site::{Site, io},
    storefront::{ModelUrl, OpenAiKey},
};

/// The models of batches.
#[derive(Clone, Debug, Default, Args)]
pub struct BatchArgs {
    /// The model that `enrich` and `summarise` ask: file:PATH (a folder in Hugging Face layout or a GGUF file), openai+http://host:port/v1#model or bedrock://model-id.
    #[arg(long, value_name = "MODEL", env = "HYBRID_KITCHEN_CHAT")]
    pub chat: Option<ModelPlace>,
    /// The longest conversation with a chat model of file:PATH, in tokens, prompt and answer together.
    #[arg(long, value_name = "TOKENS", default_value_t = 4_096)]
    pub chat_context: usize,
    /// The model that `embed` asks: file:PATH (a folder), openai+http://host:port/v1#model or bedrock://model-id.
    #[arg(long, value_name = "MODEL", env = "HYBRID_KITCHEN_EMBED", requires = "index")]
    pub embed: Option<ModelPlace>,
    /// What the kitchen's own index, which `embed` writes (kitchen/vectors.db in the site), holds: a file such as {"dimension": 384, "metric": "cosine", "fields": {"text": "stored"}}.
    #[arg(long, value_name = "FILE", env = "HYBRID_KITCHEN_INDEX", requires = "embed")]
    pub index: Option<PathBuf>,
    /// The key of servers that speak the OpenAI API and ask for one.
    #[arg(long, value_name = "KEY", env = "HYBRID_OPENAI_API_KEY", hide_env_values = true)]
    pub openai_api_key: Option<OpenAiKey>,
}

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelPlace {
    /// A folder or a file on this machine.
    File(PathBuf),
    /// With somebody who serves it.
    Url(ModelUrl),
}

impl FromStr for ModelPlace {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("file:") {
            Some("") => Err(Error::invalid("parse model", "the path is empty; write file:PATH").with("model", text)),
            Some(path) => Ok(Self::File(path.into())),
            None => text.parse().map(Self::Url).map_err(|error: Error| {
                let message = "expected file:PATH, openai+http://host:port/v1#model or bedrock://model-id";
                Error::invalid("parse model", message).with("model", text).with_source(error)
            }),
        }
    }
}

impl fmt::Display for ModelPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Url(url) => url.fmt(f),
        }
    }
}

/// A handler, or what the kitchen has to be given for it.
pub type Part<H> = Result<H, &'static str>;

/// The handlers of batches, as far as the kitchen has their models.
#[derive(Debug)]
pub struct Batches {
    /// Asks a model about rows.
    pub enrich: Part<Enrich>,
    /// Makes one text of rows.
    pub summarise: Part<Summarise>,
    /// Puts rows into an index.
    pub embed: Part<EmbedRows>,
}

impl Batches {
    /// Opens the models and the index.
    ///
    /// # Errors
    /// A model or a schema that cannot be read, by its name.
    pub async fn open(args: &BatchArgs, site: &Site, models: &Models) -> Result<Self> {
        const CHAT: &str = "a chat model: start it with --chat";
        const EMBED: &str = "an embedder and an index: start it with --embed and --index";
        let (key, options) = (args.openai_api_key.as_ref(), BatchOptions::default());
        let chat = match &args.chat {
            None => None,
            Some(ModelPlace::File(path)) => Some(models.chat_file(path, args.chat_context).await?),
            Some(ModelPlace::Url(url)) => Some(url.chat(key).await?),
        };
        let embed = match (&args.embed, &args.index) {
            (Some(model), Some(schema)) => {
                let backend = match model {
                    ModelPlace::File(path) => models.embed_file(path).await?,
                    ModelPlace::Url(url) => url.embed(key).await?,
                };
                Ok(EmbedRows::new(backend, open_index(site, schema)?, options.clone()))
            }
            _ => Err(EMBED),
        };
        let enrich = chat.clone().map(|chat| Enrich::new(chat, options.clone())).ok_or(CHAT);
        Ok(Self { enrich, summarise: chat.map(|chat| Summarise::new(chat, options)).ok_or(CHAT), embed })
    }
}

fn open_index(site: &Site, schema: &Path) -> Result<Arc<dyn VectorIndex>> {
    let bytes = std::fs::read(schema).map_err(|error| io("read schema of index", schema, error))?;
    let schema: VectorSchema = serde_json::from_slice(&bytes).map_err(|error| {
        let message =
            "expected {\"dimension\": 384, \"metric\": \"cosine\", \"fields\": {\"text\": \"stored\"}} or the like";
        Error::invalid("read schema of index", message).with("path", schema.display()).with_source(error)
    })?;
    let path = site.kitchen().join("vectors.db");
    Ok(Arc::new(SqliteVectorIndex::open(path, schema, SqliteVectorOptions::default())?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

    use super::*;

    #[test]
    fn a_model_is_a_file_or_a_url() {
        for text in
            ["file:models/qwen3.gguf", "openai+http://localhost:1234/v1#qwen3", "bedrock://amazon.nova-lite-v1:0"]
        {
            assert_eq!(text.parse::<ModelPlace>().unwrap().to_string(), text);
        }
        for bad in ["", "file:", "models/qwen3.gguf", "http://localhost:1234/v1"] {
            let error = bad.parse::<ModelPlace>().unwrap_err().to_string();
            assert!(error.contains("file:PATH"), "{bad}: {error}");
        }
    }
}
