//! What cannot be applied is kept with its reason, and the rest goes on.

use async_nats::HeaderMap;
use async_nats::jetstream;
use sqlx::Row as _;

use crate::operate::WRONG_ARGUMENTS;
use crate::payload::install;
use crate::world::{Setup, World};

/// As ingest's user, which is the only one that may append.
async fn append(world: &World, body: &'static str, id: &str) {
    let options = async_nats::ConnectOptions::new()
        .user_and_password("ingest".to_owned(), world.nats.credentials().ingest.clone())
        .custom_inbox_prefix("_INBOX_ingest");
    let jetstream = jetstream::new(options.connect(world.nats.url()).await.unwrap());
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    let subject = "installations.blnk.0";
    let sent = jetstream.publish_with_headers(subject, headers, body.into()).await.unwrap();
    sent.await.unwrap();
}

async fn reasons(world: &World) -> Vec<(i64, String, String)> {
    let sql = "SELECT stream_sequence, reason, detail FROM mooring.dead_letters ORDER BY 1";
    let rows = sqlx::query(sql).fetch_all(&mut world.connection().await).await.unwrap();
    rows.into_iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undecodable_event_becomes_a_dead_letter_and_processing_goes_on() {
    let world = World::start(Setup::default()).await;
    append(&world, "not JSON at all", "garbage").await;
    append(&world, r#"{"schema_version":1,"type":"installed"}"#, "incomplete").await;
    append(&world, r#"{"schema_version":999}"#, "newer").await;
    world.acknowledged(&install("a")).await;
    world.wait_for_status("a", "active").await;
    world.wait_applied().await;

    let found = reasons(&world).await;
    let of: Vec<_> =
        found.iter().map(|(sequence, reason, _)| (*sequence, reason.as_str())).collect();
    assert_eq!(of, [(1, "undecodable"), (2, "undecodable"), (3, "undecodable")]);
    assert!(found[2].2.contains("schema version 999"), "{found:?}");
    let sql = "SELECT subject, headers->>'Nats-Msg-Id', body FROM mooring.dead_letters ORDER BY stream_sequence";
    let kept = sqlx::query(sql).fetch_one(&mut world.connection().await).await.unwrap();
    assert_eq!(kept.get::<String, _>(0), "installations.blnk.0");
    assert_eq!(kept.get::<String, _>(1), "garbage");
    assert_eq!(kept.get::<Vec<u8>, _>(2), b"not JSON at all");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_postgres_refuses_does_not_take_its_batch_along() {
    let mut world = World::start(Setup::default()).await;
    world.stop_workers();
    for id in ["a", "refused", "b"] {
        world.acknowledged(&install(id)).await;
    }
    // A rule that one of them breaks.
    let sql = "ALTER TABLE mooring.journal ADD CHECK (installation_id <> 'refused')";
    sqlx::query(sql).execute(&mut world.connection().await).await.unwrap();
    world.start_workers_again();
    world.wait_worker_ready(0);
    world.wait_for_status("a", "active").await;
    world.wait_for_status("b", "active").await;
    world.wait_applied().await;
    let found = reasons(&world).await;
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].0, found[0].1.as_str()), (2, "unappliable"));
    assert!(found[0].2.contains("check constraint"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_redriven_after_its_cause_is_fixed() {
    let mut world = World::start(Setup::default()).await;
    world.stop_workers();
    for id in ["a", "refused"] {
        world.acknowledged(&install(id)).await;
    }
    append(&world, "not JSON at all", "garbage").await;
    let sql = "ALTER TABLE mooring.journal ADD CONSTRAINT no CHECK (installation_id <> 'refused')";
    sqlx::query(sql).execute(&mut world.connection().await).await.unwrap();
    world.start_workers_again();
    world.wait_worker_ready(0);
    world.wait_applied().await;

    let list = async |more: &[&str]| {
        let args: Vec<&str> =
            ["dead-letters", "list", "--json"].iter().chain(more).copied().collect();
        world.operate(&args).await.json(0)
    };
    let listed = list(&[]).await;
    assert_eq!(listed[0]["installation_id"], "refused");
    assert_eq!((&listed[0]["sequence"], &listed[0]["source"]), (&2.into(), &"blnk".into()));
    assert_eq!(list(&["--reason", "undecodable"]).await[0]["sequence"], 3);
    assert_eq!(world.operate(&["verify"]).await.code, 0, "a dead letter is no difference");

    let redrive = ["dead-letters", "redrive", "--all", "--by", "ann", "--json"];
    let failed = world.operate(&redrive).await.json(3);
    assert_eq!(failed["applied"], serde_json::json!([]));
    assert!(failed["failed"][0]["detail"].as_str().unwrap().contains("check constraint"));

    sqlx::query("ALTER TABLE mooring.journal DROP CONSTRAINT no")
        .execute(&mut world.connection().await)
        .await
        .unwrap();
    let redriven = world.operate(&redrive).await.json(3);
    assert_eq!(redriven["applied"], serde_json::json!([2]));
    assert_eq!(world.installation("refused").await["status"], "active");

    let discard = ["dead-letters", "discard", "3", "--why", "not ours", "--by", "ann"];
    let would = world.operate(&[&discard[..], &["--dry-run", "--json"]].concat()).await.json(0);
    assert_eq!(would["would_discard"][0]["sequence"], 3, "{would}");
    let unasked = world.operate(&discard).await;
    assert_eq!(unasked.code, WRONG_ARGUMENTS, "{unasked:?}");
    assert!(unasked.stderr.contains("no terminal to ask on; pass --yes"), "{unasked:?}");
    let declined = world.operate_on_a_terminal(&discard, "n\n").await;
    assert_eq!(declined.code, 1, "{declined:?}");
    assert!(declined.stderr.contains("discard these 1 for good? [y/N]"), "{declined:?}");
    assert_eq!(list(&[]).await[0]["sequence"], 3, "nobody agreed");
    assert_eq!(
        world.operate_on_a_terminal(&[&discard[..], &["--json"]].concat(), "y\n").await.json(0),
        serde_json::json!({ "discarded": 1 })
    );
    assert_eq!(list(&[]).await, serde_json::json!([]));
    let resolved = list(&["--resolved"]).await;
    assert_eq!(
        (&resolved[0]["resolution"], &resolved[0]["resolved_by"]),
        (&"redriven".into(), &"ann".into())
    );
    assert_eq!(
        (&resolved[1]["resolution"], &resolved[1]["resolved_why"]),
        (&"discarded".into(), &"not ours".into())
    );
    let shown = world.operate(&["dead-letters", "show", "3", "--json"]).await.json(0);
    assert_eq!(shown["body"], "not JSON at all");
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    assert_eq!(world.operate(&["rebuild"]).await.code, 0);
    assert_eq!(world.installation("refused").await["status"], "active");
}
