//! Data keys that came back from an older copy after they were destroyed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use eventlog::keys;

use crate::erasure::{copies, erase, opened};
use crate::payload::{api_key, install, install_in, with_key};
use crate::world::{Setup, World};

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

fn streams(world: &World) -> [PathBuf; 2] {
    let all = world.nats_folder().join("jetstream/$G/streams");
    [keys::STREAM, keys::NEW_STREAM].map(|name| all.join(name))
}

/// Stops NATS, and starts it when `change` has changed its files.
fn with_nats_stopped(world: &mut World, change: impl FnOnce(&World)) {
    world.nats.stop().unwrap();
    change(world);
    world.nats.start_again().unwrap();
    world.wait_ingest_ready(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn erased_keys_that_came_back_are_destroyed_again_and_no_others() {
    let mut world = World::start(Setup::default()).await;
    for callback in [install("a"), install("b"), install_in("c", "inst_c")] {
        world.acknowledged(&callback).await;
    }
    world.wait_applied().await;
    let (of_a, of_b) = (copies(&world, "a").await, copies(&world, "b").await);
    let backup = world.folder.path().join("backup");
    with_nats_stopped(&mut world, |world| {
        fs::create_dir(&backup).unwrap();
        streams(world).iter().for_each(|stream| copy(stream, &backup));
    });
    erase(&world, "a").await;
    assert_eq!(opened(&world, "a", &of_a).await, Vec::<String>::new());
    let nothing = world.operate(&["erase-again", "--yes", "--json"]).await.json(0);
    assert_eq!((&nothing["erasures"], &nothing["keys_back"]), (&1.into(), &0.into()), "{nothing}");

    with_nats_stopped(&mut world, |world| {
        for stream in streams(world) {
            fs::remove_dir_all(&stream).unwrap();
            copy(&backup.join(stream.file_name().unwrap()), &stream);
        }
    });
    assert!(!opened(&world, "a", &of_a).await.is_empty(), "the erased key is back");
    // It came after the erasure, in the place of another.
    world.acknowledged(&install_in("d", "inst_a")).await;
    world.wait_for_status("d", "active").await;

    let would = world.operate(&["erase-again", "--dry-run", "--json"]).await.json(0);
    assert_eq!((&would["keys_back"], &would["destroyed"]), (&1.into(), &false.into()), "{would}");
    assert!(!opened(&world, "a", &of_a).await.is_empty());
    let done = world.operate(&["erase-again", "--yes", "--json"]).await.json(0);
    assert_eq!((&done["keys_back"], &done["destroyed"]), (&1.into(), &true.into()), "{done}");
    assert_eq!(opened(&world, "a", &of_a).await, Vec::<String>::new());
    assert!(!opened(&world, "b", &of_b).await.is_empty());
    for id in ["b", "c", "d"] {
        assert_eq!(world.credential(id).await.body["credential"], api_key(id), "{id}");
    }
    let again = world.operate(&["erase-again", "--yes", "--json"]).await.json(0);
    assert_eq!(again["keys_back"], 0, "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_installation_received_after_its_erasure_stays() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    erase(&world, "a").await;
    let key = "blnk_live_after_the_erasure_0123456789";
    let replaced = with_key(install("a"), key);
    world.acknowledged(&replaced).await;
    world.wait_applied().await;
    assert_eq!(world.credential("a").await.body["credential"], key);
    assert_eq!(world.operate(&["erase-again", "--yes", "--json"]).await.json(0)["keys_back"], 0);
    assert_eq!(world.credential("a").await.body["credential"], key);
}
