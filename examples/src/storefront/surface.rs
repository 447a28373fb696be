//! What a storefront offers beside the site's model, each part by a flag: without flags there is nothing more.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::{Args, ValueEnum};
use hybrid_cloud::storefront::{
    ApiKeys, AuditLog, AuditLogOptions, AuditOptions, Budget, CredentialFile, CredentialSource, KeyList,
    StorefrontBuilder, TenantQuota,
};
use hybrid_core::{
    Cancellation, CollectionName, Document, Error, Files, JobKind, Money, Result, SystemIds, TenantId, VectorSchema,
    WriterId,
    vector::{FieldKind, Metric},
};
use hybrid_local::SqliteOutbox;
use hybrid_sync::{
    batch::{Enrich, Summarise},
    job::QueuedJobs,
    worker::JobHandler,
};
use tokio::task::JoinSet;
use url::Url;

use super::models::{OfferedModel, OpenAiKey};
use crate::{
    label_job::LabelHandler,
    locations::{open_documents, open_records},
    site::Site,
};

/// How soon a changed list of API keys counts.
const KEYS_EVERY: Duration = Duration::from_secs(5);
const SHIP_EVERY: Duration = Duration::from_secs(60);
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// Where customers keep records.
const COLLECTIONS: [&str; 2] = ["conversations", "reviews"];
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The surface, by flags.
#[derive(Clone, Debug, Default, Args)]
pub struct Surface {
    /// This storefront's name in the bucket, beside what it writes there: judgments, slices of budgets, its audit. Of several storefronts on one bucket each
    /// has its own, and keeps it; storefront-1 where left out.
    #[arg(long)]
    pub name: Option<WriterId>,
    /// Let in whoever has a key of this list alone; make keys with the command `apikey`. The list is read again as it changes.
    #[arg(long, value_name = "FILE")]
    pub api_keys: Option<PathBuf>,
    /// Requests a minute that each tenant may send.
    #[arg(long)]
    pub requests_per_minute: Option<u64>,
    /// Tokens a minute that each tenant may use, read and written.
    #[arg(long)]
    pub tokens_per_minute: Option<u64>,
    /// Streamed answers and files that each tenant may have on their way at one time.
    #[arg(long)]
    pub streams: Option<u32>,
    /// What each tenant may spend a day, such as "5.00 USD"; all storefronts on one bucket hold it together.
    #[arg(long, value_parser = money)]
    pub money_per_day: Option<Money>,
    /// Keep an audit of all calls in the site's folder and the bucket; verify it with the command `audit`.
    #[arg(long)]
    pub audit: bool,
    /// Take orders for the kitchen at /v1/jobs, and files for them at /v1/files.
    #[arg(long)]
    pub jobs: bool,
    /// What else may be ordered there than `label`; once for each. The kitchen needs the models for it.
    #[arg(long, value_name = "KIND", requires = "jobs")]
    pub offer: Vec<Batch>,
    /// Chat by openai+http://localhost:1234/v1#model (LM Studio, Ollama, mlx-lm and the like) or bedrock://model-id. With name= before it, customers ask for it
    /// by that name.
    #[arg(long, value_name = "[NAME=]URL")]
    pub chat: Vec<OfferedModel>,
    /// Embed by a model that is named in the same way.
    #[arg(long, value_name = "[NAME=]URL")]
    pub embed: Vec<OfferedModel>,
    /// Keep customers' documents at /v1/vectors, in an index of vectors of this length, embedded by the first model that embeds.
    #[arg(long, value_name = "LENGTH")]
    pub documents: Option<usize>,
    /// Where documents lie instead of the site's folder, such as s3vectors://my-vector-bucket/documents?region=eu-central-1.
    #[arg(long, value_name = "URL", requires = "documents")]
    pub documents_in: Option<Url>,
    /// Keep customers' records at /v1/records, in the collections conversations and reviews.
    #[arg(long)]
    pub records: bool,
    /// Where records lie instead of the site's folder, such as dynamodb://my-table?region=eu-central-1.
    #[arg(long, value_name = "URL", requires = "records")]
    pub records_in: Option<Url>,
    /// The key of servers that speak the OpenAI API and ask for one.
    #[arg(long, env = "HYBRID_OPENAI_API_KEY", hide_env_values = true)]
    pub openai_api_key: Option<OpenAiKey>,
}

/// Batches that customers may order. What concerns the kitchen's own models and its own index is none of theirs: documents that they find and remove again go to
/// `/v1/vectors`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Batch {
    /// A model asked about each row of a file.
    Enrich,
    /// One text of all rows.
    Summarise,
}

impl Batch {
    fn kind(self) -> &'static str {
        match self {
            Self::Enrich => Enrich::KIND,
            Self::Summarise => Summarise::KIND,
        }
    }
}

/// What a surface has running behind it.
#[derive(Debug, Default)]
pub struct Running {
    audit: Option<Arc<AuditLog>>,
    jobs: Option<Arc<QueuedJobs>>,
}

impl Surface {
    /// Adds the surface to `http`, and to `tasks` what goes on behind it until `stop`.
    ///
    /// # Errors
    /// A list of keys or a folder that cannot be read, a model's URL that names none.
    pub async fn open(
        &self,
        mut http: StorefrontBuilder,
        site: &Site,
        tasks: &mut JoinSet<()>,
        stop: &Cancellation,
    ) -> Result<(StorefrontBuilder, Running)> {
        let writer = self.writer()?;
        let mut running = Running::default();
        http = match &self.api_keys {
            Some(list) => lock(http, list, site, tasks, stop).await?,
            None => http.tenant(TenantId::single()),
        };
        http = self.limit(http, site, writer.clone());
        if self.audit {
            let log = AuditLog::open(site.storefront().join("audit"), writer, AuditLogOptions::default())?;
            let log = Arc::new(log);
            http = http.audit(Arc::clone(&log) as _, AuditOptions::default());
            let (shipped, store, clock, stop) = (Arc::clone(&log), site.store(), site.clock(), stop.clone());
            tasks.spawn(async move { shipped.ship_every(&*store, SHIP_EVERY, &*clock, stop).await });
            running.audit = Some(log);
        }
        if self.jobs {
            let ids = Arc::new(SystemIds::new(site.clock()));
            let outbox = Arc::new(SqliteOutbox::open(site.storefront().join("orders.db"))?);
            let jobs = QueuedJobs::new(site.queue().await?.jobs, site.store(), site.clock(), ids).with_outbox(outbox);
            let jobs = Arc::new(jobs);
            let kinds = [LabelHandler::KIND].into_iter().chain(self.offer.iter().map(|batch| batch.kind()));
            http = http.jobs(Arc::clone(&jobs) as _, kinds.map(JobKind::new).collect::<Result<Vec<_>>>()?);
            let (sent, stopped) = (Arc::clone(&jobs), stop.clone());
            tasks.spawn(async move { sent.run(stopped, LONGEST_WAIT).await });
            running.jobs = Some(jobs);

            let files = site.files();
            http = http.files(files.clone());
            tasks.spawn(sweep(files, self.api_keys.clone(), site.clone(), stop.clone()));
        }
        for OfferedModel { name, url } in &self.chat {
            http = http.chat(name.as_str(), url.chat(self.openai_api_key.as_ref()).await?);
        }
        for OfferedModel { name, url } in &self.embed {
            http = http.embed(name.as_str(), url.embed(self.openai_api_key.as_ref()).await?);
        }
        if let Some(length) = self.documents {
            let file = site.storefront().join("documents.db");
            let index = open_documents(self.documents_in.as_ref(), file, documents(length)?).await?;
            http = http.vectors(index, self.embed.first().map(|model| model.name.as_str()));
        }
        if self.records {
            let file = site.storefront().join("records.db");
            let store = open_records(self.records_in.as_ref(), file, site.clock()).await?;
            let collections = COLLECTIONS.map(CollectionName::new).into_iter().collect::<Result<Vec<_>>>()?;
            http = http.records(store, collections);
        }
        Ok((http, running))
    }

    /// Under which name the storefront writes.
    ///
    /// # Errors
    /// Never: the default is a name.
    pub fn writer(&self) -> Result<WriterId> {
        self.name.clone().map_or_else(|| WriterId::new("storefront-1"), Ok)
    }

    fn limit(&self, http: StorefrontBuilder, site: &Site, writer: WriterId) -> StorefrontBuilder {
        let quota = TenantQuota {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            streams: self.streams,
            money_per_day: self.money_per_day,
        };
        if quota == TenantQuota::default() {
            return http;
        }
        let budget = Budget::new(site.store(), writer, site.clock(), Arc::new(SystemIds::new(site.clock())));
        // Here all tenants have the same; a team would look up what each has paid for.
        http.quotas(move |_tenant| quota.clone()).budget(Arc::new(budget))
    }
}

impl Running {
    /// Carries to queue and bucket what came with the last requests. What cannot be carried stays on this machine for the next start.
    pub(super) async fn finish(self, site: &Site) {
        if let Some(jobs) = self.jobs
            && let Err(error) = jobs.drain().await
        {
            tracing::warn!(%error, "orders wait for the next start");
        }
        if let Some(audit) = self.audit {
            let shipped = match audit.seal().await {
                Ok(()) => audit.ship(&*site.store()).await,
                Err(error) => Err(error),
            };
            if let Err(error) = shipped {
                tracing::warn!(%error, "the end of the audit waits for the next start");
            }
        }
    }
}

/// Asks for a key from now on.
async fn lock(
    http: StorefrontBuilder,
    list: &PathBuf,
    site: &Site,
    tasks: &mut JoinSet<()>,
    stop: &Cancellation,
) -> Result<StorefrontBuilder> {
    let keys = Arc::new(ApiKeys::open(Arc::new(CredentialFile::new(list)), site.clock()).await?);
    let (read, stop) = (Arc::clone(&keys), stop.clone());
    tasks.spawn(async move { read.reload_every(KEYS_EVERY, stop).await });
    Ok(http.authenticator(keys))
}

/// Removes files that have expired, of all tenants that have a key.
async fn sweep(files: Files, keys: Option<PathBuf>, site: Site, stop: Cancellation) {
    let clock = site.clock();
    loop {
        let swept = async {
            for tenant in tenants(keys.clone()).await? {
                files.sweep(&tenant).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = swept.await {
            tracing::warn!(%error, "expired files are left to the next sweep");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = clock.sleep(SWEEP_EVERY) => {}
        }
    }
}

async fn tenants(keys: Option<PathBuf>) -> Result<Vec<TenantId>> {
    let Some(list) = keys else { return Ok(vec![TenantId::single()]) };
    let list = KeyList::decode(&CredentialFile::new(list).fetch().await?)?;
    let mut tenants: Vec<_> = list.keys.into_iter().map(|key| key.tenant).collect();
    tenants.sort();
    tenants.dedup();
    Ok(tenants)
}

/// Documents that are found by what they say, and by two things that are said of them.
fn documents(length: usize) -> Result<VectorSchema> {
    let schema = VectorSchema::new(length, Metric::Cosine)?.with_field("text", FieldKind::Stored)?;
    schema.with_field("language", FieldKind::Text)?.with_field("year", FieldKind::Number)
}

fn money(text: &str) -> Result<Money> {
    let (amount, currency) = text.split_once(' ').ok_or_else(|| {
        Error::invalid("parse money", "expected an amount and a currency, such as 5.00 USD").with("found", text)
    })?;
    Money::new(currency.parse()?, amount)
}
