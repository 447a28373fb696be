//! Tokens that an issuer signs.

use super::*;

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
