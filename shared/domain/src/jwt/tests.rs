use http::header::AUTHORIZATION;
use serde_json::json;

use super::*;

const SECRET: &[u8] = b"a-signing-secret-of-the-test";
const NOW: i64 = 1_800_000_000;

fn hs256() -> Jwt {
    use_ring();
    Jwt {
        token_in: TokenIn::Header(AUTHORIZATION),
        algorithm: Algorithm::Hs256,
        keys: Keys::Secrets(vec![String::from_utf8_lossy(SECRET).into_owned().into()]),
        issuer: None,
        audience: None,
        tolerance: SignedDuration::from_secs(60),
    }
}

/// Signed by ring, which is not what checks it.
fn token(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(claims));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
    let mac = BASE64_URL_SAFE_NO_PAD.encode(ring::hmac::sign(&key, signed.as_bytes()));
    format!("{signed}.{mac}")
}

fn claims(jwt: &Jwt, text: &str) -> Option<Claims> {
    let headers = HeaderMap::from_iter([(AUTHORIZATION, text.parse().unwrap())]);
    jwt.claims(&headers, b"", Timestamp::from_second(NOW).unwrap())
}

fn passes(jwt: &Jwt, header: &Value, said: &Value) -> bool {
    claims(jwt, &token(header, said, SECRET)).is_some()
}

#[test]
fn a_token_is_read_alone_or_after_bearer() {
    let token = token(&json!({ "alg": "HS256" }), &json!({ "exp": NOW, "x": 1 }), SECRET);
    for text in [token.clone(), format!("Bearer {token}")] {
        assert_eq!(claims(&hs256(), &text).unwrap()["x"], 1);
    }
    for text in ["", "Bearer ", "a.b.c", &format!("Basic {token}"), &token[1..]] {
        assert!(claims(&hs256(), text).is_none(), "{text}");
    }
}

#[test]
fn a_token_is_of_now() {
    let header = json!({ "alg": "HS256" });
    for (said, is_of_now) in [
        (json!({ "exp": NOW + 300 }), true),
        (json!({ "exp": NOW - 59 }), true),
        (json!({ "exp": NOW - 61 }), false),
        (json!({}), false),
        (json!({ "exp": "soon" }), false),
        (json!({ "exp": NOW, "nbf": NOW + 61 }), false),
        (json!({ "exp": NOW, "iat": NOW + 61 }), false),
        (json!({ "exp": NOW, "iat": NOW - 86_400 }), true),
    ] {
        assert_eq!(passes(&hs256(), &header, &said), is_of_now, "{said}");
    }
}

#[test]
fn only_the_algorithm_that_was_chosen_is_taken() {
    let said = json!({ "exp": NOW });
    for header in [
        json!({ "alg": "none" }),
        json!({ "alg": "HS512" }),
        json!({ "alg": "RS256" }),
        json!({ "alg": "HS256", "crit": ["b64"], "b64": false }),
        json!({}),
    ] {
        assert!(!passes(&hs256(), &header, &said), "{header}");
    }
    // A public key is no secret, whatever the token says.
    let key = vec![4; 65];
    let forged = token(&json!({ "alg": "HS256" }), &said, &key);
    let public = |algorithm| Jwt {
        algorithm,
        keys: Keys::Public(vec![PublicKey::P256(key.clone())]),
        ..hs256()
    };
    for algorithm in [Algorithm::Es256, Algorithm::Rs256, Algorithm::Hs256] {
        assert!(claims(&public(algorithm), &forged).is_none(), "{algorithm:?}");
    }
}

#[test]
fn issuer_and_audience_are_those_that_are_expected() {
    let jwt = Jwt { issuer: Some("them".into()), audience: Some("us".into()), ..hs256() };
    let header = json!({ "alg": "HS256" });
    for (iss, aud, is_right) in [
        (json!("them"), json!("us"), true),
        (json!("them"), json!(["others", "us"]), true),
        (json!(["them"]), json!("us"), false),
        (json!("others"), json!("us"), false),
        (json!("them"), json!("others"), false),
        (Value::Null, json!("us"), false),
        (json!("them"), Value::Null, false),
    ] {
        let said = json!({ "exp": NOW, "iss": iss, "aud": aud });
        assert_eq!(passes(&jwt, &header, &said), is_right, "{said}");
    }
    assert!(!passes(&jwt, &header, &json!({ "exp": NOW })));
}
