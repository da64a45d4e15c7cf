//! What the consumer passes over is applied all the same.

use async_nats::jetstream::consumer::{DeliverPolicy, FromConsumer as _, pull};

use crate::payload::{api_key, install, uninstall};
use crate::world::{Setup, World, eventually};

/// Makes the worker's consumer anew, beginning behind what is in the log.
async fn skip_to_the_end(world: &World) {
    let stream = world.stream().await;
    let found = stream.consumer_info("worker").await.unwrap().config;
    let found = pull::Config::try_from_consumer_config(found).unwrap();
    stream.delete_consumer("worker").await.unwrap();
    let config = pull::Config { deliver_policy: DeliverPolicy::New, ..found };
    stream.create_consumer(config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_the_consumer_passed_over_are_applied() {
    let mut world = World::start(Setup { scraped: true, ..Setup::default() }).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    world.stop_workers();
    world.acknowledged(&install("b")).await;
    world.acknowledged(&uninstall("a")).await;
    skip_to_the_end(&world).await;
    world.start_workers_again();
    world.wait_worker_ready(0);
    world.acknowledged(&install("c")).await;
    world.wait_for_status("c", "active").await;
    let said = "the consumer has passed over an event";
    let is_found = eventually(async || world.worker_log().matches(said).count() == 2);
    assert!(is_found.await, "{}", world.worker_log());
    assert_eq!(world.wait_for_status("b", "active").await["generation"], 1);
    assert_eq!(world.wait_for_status("a", "inactive").await["generation"], 1);
    assert_eq!(world.credential("b").await.body["credential"], api_key("b"));
    assert_eq!(world.operate(&["verify"]).await.code, 0);

    // Copies, dead letters and gaps are not applied again, by whichever worker.
    let client = world.jetstream().await;
    client.publish("installations.blnk.7", "not an event".into()).await.unwrap().await.unwrap();
    world.stop_workers();
    world.start_workers_again();
    world.wait_worker_ready(0);
    world.acknowledged(&install("d")).await;
    world.wait_for_status("d", "active").await;
    tokio::time::sleep(std::time::Duration::from_secs(22)).await;
    assert_eq!(world.worker_log().matches(said).count(), 2, "{}", world.worker_log());
}
