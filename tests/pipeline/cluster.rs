//! Three replicas: acks pause while a new leader is elected, resume, and none is
//! false.

use std::fs;

use async_nats::jetstream::stream::PeerInfo;
use dev::nats::NatsServer;
use eventlog::keys::NEW_STREAM as KEYS_STREAM;
use eventlog::message::STREAM;

use crate::load::Load;
use crate::payload::install;
use crate::world::{Setup, World, eventually};

const ROUNDS: usize = 3;

/// The node that leads the stream, by name.
async fn leader(world: &World) -> String {
    let stream = world.stream().await;
    stream.cached_info().cluster.as_ref().unwrap().leader.clone().unwrap()
}

/// Until every replica of both streams has what the leader has: one node is killed
/// at a time, and one that is still catching up counts as killed.
async fn wait_replicated(world: &World) {
    let jetstream = world.jetstream().await;
    for name in [STREAM, KEYS_STREAM] {
        let replicated = async || {
            let Ok(stream) = jetstream.get_stream(name).await else { return false };
            let cluster = stream.cached_info().cluster.clone().unwrap_or_default();
            let is_current = |it: &PeerInfo| it.current && !it.offline;
            cluster.leader.is_some()
                && cluster.replicas.len() == 2
                && cluster.replicas.iter().all(is_current)
        };
        assert!(eventually(replicated).await, "{name} is not replicated");
    }
}

fn node<'a>(world: &'a mut World, name: &str) -> &'a mut NatsServer {
    match name.strip_prefix("nats-").and_then(|index| index.parse::<usize>().ok()) {
        Some(0) => &mut world.nats,
        Some(index) => &mut world.peers[index - 1],
        None => panic!("{name}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_killed_under_load_loses_nothing_that_was_acknowledged() {
    let setup = Setup { nodes: 3, workers: 2, ..Setup::default() };
    let mut world = World::start(setup.env("MOORING__WORKER__ACK_WAIT_MS", 2_000)).await;
    let ready = world.http.get(world.admin_url("ingest", 0, "/readyz")).send().await.unwrap();
    let ready: serde_json::Value = ready.json().await.unwrap();
    assert_eq!(ready["log"]["commit"], "single", "the servers group by themselves");

    let load = Load::start(&world);
    let goes_on = async |load: &Load| {
        let before = load.acknowledged();
        assert!(eventually(async || load.acknowledged() > before + 50).await, "no more acks");
    };
    for _ in 0..ROUNDS {
        goes_on(&load).await;
        wait_replicated(&world).await;
        let name = leader(&world).await;
        node(&mut world, &name).kill().unwrap();
        goes_on(&load).await; // by another leader
        node(&mut world, &name).start_again().unwrap();
    }
    let acknowledged = load.stop().await;
    world.assert_exactly_once(&acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_server_must_sync_every_write_and_doctor_sees_each() {
    let mut world = World::start(Setup { nodes: 3, ..Setup::default() }).await;
    wait_replicated(&world).await;
    let sound = world.operate(&["doctor"]).await;
    assert!(sound.stdout.contains("sync_interval is always on 3 servers"), "{sound:?}");
    assert_eq!(sound.code, 0, "{sound:?}");

    world.peers[1].kill().unwrap();
    let behind = async || {
        let found = world.operate(&["doctor"]).await;
        found.stdout.contains("1 of 3 replicas are behind: nats-2")
    };
    assert!(eventually(behind).await, "{:?}", world.operate(&["doctor"]).await);
    // If it led, the others need 4 to 9 s to elect another leader, and ingest gives up after 8.
    let acks = async || world.acknowledged(&install("while-one-is-away")).await;
    assert!(eventually(acks).await, "two of three are not enough");

    // It comes back, and syncs now and then.
    let config = world.folder.path().join("nats-2/nats.conf");
    let lax = fs::read_to_string(&config).unwrap().replace("sync_interval: always", "");
    fs::write(&config, lax).unwrap();
    world.peers[1].start_again().unwrap();
    let refuses = async || {
        let ready = world.http.get(world.admin_url("ingest", 0, "/readyz")).send().await.unwrap();
        ready.text().await.unwrap().contains("sync_not_always")
    };
    assert!(eventually(refuses).await, "ingest does not know");
    let lax = world.operate(&["doctor"]).await;
    let expected = format!("acknowledged events from {}", world.peers[1].monitor_url());
    assert!(lax.code == 3 && lax.stdout.contains(&expected), "{lax:?}");
}
