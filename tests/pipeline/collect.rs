//! Data keys that nothing needs are destroyed, and never one that an event needs.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use domain::data_key::Page;
use domain::event::Fact;
use domain::id::PageId;
use domain::seal::SealedUnder;
use serde_json::Value;

use crate::archive;
use crate::erasure::{copies, opened_by, pages, ring};
use crate::load::Load;
use crate::operate::WRONG_ARGUMENTS;
use crate::payload::{api_key, install};
use crate::world::{Setup, World, eventually};

const UNUSED_MAX_S: u64 = 4;

async fn start() -> World {
    let setup = Setup::default().env("MOORING__SEALING__DATA_KEY_UNUSED_MAX_S", UNUSED_MAX_S);
    World::start(setup).await
}

async fn collect(world: &World, how: &str) -> Value {
    world.operate(&["keys", "collect", how, "--json"]).await.json(0)
}

/// Callbacks in the journal whose credential's key is there, and all of them.
async fn credentials(world: &World) -> (usize, usize) {
    let ring = ring(world);
    let stored = pages(world).await.into_iter();
    let pages: BTreeMap<PageId, Page> = stored
        .filter_map(|(id, sealed)| Some((id.clone(), Page::open(&ring, id, &sealed).ok()?)))
        .collect();
    let (mut open, mut all) = (0, 0);
    for recorded in world.journal().await {
        let Fact::Installed { credential: Some(credential), .. } = recorded.event.fact else {
            continue;
        };
        let SealedUnder::DataKey(id) = credential.sealed.under().unwrap() else { panic!() };
        let key = pages.get(&*id.page).and_then(|page| page.key(id.slot));
        (open, all) = (open + usize::from(key.is_some()), all + 1);
    }
    (open, all)
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_nothing_needs_are_destroyed_and_no_other() {
    let mut world = start().await;
    for id in ["a", "b"] {
        world.acknowledged(&install(id)).await;
    }
    world.wait_applied().await;
    let young = collect(&world, "--dry-run").await;
    assert!(young["young_pages"].as_u64().unwrap() > 0, "{young}");

    // An event that is gone from everywhere.
    let of_b = copies(&world, "b").await;
    let sequence = world.journal().await[1].sequence.0;
    world.stream().await.delete_message(sequence).await.unwrap();
    for sql in [
        "DELETE FROM mooring.journal WHERE installation_id = 'b'",
        "DELETE FROM projection.installations WHERE installation_id = 'b'",
    ] {
        sqlx::query(sql).execute(&mut world.connection().await).await.unwrap();
    }
    world.ingests[0].kill().unwrap();
    let mut plan = Value::Null;
    let all_are_old = async || {
        plan = collect(&world, "--dry-run").await;
        plan["young_pages"] == 0
    };
    assert!(eventually(all_are_old).await);
    assert!(plan["pages_removed"].as_u64().unwrap() > 0, "{plan}");
    assert_eq!((&plan["pages_changed"], &plan["pages_kept"]), (&1.into(), &0.into()), "{plan}");
    assert_eq!(world.operate(&["keys", "collect"]).await.code, WRONG_ARGUMENTS);
    let ring = ring(&world);
    assert_eq!(opened_by(&ring, &world, "b", &of_b[..1]).await.len(), 1, "nobody agreed");

    let done = collect(&world, "--yes").await;
    assert_eq!(done, plan);
    assert_eq!(opened_by(&ring, &world, "b", &of_b[..1]).await, Vec::<String>::new());
    assert_eq!(world.credential("a").await.body["credential"], api_key("a").as_str());
    assert_eq!(pages(&world).await.len(), 1);
    assert_eq!(credentials(&world).await, (1, 1));
    // The page was changed just now, and its turn comes again.
    let again = collect(&world, "--yes").await;
    assert_eq!((&again["pages_removed"], &again["young_pages"]), (&0.into(), &1.into()), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_that_was_idle_uses_no_key_that_was_collected() {
    let world = start().await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    // What it has held ready since it started.
    let first: Vec<PageId> = pages(&world).await.into_iter().map(|(id, _)| id).collect();
    let gone = async || {
        collect(&world, "--yes").await;
        let left = pages(&world).await;
        left.iter().filter(|(id, _)| first.contains(id)).count() <= 1
    };
    assert!(eventually(gone).await);
    world.acknowledged(&install("b")).await;
    world.wait_applied().await;
    assert_eq!(world.credential("b").await.body["credential"], api_key("b").as_str());
    assert_eq!(credentials(&world).await, (2, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_collected_under_load_and_every_credential_opens() {
    let world = start().await;
    let load = Load::start(&world);
    let mut removed = 0;
    for _ in 0..2 {
        let before = load.acknowledged();
        assert!(eventually(async || load.acknowledged() > before + 200).await, "no more acks");
        tokio::time::sleep(Duration::from_secs(UNUSED_MAX_S)).await; // what is ready grows old
        removed += collect(&world, "--yes").await["pages_removed"].as_u64().unwrap();
    }
    let acknowledged = load.stop().await;
    world.assert_exactly_once(&acknowledged).await;
    let (open, all) = credentials(&world).await;
    assert!(open == all && all > 250, "{open} of {all} open; {removed} pages were removed");
    assert!(removed > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_only_an_archived_event_needs_is_not_collected() {
    let setup = Setup::default().env("MOORING__SEALING__DATA_KEY_UNUSED_MAX_S", UNUSED_MAX_S);
    let mut world = archive::start(setup, archive::AT_ONCE).await;
    archive::some_installations(&world, "x").await;
    // It was superseded, and the projection holds its secret no more.
    let of_superseded = copies(&world, "x0").await;
    assert_eq!(of_superseded.len(), 1);
    let archived = archive::run(&world, &[]).await;
    assert!(archive::first_sequence(&world).await > 30, "{archived:?}");
    world.ingests[0].kill().unwrap();
    let all_are_old = async || collect(&world, "--dry-run").await["young_pages"] == 0;
    assert!(eventually(all_are_old).await);

    let (folder, away) = (archive::folder(&world), world.folder.path().join("away"));
    fs::rename(&folder, &away).unwrap();
    let refused = world.operate(&["keys", "collect", "--yes"]).await;
    assert!(refused.code == 1, "{refused:?}");
    fs::rename(&away, &folder).unwrap();

    let done = collect(&world, "--yes").await;
    assert!(done["pages_removed"].as_u64().unwrap() > 0, "{done}");
    let opened = opened_by(&ring(&world), &world, "x0", &of_superseded).await;
    assert_eq!(opened, [api_key("x0")]);
}
