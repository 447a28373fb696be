//! Models of one's own on Bedrock, for the storefront to serve: a version of the kitchen's that is imported there, or a base model of Bedrock's that is
//! fine-tuned there on judged conversations.
//!
//! ```sh
//! bedrock --site ~/hybrid --artifacts 's3://BUCKET?region=us-east-1' --role BEDROCK_ROLE_ARN import --model baker
//! storefront … --chat baker=bedrock://arn:aws:bedrock:us-east-1:123456789012:imported-model/abcdef123456
//! ```
//!
//! Both take minutes to hours at Bedrock. A command that is interrupted, or run again on another machine, finds the job that it has ordered and goes on with it: for a
//! fine-tuning the plan lies at `t/<tenant>/tuning/<model>/<what was asked>/<number>/plan`, with the judgments that there were then. Those that come meanwhile are for the
//! next one, which is ordered when the command is run again after that model was ready.

use std::{collections::BTreeMap, sync::Arc};

use clap::{Parser, Subcommand};
use hybrid_cloud::bedrock::custom::{
    BedrockTrainer, BedrockTrainerOptions, ImportRun, ModelImport, ModelImportOptions,
};
use hybrid_core::{
    ArtifactStore, ArtifactStoreExt, BaseModel, Cancellation, CandidateOutput, ChannelName, DatasetName, DatasetRef,
    Digest, Document, Error, ErrorKind, Key, ModelName, Result, TenantId, TrainPlan, TrainRun, Trainer,
};
use hybrid_local::DeviceChoice;
use hybrid_sync::registry::{FetchOptions, Namespace, Registry};
use serde_json::Value;

use crate::{
    kitchen::{LogLines, signals},
    locations::{self, Locations},
    log::say,
    models::Models,
    serving::Channels,
    site::{Site, make_folder},
};

/// Brings models of one's own to Bedrock. Says at the end what the storefront's --chat takes.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Args {
    /// Where the site is; its bucket has to be on S3.
    #[command(flatten)]
    pub locations: Locations,
    /// The role that Bedrock takes to read and write the bucket's exports: the stack's output BedrockRoleArn.
    #[arg(long)]
    pub role: String,
    /// Where Bedrock is, as behind a model's question mark: region=us-east-1, which has to be the bucket's, and for a server that is not AWS's endpoint=http://…
    #[arg(long, default_value = "")]
    pub bedrock: String,
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What can be brought to Bedrock.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Imports the version of a chat model that is in service, in Hugging Face layout. An adapter is worked into its base, which has to be found on this machine.
    Import {
        /// The model.
        #[arg(long)]
        model: ModelName,
        /// The channel whose version it is.
        #[arg(long, default_value_t = ChannelName::stable())]
        channel: ChannelName,
    },
    /// Fine-tunes a base model of Bedrock's on a dataset of judged conversations.
    Tune {
        /// The base model, such as amazon.nova-micro-v1:0:128k.
        #[arg(long)]
        base: String,
        /// The dataset of judgments of the task chat.
        #[arg(long)]
        dataset: DatasetName,
        /// Whose dataset it is.
        #[arg(long, default_value_t = TenantId::single())]
        tenant: TenantId,
        /// What the model is to be called.
        #[arg(long)]
        model: ModelName,
        /// A hyperparameter, such as epochs=3; Bedrock's own default where left out.
        #[arg(long = "set", value_name = "NAME=VALUE", value_parser = hyperparameter)]
        hyperparameters: Vec<(String, Value)>,
        /// Another seed is another job: for a plan whose job has failed for good.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
}

/// Does it, and says on standard output under which URL the model is called.
///
/// # Errors
/// [`NotFound`](hybrid_core::ErrorKind::NotFound) if no version is in service, or the dataset is empty; those of [`ModelImport`] and [`BedrockTrainer`]; an interrupt, after
/// which the job goes on at Bedrock.
pub async fn run(args: Args) -> Result<()> {
    let Args { locations, role, bedrock, action } = args;
    let site = Site::open(&locations).await?;
    let _lock = site.lock("bedrock")?;
    let cancel = Cancellation::new();
    let interrupted = cancel.clone();
    tokio::spawn(async move {
        signals().await;
        interrupted.cancel();
    });
    let called = match action {
        Action::Import { model, channel } => import(&site, role, &bedrock, (model, channel), cancel).await?,
        Action::Tune { base, dataset, tenant, model, hyperparameters, seed } => {
            let dataset = DatasetRef { name: dataset, segments: Vec::new() };
            let asked = TrainPlan {
                model,
                method: BedrockTrainer::METHOD.to_owned(),
                base: Some(BaseModel::Provider(base)),
                dataset,
                hyperparameters: BTreeMap::from_iter(hyperparameters),
                seed,
            };
            let store = site.store();
            let Tuning { plan, done } = Tuning::of(&*store, &tenant, asked).await?;
            let called = tune(&site, role, &bedrock, &plan, cancel).await?;
            match store.create(&done, called.clone().into()).await {
                // It was ready before, under another name if its deployment has been made anew.
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => called,
            }
        }
    };
    let query = if bedrock.is_empty() { bedrock } else { format!("?{bedrock}") };
    say(std::io::stdout(), format_args!("bedrock://{called}{query}"));
    Ok(())
}

/// Imports the version in service, which is verified as for any who would serve it; answers with the model's ARN.
async fn import(
    site: &Site,
    role: String,
    bedrock: &str,
    id: (ModelName, ChannelName),
    cancel: Cancellation,
) -> Result<String> {
    let none = || Error::not_found("import model", "no version of this model is in service; release one first");
    // A kitchen that runs meanwhile has the other floors in its memory.
    let channels = Channels::with_floors(site, &site.kitchen().join("bedrock").join("floors"))?;
    let digest = channels.in_service(&id).await?.ok_or_else(|| none().with("model", &id.0).with("channel", &id.1))?;
    let cache = site.kitchen().join("models");
    make_folder(&cache)?;
    let options = FetchOptions { cancel: cancel.clone(), ..FetchOptions::default() };
    let registry = Registry::new(site.store(), Namespace::root());
    let fetched = registry.fetch(digest, &site.trust()?, &cache, options).await?;

    let config = locations::aws_config("connect to Bedrock", bedrock).await?;
    let staging = site.locations().open_staging().await?;
    let import = ModelImport::new(&config, staging, ModelImportOptions::new(role, Key::new("exports/import")?))?;
    let run = ImportRun { progress: Arc::new(LogLines), cancel, clock: site.clock() };
    let merged = site.kitchen().join("bedrock").join(id.0.as_str()).join("merged");
    let whole = Models::open(DeviceChoice::Cpu)?.whole(&fetched.manifest, &fetched.folder, &merged).await?;
    let imported = import.import(&id.0, digest, &whole, &run).await?;
    if whole == merged {
        let failed = |error| {
            let message = "the merged model cannot be removed";
            Error::internal("import model", message).with("path", merged.display()).with_source(error)
        };
        std::fs::remove_dir_all(&merged).map_err(failed)?;
    }
    Ok(imported.arn)
}

/// A fine-tuning that was begun: the same for whoever asks for it until its model is ready.
#[derive(Debug)]
struct Tuning {
    plan: TrainPlan,
    /// Where it says that the model is ready.
    done: Key,
}

impl Tuning {
    /// The one that goes on, or a new one with the judgments that there are now. `asked` is a plan whose dataset has only its name.
    async fn of(store: &dyn ArtifactStore, tenant: &TenantId, asked: TrainPlan) -> Result<Self> {
        let prefix = format!("t/{tenant}/tuning/{}/{}/", asked.model, Digest::of(&asked.encode()?));
        let found: Vec<_> = store.list_all(&prefix).await?.into_iter().map(|meta| meta.key).collect();
        let plans = found.iter().filter(|key| key.as_str().ends_with("/plan"));
        let key = |number: usize, name: &str| Key::new(format!("{prefix}{number:06}/{name}"));
        let last = plans.count();
        let (mut number, mut dataset) = (last, None);
        if last == 0 || found.contains(&key(last, "done")?) {
            let now = DatasetRef::fix(store, tenant, &asked.dataset.name).await?;
            if now.segments.is_empty() {
                let message = "there are no judgments to learn from";
                return Err(Error::not_found("order fine-tuning", message).with("dataset", now.name));
            }
            // A model that is ready and knows all judgments is found again.
            if last == 0 || read_plan(store, &key(last, "plan")?).await?.dataset != now {
                (number, dataset) = (last + 1, Some(now));
            }
        }
        let at = key(number, "plan")?;
        let plan = match dataset {
            None => read_plan(store, &at).await?,
            Some(dataset) => {
                let plan = TrainPlan { dataset, ..asked };
                match store.create(&at, plan.encode()?).await {
                    Ok(()) => plan,
                    // Somebody else has begun it meanwhile.
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => read_plan(store, &at).await?,
                    Err(error) => return Err(error),
                }
            }
        };
        Ok(Self { plan, done: key(number, "done")? })
    }
}

async fn read_plan(store: &dyn ArtifactStore, key: &Key) -> Result<TrainPlan> {
    TrainPlan::decode(&store.get(key).await?).map_err(|error| error.with("key", key))
}

/// Fine-tunes by plan; answers with the id under which the model is called.
async fn tune(site: &Site, role: String, bedrock: &str, plan: &TrainPlan, cancel: Cancellation) -> Result<String> {
    let config = locations::aws_config("connect to Bedrock", bedrock).await?;
    let staging = site.locations().open_staging().await?;
    let options = BedrockTrainerOptions::new(role, Key::new("exports/training")?);
    let trainer = BedrockTrainer::new(&config, staging, options)?;
    let scratch = site.kitchen().join("bedrock").join(plan.model.as_str());
    make_folder(&scratch)?;
    let run = TrainRun { store: site.store(), scratch, progress: Arc::new(LogLines), cancel, clock: site.clock() };
    match trainer.train(plan, &run).await?.output {
        CandidateOutput::Hosted { id, .. } => Ok(id),
        other => {
            Err(Error::internal("fine-tune", "the trainer left no hosted model")
                .with("output", format_args!("{other:?}")))
        }
    }
}

fn hyperparameter(text: &str) -> Result<(String, Value)> {
    let refuse = || Error::invalid("parse hyperparameter", "expected a name and a value, such as epochs=3");
    let (name, value) = text.split_once('=').ok_or_else(|| refuse().with("found", text))?;
    // What is no JSON is a text, so that format=messages needs no quotes that a shell would take away.
    Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

    use hybrid_core::{dataset_prefix, memory::MemoryStore};

    use super::*;

    #[tokio::test]
    async fn a_fine_tuning_keeps_its_plan_until_its_model_is_ready() {
        let (store, tenant) = (MemoryStore::default(), TenantId::single());
        let name = DatasetName::new("chats").unwrap();
        let asked = |seed| TrainPlan {
            model: ModelName::new("baker").unwrap(),
            method: BedrockTrainer::METHOD.to_owned(),
            base: Some(BaseModel::Provider("amazon.nova-micro-v1:0:128k".to_owned())),
            dataset: DatasetRef { name: name.clone(), segments: Vec::new() },
            hyperparameters: BTreeMap::new(),
            seed,
        };
        let tuning = async |seed| Tuning::of(&store, &tenant, asked(seed)).await;
        let judged = async |segment: &str| {
            let key = Key::new(format!("{}{segment}", dataset_prefix(&tenant, &name))).unwrap();
            store.create(&key, segment.to_owned().into()).await.unwrap();
        };
        assert_eq!(tuning(1).await.unwrap_err().kind(), ErrorKind::NotFound);
        judged("1").await;
        let first = tuning(1).await.unwrap();
        assert_eq!(first.plan.dataset.segments.len(), 1);

        // It is run again, on whatever machine, while judgments come in: the job that was paid for is this one.
        judged("2").await;
        let again = tuning(1).await.unwrap();
        assert_eq!((&again.plan, &again.done), (&first.plan, &first.done));
        assert_eq!(tuning(2).await.unwrap().plan.dataset.segments.len(), 2, "another seed is another job");

        store.create(&first.done, "arn:one".into()).await.unwrap();
        let second = tuning(1).await.unwrap();
        assert_eq!(second.plan.dataset.segments.len(), 2);
        assert_ne!(second.done, first.done);
        store.create(&second.done, "arn:two".into()).await.unwrap();
        assert_eq!(tuning(1).await.unwrap().plan, second.plan, "nothing new was judged");
    }
}
