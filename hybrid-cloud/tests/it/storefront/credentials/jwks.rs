//! The issuer's keys, and when they are fetched.

use super::*;

#[tokio::test]
async fn keys_rotate_and_strangers_cannot_make_the_storefront_fetch_them_all_the_time() {
    let (time, first, second, stranger) = (noon(), Issuer::new("k1"), Issuer::new("k2"), Issuer::new("k3"));
    let source = Source::of(set([first.jwk()]));
    let jwt = tokens(source.clone(), &time);
    who(&jwt, &first.sign(&claims())).await;
    assert_eq!(source.fetched(), 1);

    source.set(Some(&set([first.jwk(), second.jwk()])));
    for _ in 0..50 {
        assert_eq!(refusal(&jwt, &stranger.sign(&claims())).await, "the token's key is not known");
    }
    assert_eq!(source.fetched(), 1);
    time.advance(Duration::from_secs(60));
    who(&jwt, &second.sign(&claims())).await;
    who(&jwt, &first.sign(&claims())).await;
    assert_eq!(source.fetched(), 2);

    // The issuer is away: the keys stay. Then it has dropped one: so do we.
    source.set(None);
    time.advance(Duration::from_secs(60));
    assert_eq!(refusal(&jwt, &stranger.sign(&claims())).await, "the token's key is not known");
    who(&jwt, &first.sign(&claims())).await;
    source.set(Some(&set([second.jwk()])));
    time.advance(Duration::from_secs(600));
    let later = with("exp", json!(seconds(time.now()) + 300));
    who(&jwt, &second.sign(&later)).await;
    assert_eq!(refusal(&jwt, &first.sign(&later)).await, "the token's key is not known");
}

#[tokio::test]
async fn an_issuer_that_is_away_from_the_start_is_no_refusal() {
    let (time, issuer, source) = (noon(), Issuer::new("k1"), Arc::new(Source::default()));
    let jwt = Arc::new(tokens(source.clone(), &time));
    let router = builder(&time).authenticator(jwt).classify("m", orders()).build().unwrap().router();
    let mut claims = claims();
    claims["scope"] = "models.read".into();
    let token = issuer.sign(&claims);
    let away = call(&router, from(&token, get("/v1/models"))).await;
    assert_eq!((away.status, away.error("code")), (503, "unavailable"));
    let still = call(&router, from(&token, get("/v1/models"))).await;
    assert_eq!((still.status, &still.headers["retry-after"]), (503, &"60".parse().unwrap()));
    source.set(Some(&set([issuer.jwk()])));
    time.advance(Duration::from_secs(60));
    assert_eq!(call(&router, from(&token, get("/v1/models"))).await.status, 200);
    assert_eq!(source.fetched(), 2);
}

/// A source that answers when it is let.
#[derive(Debug)]
struct Slow(Arc<Source>, Semaphore);

impl Slow {
    fn of(document: impl AsRef<[u8]>) -> Arc<Self> {
        Arc::new(Self(Source::of(document), Semaphore::new(0)))
    }
}

#[async_trait]
impl CredentialSource for Slow {
    async fn fetch(&self) -> Result<Vec<u8>> {
        let document = self.0.fetch().await;
        self.1.acquire().await.unwrap().forget();
        document
    }
}

#[tokio::test]
async fn who_hangs_up_while_the_keys_are_fetched_leaves_them_to_the_others() {
    let (time, issuer) = (noon(), Issuer::new("k1"));
    let source = Slow::of(set([issuer.jwk()]));
    let jwt = tokens(source.clone(), &time);
    let token = issuer.sign(&claims());
    tokio::select! {
        answer = jwt.authenticate(&token) => panic!("the keys are not there yet: {answer:?}"),
        () = asleep(&time, 1) => {}
    }
    source.1.add_permits(1);
    soon(who(&jwt, &token)).await;
    assert_eq!(source.0.fetched(), 1);
}

#[tokio::test]
async fn a_source_that_never_answers_is_asked_again() {
    let (time, issuer) = (noon(), Issuer::new("k1"));
    let source = Slow::of(set([issuer.jwk()]));
    let jwt = tokens(source.clone(), &time);
    let token = issuer.sign(&claims());
    let away = async {
        asleep(&time, 1).await;
        time.advance(Duration::from_secs(30));
    };
    let (answer, ()) = soon(async { tokio::join!(jwt.authenticate(&token), away) }).await;
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unavailable);
    time.advance(Duration::from_secs(30));
    source.1.add_permits(1);
    soon(who(&jwt, &token)).await;
    assert_eq!(source.0.fetched(), 2);
}

#[tokio::test]
async fn keys_come_from_a_url_and_a_large_answer_or_a_redirect_is_not_followed() {
    let issuer = Issuer::new("k1");
    let keys = String::from_utf8(set([issuer.jwk()])).unwrap();
    let site = Router::new()
        .route("/keys", routing::get(|| async { keys }))
        .route("/large", routing::get(|| async { vec![b' '; 9 * 1024 * 1024] }))
        .route("/moved", routing::get(|| async { axum::response::Redirect::temporary("/keys") }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, site).await });
    let source = |path: &str| Arc::new(JwksUrl::new(&format!("http://{at}{path}")).unwrap());
    who(&tokens(source("/keys"), &noon()), &issuer.sign(&claims())).await;
    for path in ["/large", "/moved", "/nothing"] {
        let error = tokens(source(path), &noon()).authenticate(&issuer.sign(&claims())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{path}: {error}");
    }
    serving.abort();
    for bad in ["http://id.shop/keys", "file:///etc/passwd", "keys", "http://127.0.0.1.evil.com/"] {
        assert_eq!(JwksUrl::new(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
    }
}
