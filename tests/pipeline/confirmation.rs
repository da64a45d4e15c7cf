//! The platform does not get our answer, at each stage at which that can be.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::payload::{api_key, ended_after, install, uninstall, with};
use crate::world::{Setup, World, eventually};

/// A connection on which the first bytes of a callback were sent.
async fn begin(world: &World, body: &str, sent: usize) -> TcpStream {
    let url = world.callback_url(0);
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let head = format!(
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(host).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body.as_bytes()[..sent]).await.unwrap();
    stream
}

/// Freezes the log, or lets it go on: what is published meanwhile waits.
fn signal_nats(world: &World, signal: &str) {
    let pid = world.nats.pid().unwrap().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_inside_its_body_has_sent_nothing() {
    let world = World::start(Setup::default()).await;
    let body = install("a").to_string();
    drop(begin(&world, &body, body.len() - 1).await);
    world.acknowledged(&install("b")).await;
    world.wait_for_status("b", "active").await;
    assert_eq!(world.callbacks_in_log().await, 1);
}

/// Sends a callback and hangs up before the log has it.
async fn hang_up_on(world: &World, callback: &Value) {
    signal_nats(world, "-STOP");
    let body = callback.to_string();
    let stream = begin(world, &body, body.len()).await;
    tokio::time::sleep(Duration::from_millis(300)).await; // it waits for the log
    drop(stream);
    tokio::time::sleep(Duration::from_millis(100)).await;
    signal_nats(world, "-CONT");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_before_the_ack_leaves_the_installation_unconfirmed() {
    let world = World::start(Setup::default()).await;
    for callback in [install("a"), uninstall("b")] {
        hang_up_on(&world, &callback).await;
    }
    world.wait_for_status("a", "unconfirmed").await;
    world.wait_for_status("b", "unconfirmed").await;
    assert_eq!(world.credential("a").await.status, 200, "the key may be valid");

    // The platform sends it again and gets its answer.
    assert!(world.acknowledged(&install("a")).await);
    world.wait_for_status("a", "active").await;
    assert!(world.acknowledged(&uninstall("b")).await);
    world.wait_for_status("b", "inactive").await;
    world.assert_exactly_once(&["install:a".to_owned(), "uninstall:b".to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uninstall_that_is_tried_again_with_another_time_is_settled() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    hang_up_on(&world, &uninstall("a")).await;
    world.wait_for_status("a", "unconfirmed").await;

    let again = with(uninstall("a"), "uninstalled_at", ended_after(2));
    assert!(!world.acknowledged(&again).await, "it is another event");
    let settled = world.wait_for_status("a", "inactive").await;
    assert_eq!(settled["uninstalled_at"], ended_after(2));
    assert_eq!(settled["has_credential"], false);
    let events = world.read("/v1/installations/a/events").await.body["events"].clone();
    let conflicts: Vec<(&str, bool)> = events.as_array().unwrap().iter().map(conflict).collect();
    let expected = [
        ("installed", false),
        ("uninstalled", true),
        ("ack_missed", false),
        ("uninstalled", false),
    ];
    assert_eq!(conflicts, expected);

    let third = with(uninstall("a"), "uninstalled_at", ended_after(3));
    assert!(!world.acknowledged(&third).await);
    world.assert_exactly_once(&["install:a".to_owned()]).await;
    assert_eq!(world.installation("a").await["uninstalled_at"], ended_after(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_install_that_is_tried_again_with_other_permissions_is_settled() {
    let world = World::start(Setup::default()).await;
    hang_up_on(&world, &install("a")).await;
    world.wait_for_status("a", "unconfirmed").await;

    let again = with(install("a"), "granted_permissions", json!(["data:read"]));
    assert!(!world.acknowledged(&again).await, "it is another event");
    let settled = world.wait_for_status("a", "active").await;
    assert_eq!(settled["granted_permissions"], json!(["data:read"]));
    assert_eq!(world.credential("a").await.body["credential"], api_key("a"));
    world.assert_exactly_once(&[]).await;
}

fn conflict(event: &Value) -> (&str, bool) {
    (event["type"].as_str().unwrap(), event["conflict"].as_bool().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_503_leaves_what_was_stored_unconfirmed() {
    let setup = Setup::default().env("MOORING__SOURCES__BLNK__ACK__BUDGET_MS", 500);
    let world = World::start(setup).await;
    signal_nats(&world, "-STOP"); // it gets the publish, and stores it too late
    let answer = world.send(&install("a")).await;
    assert_eq!((answer.status, answer.problem()), (503, "log-unavailable"));
    signal_nats(&world, "-CONT");
    world.wait_for_status("a", "unconfirmed").await;
    assert!(world.acknowledged(&install("a")).await);
    world.wait_for_status("a", "active").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_delivered_is_confirmed() {
    let world = World::start(Setup::default()).await;
    let body = install("a").to_string();
    let mut stream = begin(&world, &body, body.len()).await;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    drop(stream);
    world.wait_for_status("a", "active").await;
    let journaled = async || world.journal().await.len() == 1;
    assert!(eventually(journaled).await, "and nothing was noted");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_with_other_content_is_a_conflict_and_the_first_counts() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    let other = with(install("a"), "granted_permissions", json!(["everything"]));
    assert!(!world.acknowledged(&other).await);
    // The order of the fields is no difference.
    let mut fields: Vec<_> = install("a").as_object().unwrap().clone().into_iter().collect();
    fields.reverse();
    assert!(world.acknowledged(&fields.into_iter().collect()).await);
    world.wait_applied().await;

    let found = world.installation("a").await;
    assert_eq!(found["granted_permissions"], json!(["data:read", "data:write"]));
    let events = world.read("/v1/installations/a/events").await.body["events"].clone();
    assert_eq!((&events[0]["conflict"], &events[1]["conflict"]), (&json!(false), &json!(true)));
    assert_eq!(events[1]["payload"]["granted_permissions"], json!(["everything"]));
    assert_eq!(events.as_array().unwrap().len(), 2);
}
