//! API keys and tokens: which hold, which do not, and how they change under way.

use std::{
    collections::BTreeSet,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use aws_lc_rs::{
    rsa,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use axum::{Router, routing};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hybrid_cloud::storefront::{
    ApiKeys, Authenticator, CredentialFile, CredentialSource, JwksUrl, JwtAuthenticator, JwtOptions, KeyList,
    KeyRecord, NewKey, Principal, Scope, TenantFrom,
};
use hybrid_core::{Cancellation, Clock, Document, Error, ErrorKind, ManualClock, Result, Timestamp};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Semaphore};

use super::rig::{asleep, builder, call, from, get, noon, orders, soon, tenant};

/// A document that a test can change, and take away.
#[derive(Debug, Default)]
struct Source {
    document: Mutex<Option<Vec<u8>>>,
    fetched: AtomicUsize,
}

impl Source {
    fn of(document: impl AsRef<[u8]>) -> Arc<Self> {
        let source = Arc::new(Self::default());
        source.set(Some(document.as_ref()));
        source
    }

    fn set(&self, document: Option<&[u8]>) {
        *self.document.lock().unwrap() = document.map(<[u8]>::to_vec);
    }

    fn fetched(&self) -> usize {
        self.fetched.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl CredentialSource for Source {
    async fn fetch(&self) -> Result<Vec<u8>> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        self.document.lock().unwrap().clone().ok_or_else(|| Error::unavailable("fetch", "the source is away"))
    }
}

fn clock(clock: &ManualClock) -> Arc<dyn Clock> {
    Arc::new(clock.clone())
}

fn key(subject: &str) -> NewKey {
    NewKey::generate(tenant("bakery"), subject, noon().now()).unwrap()
}

fn list(keys: impl IntoIterator<Item = KeyRecord>) -> Vec<u8> {
    KeyList { keys: keys.into_iter().collect() }.encode().unwrap().to_vec()
}

/// Why a token is refused.
async fn refusal(authenticator: &dyn Authenticator, token: &str) -> String {
    let error = authenticator.authenticate(token).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    assert!(!error.to_string().contains(token), "{error}");
    error.message().to_owned()
}

async fn who(authenticator: &dyn Authenticator, token: &str) -> Arc<Principal> {
    authenticator.authenticate(token).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_key_is_known_by_its_hash_alone() {
    let shop = key("shop");
    let written = String::from_utf8(list([shop.record().clone()])).unwrap();
    let secret = shop.reveal().rsplit('_').next().unwrap();
    assert!(!written.contains(secret), "{written}");
    let keys = ApiKeys::open(Source::of(&written), clock(&noon())).await.unwrap();
    let principal = who(&keys, shop.reveal()).await;
    assert_eq!((principal.tenant.as_str(), principal.subject.as_str()), ("bakery", "shop"));
    assert_eq!(principal.credential.as_deref(), Some(shop.record().id.as_str()));
    // Taking away and removing all that a tenant has is for a key that names it.
    let usual = BTreeSet::from(Scope::USUAL);
    assert_eq!(principal.scopes, usual);

    // The same id with another secret, another id with the same secret, and less or more of the key.
    let other = key("shop");
    let mixed = format!("hk_{}_{}", shop.record().id, other.reveal().rsplit('_').next().unwrap());
    let swapped = format!("hk_{}_{secret}", other.record().id);
    let (short, long) = (&shop.reveal()[..shop.reveal().len() - 1], format!("{}a", shop.reveal()));
    for wrong in [
        other.reveal(),
        &mixed,
        &swapped,
        short,
        &long,
        "hk_",
        "hk_ä",
        &shop.reveal().to_uppercase().replace("HK_", "hk_"),
    ] {
        assert_eq!(refusal(&keys, wrong).await, "this API key is not known", "{wrong}");
    }
    assert!(keys.authenticate("sk-something").await.unwrap().is_none());
}

#[tokio::test]
async fn a_key_is_exchanged_without_a_moment_in_which_none_holds() {
    let time = noon();
    let (old, new) = (key("shop"), key("shop"));
    let source = Source::of(list([old.record().clone()]));
    let keys = ApiKeys::open(source.clone(), clock(&time)).await.unwrap();
    let expires = Some(time.now().plus(Duration::from_secs(60)));
    source.set(Some(&list([KeyRecord { expires, ..old.record().clone() }, new.record().clone()])));
    keys.reload().await.unwrap();
    assert_eq!(who(&keys, old.reveal()).await.subject, who(&keys, new.reveal()).await.subject);
    time.advance(Duration::from_secs(60));
    assert_eq!(refusal(&keys, old.reveal()).await, "this API key has expired");
    who(&keys, new.reveal()).await;

    let revoked = Some(time.now());
    source.set(Some(&list([KeyRecord { revoked, ..new.record().clone() }])));
    keys.reload().await.unwrap();
    assert_eq!(refusal(&keys, new.reveal()).await, "this API key is revoked");
    assert_eq!(refusal(&keys, old.reveal()).await, "this API key is not known");
}

#[tokio::test]
async fn a_source_that_fails_leaves_the_keys_in_force() {
    let shop = key("shop");
    let source = Source::of(list([shop.record().clone()]));
    let keys = ApiKeys::open(source.clone(), clock(&noon())).await.unwrap();
    let twice = list([shop.record().clone(), shop.record().clone()]);
    let odd = list([KeyRecord { id: "../../etc/passwd".to_owned(), ..shop.record().clone() }]);
    for bad in [None, Some(&b"{"[..]), Some(b"{\"format\":\"hybrid.api-keys/2\"}"), Some(&twice), Some(&odd)] {
        source.set(bad);
        assert!(keys.reload().await.is_err(), "{bad:?}");
        who(&keys, shop.reveal()).await;
    }
}

#[tokio::test]
async fn a_file_of_keys_is_read_again_while_the_storefront_runs() {
    let (folder, time, shop) = (tempfile::tempdir().unwrap(), noon(), key("shop"));
    let path = folder.path().join("keys.json");
    assert_eq!(
        ApiKeys::open(Arc::new(CredentialFile::new(&path)), clock(&time)).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    fs::write(&path, list([])).unwrap();
    let keys = Arc::new(ApiKeys::open(Arc::new(CredentialFile::new(&path)), clock(&time)).await.unwrap());
    let router = builder(&time).authenticator(keys.clone()).classify("m", orders()).build().unwrap().router();
    let stop = Cancellation::new();
    let reloading = tokio::spawn({
        let (keys, stop) = (Arc::clone(&keys), stop.clone());
        async move { keys.reload_every(Duration::from_secs(30), stop).await }
    });
    assert_eq!(call(&router, from(shop.reveal(), get("/v1/models"))).await.status, 401);

    asleep(&time, 1).await;
    fs::write(folder.path().join("new"), list([shop.record().clone()])).unwrap();
    fs::rename(folder.path().join("new"), &path).unwrap();
    time.advance(Duration::from_secs(30));
    // Asleep again: it has read the file.
    asleep(&time, 1).await;
    assert_eq!(call(&router, from(shop.reveal(), get("/v1/models"))).await.status, 200);
    stop.cancel();
    soon(reloading).await.unwrap();
}

/// An issuer with a key on P-256.
struct Issuer {
    pkcs8: Vec<u8>,
    id: &'static str,
}

impl Issuer {
    fn new(id: &'static str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Self { pkcs8: pair.to_pkcs8v1().unwrap().as_ref().to_vec(), id }
    }

    fn jwk(&self) -> Value {
        let key = EncodingKey::from_ec_der(&self.pkcs8);
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap()).unwrap();
        jwk["kid"] = self.id.into();
        jwk
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(Some(self.id), claims)
    }

    fn sign_as(&self, id: Option<&str>, claims: &Value) -> String {
        let header = Header { kid: id.map(str::to_owned), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_ec_der(&self.pkcs8)).unwrap()
    }
}

fn set(keys: impl IntoIterator<Item = Value>) -> Vec<u8> {
    json!({ "keys": keys.into_iter().collect::<Vec<_>>() }).to_string().into_bytes()
}

fn seconds(time: Timestamp) -> i64 {
    time.unix_micros() / 1_000_000
}

/// Good claims at noon.
fn claims() -> Value {
    let now = seconds(noon().now());
    json!({
        "iss": "https://id.shop", "aud": "storefront", "sub": "anna", "tenant": "bakery", "scope": "inference openid",
        "exp": now + 300, "nbf": now, "jti": "t-1",
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn tokens(source: Arc<dyn CredentialSource>, time: &ManualClock) -> JwtAuthenticator {
    JwtAuthenticator::new(JwtOptions::new("https://id.shop", "storefront"), source, clock(time)).unwrap()
}

#[tokio::test]
async fn a_good_token_says_who_sends_it() {
    let issuer = Issuer::new("k1");
    let jwt = tokens(Source::of(set([issuer.jwk()])), &noon());
    let principal = who(&jwt, &issuer.sign(&claims())).await;
    let expected = Principal {
        credential: Some("t-1".to_owned()),
        ..Principal::new(tenant("bakery"), "anna").with_scopes([Scope::Inference])
    };
    assert_eq!(*principal, expected);
    who(&jwt, &issuer.sign(&with("aud", json!(["other", "storefront"])))).await;
    // A token that names no key is the only key's; one without scopes may do nothing.
    assert!(who(&jwt, &issuer.sign_as(None, &without("scope"))).await.scopes.is_empty());
    assert_eq!(who(&jwt, &issuer.sign(&with("scope", json!(["jobs"])))).await.scopes, BTreeSet::from([Scope::Jobs]));
    // An admin of some other service is none here.
    for (scope, given) in [("admin jobs", Scope::Jobs), ("tenant.admin", Scope::Admin)] {
        assert_eq!(who(&jwt, &issuer.sign(&with("scope", json!(scope)))).await.scopes, BTreeSet::from([given]));
    }
    for other in ["hk_abc", "abc", "a.b", "a.b.c.d"] {
        assert!(jwt.authenticate(other).await.unwrap().is_none(), "{other}");
    }
}

#[tokio::test]
async fn a_token_that_does_not_hold_is_refused_by_its_fault() {
    let (issuer, now) = (Issuer::new("k1"), seconds(noon().now()));
    let jwt = tokens(Source::of(set([issuer.jwk()])), &noon());
    for (claims, message) in [
        (with("aud", json!("other")), "the token is for another audience"),
        (with("aud", json!(["other"])), "the token is for another audience"),
        (without("aud"), "the token lacks a claim"),
        (with("iss", json!("https://id.evil")), "the token is another issuer's"),
        (without("iss"), "the token lacks a claim"),
        (with("exp", json!(now - 60)), "the token has expired"),
        (without("exp"), "the token lacks a claim"),
        (with("exp", json!("never")), "the token lacks a claim"),
        (with("nbf", json!(now + 61)), "the token is not valid yet"),
        (with("nbf", json!("x")), "the token's times are not numbers"),
        (without("tenant"), "the token names no valid tenant"),
        (with("tenant", json!("../other")), "the token names no valid tenant"),
        (with("tenant", json!(["bakery"])), "the token names no valid tenant"),
        (with("sub", json!("a\nb")), "the token names no valid subject"),
        (with("sub", json!("")), "the token names no valid subject"),
        (with("scope", json!(7)), "the token's scope is neither text nor a list"),
    ] {
        assert_eq!(refusal(&jwt, &issuer.sign(&claims)).await, message, "{claims}");
    }
    // Within the leeway.
    for claims in [with("exp", json!(now - 59)), with("nbf", json!(now + 60))] {
        who(&jwt, &issuer.sign(&claims)).await;
    }
}

#[tokio::test]
async fn a_token_that_somebody_else_made_is_refused() {
    let (issuer, forger) = (Issuer::new("k1"), Issuer::new("k1"));
    let jwt = tokens(Source::of(set([issuer.jwk()])), &noon());
    assert_eq!(refusal(&jwt, &forger.sign(&claims())).await, "the token's signature does not hold");
    // One bit of the claims, under the old signature.
    let good = issuer.sign(&claims());
    let mut parts: Vec<_> = good.split('.').map(str::to_owned).collect();
    parts[1] = URL_SAFE_NO_PAD.encode(with("tenant", json!("other")).to_string());
    assert_eq!(refusal(&jwt, &parts.join(".")).await, "the token's signature does not hold");
    for broken in ["..", "a..b", "!.!.!", &good.replace('.', "..").replacen("..", ".", 1)] {
        if let Err(error) = jwt.authenticate(broken).await {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{broken}");
        } else {
            assert!(jwt.authenticate(broken).await.unwrap().is_none(), "{broken}");
        }
    }
}

/// A token whose header is written by hand.
fn crafted(header: &Value, sign: impl FnOnce(&str) -> String) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(&claims()));
    let signature = sign(&message);
    format!("{message}.{signature}")
}

#[tokio::test]
async fn no_algorithm_but_the_issuers_own_is_taken() {
    let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
    let modulus: Vec<u8> = pair.public_key().modulus().big_endian_without_leading_zero().to_vec();
    let rsa = json!({
        "kty": "RSA", "kid": "r1", "n": URL_SAFE_NO_PAD.encode(&modulus), "e": "AQAB",
    });
    let public: aws_lc_rs::encoding::PublicKeyX509Der<'_> =
        aws_lc_rs::encoding::AsDer::as_der(pair.public_key()).unwrap();
    let ec = Issuer::new("k1");
    let secret = json!({ "kty": "oct", "kid": "s1", "k": URL_SAFE_NO_PAD.encode(b"secret") });
    let jwt = tokens(Source::of(set([rsa.clone(), ec.jwk(), secret])), &noon());

    let hmac = |secret: &[u8], message: &str| {
        jsonwebtoken::crypto::sign(message.as_bytes(), &EncodingKey::from_secret(secret), Algorithm::HS256).unwrap()
    };
    let n = rsa["n"].as_str().unwrap().as_bytes();
    let not_allowed = "the token's algorithm is not allowed";
    for alg in ["none", "None", "NONE", "nOnE", "", "RS1", "HS512", "PS512"] {
        let token = crafted(&json!({ "alg": alg, "kid": "k1" }), |_| String::new());
        assert_eq!(refusal(&jwt, &token).await, not_allowed, "{alg}");
    }
    // The public key as the secret of an HMAC, in each of its spellings; and a secret that has strayed into the set.
    for (kid, secret) in [("r1", n), ("r1", &modulus), ("r1", public.as_ref()), ("s1", b"secret")] {
        let token = crafted(&json!({ "alg": "HS256", "kid": kid }), |message| hmac(secret, message));
        assert_eq!(refusal(&jwt, &token).await, not_allowed, "{kid}");
    }
    // The right algorithm with a key of another kind, a key that travels in the token, and an extension that is not known.
    let ecdsa = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &ec.pkcs8).unwrap();
    let sign = |message: &str| {
        let random = aws_lc_rs::rand::SystemRandom::new();
        URL_SAFE_NO_PAD.encode(ecdsa.sign(&random, message.as_bytes()).unwrap())
    };
    assert_eq!(ecdsa.public_key().as_ref().len(), 65);
    let forger = Issuer::new("f1");
    for (header, message) in [
        (json!({ "alg": "ES256", "kid": "r1" }), "the token's key is not known"),
        (json!({ "alg": "RS256", "kid": "k1" }), "the token's key is not known"),
        (json!({ "alg": "ES256", "kid": "f1", "jwk": forger.jwk() }), "the token's key is not known"),
        (json!({ "alg": "ES256", "kid": "k1", "crit": ["exp"] }), "the token asks for an extension that is not known"),
        (json!({ "alg": ["ES256"], "kid": "k1" }), "the token's header is malformed"),
        (json!({ "kid": "k1" }), "the token's header is malformed"),
    ] {
        assert_eq!(refusal(&jwt, &crafted(&header, sign)).await, message, "{header}");
    }
    who(&jwt, &crafted(&json!({ "alg": "ES256", "kid": "k1" }), sign)).await;
}

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

#[tokio::test]
async fn keys_and_tokens_stand_side_by_side() {
    let (time, issuer, shop) = (noon(), Issuer::new("k1"), key("shop"));
    let keys = ApiKeys::open(Source::of(list([shop.record().clone()])), clock(&time)).await.unwrap();
    let options =
        JwtOptions { tenant: TenantFrom::Fixed(tenant("fixed")), ..JwtOptions::new("https://id.shop", "storefront") };
    let jwt = JwtAuthenticator::new(options, Source::of(set([issuer.jwk()])), clock(&time)).unwrap();
    let open = builder(&time).authenticator(Arc::new(keys)).authenticator(Arc::new(jwt));
    let router = open.classify("m", orders()).build().unwrap().router();
    for (token, owner) in
        [(shop.reveal().to_owned(), "bakery"), (issuer.sign(&with("scope", json!("models.read"))), "fixed")]
    {
        let answer = call(&router, from(&token, get("/v1/models"))).await;
        assert_eq!(answer.body["data"][0]["owned_by"], owner, "{answer:?}");
    }

    // What does not hold is refused over HTTP by its fault, and whatever it would have been allowed.
    let expired = KeyRecord { expires: Some(time.now()), ..shop.record().clone() };
    let keys = ApiKeys::open(Source::of(list([expired])), clock(&time)).await.unwrap();
    let jwt = JwtAuthenticator::new(
        JwtOptions::new("https://id.shop", "storefront"),
        Source::of(set([issuer.jwk()])),
        clock(&time),
    );
    let locked = builder(&time).authenticator(Arc::new(keys)).authenticator(Arc::new(jwt.unwrap()));
    let router = locked.classify("m", orders()).build().unwrap().router();
    let unsigned = crafted(&json!({ "alg": "none", "kid": "k1" }), |_| String::new());
    let late = issuer.sign(&with("exp", json!(seconds(time.now()) - 60)));
    for (token, said) in [
        (shop.reveal(), "this API key has expired"),
        (&unsigned, "the token's algorithm is not allowed"),
        (&late, "the token has expired"),
    ] {
        let answer = call(&router, from(token, get("/v1/models"))).await;
        assert_eq!((answer.status, answer.error("code"), answer.error("message")), (401, "invalid_api_key", said));
    }
}
