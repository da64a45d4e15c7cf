//! The same callback again: at once, later, too late for the broker, and
//! through another process.

use std::time::Duration;

use futures_util::future::join_all;

use crate::payload::{install, uninstall, with_key};
use crate::world::{Setup, World};

/// The shortest that is still longer than the two requests of a test.
const WINDOW: Duration = Duration::from_millis(1500);

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_within_the_window_is_a_duplicate_and_is_not_stored() {
    let world = World::start(Setup::default()).await;
    for callback in [install("a"), uninstall("a")] {
        assert!(!world.acknowledged(&callback).await);
        assert!(world.acknowledged(&callback).await);
    }
    assert_eq!(world.callbacks_in_log().await, 2);
    let keys = ["install:a".to_owned(), "uninstall:a".to_owned()];
    world.assert_exactly_once(&keys).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_beyond_the_window_is_stored_again_and_applied_once() {
    let setup = Setup::default().env("MOORING__STREAM__DUPLICATE_WINDOW_MS", WINDOW.as_millis());
    let mut world = World::start(setup).await;
    let replaced = with_key(install("a"), "blnk_key_that_was_replaced_987");
    for callback in [install("a"), replaced.clone(), uninstall("b")] {
        world.acknowledged(&callback).await;
    }
    tokio::time::sleep(WINDOW * 2).await;
    for callback in [install("a"), uninstall("b")] {
        assert!(world.acknowledged(&callback).await, "this ingest remembers it");
    }
    world.ingests[0].kill().unwrap();
    world.ingests[0].start_again().unwrap();
    world.wait_ingest_ready(0);
    for callback in [install("a"), uninstall("b")] {
        assert!(!world.acknowledged(&callback).await, "broker and ingest have forgotten it");
    }
    assert_eq!(world.callbacks_in_log().await, 5);
    world.assert_exactly_once(&["uninstall:b".to_owned()]).await;
    assert_eq!(world.callbacks_in_journal().await, 3);
    // The late copy of the first key does not undo the replacement.
    let opened = world.credential("a").await.body["credential"].clone();
    assert_eq!(opened, "blnk_key_that_was_replaced_987");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_secret_after_the_window_is_not_lost() {
    let setup = Setup::default().env("MOORING__STREAM__DUPLICATE_WINDOW_MS", WINDOW.as_millis());
    let world = World::start(setup).await;
    world.acknowledged(&install("a")).await;
    world.wait_for_status("a", "active").await;
    tokio::time::sleep(WINDOW * 2).await;
    world.acknowledged(&with_key(install("a"), "blnk_key_that_was_replaced_987")).await;
    world.wait_applied().await;
    let opened = world.credential("a").await.body["credential"].clone();
    assert_eq!(opened, "blnk_key_that_was_replaced_987");
    assert_eq!(world.callbacks_in_journal().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_copies_at_once_through_two_ingests_are_stored_once() {
    let world = World::start(Setup { ingests: 2, workers: 2, ..Setup::default() }).await;
    let callback = install("a");
    let copies = (0..50).map(|copy| world.send_to(copy % 2, &callback));
    let answers = join_all(copies).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [200; 50]);
    let new = answers.iter().filter(|answer| answer.body["duplicate"] == false).count();
    assert_eq!(new, 1, "exactly one was not a duplicate");
    assert_eq!(world.callbacks_in_log().await, 1);
    world.assert_exactly_once(&["install:a".to_owned()]).await;
}
