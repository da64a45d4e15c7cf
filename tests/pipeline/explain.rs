//! What happened to an installation can be asked for, refused callbacks
//! included.

use crate::payload::{install, install_in, uninstall_in, with, without};
use crate::world::{Setup, World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_is_explained_from_all_that_is_known() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install_in("a", "inst")).await;
    assert!(world.acknowledged(&install_in("a", "inst")).await, "a duplicate");
    world.acknowledged(&with(install_in("a", "inst"), "region", "eu")).await; // a conflict
    world.acknowledged(&install_in("b", "inst")).await;
    world.acknowledged(&uninstall_in("b", "inst")).await;
    world.wait_applied().await;

    let explained = world.operate(&["explain", "a", "--json"]).await.json(0);
    assert!(
        explained["because"].as_str().unwrap().starts_with("superseded: b was installed later")
    );
    let timeline = explained["timeline"].as_array().unwrap();
    let what: Vec<&str> = timeline.iter().map(|entry| entry["what"].as_str().unwrap()).collect();
    assert!(what[0].starts_with("event installed: blnk:install:a#"), "{what:?}");
    assert!(what.contains(&"status active, by event installed of it"), "{what:?}");
    assert!(what.contains(&"status superseded, by event installed of b"), "{what:?}");
    assert!(what.contains(&"the callback came again (installed): a duplicate of 1"), "{what:?}");
    assert!(what.iter().any(|what| what.contains("conflicts with another event")), "{what:?}");
    assert_eq!(timeline[0]["sequence"], 1);

    let ended = world.operate(&["explain", "b"]).await;
    let since = format!("inactive: it was uninstalled at {}", *crate::payload::ENDED_AT);
    assert!(ended.stdout.contains(&since), "{}", ended.stdout);
    assert!(ended.stdout.contains("its credential was removed when it ended"));
    assert_eq!(world.operate(&["explain", "unknown"]).await.code, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_callbacks_are_remembered_without_their_bodies() {
    let world = World::start(Setup::default()).await;
    let secret = "blnk_secret_of_a_refused_callback";
    let refused = with(without(install("a"), "app_id"), "api_key", secret);
    assert_eq!(world.send(&refused).await.status, 422);
    let forged = world.http.post(world.ingest_url(0, "/callbacks/blnk/guessed"));
    let status = forged.json(&install("a")).send().await.unwrap().status().as_u16();
    let listed = async || world.operate(&["callbacks", "--refused", "--json"]).await.json(0);
    assert!(eventually(async || listed().await.as_array().unwrap().len() == 2).await);
    let found = listed().await;
    assert_eq!(found[0]["status"], 422);
    assert_eq!((&found[1]["status"], &found[1]["source"]), (&status.into(), &"blnk".into()));
    assert!(!found.to_string().contains(secret));
    let shown = world.operate(&["callbacks", "--source", "blnk"]).await;
    assert!(shown.stdout.contains(&format!("refused {status} ")), "{shown:?}");
}
