//! Fetching: what comes, what does not, and what is said then.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::http::Method;
use hybrid_core::{BoxFuture, Clock, Digest, Error, ErrorKind, Monotonic, ServedModel, SystemClock, Timestamp};
use hybrid_local::{DecoderLoader, Device, Hub, HubCache, HubModel, ModelResolver, ModelSource};
use safetensors::SafeTensors;

use super::{
    fixture,
    server::{COMMIT, Fault, MODEL, Server, Site, git_digest},
};
use crate::peers::Peers;

pub(super) const WEIGHTS: &str = "model.safetensors";

/// A site with a model, its weights large, and files beside it that nobody should want.
pub(super) fn site() -> Site {
    let mut site = Site { large: vec![WEIGHTS.to_owned(), "pytorch_model.bin".to_owned()], ..Site::default() };
    for entry in fs::read_dir(fixture("qwen3")).unwrap() {
        let path = entry.unwrap().path();
        site.files.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap());
    }
    site.files.remove("expected.safetensors");
    for name in ["pytorch_model.bin", "README.md", "run.py", "onnx/config.json"] {
        site.files.insert(name.to_owned(), b"not wanted".to_vec());
    }
    site.files.insert("1_Pooling/config.json".to_owned(), b"{}".to_vec());
    site
}

/// A site that has the weights alone, as the one file that is wanted.
pub(super) fn weights_alone(faults: impl Into<Vec<Fault>>) -> Site {
    let mut site = site();
    site.files.retain(|name, _| name == WEIGHTS);
    site.faults = faults.into();
    site
}

pub(super) fn one_file() -> HubModel {
    format!("{MODEL}#{WEIGHTS}").parse().unwrap()
}

pub(super) struct Place {
    pub(super) folder: tempfile::TempDir,
    pub(super) server: Server,
    hub: Hub,
    waits: Waits,
}

impl Place {
    pub(super) async fn with(site: Site) -> Self {
        let (folder, server, waits) = (tempfile::tempdir().unwrap(), Server::start(site).await, Waits::default());
        let hub = Hub::new(HubCache::at(folder.path())).unwrap().with_endpoint(&server.address).unwrap();
        let hub = hub.with_clock(Arc::new(waits.clone()));
        Self { folder, server, hub, waits }
    }

    pub(super) async fn fetch(&self, model: &str) -> Result<PathBuf, Error> {
        self.hub.fetch(&model.parse().unwrap()).await
    }

    async fn fetch_one(&self) -> Result<PathBuf, Error> {
        self.hub.fetch(&one_file()).await
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("models--org--tiny")
    }

    fn blobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.repository().join("blobs")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Where what was asked for of the weights began.
    pub(super) fn begun(&self) -> Vec<Option<u64>> {
        let asked = self.server.asked().into_iter();
        asked.filter(|asked| asked.path.starts_with("/stored/")).map(|asked| asked.from).collect()
    }
}

/// A clock on which every wait is over at once, and remembered.
#[derive(Clone, Debug, Default)]
struct Waits(Arc<Mutex<Vec<u64>>>);

impl Clock for Waits {
    fn now(&self) -> Timestamp {
        SystemClock.now()
    }

    fn monotonic(&self) -> Monotonic {
        SystemClock.monotonic()
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.0.lock().unwrap().push(duration.as_secs());
        Box::pin(async {})
    }
}

#[tokio::test]
async fn a_model_is_fetched_once_and_loads() {
    let place = Place::with(site()).await;
    let path = place.fetch(MODEL).await.unwrap();
    assert_eq!(path, place.repository().join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(place.repository().join("refs/main")).unwrap(), COMMIT);
    let asked = place.server.asked();
    let unwanted = ["pytorch_model", "README", "run.py", "onnx"];
    assert!(!asked.iter().any(|asked| unwanted.iter().any(|name| asked.path.contains(name))), "{asked:?}");
    DecoderLoader::new(Device::cpu()).open(&path, ServedModel::named("tiny")).await.unwrap();
    assert!(path.join("1_Pooling/config.json").is_file());
    assert!(!place.blobs().iter().any(|name| name.contains('.')), "nothing in progress is left: {:?}", place.blobs());

    for again in ["org/tiny", "org/tiny@refs/pr/1", &format!("org/tiny@{COMMIT}")] {
        assert_eq!(place.fetch(again).await.unwrap(), path, "{again}");
        assert_eq!(place.server.asked().len(), 1, "the listing alone");
    }
    assert_eq!(HubCache::at(place.folder.path()).find(&"org/tiny@refs/pr/1".parse().unwrap()).unwrap(), path);
    let models = ModelResolver::local().with_hub(place.hub.clone());
    let source: ModelSource = format!("hf:{MODEL}#{WEIGHTS}").parse().unwrap();
    assert_eq!(models.resolve(&source).await.unwrap().path(), path.join(WEIGHTS));
}

#[tokio::test]
async fn a_server_that_lists_names_alone_is_asked_what_each_file_is() {
    let place = Place::with(Site { names_only: true, ..site() }).await;
    let path = place.fetch(MODEL).await.unwrap();
    assert_eq!(fs::read(path.join(WEIGHTS)).unwrap(), site().files[WEIGHTS]);
    let heads = place.server.asked().into_iter().filter(|asked| asked.method == Method::HEAD);
    let paths: Vec<String> = heads.map(|asked| asked.path).collect();
    assert!(paths.len() == 7 && !paths.iter().any(|path| path.starts_with("/stored/")), "{paths:?}");
}

/// Runs where `HYBRID_PEERS` names the Python of the peers.
#[tokio::test]
async fn the_hubs_own_tools_find_what_is_fetched_here_and_the_other_way_round() {
    let Some(peers) = Peers::find() else { return };
    let place = Place::with(site()).await;
    let path = place.fetch(MODEL).await.unwrap();
    let run = async |program: &str, cache: &Path| -> Vec<String> {
        let mut command = peers.command();
        command.args(["-c", program, MODEL]).arg(cache).env("HF_ENDPOINT", &place.server.address);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
        said.lines().map(str::to_owned).collect()
    };
    let program = "import sys, huggingface_hub as hub\n\
        print(hub.snapshot_download(sys.argv[1], cache_dir=sys.argv[2], local_files_only=True))\n\
        print(hub.try_to_load_from_cache(sys.argv[1], 'model.safetensors', cache_dir=sys.argv[2]))\n\
        found = hub.scan_cache_dir(sys.argv[2])\n\
        print([(len(repo.revisions), sorted(repo.refs)) for repo in found.repos], found.warnings)";
    let lines = run(program, place.folder.path()).await;
    let weights = path.join(WEIGHTS);
    assert_eq!(lines, [path.to_str().unwrap(), weights.to_str().unwrap(), "[(1, ['main'])] []"]);

    let other = tempfile::tempdir().unwrap();
    let program = "import sys, huggingface_hub as hub\n\
        for name in ['config.json', 'tokenizer.json', 'model.safetensors']:\n    \
            print(hub.hf_hub_download(sys.argv[1], name, cache_dir=sys.argv[2]))";
    place.server.asked();
    let lines = run(program, other.path()).await;
    let model: HubModel = MODEL.parse().unwrap();
    let theirs = HubCache::at(other.path()).find(&model).unwrap();
    assert_eq!(theirs.join(WEIGHTS).to_str().unwrap(), lines[2]);
    assert_eq!(place.begun().len(), 1, "theirs");
    let hub = Hub::new(HubCache::at(other.path())).unwrap().with_endpoint(&place.server.address).unwrap();
    assert_eq!(hub.fetch(&model).await.unwrap(), theirs);
    assert_eq!(place.begun(), [], "what theirs has fetched is not fetched again");
    DecoderLoader::new(Device::cpu()).open(&theirs, ServedModel::named("tiny")).await.unwrap();
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_ended() {
    let place = Place::with(weights_alone([Fault::Cut(70_000), Fault::Cut(50_000), Fault::Cut(0)])).await;
    let path = place.fetch_one().await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), site().files[WEIGHTS]);
    assert_eq!(place.begun(), [None, Some(70_000), Some(120_000), Some(120_000)]);
    assert_eq!(*place.waits.0.lock().unwrap(), [1], "only a connection that brought nothing is waited after");
}

#[tokio::test]
async fn what_a_process_that_died_has_left_is_gone_on_with_if_it_is_the_files() {
    let place = Place::with(weights_alone([])).await;
    let path = place.fetch_one().await.unwrap();
    let (blob, bytes) = (fs::canonicalize(&path).unwrap(), site().files[WEIGHTS].clone());
    let part = blob.with_file_name(format!("{}.incomplete", blob.file_name().unwrap().to_str().unwrap()));
    let fetch_after = async |left: &[u8]| {
        fs::remove_file(&blob).unwrap();
        fs::write(&part, left).unwrap();
        place.server.asked();
        place.fetch_one().await.unwrap();
        assert_eq!(fs::read(&blob).unwrap(), bytes);
        assert!(!part.exists());
        place.begun()
    };
    assert_eq!(fetch_after(&bytes[..1_000]).await, [Some(1_000)]);
    assert_eq!(fetch_after(&bytes).await, [], "it was whole");
    assert_eq!(fetch_after(&vec![0; bytes.len() + 1]).await, [None], "longer than the file");
    assert_eq!(fetch_after(&[0; 1_000]).await, [Some(1_000), None], "not the file's beginning");
    assert_eq!(fetch_after(&vec![0; bytes.len()]).await, [None], "as long as the file");
    place.server.change(|site| site.whole_only = true);
    assert_eq!(fetch_after(&bytes[..1_000]).await, [Some(1_000)], "of a server that gives no parts");
}

#[tokio::test]
async fn a_connection_that_brings_nothing_is_given_up() {
    let place = Place::with(weights_alone([Fault::Cut(0); 50])).await;
    let error = place.fetch_one().await.unwrap_err();
    assert_eq!((error.kind(), error.context("length")), (ErrorKind::Unavailable, Some("0")), "{error}");
    assert_eq!(place.begun().len(), 4);
    assert_eq!(*place.waits.0.lock().unwrap(), [1, 2, 4]);

    let mut place = Place::with(weights_alone([Fault::Stall(1_000)])).await;
    place.hub = place.hub.with_idle_timeout(Duration::from_millis(100)).unwrap();
    place.fetch_one().await.unwrap();
    assert_eq!(place.begun(), [None, Some(1_000)], "one that stalls is left for another");
}

#[tokio::test]
async fn a_hub_that_is_out_of_order_for_a_moment_is_asked_again() {
    let away = vec![Method::GET, Method::GET, Method::HEAD];
    let place = Place::with(Site { names_only: true, away, ..weights_alone([]) }).await;
    place.fetch_one().await.unwrap();
    assert_eq!(*place.waits.0.lock().unwrap(), [1, 2, 1], "for the listing, and for what the file is");
}

#[tokio::test]
async fn the_hub_says_how_long_to_wait() {
    let place = Place::with(weights_alone([Fault::Status(429), Fault::Status(503)])).await;
    place.fetch_one().await.unwrap();
    assert_eq!(*place.waits.0.lock().unwrap(), [7, 7]);
}

#[tokio::test]
async fn bytes_that_are_not_what_was_promised_are_never_visible() {
    for name in [WEIGHTS, "config.json"] {
        let mut wrong = site().files[name].clone();
        *wrong.last_mut().unwrap() ^= 1;
        let mut longer = site().files[name].clone();
        longer.push(b' ');
        let promised = match name {
            WEIGHTS => Digest::of(&site().files[name]).to_string(),
            _ => git_digest(&site().files[name]),
        };
        let place = Place::with(site()).await;
        for sent in [wrong, longer] {
            place.server.change(|site| site.altered = [(name.to_owned(), sent)].into());
            let error = place.fetch(MODEL).await.unwrap_err();
            assert_eq!((error.kind(), error.context("file")), (ErrorKind::Corrupt, Some(name)), "{error}");
            let snapshot = place.repository().join("snapshots").join(COMMIT);
            assert!(!snapshot.join(name).exists() && !snapshot.join(WEIGHTS).exists());
            assert!(!place.repository().join("refs/main").exists(), "no branch is where it cannot be loaded");
            assert!(!place.blobs().contains(&promised), "{:?}", place.blobs());
        }
        place.server.change(|site| site.altered.clear());
        place.fetch(MODEL).await.unwrap();
    }
}

#[tokio::test]
async fn the_token_goes_to_the_hub_alone() {
    let place = Place::with(Site { token: Some("hf_secret".to_owned()), ..site() }).await;
    let error = place.fetch(MODEL).await.unwrap_err();
    assert!(error.kind() == ErrorKind::PermissionDenied && error.to_string().contains("HF_TOKEN"), "{error}");
    let hub = place.hub.clone().with_token("hf_secret");
    assert!(!format!("{hub:?}").contains("hf_secret"));
    place.server.asked();
    hub.fetch(&MODEL.parse().unwrap()).await.unwrap();
    let asked = place.server.asked();
    assert!(asked.iter().any(|asked| asked.path.starts_with("/stored/")));
    for asked in asked {
        assert_eq!(asked.token.is_some(), !asked.path.starts_with("/stored/"), "{asked:?}");
    }
}

#[tokio::test]
async fn what_the_hub_lacks_or_refuses_is_told() {
    let place = Place::with(site()).await;
    for (model, kind, named) in [
        ("org/other", ErrorKind::NotFound, "no such model"),
        ("org/tiny@nonesuch", ErrorKind::NotFound, "no such revision"),
        ("org/tiny#nonesuch.json", ErrorKind::NotFound, "tokenizer_config.json"),
        ("org/tiny#pytorch_model.bin", ErrorKind::Unsupported, "only GGUF"),
    ] {
        let error = place.fetch(model).await.unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(named), "{model}: {error}");
        assert!(error.context("model").unwrap().starts_with(model.split('#').next().unwrap()), "{error}");
    }
    for (refusal, kind) in [
        ((403, "GatedRepo"), ErrorKind::PermissionDenied),
        ((401, "RepoNotFound"), ErrorKind::NotFound),
        ((401, ""), ErrorKind::PermissionDenied),
        ((429, ""), ErrorKind::RateLimited),
        ((503, ""), ErrorKind::Unavailable),
        ((418, ""), ErrorKind::Internal),
    ] {
        place.server.change(|site| site.refusal = Some(refusal));
        let error = place.fetch(MODEL).await.unwrap_err();
        assert_eq!((error.kind(), error.context("reason")), (kind, Some("no")), "{error}");
        assert_eq!(error.retry_after().map(|wait| wait.as_secs()), Some(7));
        let waited = std::mem::take(&mut *place.waits.0.lock().unwrap());
        assert_eq!(waited, if error.is_temporary() { vec![7; 3] } else { vec![] }, "{error}");
    }
}

#[tokio::test]
async fn offline_nothing_is_asked_and_with_the_hub_away_the_cache_serves() {
    let place = Place::with(site()).await;
    let model: HubModel = MODEL.parse().unwrap();
    let offline = place.hub.clone().offline();
    let away = place.hub.clone().with_endpoint("http://127.0.0.1:9").unwrap();
    let error = offline.fetch(&model).await.unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("hf download"), "{error}");
    let error = away.fetch(&model).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    assert!(place.server.asked().is_empty());

    let path = place.fetch(MODEL).await.unwrap();
    place.server.asked();
    assert_eq!(offline.fetch(&model).await.unwrap(), path);
    assert_eq!(away.fetch(&model).await.unwrap(), path);
    assert!(place.server.asked().is_empty());
    place.server.change(|site| site.refusal = Some((503, "")));
    place.waits.0.lock().unwrap().clear();
    assert_eq!(place.fetch(MODEL).await.unwrap(), path);
    assert!(place.waits.0.lock().unwrap().is_empty(), "what the cache has comes at once");
}

#[tokio::test]
async fn of_weights_in_several_files_those_come_that_the_index_names() {
    let mut site = site();
    let weights = site.files.remove(WEIGHTS).unwrap();
    let shards = ["model.safetensors-00001-of-00002.safetensors", "model.safetensors-00002-of-00002.safetensors"];
    let tensors = SafeTensors::deserialize(&weights).unwrap();
    let mut all = tensors.tensors();
    let rest = all.split_off(all.len() / 2);
    let mut map = serde_json::Map::new();
    for (name, part) in shards.iter().zip([all, rest]) {
        map.extend(part.iter().map(|(tensor, _)| (tensor.clone(), (*name).into())));
        site.files.insert((*name).to_owned(), safetensors::serialize(part, None).unwrap());
    }
    let index = serde_json::json!({"weight_map": map}).to_string();
    site.files.insert("model.safetensors.index.json".to_owned(), index.into_bytes());
    site.files.insert("model-00001-of-00009.safetensors".to_owned(), b"not wanted".to_vec());
    let place = Place::with(site).await;
    let path = place.fetch(MODEL).await.unwrap();
    DecoderLoader::new(Device::cpu()).open(&path, ServedModel::named("tiny")).await.unwrap();
    assert!(!path.join("model-00001-of-00009.safetensors").exists());
    place.server.change(|site| drop(site.files.remove(shards[1])));
    let other = Hub::new(HubCache::at(place.folder.path().join("other"))).unwrap();
    let error = other.with_endpoint(&place.server.address).unwrap().fetch(&MODEL.parse().unwrap()).await.unwrap_err();
    assert_eq!((error.kind(), error.context("file")), (ErrorKind::Corrupt, Some(shards[1])), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_want_the_same_fetch_it_once() {
    let place = Place::with(site()).await;
    let (one, other) = tokio::join!(place.fetch(MODEL), place.fetch(MODEL));
    assert_eq!(one.unwrap(), other.unwrap());
    assert_eq!(place.begun().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_dropped_leaves_what_came_to_the_next() {
    let place = Place::with(weights_alone([Fault::Stall(1_000)])).await;
    let part = format!("{}.incomplete", Digest::of(&site().files[WEIGHTS]));
    let part = place.repository().join("blobs").join(part);
    let written = async {
        place.server.stalled().await;
        while fs::metadata(&part).map_or(0, |meta| meta.len()) < 1_000 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        fetched = place.fetch_one() => panic!("{fetched:?}"),
        written = tokio::time::timeout(Duration::from_secs(60), written) => written.unwrap(),
    }
    place.fetch_one().await.unwrap();
    assert_eq!(place.begun(), [None, Some(1_000)], "what had come is not asked for twice");
}
