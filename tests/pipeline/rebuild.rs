//! A rebuild equals the live projection, whoever dies while it runs, and is
//! swapped in at once; what differs is shown and not swapped in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dev::postgres::Role;
use serde_json::Value;
use sqlx::migrate::Migrator;
use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::task::JoinHandle;

use crate::load::Load;
use crate::payload::{install, install_in, uninstall_in};
use crate::world::{Setup, World, eventually};

const DIFFERS: i32 = 3;
const ROUNDS: usize = 6;

async fn some_installations(world: &World) {
    for index in 0..30 {
        world
            .acknowledged(&install_in(&format!("a{index}"), &format!("inst_{}", index % 10)))
            .await;
    }
    world.acknowledged(&uninstall_in("a29", "inst_9")).await;
    world.wait_applied().await;
}

async fn execute(world: &World, sql: &'static str) {
    sqlx::query(sql).execute(&mut world.connection().await).await.unwrap();
}

async fn swaps(world: &World) -> i64 {
    let sql = "SELECT count(*) FROM mooring.rebuilds WHERE swapped_at IS NOT NULL";
    sqlx::query_scalar(sql).fetch_one(&mut world.connection().await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_equals_the_live_projection_is_swapped_in() {
    let world = World::start(Setup::default()).await;
    some_installations(&world).await;
    let before = world.projection().await;
    for from in ["log", "journal"] {
        let done = world.operate(&["rebuild", "--from", from, "--json"]).await;
        let report = done.json(0);
        assert_eq!(report["events"], 31, "{report}");
        assert_eq!(report["comparison"]["different"], 0);
        assert_eq!(report["swapped"], true);
        assert_eq!(world.projection().await, before);
    }
    // The rights came along: worker and read API go on.
    world.acknowledged(&install("b")).await;
    world.assert_exactly_once(&["install:b".to_owned()]).await;
    assert_eq!(world.installation("b").await["status"], "active");
    assert_eq!(swaps(&world).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_is_named_and_not_swapped_in_unless_it_is_expected() {
    let world = World::start(Setup::default()).await;
    some_installations(&world).await;
    execute(
        &world,
        "UPDATE projection.installations SET app_id = 'wrong' WHERE installation_id = 'a21'",
    )
    .await;
    execute(&world, "DELETE FROM projection.installations WHERE installation_id = 'a22'").await;

    let verified = world.operate(&["verify", "--json"]).await.json(DIFFERS);
    let found = &verified["projection"]["differences"];
    let named = |found: &Value, at: usize| {
        (found[at]["installation_id"].clone(), found[at]["columns"].clone())
    };
    assert_eq!(named(found, 0), ("a21".into(), serde_json::json!(["app_id"])));
    assert_eq!(named(found, 1), ("a22".into(), serde_json::json!(["added"])));
    assert_eq!(verified["journal"]["missing"], serde_json::json!([]));

    let refused = world.operate(&["rebuild", "--json"]).await;
    assert!(refused.stderr.contains("not named with --expect"), "{}", refused.stderr);
    let refused = refused.json(DIFFERS);
    assert_eq!(refused["swapped"], false);
    assert_eq!(refused["comparison"]["differences"], *found);
    assert_eq!(world.installation("a21").await["app_id"], "wrong", "nothing was swapped");

    let expect = ["rebuild", "--json", "--expect", "app_id", "--expect", "added"];
    let swapped = world.operate(&expect).await.json(0);
    assert_eq!((&swapped["swapped"], &swapped["resumed"]), (&true.into(), &true.into()));
    assert_eq!(world.installation("a21").await["app_id"], "app_1");
    assert_eq!(world.operate(&["verify"]).await.code, 0);

    // Back to what was wrong, with what has come since.
    world.acknowledged(&install("later")).await;
    world.wait_applied().await;
    assert_eq!(world.operate(&["rebuild", "--rollback"]).await.code, 0);
    assert_eq!(world.installation("a21").await["app_id"], "wrong");
    assert_eq!(world.installation("later").await["status"], "active");
    assert_eq!(world.operate(&["rebuild", "--rollback"]).await.code, 0);
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_what_the_journal_lost_or_altered() {
    let world = World::start(Setup::default()).await;
    some_installations(&world).await;
    execute(&world, "DELETE FROM mooring.journal WHERE stream_sequence = 5").await;
    execute(
        &world,
        "UPDATE mooring.journal SET event = replace(event::text, 'data:read', 'data:admin')::json \
         WHERE stream_sequence = 7",
    )
    .await;
    let report = world.operate(&["verify", "--json"]).await.json(DIFFERS);
    assert_eq!(report["journal"]["missing"], serde_json::json!([5]));
    assert_eq!(report["journal"]["different"], serde_json::json!([7]));
    assert_eq!(report["projection"]["different"], 0, "of the log it is the fold still");
    let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'projection_verify'";
    let left: i64 =
        sqlx::query_scalar(schemas).fetch_one(&mut world.connection().await).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_rebuild_is_resumed_or_abandoned() {
    let world = World::start(Setup::default()).await;
    some_installations(&world).await;
    let built = world.operate(&["rebuild", "--no-swap", "--json"]).await.json(0);
    assert_eq!((&built["swapped"], &built["resumed"]), (&false.into(), &false.into()));
    let other = world.operate(&["rebuild", "--from", "journal"]).await;
    assert!(other.stderr.contains("continue with `--from log`"), "{}", other.stderr);
    assert_eq!(world.operate(&["rebuild", "--abandon"]).await.code, 0);
    let built = world.operate(&["rebuild", "--json"]).await.json(0);
    assert_eq!((&built["swapped"], &built["resumed"]), (&true.into(), &false.into()));
}

/// Reads one place again and again: in no projection has it two active
/// installations, or none.
fn reader(world: &World, stop: &Arc<AtomicBool>, reads: &Arc<AtomicUsize>) -> JoinHandle<()> {
    let (stop, reads) = (Arc::clone(stop), Arc::clone(reads));
    let (http, url) = (world.http.clone(), world.worker_url(1, "/v1/installations/constant"));
    let token = world.secrets.read("read-token").unwrap();
    tokio::spawn(async move {
        while !stop.load(Ordering::Relaxed) {
            let answer = http.get(&url).bearer_auth(&token).send().await.unwrap();
            let status = answer.status().as_u16();
            let body: Value = answer.json().await.unwrap();
            assert_eq!((status, &body["status"]), (200, &"active".into()), "{body}");
            reads.fetch_add(1, Ordering::Relaxed);
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn rebuilds_and_workers_killed_under_load_leave_one_sound_projection() {
    let setup = Setup { workers: 2, ..Setup::default() };
    let mut world = World::start(setup.env("MOORING__WORKER__ACK_WAIT_MS", 1_000)).await;
    world.acknowledged(&install("constant")).await;
    world.wait_applied().await;
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let reader = reader(&world, &stop, &reads);
    let load = Load::start(&world);
    for round in 0..ROUNDS {
        let before = load.acknowledged();
        assert!(eventually(async || load.acknowledged() > before + 40).await, "no more acks");
        // Later in each round, so that it dies in each of its phases.
        let milliseconds = 60 * u64::try_from(round).unwrap();
        let killed = world.operate_and_kill(&["rebuild"], milliseconds).await;
        world.workers[0].kill().unwrap();
        world.workers[0].start_again().unwrap();
        let swaps_before = swaps(&world).await;
        assert!(swaps_before <= i64::try_from(round).unwrap() + 1, "{killed}");
    }
    let before = swaps(&world).await;
    let report = world.operate(&["rebuild", "--json"]).await.json(0);
    assert_eq!(report["swapped"], true);
    assert_eq!(swaps(&world).await, before + 1);
    let acknowledged = load.stop().await;
    stop.store(true, Ordering::Relaxed);
    reader.await.unwrap();
    assert!(reads.load(Ordering::Relaxed) > 50, "hardly anything was read");
    world.assert_exactly_once(&acknowledged).await;
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

/// As migrations to a next version change it, while workers of this one go on.
#[tokio::test(flavor = "multi_thread")]
async fn the_schema_changes_while_readers_read_and_rebuilds_follow_it() {
    const WIDER: &str = "ALTER TABLE projection.installations \
         ADD COLUMN region text NOT NULL DEFAULT 'eu', \
         DROP CONSTRAINT installations_status_check, \
         ADD CONSTRAINT installations_status_check CHECK (status <> 'none')";
    const INDEX: &str = "CREATE INDEX installations_by_region ON projection.installations (region)";
    const NARROWER: &str = "ALTER TABLE projection.installations DROP COLUMN region";
    let world = World::start(Setup { workers: 2, ..Setup::default() }).await;
    world.acknowledged(&install("constant")).await;
    world.wait_applied().await;
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let reader = reader(&world, &stop, &reads);
    let load = Load::start(&world);
    let columns = "SELECT count(*) FROM information_schema.columns \
         WHERE table_schema = 'projection' AND column_name = 'region'";
    for (changes, expected) in [(vec![WIDER, INDEX], 1), (vec![NARROWER], 0)] {
        for change in changes {
            execute(&world, change).await;
        }
        let before = load.acknowledged();
        assert!(eventually(async || load.acknowledged() > before + 40).await, "no more acks");
        let report = world.operate(&["rebuild", "--json"]).await.json(0);
        assert_eq!(report["swapped"], true, "{report}");
        let found: i64 =
            sqlx::query_scalar(columns).fetch_one(&mut world.connection().await).await.unwrap();
        assert_eq!(found, expected);
    }
    let acknowledged = load.stop().await;
    stop.store(true, Ordering::Relaxed);
    reader.await.unwrap();
    assert!(reads.load(Ordering::Relaxed) > 50, "hardly anything was read");
    world.assert_exactly_once(&acknowledged).await;
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

/// With a former projection that was kept, which has not the new columns.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_an_earlier_version_is_migrated() {
    let world = World::servers(Setup::default());
    let folder = world.folder.path().join("migrations");
    std::fs::create_dir(&folder).unwrap();
    let all = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/migrations");
    for name in ["0001_journal_and_projection", "0002_details", "0003_operations"] {
        let name = format!("{name}.sql");
        std::fs::copy(all.join(&name), folder.join(name)).unwrap();
    }
    let mut owner =
        PgConnection::connect(&world.postgres.url(Role::Owner, "mooring")).await.unwrap();
    Migrator::new(folder).await.unwrap().run(&mut owner).await.unwrap();
    let kept = "CREATE SCHEMA projection_previous; \
         CREATE TABLE projection_previous.installations (LIKE projection.installations)";
    sqlx::raw_sql(kept).execute(&mut owner).await.unwrap();

    let world = world.with_services().await;
    some_installations(&world).await;
    let refused = world.operate(&["rebuild", "--rollback"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert_eq!(world.operate(&["rebuild"]).await.code, 0);
    assert_eq!(world.operate(&["rebuild", "--rollback"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_killed_while_it_loads_is_resumed() {
    let world = World::start(Setup::default()).await;
    some_installations(&world).await;
    let mut blocker = world.connection().await;
    let mut lock = blocker.begin().await.unwrap();
    // Loading begins with the dead letters, which are to be left out.
    let sql = "LOCK TABLE mooring.dead_letters IN ACCESS EXCLUSIVE MODE";
    sqlx::query(sql).execute(&mut *lock).await.unwrap();
    assert!(world.operate_and_kill(&["rebuild"], 1_000).await.contains("code: -1"));
    lock.rollback().await.unwrap();
    let report = world.operate(&["rebuild", "--json"]).await.json(0);
    assert_eq!((&report["resumed"], &report["swapped"]), (&true.into(), &true.into()));
    assert_eq!(report["comparison"]["different"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_from_the_journal_waits_for_what_is_on_its_way() {
    let mut world = World::start(Setup::default()).await;
    some_installations(&world).await;
    world.stop_workers();
    world.acknowledged(&install("later")).await;
    let worker = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.spare_worker()
    };
    let args = ["rebuild", "--from", "journal", "--json"];
    let (done, mut worker) = tokio::join!(world.operate(&args), worker);
    let report = done.json(0);
    worker.kill().unwrap();
    assert!(done.stderr.contains("waiting for the workers"), "{}", done.stderr);
    assert_eq!((&report["events"], &report["swapped"]), (&32.into(), &true.into()), "{report}");
    assert_eq!(report["comparison"]["different"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_redriven_late_is_in_an_older_projection_too() {
    let world = World::start(Setup::default()).await;
    let refuse = "ALTER TABLE mooring.journal ADD CONSTRAINT no CHECK (stream_sequence <> 2)";
    sqlx::query(refuse).execute(&mut world.connection().await).await.unwrap();
    world.acknowledged(&install("a")).await;
    world.acknowledged(&uninstall_in("a", "inst_a")).await;
    world.wait_applied().await;
    assert_eq!(world.operate(&["rebuild"]).await.code, 0);
    assert_eq!(world.operate(&["rebuild", "--no-swap"]).await.code, 0);
    execute(&world, "ALTER TABLE mooring.journal DROP CONSTRAINT no").await;
    assert_eq!(world.operate(&["dead-letters", "redrive", "--all"]).await.code, 0);
    for args in [&["rebuild", "--rollback"][..], &["rebuild"]] {
        assert_eq!(world.operate(args).await.code, 0, "{args:?}");
        assert_eq!(world.installation("a").await["status"], "inactive", "{args:?}");
    }
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

async fn late_places(world: &World) -> i64 {
    let sql = "SELECT count(*) FROM mooring.late_places";
    sqlx::query_scalar(sql).fetch_one(&mut world.connection().await).await.unwrap()
}

/// Every place of these is late after it.
async fn replay_all(world: &World) {
    execute(world, "DELETE FROM mooring.journal").await;
    let replayed = world.operate(&["replay", "--apply", "--json"]).await.json(0);
    assert_eq!(replayed["appended"], 31);
    assert_eq!(late_places(world).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_does_not_fold_again_what_was_replayed_before_it_began() {
    let world = World::start(Setup::default()).await;
    some_installations(&world).await;
    for from in ["log", "journal"] {
        replay_all(&world).await;
        let report = world.operate(&["rebuild", "--from", from, "--json"]).await.json(0);
        assert_eq!(report["swapped"], true);
        assert_eq!(report["caught_up_places"], 0, "{report}");
        assert_eq!(late_places(&world).await, 0, "nobody needs them");
    }
    replay_all(&world).await;
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    assert_eq!(late_places(&world).await, 10, "the former projection lacks them");
    assert_eq!(world.operate(&["rebuild", "--rollback"]).await.code, 0);
    assert_eq!(late_places(&world).await, 0);
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

/// An unfinished rebuild and the former projection each lack other places.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_replayed_while_a_rebuild_is_unfinished_is_folded_once() {
    let world = World::start(Setup::default()).await;
    some_installations(&world).await;
    let later = "DELETE FROM mooring.journal WHERE stream_sequence = 31";
    // It reads a journal that lacks an uninstall.
    execute(&world, later).await;
    let args = ["rebuild", "--from", "journal", "--no-swap", "--json"];
    assert_eq!(world.operate(&args).await.json(0)["comparison"]["different"], 1);
    assert_eq!(world.operate(&["replay", "--apply", "--json"]).await.json(0)["appended"], 1);
    assert_eq!(late_places(&world).await, 1);

    let report = world.operate(&["rebuild", "--from", "journal", "--json"]).await.json(0);
    assert_eq!((&report["resumed"], &report["swapped"]), (&true.into(), &true.into()), "{report}");
    assert_eq!(report["comparison"]["different"], 0);
    assert_eq!(report["caught_up_places"], 1, "{report}");
    assert_eq!(late_places(&world).await, 0);

    // An unfinished rebuild keeps what a swap of the other would forget.
    assert_eq!(world.operate(&["rebuild", "--no-swap"]).await.code, 0);
    execute(&world, later).await;
    assert_eq!(world.operate(&["replay", "--apply", "--json"]).await.json(0)["appended"], 1);
    assert_eq!(world.operate(&["rebuild", "--rollback"]).await.code, 0);
    assert_eq!(late_places(&world).await, 1);
    assert_eq!(world.operate(&["rebuild", "--abandon"]).await.code, 0);
    assert_eq!(late_places(&world).await, 0);
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

/// Of two copies of one event the later one was applied, until the first one is
/// redriven.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_moves_to_its_first_copy_is_folded_again() {
    const WINDOW: Duration = Duration::from_millis(1_500);
    let setup = Setup::default().env("MOORING__STREAM__DUPLICATE_WINDOW_MS", WINDOW.as_millis());
    let mut world = World::start(setup).await;
    execute(&world, "ALTER TABLE mooring.journal ADD CONSTRAINT no CHECK (stream_sequence <> 1)")
        .await;
    world.acknowledged(&install("a")).await;
    tokio::time::sleep(WINDOW * 2).await;
    world.ingests[0].kill().unwrap(); // it remembers the first one
    world.ingests[0].start_again().unwrap();
    world.wait_ingest_ready(0);
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    assert_eq!(world.installation("a").await["last_event"]["sequence"], 2);

    assert_eq!(world.operate(&["rebuild", "--no-swap"]).await.code, 0);
    execute(&world, "ALTER TABLE mooring.journal DROP CONSTRAINT no").await;
    assert_eq!(world.operate(&["dead-letters", "redrive", "--all"]).await.code, 0);
    assert_eq!(world.installation("a").await["last_event"]["sequence"], 1);
    let report = world.operate(&["rebuild", "--json"]).await.json(0);
    assert_eq!((&report["swapped"], &report["caught_up_places"]), (&true.into(), &1.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_would_read_the_former_projection_is_named() {
    let world = World::start(Setup::default()).await;
    execute(&world, "CREATE VIEW public.ours AS SELECT status FROM projection.installations").await;
    let refused = world.operate(&["rebuild"]).await;
    assert!(refused.stderr.contains("ours would keep reading"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_rebuild_runs_at_a_time() {
    let world = World::start(Setup::default()).await;
    some_installations(&world).await;
    let mut other = world.connection().await;
    let locked: bool = sqlx::query("SELECT pg_try_advisory_lock(28015, 2)")
        .fetch_one(&mut other)
        .await
        .unwrap()
        .get(0);
    assert!(locked);
    let refused = world.operate(&["rebuild"]).await;
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("another rebuild, verify or restore is running"),
        "{}",
        refused.stderr
    );
}
