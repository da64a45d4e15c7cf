//! The example configurations in deploy/sources, each with a callback as its
//! platform documents it, signed as its platform signs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use domain::event::{Callback, Fact};
use domain::id::SourceName;
use domain::platform::{AckContract, Adapter, MissedAck, SuccessBody};
use domain::verify::{Delivery, Verification};
use hmac::{KeyInit as _, Mac as _};
use http::HeaderMap;
use http::header::HeaderName;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::{Value, json};
use service::config::{Resolver, SourceSettings};
use sha2::Sha256;

const SECRET: &str = "a-signing-secret-of-the-test";
/// The secret of the specification's example.
const STANDARD_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

#[derive(Deserialize)]
struct File {
    sources: BTreeMap<SourceName, SourceSettings>,
}

struct Source {
    adapter: Box<dyn Adapter>,
    verification: Verification,
    ack: AckContract,
    /// Whether its URL holds a token.
    by_path: bool,
}

/// The one source of an example, as ingest would take it.
fn source(name: &str) -> Source {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/sources");
    let path = folder.join(format!("{name}.toml"));
    let file = config::File::from(path.clone()).format(config::FileFormat::Toml);
    let file = config::Config::builder().add_source(file).build().unwrap();
    let File { sources } = file.try_deserialize().unwrap();
    let env = |variable: &str| match variable {
        "WHOP_WEBHOOK_SECRET" => Some(STANDARD_SECRET.to_owned()),
        _ => Some(SECRET.to_owned()),
    };
    let mut resolver = Resolver::new(&env);
    let (name, settings) = sources.iter().next().unwrap();
    let adapter = resolver.adapter(name, settings);
    let verification = resolver.verification(name, settings);
    let ack = resolver.ack_contract(name, settings);
    resolver.oauth(name, settings);
    resolver.install_page(&path, name, settings);
    let all = adapter.zip(verification).zip(ack);
    let by_path = !settings.verification.path_tokens.is_empty();
    let source =
        all.map(|((adapter, verification), ack)| Source { adapter, verification, ack, by_path });
    resolver.finish(&path, source).unwrap()
}

impl Source {
    /// What is read of it; `None` if it is not verified.
    fn read(&self, body: &str, query: &str, headers: &[(&str, &str)]) -> Option<Callback> {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())
        };
        let headers: HeaderMap = headers.iter().map(pair).collect();
        let delivery = Delivery {
            method: &http::Method::POST,
            path_token: self.by_path.then_some(SECRET),
            query: Some(query),
            headers: &headers,
            body: body.as_bytes(),
            received_at: Timestamp::now(),
        };
        let verified = self.verification.verify(delivery).ok()?;
        Some(self.adapter.parse(&verified).unwrap())
    }
}

fn hmac_hex(secret: &str, body: &str) -> String {
    let mac = hmac::Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    hex::encode(mac.chain_update(body).finalize().into_bytes())
}

fn kind_and_id(callback: &Callback) -> (&'static str, &str) {
    (callback.fact.kind(), callback.fact.identity().unwrap().installation_id.as_str())
}

#[test]
fn every_example_is_usable() {
    for name in
        ["github", "outreach", "seismic", "standard-webhooks", "highlevel", "securityscorecard"]
    {
        source(name);
    }
}

/// <https://docs.github.com/webhooks/webhook-events-and-payloads#installation>
#[test]
fn a_github_app_installation() {
    let github = source("github");
    let body = |action: &str| {
        json!({
            "action": action,
            "installation": {
                "id": 2, "app_id": 12345, "target_type": "Organization",
                "account": { "login": "octo-org", "id": 1, "type": "Organization" },
                "repository_selection": "selected",
                "permissions": { "metadata": "read", "contents": "read", "issues": "write" },
                "events": ["push"], "created_at": "2026-07-08T16:18:44-04:00"
            },
            "sender": { "login": "octocat", "id": 5 }
        })
        .to_string()
    };
    let send = |body: &str, signed: &str| {
        let signature = format!("sha256={}", hmac_hex(SECRET, signed));
        let headers = [
            ("X-GitHub-Event", "installation"),
            ("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
            ("X-Hub-Signature-256", signature.as_str()),
        ];
        github.read(body, "", &headers)
    };
    let installed = send(&body("created"), &body("created")).unwrap();
    assert_eq!(kind_and_id(&installed), ("installed", "2"));
    assert_eq!(installed.idempotency_key.as_str(), "72d3162e-cc78-11e3-81ab-4c9367dc0958");
    let Fact::Installed { identity, granted_permissions, .. } = &installed.fact else { panic!() };
    assert_eq!(identity.place.as_str(), "12345/1");
    assert_eq!(granted_permissions, &["contents:read", "issues:write", "metadata:read"]);

    let removed = send(&body("deleted"), &body("deleted")).unwrap();
    assert_eq!(kind_and_id(&removed), ("uninstalled", "2"));
    let suspended = send(&body("suspend"), &body("suspend")).unwrap();
    assert_eq!(kind_and_id(&suspended), ("suspended", "2"));
    assert!(send(&body("created"), &body("deleted")).is_none(), "signed for another body");
}

/// <https://developers.outreach.io/client-extensions/app-lifecycle-webhooks>
#[test]
fn an_outreach_install() {
    let outreach = source("outreach");
    let body = |event: &str, delivered: &str| {
        json!({
            "data": {
                "type": "install", "id": "101",
                "relationships": { "app": { "data": { "type": "app", "id": "7" } } }
            },
            "meta": { "eventName": event, "deliveredAt": delivered }
        })
        .to_string()
    };
    let send = |body: &str, request: &str| {
        let signature = hmac_hex(SECRET, body);
        let headers =
            [("Outreach-Webhook-ID", request), ("Outreach-Webhook-Signature", signature.as_str())];
        outreach.read(body, "", &headers).unwrap()
    };
    let installed = body("install.created", "2026-07-01T10:00:00.000Z");
    assert_eq!(kind_and_id(&send(&installed, "r1")), ("installed", "101"));
    let (first, again) = (send(&installed, "r1"), send(&installed, "r2"));
    assert_eq!(first.idempotency_key, again.idempotency_key, "the request is not the event");
    let removed = body("install.deleted", "2026-07-02T10:00:00.000Z");
    assert_eq!(kind_and_id(&send(&removed, "r3")), ("uninstalled", "101"));
}

/// <https://developer.seismic.com/seismicsoftware/docs/callbacks>
#[test]
fn a_seismic_install() {
    let seismic = source("seismic");
    let body = json!({ "tenantId": "0f9c3f8e-tenant" }).to_string();
    let signature = hmac_hex(SECRET, &body);
    for header in ["x-seismic-signature", "x-seismic-signature-old"] {
        let read = |query: &str| seismic.read(&body, query, &[(header, &signature)]).unwrap();
        assert_eq!(kind_and_id(&read("event=install")), ("installed", "0f9c3f8e-tenant"));
        assert_eq!(kind_and_id(&read("event=uninstall")), ("uninstalled", "0f9c3f8e-tenant"));
        assert_eq!(read("event=disable").fact.kind(), "suspended");
    }
    assert!(seismic.read(&body, "event=install", &[]).is_none());
    let AckContract { deadline, budget, success, body, missed, .. } = seismic.ack;
    assert_eq!((deadline.as_millis(), success.as_u16()), (3_000, 202));
    assert!(budget < deadline);
    assert_eq!((body, missed), (SuccessBody::Empty, MissedAck::Cancels));
}

#[test]
fn a_standard_webhook() {
    let whop = source("standard-webhooks");
    let body = json!({
        "type": "app_installation.created", "timestamp": "2026-07-01T10:00:00Z",
        "data": { "id": "inst_1", "access_token": "the-access-token", "refresh_token": "the-refresh-token" }
    })
    .to_string();
    let signer = standardwebhooks::Webhook::new(STANDARD_SECRET).unwrap();
    let now = Timestamp::now().as_second();
    let signature = signer.sign("msg_1", now, body.as_bytes()).unwrap();
    let sent = now.to_string();
    let headers = [
        ("webhook-id", "msg_1"),
        ("webhook-timestamp", sent.as_str()),
        ("webhook-signature", signature.as_str()),
    ];
    let installed = whop.read(&body, "", &headers).unwrap();
    assert_eq!(kind_and_id(&installed), ("installed", "inst_1"));
    assert_eq!(installed.idempotency_key.as_str(), "msg_1");
    let Fact::Installed { credential: Some(credential), .. } = installed.fact else { panic!() };
    let secrets: Value = serde_json::from_str(credential.secret.expose_secret()).unwrap();
    assert_eq!(secrets["/data/refresh_token"], "the-refresh-token");
    assert!(whop.read(&body, "", &headers[..2]).is_none());
}

/// With the key that HighLevel published, which only HighLevel can sign with.
#[test]
fn what_highlevel_has_not_signed_is_refused() {
    let highlevel = source("highlevel");
    let body = json!({ "type": "INSTALL", "appId": "a", "locationId": "l" }).to_string();
    let forged = base64::prelude::BASE64_STANDARD.encode([1; 64]);
    for signature in ["", "N/A", "forged", &forged] {
        let headers = [("X-GHL-Signature", signature)];
        assert!(highlevel.read(&body, "", &headers).is_none(), "{signature}");
    }
    assert!(highlevel.read(&body, "", &[]).is_none());
}
