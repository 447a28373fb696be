//! Several processes at one cache, and processes that are killed.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use hybrid_core::Digest;
use hybrid_local::{DecoderLoader, Device, Hub, HubCache};

use super::{
    fetch::{Place, WEIGHTS, site, weights_alone},
    server::{Fault, MODEL},
};

const CACHE: &str = "HYBRID_TEST_HUB_CACHE";
const ENDPOINT: &str = "HYBRID_TEST_HUB_ENDPOINT";
const SOURCE: &str = "HYBRID_TEST_HUB_MODEL";

/// Does nothing unless this process was started to fetch.
#[tokio::test(flavor = "multi_thread")]
async fn fetches_if_it_was_started_to() {
    let Ok(cache) = std::env::var(CACHE) else { return };
    let hub = Hub::new(HubCache::at(cache)).unwrap().with_endpoint(&std::env::var(ENDPOINT).unwrap()).unwrap();
    hub.fetch(&std::env::var(SOURCE).unwrap().parse().unwrap()).await.unwrap();
}

fn start(place: &Place, model: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "source::processes::fetches_if_it_was_started_to"]);
    command.env(CACHE, place.folder.path()).env(ENDPOINT, &place.server.address).env(SOURCE, model);
    command.stdout(Stdio::null()).spawn().unwrap()
}

/// Every blob that has its name has its content, and every link of a snapshot leads to one.
fn assert_nothing_half_visible(cache: &Path) {
    let repository = cache.join("models--org--tiny");
    for entry in fs::read_dir(repository.join("blobs")).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.len() == 64 {
            assert_eq!(Digest::of(&fs::read(&path).unwrap()).to_string(), name);
        }
    }
    for commit in fs::read_dir(repository.join("snapshots")).into_iter().flatten() {
        for entry in fs::read_dir(commit.unwrap().path()).unwrap() {
            let path = entry.unwrap().path();
            assert!(fs::metadata(&path).is_ok(), "{} leads nowhere", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_leaves_nothing_half_visible_and_the_next_goes_on() {
    let place = Place::with(weights_alone([])).await;
    let model = format!("{MODEL}#{WEIGHTS}");
    for sent in [0, 1, 70_000, 100_000] {
        place.server.change(|site| site.faults = vec![Fault::Stall(sent)]);
        let mut child = start(&place, &model);
        place.server.stalled().await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert_nothing_half_visible(place.folder.path());
    }
    place.server.change(|site| site.faults.clear());
    let path = place.fetch(&model).await.unwrap();
    assert_eq!(fs::read(path).unwrap(), site().files[WEIGHTS]);
    assert_nothing_half_visible(place.folder.path());
    let begun = place.begun();
    assert!(begun.len() <= 5 && begun.is_sorted(), "{begun:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_want_the_same_fetch_it_once() {
    let place = Place::with(site()).await;
    let children: Vec<Child> = (0..3).map(|_| start(&place, MODEL)).collect();
    for mut child in children {
        assert!(tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap().success());
    }
    assert_eq!(place.begun().len(), 1);
    let offline = Hub::new(HubCache::at(place.folder.path())).unwrap().offline();
    let path = offline.fetch(&MODEL.parse().unwrap()).await.unwrap();
    DecoderLoader::new(Device::cpu()).open(&path, hybrid_core::ServedModel::named("tiny")).await.unwrap();
}
