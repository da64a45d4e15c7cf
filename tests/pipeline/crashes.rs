//! Processes die at the worst moments: every 2xx is in the journal once, and
//! the projection is the fold of it.

use std::time::Duration;

use async_nats::jetstream::consumer::Info;
use dev::wait;
use sqlx::Connection as _;

use crate::load::Load;
use crate::payload::{install, uninstall};
use crate::proxy::Proxy;
use crate::world::{DEADLINE, Setup, World, eventually};

const ROUNDS: usize = 4;
/// Short, so that what a killed worker held comes again soon.
const ACK_WAIT_MS: u64 = 1_000;

fn setup() -> Setup {
    Setup::default().env("MOORING__WORKER__ACK_WAIT_MS", ACK_WAIT_MS)
}

async fn load_goes_on(load: &Load) {
    let before = load.acknowledged();
    assert!(eventually(async || load.acknowledged() > before + 50).await, "no more acks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_between_receive_and_commit_loses_nothing() {
    let mut world = World::start(setup()).await;
    let mut blocker = world.connection().await;
    let mut lock = blocker.begin().await.unwrap();
    sqlx::query("LOCK TABLE mooring.journal IN EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    world.acknowledged(&install("a")).await;
    assert!(eventually(async || waits_for_a_lock(&world).await).await, "it did not get so far");

    world.workers[0].kill().unwrap();
    lock.rollback().await.unwrap();
    assert_eq!(world.callbacks_in_journal().await, 0, "nothing was committed");
    world.start_workers_again();
    world.assert_exactly_once(&["install:a".to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_between_commit_and_ack_applies_nothing_twice() {
    let mut world = World::start(setup()).await;
    let mut blocker = world.connection().await;
    let mut lock = blocker.begin().await.unwrap();
    sqlx::query("LOCK TABLE mooring.journal IN EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    world.acknowledged(&install("a")).await;
    assert!(eventually(async || waits_for_a_lock(&world).await).await, "it did not get so far");

    // Without a server the ack cannot leave; the commit can.
    world.nats.kill().unwrap();
    lock.rollback().await.unwrap();
    assert!(
        eventually(async || world.callbacks_in_journal().await == 1).await,
        "it did not commit"
    );
    world.workers[0].kill().unwrap();

    world.nats.start_again().unwrap();
    assert_eq!(consumer(&world).await.ack_floor.stream_sequence, 0, "no ack has arrived");
    world.start_workers_again();
    world.assert_exactly_once(&["install:a".to_owned()]).await;
    let delivered = consumer(&world).await.delivered.consumer_sequence;
    assert!(delivered >= 2, "it was delivered again");
}

async fn consumer(world: &World) -> Info {
    let stream = world.jetstream().await.get_stream("INSTALLATIONS").await.unwrap();
    stream.consumer_info("worker").await.unwrap()
}

/// Whether a connection of the worker waits for the table.
async fn waits_for_a_lock(world: &World) -> bool {
    let sql = "SELECT count(*) FROM pg_stat_activity \
               WHERE usename = 'mooring_worker' AND wait_event_type = 'Lock'";
    let waiting: i64 =
        sqlx::query_scalar(sql).fetch_one(&mut world.connection().await).await.unwrap();
    waiting > 0
}

/// A firewall forgot the connections, or a virtual machine was moved: no side is told. The
/// transaction that was open holds the lock of its place.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_cut_off_within_a_transaction_stops_nobody_for_long() {
    let world = World::servers(Setup { workers: 2, ..setup() });
    let postgres = Proxy::start(world.ports.postgres).await;
    let before = format!("mooring_worker@127.0.0.1:{}", world.ports.postgres);
    world.replace_in_config(&before, &format!("mooring_worker@127.0.0.1:{}", postgres.port));
    let world = world.with_services().await;
    let mut blocker = world.connection().await;
    let mut lock = blocker.begin().await.unwrap();
    sqlx::query("LOCK TABLE mooring.journal IN EXCLUSIVE MODE").execute(&mut *lock).await.unwrap();
    world.acknowledged(&install("a")).await;
    assert!(eventually(async || waits_for_a_lock(&world).await).await, "it did not get so far");
    postgres.forget();
    lock.rollback().await.unwrap();

    world.acknowledged(&uninstall("a")).await;
    world.wait_for_status("a", "inactive").await;
    world.assert_exactly_once(&["install:a".to_owned(), "uninstall:a".to_owned()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_killed_under_load_lose_nothing() {
    let mut world = World::start(Setup { workers: 2, ..setup() }).await;
    let load = Load::start(&world);
    for round in 0..ROUNDS {
        load_goes_on(&load).await;
        let worker = &mut world.workers[round % 2];
        worker.kill().unwrap();
        load_goes_on(&load).await;
        world.workers[round % 2].start_again().unwrap();
    }
    let acknowledged = load.stop().await;
    world.assert_exactly_once(&acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ingest_killed_under_load_loses_nothing_that_it_acknowledged() {
    let mut world = World::start(Setup { ingests: 2, ..setup() }).await;
    let load = Load::start(&world);
    for round in 0..ROUNDS {
        load_goes_on(&load).await;
        world.ingests[round % 2].kill().unwrap();
        load_goes_on(&load).await; // through the other
        world.ingests[round % 2].start_again().unwrap();
        world.wait_ingest_ready(round % 2);
    }
    let acknowledged = load.stop().await;
    world.assert_exactly_once(&acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_killed_under_load_loses_nothing_that_was_acknowledged() {
    let mut world = World::start(setup()).await;
    let load = Load::start(&world);
    for _ in 0..ROUNDS {
        load_goes_on(&load).await;
        world.nats.kill().unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.nats.start_again().unwrap();
        // What was staged there is gone, as after a power cut.
        assert!(world.nats.stages_in_memory());
    }
    load_goes_on(&load).await;
    let acknowledged = load.stop().await;
    world.assert_exactly_once(&acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_killed_under_load_loses_nothing() {
    let mut world = World::start(Setup { workers: 2, ..setup() }).await;
    let load = Load::start(&world);
    for _ in 0..ROUNDS {
        load_goes_on(&load).await;
        world.postgres.kill().unwrap();
        load_goes_on(&load).await; // acks need no database
        world.postgres.start_again().unwrap();
    }
    let acknowledged = load.stop().await;
    world.assert_exactly_once(&acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_flow_while_postgres_is_stopped_and_the_worker_drains_after() {
    let mut world = World::start(setup()).await;
    world.postgres.stop().unwrap();
    let load = Load::start(&world);
    load_goes_on(&load).await;
    let answer = world.read("/v1/installations").await;
    assert_eq!((answer.status, answer.problem()), (503, "database-unavailable"));
    let says = async |url: String| {
        let ready = world.http.get(url).send().await.unwrap();
        (ready.status().as_u16(), ready.text().await.unwrap())
    };
    let why = async || {
        let (status, text) = says(world.admin_url("worker", 0, "/readyz")).await;
        status == 503 && text.contains("Connection refused")
    };
    assert!(eventually(why).await);
    // Whoever comes is not told why.
    let to_anyone = says(world.worker_url(0, "/readyz")).await;
    assert_eq!(to_anyone, (503, r#"{"ready":false}"#.to_owned()));
    let acknowledged = load.stop().await;
    let says = || world.worker_log().contains("waiting for Postgres");
    assert!(wait::until(DEADLINE, || Ok(says().then_some(()))).unwrap().is_some());

    world.postgres.start_again().unwrap();
    world.wait_worker_ready(0);
    world.assert_exactly_once(&acknowledged).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_leaves_nothing_behind_unacknowledged() {
    let mut world = World::start(setup().env("MOORING__WORKER__ACK_WAIT_MS", 60_000)).await;
    let load = Load::start(&world);
    load_goes_on(&load).await;
    world.stop_workers();
    let acknowledged = load.stop().await;
    world.start_workers_again();
    // Far sooner than what was not given back would come again.
    let started = std::time::Instant::now();
    world.assert_exactly_once(&acknowledged).await;
    assert!(started.elapsed() < Duration::from_secs(50));
    assert!(world.worker_log().contains("worker has stopped"));
}
