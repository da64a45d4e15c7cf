//! Proofs that callbacks carry. Nothing passes but what was signed here.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use domain::signature::{
    Encoding, Hmac, HmacAlgorithm, PublicKey, PublicKeySignature, Scheme, StandardWebhooks,
};
use domain::verify::{Check, Delivery, Verification};
use hmac::{KeyInit as _, Mac as _};
use http::header::HeaderName;
use jiff::Timestamp;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use sha2::Sha256;
use standardwebhooks::Webhook;

use crate::adapters::headers;
use crate::mutate::Input;
use crate::world::now;

const BODY: &str = r#"{"type":"INSTALL","appId":"a","locationId":"l"}"#;
const TOKEN: &str = "a-token-that-nobody-guesses";
const STANDARD_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn header(name: &'static str) -> HeaderName {
    HeaderName::from_static(name)
}

fn ed25519() -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap()
}

fn hmac() -> Vec<u8> {
    let mac = hmac::Hmac::<Sha256>::new_from_slice(TOKEN.as_bytes()).unwrap();
    mac.chain_update(BODY).finalize().into_bytes().to_vec()
}

/// Path token, headers and body, each as its check takes them.
pub(crate) fn signed() -> Vec<Input> {
    let standard = Webhook::new(STANDARD_SECRET).unwrap();
    let sent = Timestamp::now().as_second();
    let standard = standard.sign("msg_1", sent, BODY.as_bytes()).unwrap();
    let public_key = BASE64_STANDARD.encode(ed25519().sign(BODY.as_bytes()).as_ref());
    vec![
        Input::new("path", &[TOKEN, "", BODY]),
        Input::new("header", &["", &format!("x-token: {TOKEN}"), BODY]),
        Input::new("hex", &["", &format!("x-signature: sha256={}", hex::encode(hmac())), BODY]),
        Input::new(
            "base64",
            &["", &format!("x-signature: {}", BASE64_STANDARD.encode(hmac())), BODY],
        ),
        Input::new("ed25519", &["", &format!("x-signature: {public_key}"), BODY]),
        Input::new(
            "standard",
            &[
                "",
                &format!(
                    "webhook-id: msg_1\nwebhook-timestamp: {sent}\nwebhook-signature: {standard}"
                ),
                BODY,
            ],
        ),
    ]
}

fn check(name: &str) -> Check {
    let by_hmac = |encoding, prefix: &str| {
        Check::Hmac(Hmac {
            headers: vec![header("x-signature")],
            algorithm: HmacAlgorithm::Sha256,
            encoding,
            prefix: prefix.to_owned(),
            field: None,
            secrets: vec!["the one before".into(), TOKEN.into()],
            timestamp: None,
        })
    };
    match name {
        "path" => Check::PathToken(vec![TOKEN.into()]),
        "header" => Check::Header { name: header("x-token"), values: vec![TOKEN.into()] },
        "hex" => by_hmac(Encoding::Hex, "sha256="),
        "base64" => by_hmac(Encoding::Base64, ""),
        "ed25519" => {
            let keys = vec![PublicKey::Ed25519(ed25519().public_key().as_ref().to_vec())];
            let scheme = Scheme { header: header("x-signature"), encoding: Encoding::Base64, keys };
            Check::PublicKey(PublicKeySignature { schemes: vec![scheme], timestamp: None })
        }
        _ => {
            let secrets = vec![Webhook::new(STANDARD_SECRET).unwrap()];
            Check::StandardWebhooks(StandardWebhooks { secrets })
        }
    }
}

pub(crate) fn signature(input: &Input) {
    let (token, sent, body) = (input.text(0), headers(&input.text(1)), &input.parts[2]);
    let is_by_path = input.of == "path";
    let delivery = Delivery {
        method: &http::Method::POST,
        path_token: is_by_path.then_some(token.as_str()),
        query: None,
        headers: &sent,
        body,
        received_at: now(),
    };
    let passes = |check| Verification::All(vec![check]).verify(delivery).is_ok();
    let (is_signed, has_token) = (body == BODY.as_bytes(), token == TOKEN);
    let has_header = sent.get_all("x-token").iter().eq([TOKEN]);
    let may_pass = match input.of {
        "path" => has_token,
        "header" => has_header,
        _ => is_signed,
    };
    assert!(!passes(check(input.of)) || may_pass, "a forged callback passes");
    // The others ask for what it does not carry.
    let others = ["path", "header", "hex", "base64", "ed25519", "standard"];
    let others = others.into_iter().filter(|other| *other != input.of);
    assert!(!others.into_iter().any(|other| passes(check(other)) && !is_signed && !has_header));
    assert!(Verification::All(Vec::new()).verify(delivery).is_err());
}
