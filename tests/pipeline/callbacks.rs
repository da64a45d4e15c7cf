//! An installation from its callback to the read API and back.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::payload::{
    api_key, ended_after, install, install_in, uninstall, uninstall_in, with, with_key, without,
};
use crate::world::{Setup, World, eventually, post};

#[tokio::test(flavor = "multi_thread")]
async fn a_slash_at_the_end_of_the_url_costs_no_install() {
    let world = World::start(Setup::default()).await;
    let http = reqwest::Client::new();
    let answer = post(&http, &format!("{}/", world.callback_url(0)), &install("a")).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    world.wait_for_status("a", "active").await;
    let without_token = world.ingest_url(0, "/callbacks/blnk/");
    assert_eq!(post(&http, &without_token, &install("b")).await.unwrap().status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_install_becomes_active_and_an_uninstall_ends_it() {
    let world = World::start(Setup::default()).await;
    let answer = world.send(&install("a")).await;
    assert_eq!((answer.status, answer.body), (200, json!({ "ok": true, "duplicate": false })));

    let found = world.wait_for_status("a", "active").await;
    assert_eq!(found["source"], "blnk");
    assert_eq!(found["app_id"], "app_1");
    assert_eq!(found["scope"], json!({ "instance_id": "inst_a" }));
    assert_eq!(found["granted_permissions"], json!(["data:read", "data:write"]));
    assert_eq!(found["credential_prefix"], "blnk_key");
    assert_eq!(found["generation"], 1);
    assert_eq!(found["uninstalled_at"], Value::Null);
    assert_eq!(found["last_event"]["type"], "installed");
    assert_eq!(world.credential("a").await.body["credential"], api_key("a"));

    assert!(!world.acknowledged(&uninstall("a")).await);
    let found = world.wait_for_status("a", "inactive").await;
    assert_eq!(found["uninstalled_at"], crate::payload::ENDED_AT.as_str());
    assert_eq!(found["last_event"]["type"], "uninstalled");
    // The sealed secret is gone; what it began with stays.
    assert_eq!(found["credential_prefix"], "blnk_key");
    assert_eq!(world.credential("a").await.status, 404);
    let sealed = world.projection().await;
    assert!(sealed.iter().all(|row| row.credential_sealed.is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_hint_neither_cancels_an_install_nor_holds_up_an_uninstall() {
    let world = World::start(Setup::default()).await;
    for (id, field, value) in
        [("a", "organization_id", json!("")), ("b", "api_key_prefix", json!(7))]
    {
        assert!(!world.acknowledged(&with(install(id), field, value)).await);
        world.wait_for_status(id, "active").await;
    }
    let uninstalls = [
        ("a", without(uninstall("a"), "uninstalled_at")),
        ("b", with(uninstall("b"), "uninstalled_at", "0001-01-01T00:00:00Z")),
    ];
    for (id, callback) in uninstalls {
        assert!(!world.acknowledged(&callback).await);
        assert!(world.acknowledged(&callback).await, "a retry is a duplicate");
        let ended = world.wait_for_status(id, "inactive").await;
        assert!(ended["uninstalled_at"].is_string(), "the time of receipt: {ended}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_form_with_an_organization_is_taken_too() {
    let world = World::start(Setup::default()).await;
    let callback = with(install("a"), "organization_id", "org_1");
    world.acknowledged(&callback).await;
    let found = world.wait_for_status("a", "active").await;
    assert_eq!(found["scope"], json!({ "instance_id": "inst_a", "organization_id": "org_1" }));
    world.acknowledged(&with(uninstall("a"), "organization_id", "org_1")).await;
    world.wait_for_status("a", "inactive").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_and_unknown_kinds_are_kept() {
    let world = World::start(Setup::default()).await;
    let callback = with(install("a"), "plan", json!({ "name": "pro", "seats": 5 }));
    world.acknowledged(&callback).await;
    let unknown = with(with(install("a"), "idempotency_key", "suspend:a"), "why", "unpaid");
    world.acknowledged(&unknown).await;
    world.wait_applied().await;

    let events = world.read("/v1/installations/a/events").await.body["events"].clone();
    assert_eq!(events[0]["payload"]["plan"], json!({ "name": "pro", "seats": 5 }));
    assert_eq!(events[0]["payload"]["api_key"], json!({ "$sealed": "api_key" }));
    // What its secrets are is not known, so all of it is sealed.
    assert_eq!(events[1]["type"], "unrecognized");
    assert_eq!(events[1]["payload"], Value::Null);
    assert_eq!(world.installation("a").await["status"], "active");
    world.assert_exactly_once(&["install:a".to_owned(), "suspend:a".to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_installation_supersedes_the_older_and_a_late_uninstall_does_not_touch_it() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install_in("first", "inst")).await;
    world.acknowledged(&install_in("second", "inst")).await;
    let found = world.wait_for_status("first", "superseded").await;
    assert_eq!(found["superseded_by"], "second");
    assert_eq!(world.credential("first").await.status, 404);
    assert_eq!(world.wait_for_status("second", "active").await["generation"], 2);

    world.acknowledged(&uninstall_in("first", "inst")).await;
    world.wait_for_status("first", "inactive").await;
    assert_eq!(world.installation("second").await["status"], "active");
    assert_eq!(world.credential("second").await.body["credential"], api_key("second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uninstall_that_overtakes_its_install_wins() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&uninstall("a")).await;
    world.wait_for_status("a", "inactive").await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    assert_eq!(world.installation("a").await["status"], "inactive");
    assert_eq!(world.credential("a").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ended_credential_is_kept_where_it_is_configured() {
    let setup = Setup::default().env("MOORING__WORKER__KEEP_ENDED_CREDENTIALS", true);
    let world = World::start(setup).await;
    world.acknowledged(&install("a")).await;
    world.acknowledged(&uninstall("a")).await;
    world.wait_for_status("a", "inactive").await;
    assert_eq!(world.credential("a").await.body["credential"], api_key("a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_credential_is_the_one_that_is_opened() {
    let world = World::start(Setup::default()).await;
    let old = install("a");
    let new = with_key(install("a"), "blnk_key_that_was_replaced_987");
    assert!(!world.acknowledged(&old).await);
    assert!(!world.acknowledged(&new).await, "a new secret is not a duplicate");
    assert!(world.acknowledged(&old).await, "a copy of the first is one");
    world.wait_applied().await;
    let opened = world.credential("a").await;
    assert_eq!(opened.body["credential"], "blnk_key_that_was_replaced_987");
    assert_eq!(world.installation("a").await["generation"], 1);
    let events = world.read("/v1/installations/a/events").await.body["events"].clone();
    assert_eq!(events.as_array().unwrap().len(), 2);
}

/// Blnk sends a secret once, and documents no such install.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_secret_for_what_had_ended_is_kept_until_something_decides() {
    let world = World::start(Setup::default()).await;
    let again = with_key(install("a"), "blnk_key_that_came_after_the_end");
    assert!(!world.acknowledged(&install("a")).await);
    assert!(!world.acknowledged(&uninstall("a")).await);
    world.wait_for_status("a", "inactive").await;
    assert!(world.acknowledged(&install("a")).await, "a copy of what it had");
    assert!(!world.acknowledged(&again).await);
    world.wait_for_status("a", "unverified").await;
    assert_eq!(world.credential("a").await.body["credential"], "blnk_key_that_came_after_the_end");
    let later = with(uninstall("a"), "uninstalled_at", ended_after(2));
    assert!(!world.acknowledged(&later).await);
    world.wait_for_status("a", "inactive").await;
    assert_eq!(world.credential("a").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_is_answered_and_not_told_which_sources_there_are() {
    let world = World::start(Setup { workers: 0, ..Setup::default() }).await;
    let unknown = world.ingest_url(0, "/callbacks/unknown");
    for url in [world.callback_url(0), unknown.clone(), format!("{unknown}/token")] {
        for request in [world.http.get(&url), world.http.head(&url)] {
            assert_eq!(request.send().await.unwrap().status().as_u16(), 204, "{url}");
        }
    }
    let put = world.http.put(world.callback_url(0)).send().await.unwrap();
    assert_eq!(
        (put.status().as_u16(), &put.headers()["allow"]),
        (405, &"GET, HEAD, POST".parse().unwrap())
    );
    assert_eq!(world.callbacks_in_log().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callback_reaches_the_log_when_its_client_hangs_up() {
    let world = World::start(Setup::default()).await;
    let body = install("a").to_string();
    let url = world.callback_url(0);
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let request = format!(
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(host).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    drop(stream); // before any answer
    world.wait_applied().await;
    assert!(eventually(async || world.callbacks_in_journal().await == 1).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_ingest_finishes_what_it_has_begun() {
    let mut world = World::start(Setup::default()).await;
    // The log is away, so the callback waits inside its ack budget.
    world.nats.kill().unwrap();
    let (http, url) = (world.http.clone(), world.callback_url(0));
    let sending = tokio::spawn(async move { post(&http, &url, &install("a")).await });
    let log = || world.ingests[0].log().unwrap();
    assert!(eventually(async || log().contains("disconnected")).await);
    tokio::time::sleep(Duration::from_millis(200)).await;

    let stopping = std::thread::spawn({
        let mut ingest = world.ingests.remove(0);
        move || ingest.stop(Duration::from_secs(20)).unwrap()
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.nats.start_again().unwrap();
    let answer = sending.await.unwrap().unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let stopped = tokio::task::spawn_blocking(|| stopping.join().unwrap()).await.unwrap();
    assert!(matches!(stopped, Some(dev::Stopped::Cleanly(status)) if status.success()));
    world.wait_for_status("a", "active").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_is_optional_may_be_absent() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&without(install("a"), "api_key_prefix")).await;
    let found = world.wait_for_status("a", "active").await;
    assert_eq!(found["credential_prefix"], Value::Null);
}

/// The record of a refusal that the platform should hear of, and what became of it.
async fn refusals(world: &World) -> Vec<Value> {
    let found = world.operate(&["callbacks", "--refused", "--json"]).await.json(0);
    found.as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_forged_callbacks_pushes_out_no_record_of_others() {
    const FLOOD: usize = 400_000;
    let world = World::start(Setup::default()).await;
    let mut malformed = install("a");
    malformed.as_object_mut().unwrap().remove("instance_id");
    let refused = world.send(&malformed).await;
    assert_eq!((refused.status, refused.problem()), (422, "missing-field"));
    world.acknowledged(&install("b")).await;
    assert!(world.acknowledged(&install("b")).await);
    let forged = world.ingest_url(0, "/callbacks/blnk/guess");
    for _ in 0..500 {
        assert_eq!(post(&world.http, &forged, &install("c")).await.unwrap().status, 401);
    }
    let of = |found: &[Value], reason: &str| {
        let of_reason = found.iter().filter(|it| it["reason"] == reason).cloned();
        of_reason.collect::<Vec<Value>>()
    };
    assert!(eventually(async || !of(&refusals(&world).await, "unauthentic").is_empty()).await);
    let found = refusals(&world).await;
    let records = of(&found, "unauthentic");
    let told = |it: &Value| 1 + it["omitted"].as_u64().unwrap_or_default();
    let told: u64 = records.iter().map(told).sum();
    assert!(told <= 500, "{told}");
    assert_eq!(of(&found, "missing-field").len(), 1);

    // As many ingests would, for a long time.
    let body = records[0].to_string();
    let options = async_nats::ConnectOptions::new()
        .user_and_password("ingest".to_owned(), world.nats.credentials().ingest.clone())
        .custom_inbox_prefix("_INBOX_ingest");
    let client = options.connect(world.nats.url()).await.unwrap();
    let acknowledging = async_nats::jetstream::new(client.clone());
    let subject = "callbacks.blnk.unverified";
    for number in 0..FLOOD {
        client.publish(subject, body.clone().into()).await.unwrap();
        if number % 5_000 == 0 {
            // The server drops what comes faster than it stores.
            let stored = acknowledging.publish(subject, body.clone().into()).await.unwrap();
            stored.await.unwrap();
        }
    }
    acknowledging.publish(subject, body.into()).await.unwrap().await.unwrap();
    let found = world.operate(&["callbacks", "--json"]).await.json(0);
    let found = found.as_array().unwrap();
    assert_eq!(of(found, "missing-field").len(), 1, "the real refusal is gone");
    assert_eq!(found.iter().filter(|it| it["outcome"] == "duplicate").count(), 1);
    let unverified = of(found, "unauthentic").len();
    assert!((1..=2_000).contains(&unverified), "{unverified}");
}
