//! A secret that can be recognised is sent, and then looked for wherever bytes
//! are kept. It is found nowhere but through the credential endpoint.

use std::fs;
use std::path::Path;
use std::time::Duration;

use memchr::memmem;
use serde_json::json;

use crate::install_page;
use crate::oauth;
use crate::otlp::Receiver;
use crate::payload::{install, uninstall, with, with_key};
use crate::token_server::{Codes, TokenServer};
use crate::world::{Setup, World, eventually};

/// No part of it stands anywhere else.
const CANARY: &str = "blnk_Xq7CANARYz9WvT3mKp5LrD8sYh2";
/// A key may not be cut in two and be missed.
const HALF: &str = "z9WvT3mKp5LrD8s";

#[tokio::test(flavor = "multi_thread")]
async fn the_secret_is_found_only_through_the_credential_endpoint() {
    let (otlp, setup) = Receiver::start(Setup::default()).await;
    // As much as the services can be made to say.
    let world = World::servers(setup.env("RUST_LOG", "trace"));
    let tokens = configure(&world).await;
    let mut world = world.with_services().await;
    send_all(&world).await;
    send_tokens(&world, &tokens).await;
    world.wait_applied().await;
    assert_eq!(world.credential("a").await.body["credential"], CANARY);
    assert_eq!(world.credential("twice").await.body["credential"], CANARY);
    for path in ["/v1/installations", "/v1/installations/a", "/v1/installations/twice/events"] {
        assert!(!holds(world.read(path).await.body.to_string().as_bytes()), "{path}");
    }

    for service in world.ingests.iter_mut().chain(&mut world.workers) {
        service.stop(Duration::from_secs(20)).unwrap();
    }
    checkpoint(&world).await;
    assert!(!holds(&otlp.bytes()), "exported telemetry");
    assert!(contains(&otlp.bytes(), b"INSTALLATIONS"), "telemetry was exported");
    let mut searched = Searched::default();
    search(world.folder.path(), &mut searched);
    assert!(searched.found.is_empty(), "{:?}", searched.found);
    // The search would have found it: what may be kept in clear is there.
    assert!(searched.marker_in_log && searched.marker_in_postgres, "{searched:?}");
}

/// Sources whose secrets come by OAuth and by an install page.
async fn configure(world: &World) -> TokenServer {
    let whose = json!({ "userType": "Location", "locationId": "l1" });
    let server = TokenServer::start(Codes::from([(CANARY, whose)]), CANARY, 4).await;
    world.configure(&format!(
        "[sources.highlevel]\nplatform = \"highlevel\"\napp_ids = [\"my-app\"]\n{}",
        oauth::sections(world, &server, "state = \"when_present\"")
    ));
    install_page::configure(world, &format!("{}/elsewhere", server.url));
    server
}

/// As a code, in tokens that are renewed, and typed by a user.
async fn send_tokens(world: &World, server: &TokenServer) {
    let url = world.ingest_url(0, &format!("/oauth/highlevel/callback?code={CANARY}"));
    let answer = world.http.get(&url).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!holds(answer.text().await.unwrap().as_bytes()));
    // The same code again is refused.
    assert_eq!(world.http.get(&url).send().await.unwrap().status(), 400);
    assert!(eventually(async || server.seen(|seen| seen.refreshed) > 0).await);
    let installation = format!("installation={CANARY}");
    let shown = install_page::show(world, &installation).await;
    let typed = format!("{installation}&ACCESS_TOKEN={CANARY}&ACCOUNT={CANARY}");
    assert_eq!(install_page::submit(world, &shown, &typed).await.status, 307);
    let wrong = format!("{installation}&ACCESS_TOKEN={CANARY}&{CANARY}=1");
    assert_eq!(install_page::submit(world, &shown, &wrong).await.status, 422);
}

/// The secret in every place where a platform, or somebody by mistake, puts it.
async fn send_all(world: &World) {
    let keyed = |id: &str| with_key(install(id), CANARY);
    world.acknowledged(&keyed("a")).await;
    world.acknowledged(&keyed("a")).await;
    world.acknowledged(&with(keyed("twice"), "note", format!("the key is {CANARY}"))).await;
    // A whole key where its beginning should be.
    world.acknowledged(&with(keyed("prefix"), "api_key_prefix", CANARY)).await;
    world.acknowledged(&with(keyed("unknown"), "idempotency_key", "rotate:unknown")).await;
    world.acknowledged(&keyed("ended")).await;
    world.acknowledged(&uninstall("ended")).await;

    let refused = [
        with(keyed("b"), "app_id", 7),
        with(keyed("b"), "uninstalled_at", CANARY),
        with(keyed("b"), "granted_permissions", CANARY),
        with(uninstall("b"), "api_key", CANARY),
    ];
    for callback in refused {
        let answer = world.send(&callback).await;
        assert_eq!(answer.status, 422, "{answer:?}");
        assert!(!holds(answer.body.to_string().as_bytes()), "{answer:?}");
    }
    let cut_off = format!("{{\"api_key\":\"{CANARY}\"");
    let url = world.callback_url(0);
    let answer = world.http.post(&url).header("content-type", "application/json").body(cut_off);
    let answer = answer.send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 400);
    assert!(!holds(answer.text().await.unwrap().as_bytes()));
    let wrong_token = world.ingest_url(0, "/callbacks/blnk/wrong");
    let answer = world.http.post(wrong_token).json(&keyed("c")).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 401);
}

/// So that all of Postgres' pages are in files.
async fn checkpoint(world: &World) {
    sqlx::query("CHECKPOINT").execute(&mut world.connection().await).await.unwrap();
}

#[derive(Debug, Default)]
struct Searched {
    found: Vec<String>,
    marker_in_log: bool,
    marker_in_postgres: bool,
}

fn search(folder: &Path, searched: &mut Searched) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            search(&path, searched);
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        let name = path.display().to_string();
        if holds(&bytes) {
            searched.found.push(name.clone());
        }
        let marker = contains(&bytes, b"data:read");
        searched.marker_in_log |= marker && name.contains("/jetstream/");
        searched.marker_in_postgres |= marker && name.contains("/postgres/cluster/base/");
    }
}

fn holds(bytes: &[u8]) -> bool {
    contains(bytes, CANARY.as_bytes()) || contains(bytes, HALF.as_bytes())
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    memmem::find(bytes, needle).is_some()
}
