//! A place to which very much happens: an event in it costs no more than in any
//! other, and the state is that of its whole history.

use futures_util::future::join_all;
use serde_json::json;

use crate::platforms::{HighLevel, event};
use crate::world::{Setup, World, eventually};

const LOCATION: &str = "my-app:location:loc_1";
const UPDATES: usize = 1_000;
const AT_ONCE: usize = 50;
/// What a worker leaves as it is, and what came while it last asked how far the
/// workers are.
const KEPT_MAX: i64 = 400;

async fn count(world: &World, condition: &str) -> i64 {
    let sql = format!("SELECT count(*) FROM mooring.journal WHERE {condition}");
    let query = sqlx::query_scalar(sqlx::AssertSqlSafe(sql));
    query.fetch_one(&mut world.connection().await).await.unwrap()
}

/// An update of the `n`-th second after the install.
fn update(n: usize) -> serde_json::Value {
    let time = format!("{:02}.{:03}", 10 + n / 1_000, n % 1_000);
    event("UPDATE", &format!("update-{n}"), &time, json!({ "planId": format!("p{n}") }))
}

async fn send_updates(highlevel: &HighLevel, from: usize, to: usize) {
    let updates: Vec<_> = (from..to).map(update).collect();
    for some in updates.chunks(AT_ONCE) {
        join_all(some.iter().map(|update| highlevel.acknowledged(update))).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_with_many_updates_keeps_a_few_and_has_the_state_of_all() {
    let setup = Setup { workers: 2, ..Setup::default() };
    let highlevel = HighLevel::start_with(setup, |_| {}).await;
    let world = &highlevel.world;
    let install = event("INSTALL", "w1", "09.000", json!({ "companyId": "c" }));
    assert!(!highlevel.acknowledged(&install).await);
    send_updates(&highlevel, 0, UPDATES).await;
    world.wait_applied().await;
    let journaled = i64::try_from(UPDATES).unwrap() + 1;
    assert_eq!(count(world, "true").await, journaled);
    // The next event finds that the others were acknowledged.
    let is_small = eventually(async || {
        let number = UPDATES + usize::try_from(count(world, "true").await).unwrap();
        highlevel.acknowledged(&update(number)).await;
        world.wait_applied().await;
        count(world, "kept").await <= KEPT_MAX
    });
    assert!(is_small.await, "{} are kept", count(world, "kept").await);
    world.assert_exactly_once(&["w1".to_owned()]).await;

    // Between two updates that are kept no longer: it ends the generation all the same.
    let late = event("UNINSTALL", "w2", "10.500", json!({}));
    assert!(!highlevel.acknowledged(&late).await);
    world.wait_for_status(LOCATION, "inactive").await;
    // An event with the key of one that is kept no longer contradicts it.
    let mut other = update(5);
    other["planId"] = json!("contradicts");
    other["timestamp"] = json!("2026-03-30T05:58:59.000Z");
    assert!(!highlevel.acknowledged(&other).await);
    world.wait_applied().await;
    let found = world.installation(LOCATION).await;
    assert_ne!(found["details"]["plan_id"], "contradicts");
    world.assert_exactly_once(&["w1".to_owned(), "w2".to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_for_a_place_becomes_dead_letters_and_other_places_go_on() {
    let setup = Setup::default().env("MOORING__WORKER__PLACE_EVENTS_MAX", 100);
    let highlevel = HighLevel::start_with(setup, |_| {}).await;
    let world = &highlevel.world;
    let change = |n: usize| {
        let kind = if n.is_multiple_of(2) { "INSTALL" } else { "UNINSTALL" };
        let time = format!("{:02}.{:03}", 10 + n / 1_000, n % 1_000);
        event(kind, &format!("change-{n}"), &time, json!({}))
    };
    for n in 0..110 {
        highlevel.acknowledged(&change(n)).await;
    }
    let dead = async || count_dead(world).await;
    assert!(eventually(async || dead().await > 0).await);
    world.wait_applied().await;
    let found = count(world, "true").await;
    assert!((64..=100).contains(&found), "{found} of 110 are in the journal");
    assert_eq!(dead().await + found, 110);
    let other = json!({ "locationId": "another" });
    highlevel.acknowledged(&event("INSTALL", "w-other", "12.000", other)).await;
    world.wait_for_status("my-app:location:another", "active").await;

    let erase = ["erase", LOCATION, "--source", "highlevel", "--why", "test", "--yes"];
    assert_eq!(world.operate(&erase).await.code, 0, "it can still be erased");
    let allowed = [("MOORING__WORKER__PLACE_EVENTS_MAX", "1000")];
    let redriven = world.operate_with(&["dead-letters", "redrive", "--all"], &allowed).await;
    assert_eq!(redriven.code, 0, "{redriven:?}");
    assert_eq!(count(world, "event_type <> 'erased'").await, 111);
}

async fn count_dead(world: &World) -> i64 {
    let sql = "SELECT count(*) FROM mooring.dead_letters WHERE reason = 'place_full'";
    sqlx::query_scalar(sql).fetch_one(&mut world.connection().await).await.unwrap()
}
