//! Callbacks that come together are committed together, and a duplicate among
//! them harms none of the others.

use async_nats::jetstream::stream::Config;
use eventlog::topology::log_config;
use futures_util::future::join_all;

use crate::otlp::Receiver;
use crate::payload::install;
use crate::world::{Setup, World, eventually};

const TOGETHER: usize = 300;

fn ids(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|number| format!("a{number}")).collect()
}

fn keys(ids: &[String]) -> Vec<String> {
    ids.iter().map(|id| format!("install:{id}")).collect()
}

/// Sends the installs at once and says which were duplicates.
async fn send_together(world: &World, ingest: usize, ids: &[String]) -> Vec<bool> {
    let callbacks: Vec<_> = ids.iter().map(|id| install(id)).collect();
    let answers = join_all(callbacks.iter().map(|it| world.send_to(ingest, it))).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    answers.iter().map(|answer| answer.body["duplicate"].as_bool().unwrap()).collect()
}

async fn readiness(world: &World) -> serde_json::Value {
    let url = world.admin_url("ingest", 0, "/readyz");
    world.http.get(url).send().await.unwrap().json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_committed_as_a_batch() {
    let (otlp, setup) = Receiver::start(Setup::default()).await;
    let world = World::start(setup).await;
    assert_eq!(readiness(&world).await["log"]["commit"], "group");
    let ids = ids(0, TOGETHER);
    assert_eq!(send_together(&world, 0, &ids).await, [false; TOGETHER]);
    assert_eq!(world.callbacks_in_log().await, TOGETHER);
    world.assert_exactly_once(&keys(&ids)).await;
    let batches = async || {
        let found = otlp.metric("mooring.publish.batch.events", &[]);
        found.is_some_and(|batches| batches >= 1.0 && batches < TOGETHER as f64 / 2.0)
    };
    assert!(eventually(batches).await, "the batches hold one event each");
}

#[tokio::test(flavor = "multi_thread")]
async fn duplicates_that_another_ingest_has_stored_do_not_poison_a_batch() {
    let world = World::start(Setup { ingests: 2, workers: 2, ..Setup::default() }).await;
    let all = ids(0, TOGETHER);
    let stored: Vec<String> = all.iter().step_by(3).cloned().collect();
    send_together(&world, 0, &stored).await;
    // The second ingest knows nothing of them; the server refuses its batches.
    let expected: Vec<bool> = all.iter().map(|id| stored.contains(id)).collect();
    assert_eq!(send_together(&world, 1, &all).await, expected);
    assert_eq!(world.callbacks_in_log().await, TOGETHER);
    // Now both know.
    assert_eq!(send_together(&world, 1, &all).await, [true; TOGETHER]);
    world.assert_exactly_once(&keys(&all)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_atomic_batches_each_event_is_published_alone() {
    let mut world = World::servers(Setup { workers: 0, ..Setup::default() });
    let config = Config { allow_atomic_publish: false, ..log_config(&Default::default()) };
    world.create_streams(config).await;
    world.start_ingest(0);
    world.wait_ingest_ready(0);
    assert_eq!(readiness(&world).await["log"]["commit"], "single");
    let ids = ids(0, TOGETHER);
    assert_eq!(send_together(&world, 0, &ids).await, [false; TOGETHER]);
    assert_eq!(world.callbacks_in_log().await, TOGETHER);
}
