#![expect(clippy::disallowed_methods, reason = "the library compares with the clock")]

use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::*;

const BODY: &[u8] = br#"{"type":"INSTALL"}"#;
/// Made with a key that was thrown away.
const RSA_KEY: &str = include_str!("rsa_test.pem");
const RSA_SIGNATURE: &str = include_str!("rsa_test.sig");

/// As HighLevel names them.
const CURRENT: &str = "x-ghl-signature";
const LEGACY: &str = "x-wh-signature";

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
        .collect()
}

/// GitHub's documented example.
/// <https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries>
#[test]
fn the_signature_that_github_documents_is_verified() {
    const SIGNATURE: &str =
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let hmac = Hmac {
        headers: vec![HeaderName::from_static("x-hub-signature-256")],
        algorithm: HmacAlgorithm::Sha256,
        encoding: Encoding::Hex,
        prefix: "sha256=".to_owned(),
        secrets: vec!["the one before".into(), "It's a Secret to Everybody".into()],
    };
    let verifies = |signature: &str, body: &[u8]| {
        hmac.verifies(&headers(&[("x-hub-signature-256", signature)]), body)
    };
    assert!(verifies(SIGNATURE, b"Hello, World!"));
    assert!(!verifies(SIGNATURE, b"Hello, World"));
    assert!(!verifies(SIGNATURE.trim_start_matches("sha256="), b"Hello, World!"));
    assert!(!verifies(&SIGNATURE[..60], b"Hello, World!"));
    assert!(!verifies("sha256=", b"Hello, World!"));
    assert!(!hmac.verifies(&HeaderMap::new(), b"Hello, World!"));
    let twice = headers(&[("x-hub-signature-256", SIGNATURE), ("x-hub-signature-256", SIGNATURE)]);
    assert!(!hmac.verifies(&twice, b"Hello, World!"));
}

fn ed25519() -> (Ed25519KeyPair, PublicKey) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let public = PublicKey::Ed25519(pair.public_key().as_ref().to_vec());
    (pair, public)
}

/// Two schemes, as HighLevel has them.
fn both() -> PublicKeySignature {
    let scheme = |header, key| Scheme {
        header: HeaderName::from_static(header),
        encoding: Encoding::Base64,
        keys: vec![key],
    };
    let rsa = PublicKey::from_pem(RSA_KEY).unwrap();
    PublicKeySignature { schemes: vec![scheme(CURRENT, ed25519().1), scheme(LEGACY, rsa)] }
}

#[test]
fn either_scheme_verifies_the_exact_bytes() {
    let signature = BASE64_STANDARD.encode(ed25519().0.sign(BODY).as_ref());
    for (header, signature) in [(CURRENT, signature.as_str()), (LEGACY, RSA_SIGNATURE)] {
        let sent = headers(&[(header, signature)]);
        assert!(both().verifies(&sent, BODY), "{header}");
        assert!(!both().verifies(&sent, br#"{"type": "INSTALL"}"#), "{header}");
    }
}

#[test]
fn what_is_missing_malformed_or_wrong_is_refused_without_a_second_try() {
    let good = BASE64_STANDARD.encode(ed25519().0.sign(BODY).as_ref());
    let wrong = BASE64_STANDARD.encode([0; 64]);
    let cases: [(&[(&'static str, &str)], bool); 9] = [
        (&[], false),
        (&[(CURRENT, "N/A")], false),
        (&[(CURRENT, "")], false),
        (&[(CURRENT, "not base64")], false),
        (&[(CURRENT, &wrong)], false),
        (&[(CURRENT, &wrong), (LEGACY, RSA_SIGNATURE)], false),
        (&[(LEGACY, &good)], false),
        // What is not sent does not decide.
        (&[(CURRENT, "N/A"), (LEGACY, RSA_SIGNATURE)], true),
        (&[(CURRENT, &good), (LEGACY, "N/A")], true),
    ];
    for (sent, verified) in cases {
        assert_eq!(both().verifies(&headers(sent), BODY), verified, "{sent:?}");
    }
}

#[test]
fn a_scheme_that_is_not_accepted_does_not_count() {
    let mut only_current = both();
    only_current.schemes.truncate(1);
    let sent = headers(&[(LEGACY, RSA_SIGNATURE)]);
    assert!(!only_current.verifies(&sent, BODY));
}

#[test]
fn what_is_not_pem_is_no_key() {
    assert!(PublicKey::from_pem("MCowBQYDK2VwAyEA").is_err());
}

#[test]
fn a_standard_webhook_is_verified_unless_it_is_old() {
    // The secret of the specification's example.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let webhook = standardwebhooks::Webhook::new(SECRET).unwrap();
    let now = jiff::Timestamp::now().as_second();
    let sent = |at: i64| {
        let signature = webhook.sign("msg_1", at, BODY).unwrap();
        headers(&[
            ("webhook-id", "msg_1"),
            ("webhook-timestamp", &at.to_string()),
            ("webhook-signature", &format!("v1,AAAA {signature}")),
        ])
    };
    let secrets = vec![standardwebhooks::Webhook::new(SECRET).unwrap()];
    let webhooks = StandardWebhooks { secrets };
    assert!(webhooks.verifies(&sent(now), BODY));
    assert!(!webhooks.verifies(&sent(now), b"{}"));
    assert!(!webhooks.verifies(&sent(now - 600), BODY));
    assert!(!webhooks.verifies(&sent(now + 600), BODY));
    let mut other_id = sent(now);
    other_id.insert("webhook-id", "msg_2".parse().unwrap());
    assert!(!webhooks.verifies(&other_id, BODY));
}
