//! What was delivered to a worker does not wait for its redelivery, however long
//! the batch before it takes.

use std::time::{Duration, Instant};

use eventlog::consume::CONSUMER;
use futures_util::future::join_all;
use sqlx::{Connection as _, PgConnection};

use crate::payload::install;
use crate::world::{DEADLINE, Setup, World, eventually};

const INSTALLS: usize = 400;
/// Far below the time after which the server would deliver again.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);

/// Sends installs while no worker can commit, and lets them go on after `blocked`.
async fn send_while_blocked(world: &World, blocked: Duration) {
    let mut connection = world.connection().await;
    let mut transaction = connection.begin().await.unwrap();
    sqlx::query("LOCK TABLE mooring.journal IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *transaction)
        .await
        .unwrap();
    let started = Instant::now();
    for round in 0..INSTALLS / 20 {
        let installs: Vec<_> =
            (0..20).map(|index| install(&format!("held_{}", round * 20 + index))).collect();
        join_all(installs.iter().map(|install| world.acknowledged(install))).await;
    }
    tokio::time::sleep(blocked.saturating_sub(started.elapsed())).await;
    transaction.commit().await.unwrap();
}

async fn applied(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM projection.installations")
        .fetch_one(connection)
        .await
        .unwrap()
}

async fn redelivered(world: &World) -> usize {
    let stream = world.stream().await;
    stream.consumer_info(CONSUMER).await.unwrap().num_redelivered
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_waited_for_postgres_are_applied_as_soon_as_it_goes_on() {
    let world = World::start(Setup::default().env("MOORING__WORKER__BATCH_EVENTS_MAX", 50)).await;
    // Longer than a pull lives, and than the client keeps what it has buffered.
    send_while_blocked(&world, Duration::from_secs(9)).await;
    let released = Instant::now();
    let mut connection = world.connection().await;
    let all = INSTALLS as i64;
    assert!(eventually(async || applied(&mut connection).await == all).await);
    let took = released.elapsed();
    eprintln!("{INSTALLS} installs were applied {took:?} after the lock was released");
    assert!(took < APPLIED_WITHIN.min(DEADLINE), "{took:?}");
    assert_eq!(redelivered(&world).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_takes_longer_than_ack_wait_is_not_delivered_again() {
    let setup = Setup::default()
        .env("MOORING__WORKER__BATCH_EVENTS_MAX", 50)
        .env("MOORING__WORKER__ACK_WAIT_MS", 2_000);
    let world = World::start(setup).await;
    send_while_blocked(&world, Duration::from_secs(7)).await;
    assert_eq!(redelivered(&world).await, 0);
    world.wait_applied().await;
    let mut connection = world.connection().await;
    assert_eq!(applied(&mut connection).await, INSTALLS as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stops_gives_back_what_it_holds() {
    let mut world = World::start(Setup { workers: 2, ..Setup::default() }).await;
    let mut connection = world.connection().await;
    send_while_blocked(&world, Duration::from_secs(1)).await;
    let stopping = Instant::now();
    world.workers[0].stop(DEADLINE).unwrap();
    let all = INSTALLS as i64;
    assert!(eventually(async || applied(&mut connection).await == all).await);
    assert!(stopping.elapsed() < APPLIED_WITHIN, "{:?}", stopping.elapsed());
}
