//! A wire that loses answers, breaks off, stalls and lies.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use hybrid_cloud::{
    aws::{AwsConfig, AwsOptions, Retry, TimeLimits},
    s3::{Encryption, S3Location, S3Options, S3Store},
    testkit::{Fault, FaultProxy},
};
use hybrid_core::{ArtifactStore, ArtifactStoreExt, ErrorKind, Result};

use super::{BOTH, Server, key, noise};

/// A fresh bucket, seen directly and through a proxy.
struct Rig {
    direct: S3Store,
    broken: S3Store,
    proxy: FaultProxy,
    server: Server,
    bucket: String,
}

impl Rig {
    async fn new(server: Server) -> Self {
        let bucket = server.bucket().await;
        let proxy = FaultProxy::start(server.endpoint()).unwrap();
        let broken = server.store_at(proxy.endpoint(), &bucket, S3Options::default()).await;
        Self { direct: server.store(&bucket).await, broken, proxy, server, bucket }
    }

    /// The store through the proxy with one attempt for each call.
    async fn once(&self) -> S3Store {
        let retry = Retry { attempts: 1, ..Retry::default() };
        let options = AwsOptions { retry, ..self.server.options(self.proxy.endpoint()) };
        let config = AwsConfig::load(options).await.unwrap();
        S3Store::new(&config, S3Location::new(&self.bucket, "").unwrap(), S3Options::default()).unwrap()
    }
}

fn answer(status: u16, code: &str) -> Fault {
    Fault::Answer { status, body: xml(code) }
}

fn xml(code: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>by the test</Message></Error>"
    )
}

fn kind<T>(result: Result<T>) -> std::result::Result<T, ErrorKind> {
    result.map_err(|error| error.kind())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_landed_is_ours_whatever_its_answer_was() {
    for server in BOTH {
        let rig = Rig::new(server).await;
        let faults = [
            Fault::DropAnswer,
            Fault::ReplaceAnswer { status: 500, body: xml("InternalError") },
            Fault::ReplaceAnswer { status: 502, body: "<html>a gateway's page</html>".to_owned() },
            // Something on the way has sent the request twice and shows the second answer.
            Fault::ReplaceAnswer { status: 412, body: xml("PreconditionFailed") },
            Fault::ReplaceAnswer { status: 503, body: xml("SlowDown") },
        ];
        for (i, fault) in faults.into_iter().enumerate() {
            let key = key(&format!("landed/{i}"));
            rig.proxy.once("PUT", fault.clone());
            rig.broken.create(&key, noise(5_000, i as u64)).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
            assert_eq!(rig.direct.get(&key).await.unwrap(), noise(5_000, i as u64), "{fault:?}");
            assert_eq!(
                kind(rig.broken.create(&key, noise(5_000, i as u64)).await),
                Err(ErrorKind::AlreadyExists),
                "{fault:?}"
            );
        }
        assert_eq!(rig.proxy.faults(), 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_lost_has_lost_whatever_its_answer_was() {
    for server in BOTH {
        let rig = Rig::new(server).await;
        for (i, fault) in [
            Fault::DropAnswer,
            Fault::ReplaceAnswer { status: 500, body: xml("InternalError") },
            answer(500, "InternalError"),
        ]
        .into_iter()
        .enumerate()
        {
            let key = key(&format!("lost/{i}"));
            // Another's, with the very same bytes.
            rig.direct.create(&key, "same".into()).await.unwrap();
            rig.proxy.once("PUT", fault.clone());
            assert_eq!(kind(rig.broken.create(&key, "same".into()).await), Err(ErrorKind::AlreadyExists), "{fault:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_racers_with_the_same_bytes_one_wins_though_answers_are_lost() {
    for server in BOTH {
        let rig = Rig::new(server).await;
        for round in 0..6_u64 {
            let fault = if round % 2 == 0 {
                Fault::DropAnswer
            } else {
                Fault::ReplaceAnswer { status: 500, body: xml("InternalError") }
            };
            rig.proxy.share(0.3, round, fault);
            let key = key(&format!("race/{round}"));
            let outcomes = join_all((0..16).map(|_| rig.broken.create(&key, "the same for all".into()))).await;
            rig.proxy.pass();
            let winners = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
            let losers = outcomes
                .iter()
                .filter(|outcome| outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::AlreadyExists))
                .count();
            // Whose answers are lost each time is told that it is in doubt; nobody is told what is not so.
            let in_doubt = outcomes.len() - winners - losers;
            assert!(winners <= 1 && winners + in_doubt >= 1, "{server:?}, round {round}: {outcomes:?}");
            assert!(in_doubt <= 2, "{server:?}, round {round}: {outcomes:?}");
            assert_eq!(rig.direct.get(&key).await.unwrap(), "the same for all");
        }
        assert!(rig.proxy.faults() > 20, "{}", rig.proxy.faults());
    }
}

#[tokio::test]
async fn a_conflict_with_nothing_stored_is_tried_again_and_never_a_loss() {
    let rig = Rig::new(Server::Seaweed).await;
    rig.proxy.once("PUT", answer(409, "ConditionalRequestConflict"));
    rig.broken.create(&key("a"), "x".into()).await.unwrap();
    assert_eq!(rig.direct.get(&key("a")).await.unwrap(), "x");
    rig.proxy.times("PUT", usize::MAX, answer(409, "ConditionalRequestConflict"));
    let error = rig.broken.create(&key("b"), "x".into()).await.unwrap_err();
    assert!(error.is_temporary() && error.kind() == ErrorKind::Unavailable, "{error:?}");
    assert_eq!(error.context("attempts"), Some("6"), "{error}");
    assert_eq!(kind(rig.direct.head(&key("b")).await).map(drop), Err(ErrorKind::NotFound));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bursts_of_refusals_are_waited_out() {
    let rig = Rig::new(Server::Seaweed).await;
    let retry = Retry { attempts: 25, max_backoff: Duration::from_millis(5), adaptive: false };
    let config = AwsConfig::load(AwsOptions { retry, ..rig.server.options(rig.proxy.endpoint()) }).await.unwrap();
    let store = S3Store::new(&config, S3Location::new(&rig.bucket, "").unwrap(), S3Options::default()).unwrap();
    rig.proxy.share(0.5, 1, answer(503, "SlowDown"));
    let names: Vec<_> = (0..40).map(|i| key(&format!("burst/{i:02}"))).collect();
    for outcome in join_all(names.iter().map(|key| store.create(key, key.as_str().to_owned().into()))).await {
        outcome.unwrap();
    }
    for key in &names {
        assert_eq!(store.get(key).await.unwrap(), key.as_str());
        assert_eq!(store.head(key).await.unwrap().size, key.as_str().len() as u64);
    }
    assert_eq!(store.list_all("burst/").await.unwrap().len(), 40);
    store.delete(&names[0]).await.unwrap();
    assert!(rig.proxy.faults() > 60, "{}", rig.proxy.faults());
    // What does not end is told with what the server said.
    rig.proxy.share(1.0, 1, answer(503, "SlowDown"));
    let error = rig.broken.get(&names[1]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RateLimited, "{error}");
    assert_eq!((error.context("code"), error.context("key")), (Some("SlowDown"), Some("burst/01")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_that_breaks_off_anywhere_gives_all_bytes_or_none() {
    for server in BOTH {
        let rig = Rig::new(server).await;
        let (key, bytes) = (key("cut"), noise(200_000, 1));
        rig.direct.create(&key, bytes.clone()).await.unwrap();
        let once = rig.once().await;
        for after in [0, 1, 2, 1_000, 16_383, 16_384, 16_385, 65_536, 100_000, 199_998, 199_999] {
            rig.proxy.once("GET", Fault::CutAnswer { after });
            assert_eq!(kind(once.get(&key).await), Err(ErrorKind::Unavailable), "{server:?} {after}");
            rig.proxy.once("GET", Fault::CutAnswer { after });
            assert_eq!(rig.broken.get(&key).await.unwrap(), bytes, "{server:?} {after}");
        }
        rig.proxy.once("GET", Fault::DropAnswer);
        assert_eq!(rig.broken.get(&key).await.unwrap(), bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_breaks_off_anywhere_is_whole_in_the_end() {
    for server in BOTH {
        let rig = Rig::new(server).await;
        let bytes = noise(200_000, 2);
        for after in [1, 1_000, 16_384, 65_536, 199_999] {
            let key = key(&format!("cut/{after}"));
            rig.proxy.once("PUT", Fault::CutRequest { after });
            rig.broken.create(&key, bytes.clone()).await.unwrap_or_else(|error| panic!("{server:?} {after}: {error}"));
            assert_eq!(rig.direct.get(&key).await.unwrap(), bytes, "{server:?} {after}");
        }
        assert_eq!(rig.proxy.faults(), 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_on_the_way_is_corrupt_without_a_digest_too() {
    for server in BOTH {
        let rig = Rig::new(server).await;
        let (key, bytes) = (key("flipped"), noise(100_000, 3));
        rig.direct.create(&key, bytes.clone()).await.unwrap();
        for at in [0, 1, 50_000, 99_999] {
            rig.proxy.once("GET", Fault::FlipBit { at });
            let error = rig.broken.get(&key).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{server:?} {at}: {error}");
            assert_eq!(error.context("key"), Some("flipped"), "{error}");
        }
        assert_eq!(rig.broken.get(&key).await.unwrap(), bytes);
        // On the way there, too: the server refuses what has another checksum than its header says.
        assert_eq!(rig.proxy.faults(), 4);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_stands_still_is_given_up_and_asked_for_again() {
    let rig = Rig::new(Server::Seaweed).await;
    let (key, bytes) = (key("stalled"), noise(100_000, 4));
    rig.direct.create(&key, bytes.clone()).await.unwrap();
    // The stall's own limit, and the attempt's: each alone must do.
    let seconds = Duration::from_secs;
    for (stall, answer_within) in [(Some(Duration::from_millis(200)), seconds(60)), (None, seconds(1))] {
        let time = TimeLimits { stall, ..TimeLimits::default() };
        let options = AwsOptions { time, ..rig.server.options(rig.proxy.endpoint()) };
        let config = AwsConfig::load(options).await.unwrap();
        let options = S3Options { answer_within, slowest: 10_000_000, ..S3Options::default() };
        let store = S3Store::new(&config, S3Location::new(&rig.bucket, "").unwrap(), options).unwrap();
        rig.proxy.once("GET", Fault::StallAnswer { after: 30_000 });
        let started = Instant::now();
        assert_eq!(store.get(&key).await.unwrap(), bytes);
        assert!(started.elapsed() < seconds(30), "{:?}", started.elapsed());
    }
    assert_eq!(rig.proxy.faults(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_is_a_temporary_failure_and_comes_back() {
    let rig = Rig::new(Server::Seaweed).await;
    rig.broken.create(&key("before"), "x".into()).await.unwrap();
    rig.proxy.cut();
    for error in [
        rig.broken.create(&key("during"), "x".into()).await.unwrap_err(),
        rig.broken.get(&key("before")).await.unwrap_err(),
        rig.broken.list_all("").await.unwrap_err(),
        rig.broken.check().await.unwrap_err(),
    ] {
        assert!(error.is_temporary(), "{error:?}");
        assert_eq!(error.context("bucket"), Some(rig.bucket.as_str()), "{error}");
    }
    rig.proxy.mend();
    rig.broken.create(&key("during"), "x".into()).await.unwrap();
    assert_eq!(rig.broken.list_all("").await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_put_says_how_it_is_to_be_encrypted() {
    let server = Server::Ministack;
    let bucket = server.bucket().await;
    let proxy = FaultProxy::start(server.endpoint()).unwrap();
    let key_id = "alias/bakery".to_owned();
    let encryption = Encryption::Kms { key: Some(key_id.clone()) };
    let store = server.store_at(proxy.endpoint(), &bucket, S3Options { encryption, ..S3Options::default() }).await;
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    proxy.script(move |request| {
        let header = |name| request.header(name).unwrap_or_default();
        let right = header("x-amz-server-side-encryption") == "aws:kms"
            && header("x-amz-server-side-encryption-aws-kms-key-id") == key_id
            && header("x-amz-server-side-encryption-bucket-key-enabled") == "true"
            && header("if-none-match") == "*";
        count.fetch_add(usize::from(right), Ordering::SeqCst);
        None
    });
    store.create(&key("secret"), "x".into()).await.unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 1);
    assert_eq!(store.get(&key("secret")).await.unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_requests_are_under_way_than_allowed() {
    let server = Server::Ministack;
    let bucket = server.bucket().await;
    let proxy = FaultProxy::start(server.endpoint()).unwrap();
    let store = server.store_at(proxy.endpoint(), &bucket, S3Options { parallel: 3, ..S3Options::default() }).await;
    // Each request stays for a moment, so that more than three at once would be seen as more connections than three.
    proxy.share(1.0, 1, Fault::Delay(Duration::from_millis(20)));
    let names: Vec<_> = (0..12).map(|i| key(&format!("p/{i}"))).collect();
    join_all(names.iter().map(|key| store.create(key, "x".into())))
        .await
        .into_iter()
        .for_each(|outcome| outcome.unwrap());
    assert_eq!(proxy.most_at_once(), 3);
}
