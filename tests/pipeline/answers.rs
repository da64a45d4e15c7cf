//! What the read API answers, word for word, in `snapshots/`. After a change that
//! is meant, `INSTA_UPDATE=always cargo dev test -- answers` writes them anew.

use std::fmt::Write as _;

use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::payload::{install, install_in, uninstall_in};
use crate::reads::{TOKEN_THAT_READS, ask, configure_reader, configure_two_apps, in_shop};
use crate::world::{Answer, Setup, World, eventually};

/// Headers that mean something to a caller.
const HEADERS: [&str; 5] =
    ["content-type", "cache-control", "allow", "retry-after", "www-authenticate"];

/// An answer as text, without what is different each time.
fn text(mut answer: Answer) -> String {
    let mut text = format!("{}\n", answer.status);
    for name in HEADERS {
        if let Some(value) = answer.headers.get(name) {
            writeln!(text, "{name}: {}", value.to_str().unwrap()).unwrap();
        }
    }
    redact(&mut answer.body);
    match &answer.body {
        Value::String(body) => writeln!(text, "\n{body}").unwrap(),
        body => writeln!(text, "\n{}", serde_json::to_string_pretty(body).unwrap()).unwrap(),
    }
    text
}

fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let changes = name.ends_with("_at")
                    || [
                        "sequence",
                        "next_after",
                        "next_cursor",
                        "changes_cursor",
                        "message_id",
                        "traceparent",
                    ]
                    .contains(&name.as_str());
                if changes && !field.is_null() {
                    *field = json!(format!("[{name}]"));
                } else {
                    redact(field);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// One installation of Blnk that was superseded and one that is active, and an id
/// of a shop that two apps have.
async fn world() -> World {
    let world = World::servers(Setup::default());
    configure_reader(&world);
    configure_two_apps(&world);
    let world = world.with_services().await;
    world.acknowledged(&install_in("a", "inst")).await;
    world.acknowledged(&install_in("b", "inst")).await;
    world.acknowledged(&install("c")).await;
    world.acknowledged(&uninstall_in("c", "inst_c")).await;
    in_shop(&world, "installed", "app_1", "7", "here").await;
    in_shop(&world, "installed", "app_2", "7", "here").await;
    world.wait_applied().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_found_is_answered_as_documented() {
    let world = world().await;
    let read = async |path: &str| text(world.read(&format!("/v1/installations{path}")).await);
    assert_snapshot!("list", read("").await);
    assert_snapshot!("list_of_nothing", read("?source=unknown").await);
    assert_snapshot!("list_with_a_next_page", read("?limit=1").await);
    assert_snapshot!("installation", read("/b").await);
    assert_snapshot!("events", read("/b/events").await);
    assert_snapshot!("events_with_a_next_page", read("/c/events?limit=1").await);
    assert_snapshot!("credential", read("/b/credential").await);
    assert_snapshot!("credential_of_one_of_two", read("/7/credential?app_id=app_2").await);
    for health in ["livez", "readyz"] {
        assert_snapshot!(health, text(ask(&world, &format!("/{health}"), None).await));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_answered_with_a_problem() {
    let world = world().await;
    let read = async |path: &str| text(world.read(&format!("/v1/installations{path}")).await);
    for (name, path) in [
        ("unknown_parameter", "?stauts=active"),
        ("unknown_parameter_of_one", "/a?plan=x"),
        ("unknown_status", "?status=gone"),
        ("bad_limit", "?limit=201"),
        ("bad_limit_of_events", "/a/events?limit=0"),
        ("bad_cursor", "?cursor=AAAA"),
        ("nul_in_a_parameter", "/a?source=%00"),
        ("not_found", "/unknown"),
        ("not_found_as_it_is_not_utf_8", "/%ff"),
        ("not_found_in_another_source", "/a?source=shop"),
        ("ambiguous", "/7"),
        ("no_credential", "/a/credential"),
    ] {
        assert_snapshot!(name, read(path).await);
    }
    assert_snapshot!("unauthorized", text(ask(&world, "/v1/installations", None).await));
    let credential = "/v1/installations/b/credential";
    let refused = ask(&world, credential, Some(TOKEN_THAT_READS)).await;
    assert_snapshot!("insufficient_scope", text(refused));
    assert_snapshot!("no_such_path", text(world.read("/v1").await));
    let posted = world.http.post(world.worker_url(0, "/v1/installations")).send().await;
    assert_snapshot!("method_not_allowed", text(Answer::of(posted.unwrap()).await.unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_answered_with_a_problem_that_holds_no_cause() {
    let mut world = world().await;
    let swapped = "UPDATE projection.installations SET credential_event = 'blnk:other' \
         WHERE installation_id = 'b'";
    sqlx::query(swapped).execute(&mut world.connection().await).await.unwrap();
    assert_snapshot!("credential_not_opened", text(world.credential("b").await));
    let logged = async || world.worker_log().contains("a credential cannot be opened");
    assert!(eventually(logged).await, "the cause is in the log");

    world.nats.kill().unwrap();
    let path = "/v1/installations/7/credential?app_id=app_1";
    assert_snapshot!("data_key_unavailable", text(world.read(path).await));
    world.postgres.kill().unwrap();
    assert_snapshot!("database_unavailable", text(world.read("/v1/installations/b").await));
}
