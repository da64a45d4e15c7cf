//! What cannot be applied is kept with its reason, and the rest goes on.

use async_nats::HeaderMap;
use async_nats::jetstream;
use sqlx::Row as _;

use crate::payload::install;
use crate::world::{Setup, World, eventually};

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
async fn a_log_that_was_recreated_stops_the_worker() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_for_status("a", "active").await;
    world.jetstream().await.delete_stream("INSTALLATIONS").await.unwrap();
    world.migrate();
    // It takes a sequence that the journal knows as another event's.
    let taken = async || world.send(&install("b")).await.status == 200;
    assert!(eventually(taken).await);
    let refused =
        async || world.worker_log().contains("recreated or restored from an older backup");
    assert!(eventually(refused).await, "{}", world.worker_log());
    assert!(world.workers[0].require_running().is_err(), "it does not go on");
    assert_eq!(world.callbacks_in_journal().await, 1);
}
