//! What strangers can do where anybody may write: a ticket lets one event into
//! the log, an hour takes so many, and the room of the platforms stays theirs.

use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use reqwest::header::RETRY_AFTER;
use serde_json::json;

use crate::install_page::{self, Page, show, submit, submit_to};
use crate::payload::install;
use crate::world::{Setup, World, eventually, post};

const LOG_BYTES: u64 = 2 << 20;
const ANYWHERE: &str = "https://platform.example/complete";

async fn start(setup: Setup) -> World {
    let world = World::servers(setup);
    install_page::configure(&world, ANYWHERE);
    world.with_services().await
}

fn typed(token: &str) -> String {
    format!("installation=cap-1&ACCESS_TOKEN={token}&ACCOUNT=acme")
}

/// A test that counts in one hour must not run from one into the next.
async fn wait_for_an_hour_with_room() {
    const NEEDED_S: i64 = 60;
    let left = 3_600 - Timestamp::now().as_second().rem_euclid(3_600);
    if left < NEEDED_S {
        tokio::time::sleep(Duration::from_secs(left.unsigned_abs() + 1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_lets_one_event_in_whichever_ingest_it_comes_to() {
    let world = start(Setup { ingests: 2, ..Setup::default() }).await;
    let shown = show(&world, "installation=cap-1").await;
    assert_eq!(submit(&world, &shown, &typed("first")).await.status, 307);
    // Who presses the button twice is told that all is well.
    assert_eq!(submit(&world, &shown, &typed("first")).await.status, 307);
    for ingest in [0, 1] {
        let again = submit_to(&world, ingest, &shown, &typed("second")).await;
        assert_eq!(again.status, 409, "{}", again.html);
        assert!(again.html.contains("sent before") && !again.html.contains("second"));
        // The page that says so has a ticket of its own.
        assert_ne!(again.action, shown.action);
    }
    assert_eq!(world.callbacks_in_log().await, 1);
    let again = submit(&world, &shown, &typed("second")).await;
    assert_eq!(submit_to(&world, 1, &again, &typed("third")).await.status, 307);
    assert_eq!(world.callbacks_in_log().await, 2);
    world.wait_applied().await;
    assert_eq!(install_page::secrets(&world).await["ACCESS_TOKEN"], "third");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_never_make_a_platform_hear_503() {
    let setup = Setup { workers: 0, ..Setup::default() };
    let world = start(setup.env("MOORING__STREAM__MAX_BYTES", LOG_BYTES)).await;
    let value = "x".repeat(8_000);
    let stranger = async |round: usize, number: usize| {
        let shown = show(&world, &format!("installation=cap-{round}-{number}")).await;
        let typed = format!("installation=cap-{round}-{number}&ACCESS_TOKEN={value}&ACCOUNT=a");
        submit(&world, &shown, &typed).await
    };
    // 256 of them filled a log of twice this size in under a second.
    let mut refused = Vec::new();
    for round in 0..16 {
        let answers = join_all((0..16).map(|number| stranger(round, number))).await;
        refused.extend(answers.into_iter().filter(|answer| answer.status != 307));
    }
    let stream = world.stream().await;
    let filled = stream.cached_info().state.bytes * 100 / LOG_BYTES;
    assert!((50..=72).contains(&filled), "{filled} %");
    assert!(!refused.is_empty());
    for Page { status, retry_after, html, .. } in &refused {
        assert_eq!((*status, retry_after.as_deref()), (503, Some("300")), "{html}");
        assert!(html.contains("no room"), "{html}");
    }
    for number in 0..32 {
        world.acknowledged(&install(&format!("after-{number}"))).await;
    }
    let refusals = world.operate(&["callbacks", "--refused", "--json"]).await.json(0);
    let all = refusals.as_array().unwrap();
    assert!(all.iter().any(|it| it["reason"] == "log-share-used"), "{refusals}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_of_an_hour_holds_over_ingests_and_restarts() {
    wait_for_an_hour_with_room().await;
    let setup = Setup { ingests: 2, workers: 0, ..Setup::default() };
    let setup = setup.env("MOORING__SOURCES__SSC__OPEN__EVENTS_PER_HOUR", 4);
    let mut world = start(setup).await;
    let form = async |world: &World, ingest: usize| {
        let shown = show(world, "installation=cap-1").await;
        submit_to(world, ingest, &shown, &typed("a")).await
    };
    for ingest in [0, 1, 0, 1] {
        assert_eq!(form(&world, ingest).await.status, 307);
    }
    for ingest in [0, 1] {
        let refused = form(&world, ingest).await;
        assert_eq!(refused.status, 429, "{}", refused.html);
        let seconds: i64 = refused.retry_after.unwrap().parse().unwrap();
        assert!((1..=3_600).contains(&seconds), "{seconds}");
    }
    let refused = async || {
        let found = world.operate(&["callbacks", "--refused", "--json"]).await.json(0);
        found.as_array().unwrap().iter().any(|it| it["reason"] == "quota-exceeded")
    };
    assert!(eventually(refused).await);
    for ingest in &mut world.ingests {
        ingest.kill().unwrap();
    }
    world.nats.kill().unwrap();
    world.nats.start_again().unwrap();
    for ingest in 0..2 {
        world.ingests[ingest].start_again().unwrap();
        world.wait_ingest_ready(ingest);
    }
    assert_eq!(form(&world, 0).await.status, 429, "a restart gave another hour's worth");

    // A callback that anybody may send counts, too. One of a verified source does not.
    let callback = json!({ "event": "app_installed" });
    let answer = post(&world.http, &world.ingest_url(0, "/callbacks/ssc"), &callback).await;
    assert_eq!(answer.unwrap().status, 422);
    world.acknowledged(&install("a")).await;
    assert_eq!(world.callbacks_in_log().await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn callbacks_that_anybody_may_send_have_the_quota_too() {
    wait_for_an_hour_with_room().await;
    let setup = Setup { workers: 0, ..Setup::default() };
    let world = World::servers(setup);
    world.configure(
        "[sources.shop]\nplatform = \"generic\"\nverification.unverified = true\n\
         open = { events_per_hour = 2, bytes_per_hour = 1000000 }\n\
         [sources.shop.mapping]\nevent_type = [\"/type\"]\ninstalled = [\"installed\"]\n\
         app_id = \"value:app\"\ninstallation_id = [\"/id\"]\n",
    );
    let world = world.with_services().await;
    let send = async |id: usize| {
        let callback = json!({ "type": "installed", "id": id });
        post(&world.http, &world.ingest_url(0, "/callbacks/shop"), &callback).await.unwrap()
    };
    for id in 0..2 {
        assert_eq!(send(id).await.status, 200);
    }
    let refused = send(2).await;
    assert_eq!((refused.status, refused.problem()), (429, "quota-exceeded"));
    assert!(refused.headers.contains_key(RETRY_AFTER));
    world.acknowledged(&install("a")).await;
    assert_eq!(world.callbacks_in_log().await, 3);
}
