//! Who may write the pages of data keys, and what becomes of a page that
//! somebody forged.

use std::time::Duration;

use async_nats::jetstream;
use eventlog::keys::NEW_STREAM;
use serde_json::json;

use crate::erasure::{erase, page_of};
use crate::payload::{api_key, install};
use crate::world::{Setup, World};

/// As long as a server that refuses says nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Somebody with the password of a user of NATS.
async fn thief(world: &World, user: &str) -> jetstream::Context {
    let password = world.secrets.read(&format!("nats-{user}-password")).unwrap();
    let options = async_nats::ConnectOptions::new()
        .user_and_password(user.to_owned(), password)
        .custom_inbox_prefix(format!("_INBOX_{user}"));
    let client = options.connect(world.nats.url()).await.unwrap();
    jetstream::ContextBuilder::new().timeout(ANSWER_TIMEOUT).build(client)
}

/// Whether the server took it.
async fn publish(thief: &jetstream::Context, subject: String, body: &str) -> bool {
    match thief.publish(subject, body.to_owned().into()).await {
        Ok(sent) => sent.await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_page_is_written_over_with_the_password_of_ingest_or_the_renewer() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    let page = page_of(&world, "a").await;
    for user in ["ingest", "renewer", "worker"] {
        let thief = thief(&world, user).await;
        for subject in ["data_keys", "new_data_keys"] {
            let taken = publish(&thief, format!("{subject}.{page}"), "v1.k1.AAAA.AAAA").await;
            assert!(!taken, "{user} wrote over {subject}.{page}");
        }
    }
    assert_eq!(world.operate(&["doctor", "--json"]).await.code, 0);
    let resealed = world.operate(&["keys", "reseal", "--json"]).await.json(0);
    assert_eq!(resealed["resealed"], json!(0), "{resealed}");
    assert_eq!(world.credential("a").await.body["credential"], api_key("a").as_str());
}

/// What looks like a page that `key` seals.
fn forged(key: &str) -> String {
    format!("v1.{key}.AAAAAAAAAAAAAAAA.{}", "A".repeat(64))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_page_displaces_no_good_one() {
    let world = World::start(Setup::default()).await;
    for id in ["a", "b"] {
        world.acknowledged(&install(id)).await;
    }
    world.wait_applied().await;
    let page = page_of(&world, "a").await;
    assert_eq!(page, page_of(&world, "b").await);
    let erased = erase(&world, "b").await;
    assert_eq!(erased["keys_destroyed"], 1);
    let opens = async || world.credential("a").await.body["credential"] == api_key("a").as_str();
    let reseal = async |code| world.operate(&["keys", "reseal", "--json"]).await.json(code);

    // The name is free again where new pages are stored, and what stands there does not count.
    let ingest = thief(&world, "ingest").await;
    assert!(publish(&ingest, format!("new_data_keys.{page}"), &forged("k1")).await);
    assert!(opens().await);
    assert_eq!(reseal(0).await["not_opened"], 0);
    let made = world.jetstream().await.get_stream(NEW_STREAM).await.unwrap();
    let left = made.direct_get_last_for_subject(format!("new_data_keys.{page}")).await;
    assert!(left.is_err(), "{left:?}");

    // Nor does rubbish under another name.
    assert!(publish(&ingest, "new_data_keys.rubbish".to_owned(), "rubbish").await);
    assert!(publish(&ingest, "new_data_keys.forged".to_owned(), &forged("k1")).await);
    let report = reseal(3).await;
    assert_eq!((&report["not_opened"], &report["mended"]), (&json!(2), &json!(0)), "{report}");
    let listed = world.operate(&["keys", "list", "--json"]).await.json(0);
    assert_eq!(listed["damaged_pages"], 1, "{listed}");
    assert!(opens().await);

    // With an operator's rights, as ingest's were once: the good one is found again.
    let operator = world.jetstream().await;
    assert!(publish(&operator, format!("data_keys.{page}"), &forged("k1")).await);
    assert!(!opens().await);
    let doctor = world.operate(&["doctor", "--json"]).await.json(3).to_string();
    assert!(doctor.contains("the newest page of data keys does not open"), "{doctor}");
    let report = reseal(3).await;
    assert_eq!((&report["not_opened"], &report["mended"]), (&json!(2), &json!(1)), "{report}");
    assert!(opens().await);
    assert_eq!(world.credential("b").await.problem(), "no-credential");
    let again = erase(&world, "b").await;
    assert_eq!((&again["keys_gone_before"], &again["keys_destroyed"]), (&json!(1), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_from_before_there_were_two_streams_open_and_are_resealed() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    let operator = world.jetstream().await;
    let made = operator.get_stream(NEW_STREAM).await.unwrap();
    for sequence in 1..=made.cached_info().state.last_sequence {
        let page = made.direct_get(sequence).await.unwrap();
        let subject = page.subject.trim_start_matches("new_").to_owned();
        assert!(operator.publish(subject, page.payload).await.unwrap().await.is_ok());
        made.delete_message(sequence).await.unwrap();
    }
    world.migrate();
    assert_eq!(world.credential("a").await.body["credential"], api_key("a").as_str());
    assert_eq!(world.operate(&["keys", "reseal", "--json"]).await.json(0)["not_opened"], 0);
    assert_eq!(erase(&world, "a").await["keys_destroyed"], 1);
}
