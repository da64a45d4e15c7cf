//! A stream that is not the one the journal was filled from: the worker refuses
//! to go on, and says why.

use std::fs;
use std::path::Path;

use dev::wait;

use crate::payload::install;
use crate::world::{DEADLINE, Setup, World, eventually};

async fn refuses(world: &mut World, why: &str) {
    let said = || world.worker_log().contains(why);
    let found = wait::until(DEADLINE, || Ok(said().then_some(()))).unwrap();
    assert!(found.is_some(), "{}", world.worker_log());
    let ended = wait::until(DEADLINE, || Ok(world.workers[0].require_running().err())).unwrap();
    assert!(ended.is_some(), "the worker goes on");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else if !entry.file_type().unwrap().is_symlink() {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Puts the log back to how it was before `change`.
pub(crate) async fn restored_after(world: &mut World, change: &[&str]) {
    let (live, backup) = (world.nats_folder(), world.folder.path().join("backup"));
    world.nats.stop().unwrap();
    copy(&live, &backup);
    world.nats.start_again().unwrap();
    world.wait_ingest_ready(0);
    for id in change {
        world.acknowledged(&install(id)).await;
    }
    world.wait_applied().await;
    world.stop_workers();
    world.nats.stop().unwrap();
    fs::remove_dir_all(&live).unwrap();
    copy(&backup, &live);
    world.nats.start_again().unwrap();
    world.wait_ingest_ready(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_restored_from_an_older_backup_is_refused() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    restored_after(&mut world, &["b", "c"]).await;
    world.start_workers_again();
    refuses(&mut world, "was truncated or restored from an older backup: it ends at sequence 1")
        .await;
    let verified = world.operate(&["verify"]).await;
    assert_eq!(verified.code, 1);
    assert!(verified.stderr.contains("the journal has events up to"), "{}", verified.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_log_that_went_on_is_refused() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    restored_after(&mut world, &["b"]).await;
    for id in ["x", "y", "z"] {
        world.acknowledged(&install(id)).await;
    }
    world.start_workers_again();
    refuses(&mut world, "it has another event than the journal").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_log_is_refused_under_a_running_worker() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_for_status("a", "active").await;
    world.jetstream().await.delete_stream("INSTALLATIONS").await.unwrap();
    world.migrate();
    // It takes a sequence that the journal knows as another event's.
    let taken = async || world.send(&install("b")).await.status == 200;
    assert!(eventually(taken).await);
    refuses(&mut world, "was recreated").await;
    assert_eq!(world.callbacks_in_journal().await, 1);
}
