//! No 2xx without a log that keeps what it acknowledges.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Config;
use eventlog::message::STREAM;
use eventlog::topology::log_config;
use serde_json::json;

use crate::payload::install;
use crate::world::{Setup, World, eventually};

/// Ingest without a worker; the stream is as `change` says.
async fn with_stream(change: impl FnOnce(&mut Config)) -> World {
    let mut world = World::servers(Setup { workers: 0, ..Setup::default() });
    let mut config = log_config(&Default::default());
    change(&mut config);
    world.create_streams(config).await;
    world.start_ingest(0);
    world.wait_ingest_listens(0); // it may never be ready
    world
}

async fn readiness(world: &World) -> (u16, serde_json::Value) {
    let url = world.admin_url("ingest", 0, "/readyz");
    match world.http.get(url).send().await {
        Ok(answer) => (answer.status().as_u16(), answer.json().await.unwrap()),
        Err(_) => (0, json!(null)), // it does not listen yet
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lax_stream_is_refused_and_readiness_says_why() {
    let world = with_stream(|config| config.deny_purge = false).await;
    assert!(eventually(async || readiness(&world).await.1["log"]["contract"] == "broken").await);
    let (status, body) = readiness(&world).await;
    assert_eq!((status, &body["ready"]), (503, &json!(false)));
    assert_eq!(body["log"]["breaches"], json!(["allows_purge"]));
    let answer = world.send(&install("a")).await;
    assert_eq!((answer.status, answer.problem()), (503, "durability-contract-broken"));
    assert_eq!(world.callbacks_in_log().await, 0);
    // Alive all the same: a restart would not mend it.
    let alive = world.http.get(world.ingest_url(0, "/livez")).send().await.unwrap();
    assert_eq!(alive.status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lax_stream_is_accepted_by_name_only() {
    let mut world = World::servers(Setup { workers: 0, ..Setup::default() });
    world.configure("[stream]\nallow = [\"allows_purge\"]");
    let lax = Config { deny_purge: false, ..log_config(&Default::default()) };
    world.create_streams(lax).await;
    world.start_ingest(0);
    world.wait_ingest_ready(0);
    let (_, body) = readiness(&world).await;
    assert_eq!(
        body["log"],
        json!({
            "contract": "met", "accepted": ["allows_purge"], "commit": "group", "room": "enough"
        })
    );
    world.acknowledged(&install("a")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_syncs_lazily_is_refused() {
    let mut world = World::servers(Setup { workers: 0, ..Setup::default() });
    world.migrate();
    // Another monitoring endpoint, which says that it does not sync always.
    let lazy = axum::Router::new().route(
        "/varz",
        axum::routing::get(async || axum::Json(json!({ "jetstream": { "config": {} } }))),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, lazy).await });
    world.set_env("MOORING__NATS__MONITOR_URL", url);
    world.start_ingest(0);
    world.wait_ingest_listens(0);
    assert!(eventually(async || readiness(&world).await.1["log"]["contract"] == "broken").await);
    assert_eq!(readiness(&world).await.1["log"]["breaches"], json!(["sync_not_always"]));
    assert_eq!(world.send(&install("a")).await.status, 503);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_stream_is_named_in_readiness() {
    let mut world = World::servers(Setup { workers: 0, ..Setup::default() });
    world.start_ingest(0);
    let says = async || {
        readiness(&world).await.1["log"]["why"]
            .as_str()
            .is_some_and(|why| why.contains("worker migrate"))
    };
    assert!(eventually(says).await, "{:?}", readiness(&world).await);
    assert_eq!(readiness(&world).await.0, 503);
    world.migrate();
    world.wait_ingest_ready(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_a_callback_is_answered_503_inside_its_ack_budget() {
    let setup = Setup { workers: 0, ..Setup::default() };
    let setup = setup.env("MOORING__SOURCES__BLNK__ACK__BUDGET_MS", 1_000);
    let mut world = World::start(setup).await;
    world.nats.kill().unwrap();
    let started = Instant::now();
    let answer = world.send(&install("a")).await;
    let took = started.elapsed();
    assert_eq!((answer.status, answer.problem()), (503, "log-unavailable"));
    assert_eq!(answer.headers["retry-after"], "2");
    assert!(took >= Duration::from_millis(900), "it kept trying, for {took:?}");
    assert!(took < Duration::from_secs(5), "far from the platform's 10 s, after {took:?}");
    assert!(eventually(async || readiness(&world).await.1["nats"] == "not connected").await);
    // The platform's retry finds the server again.
    world.nats.start_again().unwrap();
    assert!(eventually(async || world.send(&install("a")).await.status == 200).await);
    assert_eq!(world.callbacks_in_log().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_stream_is_answered_503_and_keeps_what_it_has() {
    let world = with_stream(|config| config.max_bytes = 16 * 1024).await;
    let mut acknowledged = 0;
    let full = loop {
        let answer = world.send(&install(&format!("a{acknowledged}"))).await;
        if answer.status != 200 {
            break answer;
        }
        acknowledged += 1;
    };
    assert_eq!((full.status, full.problem()), (503, "log-overloaded"));
    // Whoever watches readiness is told, with what to do.
    assert!(eventually(async || readiness(&world).await.0 == 503).await);
    let room = readiness(&world).await.1["log"]["room"].to_string();
    assert!(room.contains("raise stream.max_bytes"), "{room}");
    let findings = world.operate(&["doctor", "--json"]).await.json(3);
    let of_log = |it: &&serde_json::Value| it["check"] == STREAM && it["verdict"] == "failed";
    let found = findings.as_array().unwrap().iter().find(of_log).expect("the doctor says it, too");
    assert!(found["found"].as_str().unwrap().contains("% full"), "{found}");
    assert!(acknowledged > 3, "{acknowledged}");
    assert_eq!(world.callbacks_in_log().await, acknowledged);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_start_before_their_dependencies_and_find_them() {
    let mut world = World::servers(Setup::default());
    world.nats.kill().unwrap();
    world.postgres.kill().unwrap();
    world.start_ingest(0);
    world.start_worker(0);
    assert!(eventually(async || readiness(&world).await.0 == 503).await);
    world.postgres.start_again().unwrap();
    world.nats.start_again().unwrap();
    world.migrate();
    world.wait_ingest_ready(0);
    world.wait_worker_ready(0);
    world.acknowledged(&install("a")).await;
    world.wait_for_status("a", "active").await;
    assert_eq!(
        world.jetstream().await.get_stream(STREAM).await.unwrap().cached_info().state.messages,
        1
    );
}
