//! Callbacks of the other platforms, through the whole pipeline.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::CONTENT_TYPE;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use crate::world::{Answer, Setup, World, eventually};

const LOCATION: &str = "my-app:location:loc_1";

/// HighLevel with a key of ours in the place of its published one.
pub(crate) struct HighLevel {
    key: Ed25519KeyPair,
    pub(crate) world: World,
}

impl HighLevel {
    async fn start(setup: Setup) -> Self {
        Self::start_with(setup, |_| {}).await
    }

    /// `configure` adds to the configuration.
    pub(crate) async fn start_with(setup: Setup, configure: impl FnOnce(&World)) -> Self {
        let key = Ed25519KeyPair::from_seed_unchecked(&[9; 32]).unwrap();
        // SubjectPublicKeyInfo of an Ed25519 key: RFC 8410, section 10.1.
        let mut spki = hex::decode("302a300506032b6570032100").unwrap();
        spki.extend(key.public_key().as_ref());
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\\n{}\\n-----END PUBLIC KEY-----\\n",
            BASE64_STANDARD.encode(spki)
        );
        let world = World::servers(setup);
        world.configure(&format!(
            "[sources.highlevel]\nplatform = \"highlevel\"\napp_ids = [\"my-app\"]\n\
             verification.highlevel.ed25519_keys = [\"{pem}\"]\n"
        ));
        configure(&world);
        Self { key, world: world.with_services().await }
    }

    pub(crate) async fn send(&self, callback: &Value) -> Answer {
        let body = callback.to_string();
        let signature = BASE64_STANDARD.encode(self.key.sign(body.as_bytes()).as_ref());
        self.send_signed(body, &signature).await
    }

    pub(crate) async fn send_signed(&self, body: String, signature: &str) -> Answer {
        let url = self.world.ingest_url(0, "/callbacks/highlevel");
        let request = self.world.http.post(url).header(CONTENT_TYPE, "application/json");
        let request = request.header("X-GHL-Signature", signature).body(body);
        Answer::of(request.send().await.unwrap()).await.unwrap()
    }

    pub(crate) async fn acknowledged(&self, callback: &Value) -> bool {
        let answer = self.send(callback).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["duplicate"].as_bool().unwrap()
    }
}

pub(crate) fn event(kind: &str, id: &str, time: &str, more: Value) -> Value {
    let mut event = json!({
        "type": kind, "appId": "my-app", "locationId": "loc_1",
        "webhookId": id, "timestamp": format!("2026-03-30T05:57:{time}Z")
    });
    event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    event
}

#[tokio::test(flavor = "multi_thread")]
async fn a_highlevel_reinstall_survives_the_late_uninstall_before_it() {
    let highlevel = HighLevel::start(Setup::default()).await;
    let (install, uninstall) = (
        event("INSTALL", "w1", "10.000", json!({ "companyId": "c", "planId": "p1" })),
        event("UNINSTALL", "w2", "15.950", json!({})),
    );
    let trial = json!({ "onTrial": true, "trialDuration": 10, "trialStartDate": "2026-03-30T00:00:00.000Z" });
    let reinstall = event(
        "INSTALL",
        "w3",
        "33.283",
        json!({ "companyId": "c", "planId": "p1", "trial": trial }),
    );
    assert!(!highlevel.acknowledged(&install).await);
    assert!(highlevel.acknowledged(&install).await, "a retry is a duplicate");
    highlevel.world.wait_for_status(LOCATION, "active").await;
    assert!(!highlevel.acknowledged(&reinstall).await);
    assert!(!highlevel.acknowledged(&uninstall).await);
    highlevel.world.wait_applied().await;
    let found = highlevel.world.installation(LOCATION).await;
    assert_eq!((&found["status"], &found["generation"]), (&json!("active"), &json!(2)));
    assert_eq!(found["details"]["trial"]["ends_at"], "2026-04-09T00:00:00Z");

    let change =
        event("PLAN_CHANGE", "w4", "40.000", json!({ "currentPlanId": "p1", "newPlanId": "p2" }));
    assert!(!highlevel.acknowledged(&change).await);
    highlevel.world.wait_applied().await;
    let on_plan = highlevel.world.read("/v1/installations?plan=p2").await.body;
    assert_eq!(on_plan["installations"][0]["installation_id"], LOCATION);
    assert_eq!(on_plan["installations"][0]["details"]["trial"]["on_trial"], true);
    assert_eq!(
        highlevel.world.read("/v1/installations?plan=p1").await.body["installations"],
        json!([])
    );

    assert!(!highlevel.acknowledged(&event("UNINSTALL", "w5", "50.000", json!({}))).await);
    highlevel.world.wait_for_status(LOCATION, "inactive").await;
    let keys = ["w1", "w2", "w3", "w4", "w5"].map(str::to_owned);
    highlevel.world.assert_exactly_once(&keys).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_highlevel_timestamp_that_cannot_be_is_no_timestamp() {
    let highlevel = HighLevel::start(Setup::default()).await;
    let at = |kind: &str, id: &str, timestamp: &str| {
        let mut event = event(kind, id, "10.000", json!({ "companyId": "c" }));
        event["timestamp"] = json!(timestamp);
        event
    };
    let install = at("INSTALL", "w1", "0001-01-01T00:00:00Z");
    assert!(!highlevel.acknowledged(&install).await);
    assert!(highlevel.acknowledged(&install).await, "a retry is a duplicate");
    highlevel.world.wait_for_status(LOCATION, "active").await;
    assert!(!highlevel.acknowledged(&at("UNINSTALL", "w2", "9999-12-31T23:59:59Z")).await);
    highlevel.world.wait_for_status(LOCATION, "inactive").await;
    assert!(!highlevel.acknowledged(&at("INSTALL", "w3", "9999-06-01T00:00:00Z")).await);
    let again = highlevel.world.wait_for_status(LOCATION, "active").await;
    assert_eq!(again["generation"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_highlevel_update_removes_a_whitelabel_that_ended() {
    let highlevel = HighLevel::start(Setup::default()).await;
    let brand = json!({ "domain": "example.com", "logoUrl": "https://example.com/logo.png" });
    let more = json!({ "isWhitelabelCompany": true, "whitelabelDetails": brand, "planId": "p1" });
    assert!(!highlevel.acknowledged(&event("INSTALL", "w1", "10.000", more)).await);
    let found = highlevel.world.wait_for_status(LOCATION, "active").await;
    assert_eq!(found["details"]["whitelabel"]["domain"], "example.com");
    let none = json!({ "domain": "", "logoUrl": "" });
    let more = json!({ "isWhitelabelCompany": false, "whitelabelDetails": none, "planId": "" });
    assert!(!highlevel.acknowledged(&event("UPDATE", "w2", "20.000", more)).await);
    highlevel.world.wait_applied().await;
    let found = highlevel.world.installation(LOCATION).await;
    assert_eq!(found["details"], json!({ "plan_id": "p1" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_highlevel_did_not_sign_or_signed_for_another_app_is_refused() {
    let highlevel = HighLevel::start(Setup { workers: 0, ..Setup::default() }).await;
    let install = event("INSTALL", "w1", "10.000", json!({}));
    let signed =
        BASE64_STANDARD.encode(highlevel.key.sign(install.to_string().as_bytes()).as_ref());
    let spaced = serde_json::to_string_pretty(&install).unwrap();
    for (body, signature) in [
        (install.to_string(), ""),
        (install.to_string(), "N/A"),
        (install.to_string(), "forged"),
        (spaced, signed.as_str()),
    ] {
        let answer = highlevel.send_signed(body, signature).await;
        assert_eq!((answer.status, answer.problem()), (401, "unauthentic"));
    }
    for kind in ["INSTALL", "UNINSTALL"] {
        let mut foreign = event(kind, "w2", "10.000", json!({}));
        foreign["appId"] = json!("another-app");
        foreign.as_object_mut().unwrap().remove("locationId");
        foreign["companyId"] = json!("c");
        let answer = highlevel.send(&foreign).await;
        assert_eq!((answer.status, answer.problem()), (403, "foreign-app"), "{kind}");
    }
    assert_eq!(highlevel.world.callbacks_in_log().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_highlevel_tells_of_others_is_acknowledged_and_not_kept() {
    let highlevel = HighLevel::start_with(Setup { workers: 0, ..Setup::default() }, |world| {
        world.replace_in_config(
            "platform = \"highlevel\"",
            "platform = \"highlevel\"\nignore = [\"AppPaymentStatus\"]",
        );
    })
    .await;
    // As documented for 55 of 58 types: no appId.
    let contact = json!({ "type": "ContactCreate", "locationId": "loc_1", "id": "c1", "email": "a@b.example" });
    let mut of_another = event("SOMETHING_NEW", "w2", "10.000", json!({}));
    of_another["appId"] = json!("another-app");
    let configured = event("AppPaymentStatus", "w3", "10.000", json!({}));
    for event in [contact, of_another, configured] {
        let answer = highlevel.send(&event).await;
        assert_eq!((answer.status, &answer.body["ignored"]), (200, &json!(true)), "{answer:?}");
    }
    assert_eq!(highlevel.world.callbacks_in_log().await, 0);
    let ours = event("SOMETHING_NEW", "w4", "10.000", json!({}));
    assert!(!highlevel.acknowledged(&ours).await);
    assert_eq!(highlevel.world.callbacks_in_log().await, 1, "what may be ours is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_highlevel_payload_without_id_and_time_is_counted_once() {
    let highlevel = HighLevel::start(Setup::default()).await;
    let bare = |kind: &str| json!({ "type": kind, "appId": "my-app", "locationId": "loc_1" });
    for kind in ["INSTALL", "INSTALL"] {
        assert!(!highlevel.acknowledged(&bare(kind)).await);
    }
    highlevel.world.wait_applied().await;
    assert_eq!(highlevel.world.installation(LOCATION).await["generation"], 1);
    for kind in ["UNINSTALL", "UNINSTALL", "INSTALL"] {
        highlevel.acknowledged(&bare(kind)).await;
    }
    highlevel.world.wait_applied().await;
    let found = highlevel.world.installation(LOCATION).await;
    assert_eq!((&found["status"], &found["generation"]), (&json!("active"), &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_securityscorecard_install_and_a_later_one() {
    let world = World::servers(Setup::default());
    world.configure(
        "[sources.ssc]\nplatform = \"securityscorecard\"\nverification.unverified = true\n",
    );
    let world = world.with_services().await;
    let url = world.ingest_url(0, "/callbacks/ssc");
    let installed = |at: &str| {
        json!({ "event": { "type": "app.installed", "payload": {
            "app": { "id": "app_1" },
            "user": { "username": "ada@example.com", "email": "ada@example.com", "organizationDomain": "" },
            "installed_at": at
        } } })
    };
    let first = installed("2021-05-12T12:50:43.743Z");
    for (callback, duplicate) in
        [(&first, false), (&first, true), (&installed("2021-06-12T12:50:43.743Z"), false)]
    {
        let answer = crate::world::post(&world.http, &url, callback).await.unwrap();
        assert_eq!((answer.status, &answer.body["duplicate"]), (200, &json!(duplicate)));
    }
    world.wait_applied().await;
    let found = world.installation("app_1:user:ada@example.com").await;
    assert_eq!((&found["status"], &found["generation"]), (&json!("active"), &json!(2)));
    assert_eq!(found["scope"]["username"], "ada@example.com");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secrets_of_a_configured_platform_are_sealed_and_opened() {
    let world = World::servers(Setup::default());
    world.configure(
        "[sources.other]\nplatform = \"generic\"\nverification.unverified = true\n\
         [sources.other.mapping]\nevent_type = [\"/type\"]\ninstalled = [\"installed\"]\n\
         app_id = \"/app\"\ninstallation_id = [\"/id\"]\nsecrets = [\"/a\", \"/b/c\"]\n",
    );
    let world = world.with_services().await;
    let callback = json!({
        "type": "installed", "app": "x", "id": 7, "a": "the-first-secret", "b": { "c": "the-second-secret" }
    });
    let url = world.ingest_url(0, "/callbacks/other");
    assert_eq!(crate::world::post(&world.http, &url, &callback).await.unwrap().status, 200);
    world.wait_for_status("7", "active").await;
    let opened = world.credential("7").await.body;
    let secrets: Value = serde_json::from_str(opened["credential"].as_str().unwrap()).unwrap();
    assert_eq!(secrets, json!({ "/a": "the-first-secret", "/b/c": "the-second-secret" }));
    let events = world.read("/v1/installations/7/events").await.body;
    assert!(!events.to_string().contains("-secret\""), "{events}");
    let seen = eventually(async || !world.worker_log().is_empty()).await;
    assert!(seen && !world.worker_log().contains("the-first-secret"));
}
