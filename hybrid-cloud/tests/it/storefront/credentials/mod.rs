//! API keys and tokens: which hold, which do not, and how they change under way.

mod jwks;
mod keys;
mod tokens;

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

/// A token whose header is written by hand.
fn crafted(header: &Value, sign: impl FnOnce(&str) -> String) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(&claims()));
    let signature = sign(&message);
    format!("{message}.{signature}")
}

fn tokens(source: Arc<dyn CredentialSource>, time: &ManualClock) -> JwtAuthenticator {
    JwtAuthenticator::new(JwtOptions::new("https://id.shop", "storefront"), source, clock(time)).unwrap()
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
