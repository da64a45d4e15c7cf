//! What all commands have in common: exit codes, closed pipes, signals.

use std::io::{Read as _, pipe};
use std::process::Child;

use sqlx::Connection as _;

use crate::operate::{Done, INTERRUPTED, Terminal, WRONG_ARGUMENTS, ended, terminate};
use crate::payload::install;
use crate::world::{Setup, World, eventually};

fn nothing_runs() -> Setup {
    Setup { ingests: 0, workers: 0, ..Setup::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_value_is_told_from_a_failure() {
    let world = World::start(nothing_runs()).await;
    for args in [
        &["installations", "list", "--status", "bogus"][..],
        &["installations", "list", "--limit", "500"],
        &["installations", "list", "--limit", "0"],
        &["installations", "list", "--cursor", "bogus"],
        &["installations", "list", "--source", "no source"],
        &["dead-letters", "list", "--reason", "bogus"],
        &["replay", "--type", "bogus"],
    ] {
        let done = world.operate(args).await;
        assert_eq!(done.code, WRONG_ARGUMENTS, "{args:?}: {done:?}");
    }
    for status in ["pending", "active", "superseded", "inactive", "unconfirmed"] {
        let done = world.operate(&["installations", "list", "--status", status]).await;
        assert_eq!((done.code, done.stdout.as_str()), (0, "no installations\n"), "{done:?}");
    }
    let migrated = world.operate(&["migrate", "--json"]).await.json(0);
    assert_eq!(migrated["applied_migrations"], serde_json::json!([]), "{migrated}");
    assert_eq!(migrated["streams"][0], "INSTALLATIONS");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_ends_a_command_quietly() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    for args in [
        &["installations", "list"][..],
        &["installations", "show", "a", "--json"],
        &["explain", "a"],
        &["callbacks"],
        &["dead-letters", "list"],
        &["replay"],
        &["replay", "--apply"],
        &["keys", "list"],
        &["doctor"],
        &["migrate"],
    ] {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let done = ended(world.operator_command(args).stdout(writer).spawn().unwrap()).await;
        let noise: Vec<&str> =
            done.stderr.lines().filter(|line| !line.starts_with("replaying events")).collect();
        assert_eq!((done.code, noise), (0, vec![]), "{args:?}: {done:?}");
    }
}

/// Killed if it does not end by itself.
async fn ended_in_time(mut child: Child) -> Done {
    if !eventually(async || child.try_wait().unwrap().is_some()).await {
        child.kill().unwrap();
    }
    ended(child).await
}

/// How many sessions wait for a lock.
async fn waiting(world: &World) -> i64 {
    let sql = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted";
    sqlx::query_scalar(sql).fetch_one(&mut world.connection().await).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_every_command_wherever_it_waits() {
    let world = World::start(nothing_runs()).await;
    let mut locking = world.connection().await;
    let sql = "LOCK mooring.journal, mooring.dead_letters, projection.installations, \
               public._sqlx_migrations";
    let erase = ["erase", "a", "--source", "blnk", "--why", "asked", "--yes"];
    let together: [&[&[&str]]; 2] = [
        &[
            &["migrate"],
            &["installations", "list"],
            &["explain", "a"],
            &["dead-letters", "list"],
            &["dead-letters", "redrive", "--all"],
            &["dead-letters", "discard", "1", "--why", "asked", "--yes"],
            &["replay", "--apply"],
            &["verify"],
            &["keys", "list"],
            &["keys", "retire", "k2"],
            &["doctor"],
            &erase,
        ],
        // Not beside a verify.
        &[&["rebuild"]],
    ];
    for commands in together {
        let mut lock = locking.begin().await.unwrap();
        sqlx::query(sql).execute(&mut *lock).await.unwrap();
        let start = |args: &&[&str]| world.operator_command(args).spawn().unwrap();
        let mut children: Vec<Child> = commands.iter().map(start).collect();
        let count = i64::try_from(children.len()).unwrap();
        let all_wait = eventually(async || waiting(&world).await == count).await;
        for child in &mut children {
            assert!(all_wait, "{} of {count} wait", waiting(&world).await);
            terminate(child);
        }
        for (args, child) in commands.iter().zip(children) {
            let done = ended_in_time(child).await;
            assert_eq!(done.code, INTERRUPTED, "{args:?}: {done:?}");
        }
        lock.rollback().await.unwrap();
        assert!(eventually(async || waiting(&world).await == 0).await, "somebody still waits");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_command_that_asks() {
    let mut world = World::start(Setup::default()).await;
    world.stop_workers();
    let sql = "ALTER TABLE mooring.journal ADD CHECK (installation_id <> 'a')";
    sqlx::query(sql).execute(&mut world.connection().await).await.unwrap();
    world.acknowledged(&install("a")).await;
    world.start_workers_again();
    world.wait_worker_ready(0);
    world.wait_applied().await;

    let (_terminal, stdin) = Terminal::open();
    let args = ["dead-letters", "discard", "1", "--why", "asked"];
    let mut child = world.operator_command(&args).stdin(stdin).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut said = String::new();
    let mut byte = [0];
    while !said.ends_with("[y/N] ") {
        stderr.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {said}"));
        said.push(char::from(byte[0]));
    }
    terminate(&child);
    let done = ended_in_time(child).await;
    assert_eq!(done.code, INTERRUPTED, "{done:?}");
}
