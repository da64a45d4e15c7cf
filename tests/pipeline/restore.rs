//! Drills: a log that lost events, and the way back.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::archive;
use crate::other_log::restored_after;
use crate::payload::{api_key, install, install_in, uninstall, with};
use crate::world::{Setup, World, eventually, is_callback};

/// Nothing is missing, and everything agrees.
async fn assert_whole(world: &mut World, acknowledged: &[&str]) {
    world.start_workers_again();
    world.wait_applied().await;
    let verified = world.operate(&["verify", "--json"]).await.json(0);
    assert_eq!(verified["folded_from"], "log", "{verified}");
    assert_eq!(verified["dead_letters"], 0, "{verified}");
    let mut journal = world.journal().await;
    journal.retain(|recorded| is_callback(&recorded.event)); // and no note about an answer
    let keys: BTreeSet<&str> =
        journal.iter().map(|recorded| recorded.event.idempotency_key.as_str()).collect();
    let all: BTreeSet<&str> = acknowledged.iter().copied().collect();
    assert_eq!(keys, all);
    assert_eq!(journal.len(), all.len());
}

async fn restore(world: &World) -> Value {
    world.operate(&["restore", "--yes", "--json"]).await.json(0)
}

fn counts(report: &Value) -> [u64; 3] {
    ["lost", "misplaced", "unknown"].map(|name| report[name].as_u64().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_log_is_filled_again_and_keeps_its_order() {
    let mut world = World::start(Setup::default()).await;
    for callback in [install("a"), install_in("p1", "inst_p"), install_in("p2", "inst_p")] {
        world.acknowledged(&callback).await;
    }
    world.acknowledged(&uninstall("a")).await;
    world.wait_applied().await;
    world.stop_workers();
    world.jetstream().await.delete_stream("INSTALLATIONS").await.unwrap();
    world.migrate();
    world.migrate();
    world.wait_ingest_ready(0);
    world.acknowledged(&install_in("p3", "inst_p")).await;

    let looked = world.operate(&["restore", "--dry-run", "--json"]).await.json(0);
    assert_eq!(counts(&looked), [4, 0, 0], "{looked}");
    assert!(looked["restored_to"].is_null());
    assert_eq!(counts(&restore(&world).await), [4, 0, 0]);
    assert_eq!(counts(&restore(&world).await), [0, 0, 0], "again, it finds nothing to do");
    let keys = ["install:a", "install:p1", "install:p2", "uninstall:a", "install:p3"];
    assert_whole(&mut world, &keys).await;
    let status = async |id: &str| world.installation(id).await["status"].clone();
    assert_eq!(status("a").await, "inactive");
    assert_eq!([status("p1").await, status("p2").await], ["superseded", "superseded"]);
    assert_eq!(status("p3").await, "active", "what was restored is older than what came since");
    assert_eq!(world.credential("p3").await.body["credential"], api_key("p3"));

    // Retries and what is new go on as ever.
    assert!(world.acknowledged(&install("a")).await, "a duplicate");
    world.acknowledged(&install("z")).await;
    world.wait_for_status("z", "active").await;
    assert_eq!(world.operate(&["rebuild"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_restored_from_an_older_copy_that_went_on_keeps_both_histories() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install_in("p1", "inst_p")).await;
    world.wait_applied().await;
    restored_after(&mut world, &["b", "c", "d"]).await;
    // Sequences 2 to 5 belong to b, c, d and nobody now.
    for callback in [install_in("p2", "inst_p"), install("x"), install("c"), install("y")] {
        world.acknowledged(&callback).await;
    }
    let looked = world.operate(&["restore", "--dry-run", "--json"]).await.json(0);
    // c came again, but elsewhere. A note is one more, if the server was not quite there when a
    // callback was sent.
    let [lost, misplaced, unknown] = counts(&looked);
    assert!((3..=4).contains(&lost) && misplaced == lost && unknown == 0, "{looked}");
    assert_eq!(counts(&restore(&world).await), [lost, misplaced, 0]);
    assert_eq!(counts(&restore(&world).await), [0, 0, 0]);
    let keys = ["p1", "b", "c", "d", "p2", "x", "y"].map(|id| format!("install:{id}"));
    assert_whole(&mut world, &keys.each_ref().map(String::as_str)).await;
    assert_eq!(world.installation("p1").await["status"], "superseded");
    assert_eq!(world.installation("p2").await["status"], "active");
    for id in ["b", "c", "d", "x", "y"] {
        assert_eq!(world.credential(id).await.body["credential"], api_key(id));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_again_to_its_old_sequence_is_taken_from_the_log() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    restored_after(&mut world, &["b"]).await;
    let journal = world.journal().await;
    let b = journal.iter().find(|it| it.event.idempotency_key.as_str() == "install:b").unwrap();
    let last_sequence = async || world.stream().await.cached_info().state.last_sequence;
    let mut all = vec!["install:a".to_owned(), "install:b".to_owned()];
    while last_sequence().await + 1 < b.sequence.0 {
        world.acknowledged(&install(&format!("x{}", all.len()))).await;
        all.push(format!("install:x{}", all.len()));
    }
    assert!(!world.acknowledged(&install("b")).await, "it is new to this log");
    assert_eq!(last_sequence().await, b.sequence.0);
    restore(&world).await;
    assert_whole(&mut world, &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert_eq!(world.credential("b").await.body["credential"], api_key("b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_again_with_other_content_conflicts_as_it_would_have() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    restored_after(&mut world, &["b"]).await;
    let other = with(install("b"), "granted_permissions", json!(["data:read"]));
    world.acknowledged(&other).await;
    restore(&world).await;
    world.start_workers_again();
    world.wait_applied().await;
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    let permissions = &world.installation("b").await["granted_permissions"];
    assert_eq!(*permissions, json!(["data:read", "data:write"]), "the first that was acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_is_killed_anywhere_is_finished_by_the_next_one() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install("first")).await;
    world.wait_applied().await;
    let lost: Vec<String> = (0..150).map(|n| format!("lost{n}")).collect();
    let lost: Vec<&str> = lost.iter().map(String::as_str).collect();
    restored_after(&mut world, &lost).await;
    let since: Vec<String> = (0..120).map(|n| format!("since{n}")).collect();
    for id in &since {
        world.acknowledged(&install(id)).await;
    }
    for milliseconds in [60, 90, 120, 150, 180, 220, 260, 300] {
        world.operate_and_kill(&["restore", "--yes"], milliseconds).await;
    }
    restore(&world).await;
    let ids = ["first"].into_iter().chain(lost).chain(since.iter().map(String::as_str));
    let keys: Vec<String> = ids.map(|id| format!("install:{id}")).collect();
    assert_whole(&mut world, &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_log_is_left_as_it_is() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    let refused = world.operate(&["restore"]).await;
    assert_eq!(refused.code, crate::operate::WRONG_ARGUMENTS, "{refused:?}");
    assert_eq!(counts(&restore(&world).await), [0, 0, 0]);
    world.acknowledged(&install("b")).await;
    world.wait_for_status("b", "active").await;
    assert_eq!(world.callbacks_in_log().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_operators_can_choose_a_position_or_erase() {
    let world = World::start(Setup::default()).await;
    let credentials = world.nats.credentials();
    let ingest = ("ingest", credentials.ingest.clone());
    let renewer = ("renewer", credentials.renewer.clone());
    for (user, password) in [ingest, renewer] {
        let options = async_nats::ConnectOptions::new()
            .user_and_password(user.to_owned(), password)
            .custom_inbox_prefix(format!("_INBOX_{user}"))
            .request_timeout(Some(std::time::Duration::from_secs(1)));
        let client = options.connect(world.nats.url()).await.unwrap();
        let publish =
            async |subject: &str| client.request(subject.to_owned(), "{}".into()).await.is_ok();
        assert!(publish("installations.blnk.1").await, "{user}");
        assert!(!publish("installations.blnk.1.operator").await, "{user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_events_under_a_running_ingest_is_noticed_and_no_secret_is_lost() {
    let mut world = World::start(Setup { scraped: true, ..Setup::default() }).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    // More than the pages that were stored at first hold keys for.
    let many: Vec<String> = (0..40).map(|n| format!("b{n}")).collect();
    restored_after(&mut world, &many.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let said = "the stream has lost what it had acknowledged";
    assert!(eventually(async || world.ingest_log().contains(said)).await, "{}", world.ingest_log());

    // It was acknowledged, and is not any more: no answer from memory.
    assert!(!world.acknowledged(&install("b0")).await);
    world.acknowledged(&install("c")).await;
    restore(&world).await;
    world.start_workers_again();
    world.wait_applied().await;
    for id in ["a", "b0", "b39", "c"] {
        assert_eq!(world.credential(id).await.body["credential"], api_key(id), "{id}");
    }
}

/// Postgres asks that its files stay its own.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// Puts Postgres back to an older state, or to none.
async fn replayed(world: &mut World) {
    let applied = world.operate(&["replay", "--apply", "--json"]).await.json(0);
    assert_ne!(applied["appended"], 0, "{applied}");
    world.start_workers_again();
    world.wait_applied().await;
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

async fn lose_postgres(world: &World) {
    for sql in [
        "DROP SCHEMA mooring CASCADE",
        "DROP SCHEMA projection CASCADE",
        "DROP TABLE public._sqlx_migrations",
    ] {
        sqlx::query(sql).execute(&mut world.connection().await).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_postgres_is_filled_from_the_log() {
    let mut world = World::start(Setup::default()).await;
    for callback in [install("a"), install("b"), uninstall("a")] {
        world.acknowledged(&callback).await;
    }
    world.wait_applied().await;
    world.stop_workers();
    let before = world.projection().await;
    lose_postgres(&world).await;
    world.migrate();
    world.acknowledged(&install("c")).await;
    replayed(&mut world).await;
    let after = world.projection().await;
    assert_eq!(after.len(), 3);
    assert_eq!(after[..2], before);
    assert_eq!(world.credential("b").await.body["credential"], api_key("b"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_postgres_and_a_log_that_is_older_still_lose_only_what_neither_has() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    world.stop_workers();
    let (live, backup) = (world.folder.path().join("postgres"), world.folder.path().join("pg"));
    world.postgres.stop().unwrap();
    copy(&live, &backup);
    world.postgres.start_again().unwrap();
    world.start_workers_again();
    world.wait_worker_ready(0);
    world.acknowledged(&install("b")).await;
    world.wait_applied().await;

    restored_after(&mut world, &["lost"]).await;
    world.postgres.stop().unwrap();
    std::fs::remove_dir_all(&live).unwrap();
    copy(&backup, &live);
    world.postgres.start_again().unwrap();
    world.acknowledged(&install("c")).await;
    assert_eq!(counts(&restore(&world).await), [0, 0, 0], "the log has all that the journal has");
    replayed(&mut world).await;
    let ids: Vec<String> =
        world.projection().await.into_iter().map(|row| row.installation_id).collect();
    assert_eq!(ids, ["a", "b", "c"]);
}

/// What was archived is in no log and, as to payloads, in no journal.
async fn archived_installations() -> World {
    let world = archive::start(Setup::default(), archive::AT_ONCE).await;
    archive::some_installations(&world, "a").await;
    assert_eq!(archive::run(&world, &[]).await.json(0)["archived_to"], 30);
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_log_comes_back_from_archive_and_journal_together() {
    let mut world = archived_installations().await;
    let before = world.projection().await;
    world.stop_workers();
    world.jetstream().await.delete_stream("INSTALLATIONS").await.unwrap();
    world.migrate();
    world.wait_ingest_ready(0);
    world.acknowledged(&install("new")).await;
    let report = restore(&world).await;
    assert_eq!(counts(&report), [31, 0, 0], "{report}");
    assert_eq!((&report["in_journal"], &report["in_archive"]), (&json!(31), &json!(30)));
    assert_eq!(counts(&restore(&world).await), [0, 0, 0]);
    world.start_workers_again();
    world.wait_applied().await;
    let verified = world.operate(&["verify", "--json"]).await.json(0);
    assert_eq!(verified["folded_from"], "log", "{verified}");
    let after = world.projection().await;
    assert_eq!(after.len(), before.len() + 1);
    assert!(before.iter().all(|row| after.contains(row)));
    let payload = &world.read("/v1/installations/a0/events").await.body["events"][0]["payload"];
    assert_eq!(payload["installed_app_id"], "a0", "the journal is whole again");

    // And it is archived once more.
    world.acknowledged(&install("later")).await;
    world.wait_applied().await;
    let again = archive::run(&world, &[]).await.json(0);
    assert_eq!(again["archived_to"], 63, "{again}");
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    assert_eq!(counts(&restore(&world).await), [0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trimmed_log_that_was_put_back_to_an_older_copy_is_made_whole() {
    let mut world = archived_installations().await;
    restored_after(&mut world, &["b", "c"]).await;
    for id in ["x", "y", "z"] {
        world.acknowledged(&install(id)).await;
    }
    let report = restore(&world).await;
    // With a note, if the server was not quite there when a callback was sent.
    let [lost, misplaced, unknown] = counts(&report);
    assert!((2..=3).contains(&lost) && misplaced == lost && unknown == 0, "{report}");
    world.start_workers_again();
    world.wait_applied().await;
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    for id in ["b", "c", "x", "y", "z"] {
        assert_eq!(world.credential(id).await.body["credential"], api_key(id), "{id}");
    }
    world.acknowledged(&install("later")).await;
    world.wait_applied().await;
    let again = archive::run(&world, &[]).await.json(0);
    assert_ne!(again["segments"], json!([]), "{again}");
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_log_and_postgres_lost_the_archive_brings_back_what_it_has() {
    let mut world = archived_installations().await;
    let before = world.projection().await;
    world.stop_workers();
    world.jetstream().await.delete_stream("INSTALLATIONS").await.unwrap();
    lose_postgres(&world).await;
    world.migrate();
    let report = restore(&world).await;
    assert_eq!(counts(&report), [30, 0, 0], "{report}");
    world.start_workers_again();
    world.wait_applied().await;
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    // The last event, the uninstall of a29, was in no archive.
    let after = world.projection().await;
    let ids = |rows: &[crate::world::ProjectionRow]| -> BTreeSet<String> {
        rows.iter().map(|row| row.installation_id.clone()).collect()
    };
    assert_eq!(ids(&after), ids(&before));
    assert_eq!(world.credential("a28").await.body["credential"], api_key("a28"));
}
