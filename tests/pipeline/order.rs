//! The state depends on the set of events alone: histories go through the real
//! pipeline, are delivered again in other batches to other workers, and give
//! the same rows.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use serde_json::Value;

use crate::payload::{install_in, uninstall_in, with_key};
use crate::world::{Setup, World};

const HISTORIES: usize = 12;
const REDELIVERIES: usize = 3;

/// What is sent of the installations 0 to 3 of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Install(usize),
    ReplaceKey(usize),
    Uninstall(usize),
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..4usize).prop_map(Step::Install),
        1 => (0..4usize).prop_map(Step::ReplaceKey),
        2 => (0..4usize).prop_map(Step::Uninstall),
    ];
    prop::collection::vec(step, 1..12)
}

fn id(history: usize, installation: usize) -> String {
    format!("h{history}_{installation}")
}

fn callback(history: usize, step: Step) -> Value {
    let instance = format!("inst_{history}");
    match step {
        Step::Install(number) => install_in(&id(history, number), &instance),
        Step::ReplaceKey(number) => {
            let key = format!("blnk_replaced_of_{}", id(history, number));
            with_key(install_in(&id(history, number), &instance), &key)
        }
        Step::Uninstall(number) => uninstall_in(&id(history, number), &instance),
    }
}

/// The status by the rules alone: uninstalled is final; otherwise the last that
/// was installed is active.
fn expected(steps: &[Step], installation: usize) -> Option<&'static str> {
    let mut installed: Vec<usize> = Vec::new();
    let mut ended: Vec<usize> = Vec::new();
    for step in steps {
        match *step {
            Step::Install(number) | Step::ReplaceKey(number) => {
                if !installed.contains(&number) {
                    installed.push(number);
                }
            }
            Step::Uninstall(number) => ended.push(number),
        }
    }
    if ended.contains(&installation) {
        return Some("inactive");
    }
    installed
        .contains(&installation)
        .then(|| if installed.last() == Some(&installation) { "active" } else { "superseded" })
}

/// Whether it got a secret after its end that it had not had before: then it may be unverified.
fn is_doubtful(steps: &[Step], installation: usize) -> bool {
    let Some(end) = steps.iter().position(|step| *step == Step::Uninstall(installation)) else {
        return false;
    };
    let (before, after) = steps.split_at(end);
    let secrets = [Step::Install(installation), Step::ReplaceKey(installation)];
    secrets.iter().any(|secret| after.contains(secret) && !before.contains(secret))
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_give_one_state_whatever_the_delivery() {
    let setup = Setup { workers: 2, ..Setup::default() }
        .env("MOORING__WORKER__BATCH_EVENTS_MAX", 3)
        .env("MOORING__WORKER__ACK_WAIT_MS", 500);
    let mut world = World::start(setup).await;
    let mut runner = TestRunner::default();
    let histories: Vec<Vec<Step>> =
        (0..HISTORIES).map(|_| history().new_tree(&mut runner).unwrap().current()).collect();
    eprintln!("{histories:?}");

    // Interleaved, each twice.
    let longest = histories.iter().map(Vec::len).max().unwrap();
    for position in 0..longest {
        for (number, steps) in histories.iter().enumerate() {
            if let Some(step) = steps.get(position) {
                world.acknowledged(&callback(number, *step)).await;
                world.acknowledged(&callback(number, *step)).await;
            }
        }
    }
    world.assert_exactly_once(&[]).await;
    for (number, steps) in histories.iter().enumerate() {
        for installation in 0..4 {
            let id = id(number, installation);
            let found = world.read(&format!("/v1/installations/{id}")).await;
            let status = found.body["status"].as_str();
            // An absent one is a problem, whose status is a number.
            let may_doubt = status == Some("unverified") && is_doubtful(steps, installation);
            assert!(
                may_doubt || status == expected(steps, installation),
                "{id} is {status:?} of {steps:?}"
            );
        }
    }

    let first = world.projection().await;
    for round in 0..REDELIVERIES {
        deliver_again(&mut world, round).await;
        world.assert_exactly_once(&[]).await;
        assert_eq!(world.projection().await, first);
    }
}

/// Everything comes again, into a journal that has lost some events and a
/// projection that has lost all, while a worker is killed.
async fn deliver_again(world: &mut World, round: usize) {
    world.stop_workers();
    let mut connection = world.connection().await;
    let forget = [
        format!("DELETE FROM mooring.journal WHERE stream_sequence % 3 <> {}", round % 3),
        "DELETE FROM projection.installations".to_owned(),
    ];
    for sql in forget {
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }
    let stream = world.jetstream().await.get_stream("INSTALLATIONS").await.unwrap();
    stream.delete_consumer("worker").await.unwrap();
    world.migrate(); // makes the consumer anew, from the start of the log
    world.start_workers_again();
    world.workers[round % 2].kill().unwrap();
    world.workers[round % 2].start_again().unwrap();
}
