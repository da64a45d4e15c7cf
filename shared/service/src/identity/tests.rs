//! Tokens that must be accepted, and those of the attacks in RFC 8725. The keys are
//! served on loopback, as an issuer serves them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use hmac::{Hmac, KeyInit as _, Mac as _};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use serde_json::json;

use super::*;

/// An issuer with a key that signs, and what it has served.
struct World {
    issuer: Issuer,
    url: String,
    pair: EcdsaKeyPair,
    served: Arc<Served>,
    now: Timestamp,
}

#[derive(Default)]
struct Served {
    keys: Mutex<Vec<Value>>,
    fetches: AtomicUsize,
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

fn p256() -> EcdsaKeyPair {
    let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap()
}

fn p256_jwk(id: &str, pair: &EcdsaKeyPair) -> Value {
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    json!({ "kty": "EC", "crv": "P-256", "kid": id, "use": "sig", "x": encode(x), "y": encode(y) })
}

async fn serve(State(served): State<Arc<Served>>) -> Json<Value> {
    served.fetches.fetch_add(1, Ordering::Relaxed);
    Json(json!({ "keys": served.keys.lock().unwrap().clone() }))
}

impl World {
    async fn start() -> Self {
        let (pair, served) = (p256(), Arc::new(Served::default()));
        served.keys.lock().unwrap().push(p256_jwk("key-1", &pair));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let discovered = json!({ "issuer": url, "jwks_uri": format!("{url}/keys") });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(async move || Json(discovered)))
            .route("/keys", get(serve))
            .with_state(Arc::clone(&served));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let issuer = Issuer::new(IssuerOptions {
            issuer: url.clone(),
            audience: "mooring".to_owned(),
            jwks_url: None,
            algorithms: vec![Algorithm::Es256, Algorithm::Rs256, Algorithm::EdDsa],
            lifetime_max: Duration::from_secs(3_600),
        });
        Self { issuer: issuer.unwrap(), url, pair, served, now: crate::clock::now() }
    }

    /// Claims that are accepted, but for what is changed.
    fn claims(&self, changed: Value) -> Value {
        let at = self.now.as_second();
        let mut claims = json!({
            "iss": self.url, "aud": "mooring", "sub": "app", "exp": at + 600, "nbf": at,
        });
        for (name, value) in changed.as_object().unwrap() {
            let claims = claims.as_object_mut().unwrap();
            if value.is_null() {
                claims.shift_remove(name);
            } else {
                claims.insert(name.clone(), value.clone());
            }
        }
        claims
    }

    fn signed(&self, header: &Value, claims: &Value) -> String {
        let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", encode(signature))
    }

    fn token(&self, changed: Value) -> String {
        self.signed(&json!({ "alg": "ES256", "kid": "key-1" }), &self.claims(changed))
    }

    async fn verify(&self, token: &str) -> Result<Identity, NotAccepted> {
        self.issuer.verify(token, self.now).await
    }
}

#[tokio::test]
async fn a_token_for_us_is_accepted_and_its_claims_are_read() {
    let world = World::start().await;
    let token = world.token(json!({
        "aud": ["other", "mooring"], "groups": ["a", "b"], "kubernetes.io": { "namespace": "apps" },
    }));
    assert_eq!(claimed_issuer(&token).as_deref(), Some(world.url.as_str()));
    let identity = world.verify(&token).await.unwrap();
    assert_eq!(identity.subject, "app");
    for (claim, text) in [("sub", "app"), ("groups", "b"), ("/kubernetes.io/namespace", "apps")] {
        assert!(identity.has(claim, text), "{claim}");
    }
    for (claim, text) in [("sub", "ap"), ("groups", "c"), ("none", ""), ("/groups/x", "a")] {
        assert!(!identity.has(claim, text), "{claim}");
    }
}

#[tokio::test]
async fn claims_that_are_not_for_us_or_not_for_now_are_refused() {
    let world = World::start().await;
    let at = world.now.as_second();
    for (changed, why) in [
        (json!({ "iss": "https://other.example" }), NotAccepted::Issuer),
        (json!({ "iss": [world.url, "https://other.example"] }), NotAccepted::Issuer),
        (json!({ "aud": "other" }), NotAccepted::Audience),
        (json!({ "aud": ["other"] }), NotAccepted::Audience),
        (json!({ "aud": null }), NotAccepted::Malformed),
        (json!({ "sub": null }), NotAccepted::Malformed),
        (json!({ "exp": null }), NotAccepted::Malformed),
        (json!({ "exp": "tomorrow" }), NotAccepted::Malformed),
        (json!({ "exp": at - 60 }), NotAccepted::Expired),
        (json!({ "nbf": at + 60 }), NotAccepted::NotYetValid),
        (json!({ "exp": at + 7_200 }), NotAccepted::Lifetime),
        (json!({ "exp": 1e300 }), NotAccepted::Malformed),
    ] {
        assert_eq!(world.verify(&world.token(changed.clone())).await, Err(why), "{changed}");
    }
}

#[tokio::test]
async fn a_signature_that_proves_nothing_is_refused() {
    let world = World::start().await;
    let claims = world.claims(json!({}));
    let body =
        |header: &Value| format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));

    // Nothing is signed (RFC 8725, section 2.1).
    for none in ["none", "None", "NONE", ""] {
        let unsigned = format!("{}.", body(&json!({ "alg": none, "kid": "key-1" })));
        assert_eq!(world.verify(&unsigned).await, Err(NotAccepted::Malformed), "{none}");
    }
    // The public key as a shared secret.
    let (x, public) = (world.pair.public_key().as_ref(), p256_jwk("key-1", &world.pair));
    for secret in [x, public.to_string().as_bytes()] {
        let header = body(&json!({ "alg": "HS256", "kid": "key-1" }));
        let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret).unwrap();
        mac.update(header.as_bytes());
        let forged = format!("{header}.{}", encode(mac.finalize().into_bytes()));
        assert_eq!(world.verify(&forged).await, Err(NotAccepted::Algorithm));
    }
    // A key of one kind, used as another; an algorithm that is not allowed.
    let es256 = |header: Value| world.signed(&header, &claims);
    let other_kind = es256(json!({ "alg": "EdDSA", "kid": "key-1" }));
    assert_eq!(world.verify(&other_kind).await, Err(NotAccepted::UnknownKey));
    let not_allowed = es256(json!({ "alg": "ES384", "kid": "key-1" }));
    assert_eq!(world.verify(&not_allowed).await, Err(NotAccepted::Algorithm));
    // A key that the token itself brings (RFC 8725, section 3.10).
    let stranger = p256();
    let header = json!({ "alg": "ES256", "kid": "key-1", "jwk": p256_jwk("key-1", &stranger) });
    let signed = body(&header);
    let signature = stranger.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    let own_key = format!("{signed}.{}", encode(signature));
    assert_eq!(world.verify(&own_key).await, Err(NotAccepted::Signature));
    // Extensions that must be understood, claims that were changed, and no token at all.
    let critical = es256(json!({ "alg": "ES256", "kid": "key-1", "crit": ["b64"], "b64": false }));
    assert_eq!(world.verify(&critical).await, Err(NotAccepted::Malformed));
    let token = world.token(json!({}));
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, _) = signed.split_once('.').unwrap();
    let changed = encode(world.claims(json!({ "sub": "admin" })).to_string());
    let changed = format!("{header}.{changed}.{signature}");
    assert_eq!(world.verify(&changed).await, Err(NotAccepted::Signature));
    for text in ["", "a", "a.b.c", "..", "mooring_abc"] {
        assert_eq!(world.verify(text).await, Err(NotAccepted::Malformed), "{text}");
    }
}

#[tokio::test]
async fn a_flood_of_unknown_keys_costs_one_fetch_and_hides_no_known_one() {
    let world = World::start().await;
    let unknown = |number: usize| {
        let header = json!({ "alg": "ES256", "kid": format!("unknown-{number}") });
        world.signed(&header, &world.claims(json!({})))
    };
    for number in 0..200 {
        assert_eq!(world.verify(&unknown(number)).await, Err(NotAccepted::UnknownKey));
    }
    assert!(world.verify(&world.token(json!({}))).await.is_ok());
    assert_eq!(world.served.fetches.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_new_key_is_found_and_a_withdrawn_one_forgotten_at_the_next_fetch() {
    let world = World::start().await;
    assert!(world.verify(&world.token(json!({}))).await.is_ok());
    let ed25519 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let ed25519 = Ed25519KeyPair::from_pkcs8(ed25519.as_ref()).unwrap();
    let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": "key-2", "x": encode(ed25519.public_key()) });
    let odd = json!({ "kty": "oct", "kid": "key-3", "k": "AAAA" });
    *world.served.keys.lock().unwrap() = vec![json!({ "kty": "strange" }), odd, jwk];
    let header = json!({ "alg": "EdDSA", "kid": "key-2" });
    let claims = world.claims(json!({}));
    let signed = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
    let token = format!("{signed}.{}", encode(ed25519.sign(signed.as_bytes())));
    // Not before half a minute has passed, which a new cache stands for.
    assert_eq!(world.verify(&token).await, Err(NotAccepted::UnknownKey));
    let world = World { issuer: Issuer::new(world.issuer.options().clone()).unwrap(), ..world };
    assert!(world.verify(&token).await.is_ok());
    assert_eq!(world.verify(&world.token(json!({}))).await, Err(NotAccepted::UnknownKey));
}

#[tokio::test]
async fn without_its_keys_nobody_is_accepted() {
    let world = World::start().await;
    let mut options = world.issuer.options().clone();
    options.jwks_url = Some(Url::parse("http://127.0.0.1:1/keys").unwrap());
    let world = World { issuer: Issuer::new(options).unwrap(), ..world };
    let token = world.token(json!({}));
    assert_eq!(world.verify(&token).await, Err(NotAccepted::KeysUnavailable));
}
