//! Amazon Bedrock: chat through Converse and ConverseStream, embedding and imported models through InvokeModel.
//!
//! ```no_run
//! use hybrid_cloud::{aws::{AwsConfig, AwsOptions}, bedrock::{Bedrock, BedrockOptions, ModelOptions}};
//! use hybrid_core::{CallContext, InferenceBackend, RequestId, SystemIds, TenantId, task::ChatRequest};
//!
//! # async fn run() -> hybrid_core::Result<()> {
//! let config = AwsConfig::load(AwsOptions::default()).await?;
//! let bedrock = Bedrock::new(&config, BedrockOptions::default())?;
//! let chat = bedrock.chat(ModelOptions::new("eu.amazon.nova-lite-v1:0"))?;
//! let cx = CallContext::new(TenantId::single(), RequestId::next(&SystemIds::default()));
//! println!("{}", chat.infer(&cx, ChatRequest::user("What is in a sourdough starter?")).await?.response.text());
//! # Ok(())
//! # }
//! ```
//!
//! # Where the data goes
//! A model is called in the client's region. A cross-region inference profile (`us.`, `eu.`, `global.`, …) lets Bedrock process a call in any of its
//! destination regions. Such a backend's locality is [`Locality::Regions`](hybrid_core::Locality::Regions), so that a
//! [`DataPolicy::Regions`](hybrid_core::DataPolicy::Regions) admits it only if it names every one. What the regions are:
//!
//! | model id | regions |
//! |---|---|
//! | a model's id or the ARN of one model in one region | the client's |
//! | `us.` | `us-east-1`, `us-east-2`, `us-west-1`, `us-west-2` |
//! | `us-gov.` | `us-gov-east-1`, `us-gov-west-1` |
//! | `ca.` | `ca-central-1`, `ca-west-1` |
//! | `eu.` | `eu-central-1`, `eu-central-2`, `eu-north-1`, `eu-south-1`, `eu-south-2`, `eu-west-1`, `eu-west-2`, `eu-west-3` |
//! | `jp.` | `ap-northeast-1`, `ap-northeast-3` |
//! | `au.` | `ap-southeast-2`, `ap-southeast-4` |
//! | `global.`, `apac.`, any other prefix | unknown |
//! | an application inference profile, a prompt, a prompt router | unknown: its ARN does not tell what it calls |
//!
//! The table holds every commercial region of a geography as of November 2026, which is wider than most profiles are, and the client's region is
//! always added. Unknown is admitted by `Anywhere` alone. [`ModelOptions::regions`] replaces the table for one model: give what
//! `GetInferenceProfile` lists.
//!
//! # Retries
//! The SDK's own retries are off; [`RetryPolicy`] governs, by this table. Nothing is tried again once a part of the answer has reached the caller,
//! and nothing that would wait past the caller's deadline.
//!
//! | error | tried again |
//! |---|---|
//! | `ThrottlingException` and the other throttling codes, 429 | with back-off |
//! | `ServiceUnavailableException`, `InternalServerException`, 500, 502, 503, 504, a connection that broke | with back-off |
//! | `ModelNotReadyException` (an imported model that is being loaded) | with long back-off |
//! | `ModelTimeoutException`, `ModelErrorException`, `ModelStreamErrorException`, 408, 424 | once |
//! | `ServiceQuotaExceededException`, `ValidationException`, `AccessDeniedException`, `ResourceNotFoundException`, the rest | never |
//!
//! # What is mapped
//! Requests map onto Converse field by field. Where Converse has no field, [`ModelOptions::additional`] says where the model has one, for well-known
//! models from the start (`top_k`, a reasoning budget); else the request is refused with [`Unsupported`](hybrid_core::ErrorKind::Unsupported). Hints
//! without influence on what may be answered (a prompt cache's key, a prediction, a speaker's name, how closely to look at an image) are left out
//! with a note `ignored`. Other notes: `unmetered` (the stream broke off after the answer's end, before its usage came), `price` (the usage is
//! billed differently from the table), `routed` (a prompt router chose the model), `unknown_content` (a kind of content that this version does not
//! know was left out).

mod call;
mod chat;
#[cfg(feature = "bedrock-trainer")]
pub mod custom;
mod embed;
mod failure;
mod imported;
mod invoke;
mod json;
mod model_id;
mod price;
mod retry;
mod streaming;
mod trace;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aws_config::{
    retry::RetryConfig, stalled_stream_protection::StalledStreamProtectionConfig, timeout::TimeoutConfig,
};
use aws_sdk_bedrockruntime::{Client, config};
use hybrid_core::{BackendProfile, Error, IdSource, Limits, Price, Result, ServedModel, SystemIds};

use self::{call::Caller, model_id::ModelId};
pub use self::{
    chat::BedrockChat,
    embed::BedrockEmbed,
    imported::BedrockImportedChat,
    price::{PriceRow, PriceTable},
    retry::RetryPolicy,
};
use crate::aws::AwsConfig;

/// A connection to Bedrock in one region. Clones share it.
#[derive(Clone, Debug)]
pub struct Bedrock {
    client: Client,
    region: String,
    options: Arc<BedrockOptions>,
}

/// How Bedrock is called, whichever the model.
#[derive(Clone, Debug)]
pub struct BedrockOptions {
    /// When and how often a failed call is made again.
    pub retry: RetryPolicy,
    /// How long a whole answer may take, tries each counted alone; a caller's deadline may be sooner.
    pub answer_within: Duration,
    /// How long a stream may stand still before it is given up: the pause before the first token counts.
    pub stall_after: Duration,
    /// What the models cost, where [`ModelOptions::price`] does not say.
    pub prices: PriceTable,
    /// Where the randomness of the retries' waits comes from.
    pub ids: Arc<dyn IdSource>,
}

impl Default for BedrockOptions {
    /// Answers within 15 minutes, streams that stand still for at most 2, the built-in prices.
    fn default() -> Self {
        Self {
            retry: RetryPolicy::default(),
            answer_within: Duration::from_secs(15 * 60),
            stall_after: Duration::from_secs(120),
            prices: PriceTable::builtin(),
            ids: Arc::new(SystemIds::default()),
        }
    }
}

/// Which model a backend calls, and what the provider does not tell about it.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// The model's id: of a foundation model, an inference profile, or the ARN of anything Bedrock can call.
    pub id: String,
    /// The backend's name, unique in the deployment; `None` for `bedrock/` with the model's id.
    pub name: Option<String>,
    /// The regions that a cross-region inference profile may choose among; `None` for the table in the [module](self).
    pub regions: Option<Vec<String>>,
    /// What the model costs; `None` for [`BedrockOptions::prices`].
    pub price: Option<Price>,
    /// What the model accepts.
    pub limits: Limits,
    /// Where the model has what Converse has no field for: JSON pointers into `additionalModelRequestFields`, by the names `top_k`, `min_p`, `seed`,
    /// `frequency_penalty`, `presence_penalty`, `repetition_penalty`, `logit_bias`, `reasoning_budget`, `parallel_tool_calls`, `verbosity`, `user`. They add to
    /// what is known of the model's family, and go before it.
    pub additional: BTreeMap<String, String>,
}

impl ModelOptions {
    /// The model with this id.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), ..Self::default() }
    }
}

impl Bedrock {
    /// Connects with the region, endpoint and credentials of `config`; its retries and limits but that of connecting are not Bedrock's. Nothing is sent
    /// yet.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) if `config` has no region.
    pub fn new(config: &AwsConfig, options: BedrockOptions) -> Result<Self> {
        let region = config.region().ok_or_else(|| {
            Error::invalid("connect to Bedrock", "the configuration has no region; set one, such as by AWS_REGION")
        })?;
        // Retries, deadlines and stalls are judged here, on injected time, where it is known what has reached the caller.
        let mut limits = TimeoutConfig::builder();
        limits.set_connect_timeout(config.sdk().timeout_config().and_then(TimeoutConfig::connect_timeout));
        let client = config::Builder::from(config.sdk())
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .timeout_config(limits.build())
            .build();
        let client = Client::from_conf(client);
        Ok(Self { client, region: region.to_owned(), options: Arc::new(options) })
    }

    /// A model that chats, through Converse and ConverseStream.
    ///
    /// # Errors
    /// [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for an id that cannot be a model's, or an ARN of another region.
    pub fn chat(&self, model: ModelOptions) -> Result<BedrockChat> {
        BedrockChat::new(self.caller(&model)?, model)
    }

    /// An imported model that chats, through InvokeModel: by its ARN, such as `arn:aws:bedrock:us-east-1:123456789012:imported-model/abcdef123456`. Those whose
    /// architecture Converse knows can be called by [`chat`](Self::chat) too.
    ///
    /// # Errors
    /// As [`chat`](Self::chat).
    pub fn imported_chat(&self, model: ModelOptions) -> Result<BedrockImportedChat> {
        Ok(BedrockImportedChat::new(self.caller(&model)?))
    }

    /// A model that embeds texts.
    ///
    /// # Errors
    /// As [`chat`](Self::chat), or [`Unsupported`](hybrid_core::ErrorKind::Unsupported) for a model whose body is not known.
    pub fn embed(&self, model: ModelOptions) -> Result<BedrockEmbed> {
        BedrockEmbed::new(self.caller(&model)?)
    }

    /// What all backends of one model share.
    fn caller(&self, model: &ModelOptions) -> Result<Caller> {
        let id = ModelId::parse(&model.id, &self.region)?;
        let profile = BackendProfile {
            name: model.name.clone().unwrap_or_else(|| format!("bedrock/{}", model.id)),
            model: ServedModel::named(&model.id),
            locality: id.locality(model.regions.as_deref(), &self.region),
            limits: model.limits.clone(),
            price: model.price.clone().or_else(|| self.options.prices.price(&model.id, &self.region)),
        };
        Ok(Caller::new(self.client.clone(), id, profile, Arc::clone(&self.options)))
    }
}
