#![expect(clippy::disallowed_methods, reason = "the library compares with the clock")]

use ring::signature::{Ed25519KeyPair, KeyPair as _};

use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
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
        field: None,
        secrets: vec!["the one before".into(), "It's a Secret to Everybody".into()],
        timestamp: None,
    };
    let verifies = |signature: &str, body: &[u8]| {
        hmac.verifies(&headers(&[("x-hub-signature-256", signature)]), body, NOW)
    };
    assert!(verifies(SIGNATURE, b"Hello, World!"));
    assert!(!verifies(SIGNATURE, b"Hello, World"));
    assert!(!verifies(SIGNATURE.trim_start_matches("sha256="), b"Hello, World!"));
    assert!(!verifies(&SIGNATURE[..60], b"Hello, World!"));
    assert!(!verifies("sha256=", b"Hello, World!"));
    assert!(!hmac.verifies(&HeaderMap::new(), b"Hello, World!", NOW));
    let twice = headers(&[("x-hub-signature-256", SIGNATURE), ("x-hub-signature-256", SIGNATURE)]);
    assert!(!hmac.verifies(&twice, b"Hello, World!", NOW));
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
    let schemes = vec![scheme(CURRENT, ed25519().1), scheme(LEGACY, rsa)];
    PublicKeySignature { schemes, timestamp: None }
}

#[test]
fn either_scheme_verifies_the_exact_bytes() {
    let signature = BASE64_STANDARD.encode(ed25519().0.sign(BODY).as_ref());
    for (header, signature) in [(CURRENT, signature.as_str()), (LEGACY, RSA_SIGNATURE)] {
        let sent = headers(&[(header, signature)]);
        assert!(both().verifies(&sent, BODY, NOW), "{header}");
        assert!(!both().verifies(&sent, br#"{"type": "INSTALL"}"#, NOW), "{header}");
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
        assert_eq!(both().verifies(&headers(sent), BODY, NOW), verified, "{sent:?}");
    }
}

#[test]
fn a_scheme_that_is_not_accepted_does_not_count() {
    let mut only_current = both();
    only_current.schemes.truncate(1);
    let sent = headers(&[(LEGACY, RSA_SIGNATURE)]);
    assert!(!only_current.verifies(&sent, BODY, NOW));
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
    let now = Timestamp::now().as_second();
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

/// As Slack signs (<https://api.slack.com/authentication/verifying-requests-from-slack>),
/// with the example that it documents.
#[test]
fn a_signed_time_is_verified_with_the_body_and_must_be_of_now() {
    const BODY: &str = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&\
        channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&\
        command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2F\
        T1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&\
        trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
    const SIGNATURE: &str = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
    const SENT: i64 = 1_531_420_618;
    let hmac = Hmac {
        headers: vec![HeaderName::from_static("x-slack-signature")],
        algorithm: HmacAlgorithm::Sha256,
        encoding: Encoding::Hex,
        prefix: "v0=".to_owned(),
        field: None,
        secrets: vec!["8f742231b10e8888abcd99yyyzzz85a5".into()],
        timestamp: Some(SignedTimestamp {
            header: HeaderName::from_static("x-slack-request-timestamp"),
            field: None,
            before: "v0:".to_owned(),
            between: ":".to_owned(),
            tolerance: SignedDuration::from_mins(5),
        }),
    };
    let verifies = |sent: &str, received_s: i64| {
        let sent = [("x-slack-signature", SIGNATURE), ("x-slack-request-timestamp", sent)];
        let received_at = Timestamp::from_second(received_s).unwrap();
        hmac.verifies(&headers(&sent), BODY.as_bytes(), received_at)
    };
    let sent = SENT.to_string();
    for (received_s, is_fresh) in [(SENT, true), (SENT + 300, true), (SENT - 300, true)] {
        assert_eq!(verifies(&sent, received_s), is_fresh, "{received_s}");
    }
    assert!(!verifies(&sent, SENT + 301), "a copy of what was sent once");
    assert!(!verifies(&sent, SENT - 301));
    let newer = SENT + 3_600;
    assert!(!verifies(&newer.to_string(), newer), "the time is signed");
    for bad in ["", "now", "9223372036854775807", "-9223372036854775808"] {
        assert!(!verifies(bad, SENT), "{bad}");
    }
    assert!(!hmac.verifies(&headers(&[("x-slack-signature", SIGNATURE)]), BODY.as_bytes(), NOW));
}
