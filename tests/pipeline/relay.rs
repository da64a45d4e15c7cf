//! The change feed over NATS: each change once, in the order of its position, whoever is killed.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::load::Load;
use crate::payload::{install, uninstall};
use crate::world::{Setup, World, eventually};

fn setup() -> Setup {
    Setup::default()
        .env("MOORING__WORKER__CHANGES_STREAM", true)
        .env("MOORING__WORKER__ACK_WAIT_MS", 1_000)
}

/// What an app reads, with the type of each as CloudEvents has it.
async fn changes(world: &World) -> Vec<(String, Value)> {
    let jetstream = world.jetstream_as("app", &world.nats.credentials().app).await;
    let stream = jetstream.get_stream("INSTALLATION_CHANGES").await.unwrap();
    let mut changes = Vec::new();
    for sequence in 1..=stream.cached_info().state.last_sequence {
        let message = stream.direct_get(sequence).await.unwrap();
        let header = |name: &str| message.headers.get(name).unwrap().as_str().to_owned();
        assert_eq!(header("ce-id"), header("Nats-Msg-Id"));
        assert_eq!(header("ce-specversion"), "1.0");
        let subject = format!("installation_changes.blnk.app_1.{}", header("ce-type"));
        let change: Value = serde_json::from_slice(&message.payload).unwrap();
        let app = change["app_id"].as_str().unwrap();
        assert_eq!(message.subject.as_str(), subject.replace("app_1", app));
        changes.push((header("ce-type"), change));
    }
    changes
}

/// All changes, as the API has them.
async fn feed(world: &World) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let page = world.read(&format!("/v1/changes?limit=1000{after}")).await.body;
        let changes = page["changes"].as_array().unwrap().clone();
        if changes.is_empty() {
            return all;
        }
        all.extend(changes);
        after = format!("&after={}", page["cursor"].as_str().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_in_the_stream_once_and_in_order_whoever_is_killed() {
    let mut world = World::start(Setup { workers: 2, ..setup() }).await;
    let load = Load::start(&world);
    for round in 0..3 {
        let before = load.acknowledged();
        assert!(eventually(async || load.acknowledged() > before + 50).await, "no more acks");
        world.workers[round % 2].kill().unwrap();
        world.workers[round % 2].start_again().unwrap();
        if round == 1 {
            world.nats.kill().unwrap();
            world.nats.start_again().unwrap();
        }
    }
    load.stop().await;
    for worker in [0, 1] {
        world.wait_worker_ready(worker);
    }
    world.acknowledged(&install("last")).await;
    world.wait_for_status("last", "active").await;
    world.acknowledged(&uninstall("last")).await;
    world.wait_for_status("last", "inactive").await;
    world.wait_applied().await;
    let expected = feed(&world).await;
    let has_all = async || {
        let stream = world.jetstream().await.get_stream("INSTALLATION_CHANGES").await;
        stream.is_ok_and(|it| it.cached_info().state.messages >= expected.len() as u64)
    };
    assert!(eventually(has_all).await, "{}", world.worker_log());

    let found = changes(&world).await;
    assert_eq!(found.len(), expected.len());
    let mut types = BTreeMap::<String, usize>::new();
    for ((r#type, change), expected) in found.iter().zip(&expected) {
        assert_eq!((change, r#type.as_str()), (expected, expected["type"].as_str().unwrap()));
        *types.entry(r#type.clone()).or_default() += 1;
    }
    assert!(found.len() > 150, "{types:?}");
    assert!(types.contains_key("installation.deactivated"), "{types:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_made_anew_gets_all_that_the_feed_keeps() {
    let world = World::start(setup()).await;
    for id in ["a", "b", "c"] {
        world.acknowledged(&install(id)).await;
        world.wait_for_status(id, "active").await;
    }
    let count = async |world: &World| {
        let stream = world.jetstream().await.get_stream("INSTALLATION_CHANGES").await;
        stream.map_or(0, |it| it.cached_info().state.messages)
    };
    assert!(eventually(async || count(&world).await == 3).await);
    world.jetstream().await.delete_stream("INSTALLATION_CHANGES").await.unwrap();
    world.acknowledged(&install("d")).await;
    world.wait_for_status("d", "active").await;
    world.migrate();
    assert!(eventually(async || count(&world).await == 4).await, "{}", world.worker_log());
    let positions: Vec<u64> =
        changes(&world).await.iter().map(|(_, it)| it["position"].as_u64().unwrap()).collect();
    assert_eq!(positions, [1, 2, 3, 4]);
}
