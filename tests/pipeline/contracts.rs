//! The ack contract of every platform, from its table.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use domain::platform::{AckContract, MissedAck, Platform, SuccessBody};
use serde_json::{Value, json};

use crate::payload;
use crate::world::{Answer, Setup, World, eventually, post};

/// Of the platform's folder: an `install`, its `installation_id`, and what a
/// `source` of the platform cannot do without.
fn example(platform: Platform) -> Value {
    let platforms = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/domain/src/platform");
    let example = std::fs::read(platforms.join(platform.name()).join("example.json"));
    serde_json::from_slice(&example.unwrap()).unwrap()
}

/// A source of each platform, and one whose contract is configured: Seismic's.
fn sources() -> Vec<(String, Platform, AckContract)> {
    let of = |platform: Platform| (format!("as-{platform}"), platform, platform.ack_contract());
    let mut sources: Vec<_> = Platform::ALL.into_iter().map(of).collect();
    let seismic = AckContract {
        deadline: Duration::from_secs(3),
        success: reqwest::StatusCode::ACCEPTED,
        body: SuccessBody::Empty,
        missed: MissedAck::Cancels,
        ..Platform::Generic.ack_contract()
    };
    sources.push(("like-seismic".to_owned(), Platform::Generic, seismic));
    sources
}

fn configuration() -> String {
    let mut text = String::new();
    for (name, platform, _) in sources() {
        let example = example(platform);
        let source = example["source"].as_str().unwrap();
        write!(
            text,
            "[sources.{name}]\nplatform = \"{platform}\"\n{source}\nverification.unverified = true\n"
        )
        .unwrap();
    }
    text.push_str(
        "[sources.like-seismic.ack]\ndeadline_ms = 3000\nsuccess_status = 202\n\
         success_body = \"empty\"\nmissed = \"cancels\"\n",
    );
    text
}

async fn send(world: &World, source: &str, callback: &Value) -> Answer {
    let url = world.ingest_url(0, &format!("/callbacks/{source}"));
    post(&world.http, &url, callback).await.unwrap()
}

async fn start(setup: Setup) -> World {
    let world = World::servers(setup);
    world.configure(&configuration());
    world.with_services().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_success_is_answered_as_each_platform_expects() {
    let world = start(Setup { workers: 0, ..Setup::default() }).await;
    for (source, platform, contract) in sources() {
        for duplicate in [false, true] {
            let answer = send(&world, &source, &example(platform)["install"]).await;
            let body = match contract.body {
                SuccessBody::Json => json!({ "ok": true, "duplicate": duplicate }),
                SuccessBody::Empty => json!(""),
            };
            assert_eq!((answer.status, answer.body), (contract.success.as_u16(), body), "{source}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_away_is_answered_before_the_deadline_and_as_retryable() {
    let mut world = start(Setup::default()).await;
    world.nats.kill().unwrap();
    let world = &world;
    let sent = sources().into_iter().map(async |(source, platform, contract)| {
        let started = Instant::now();
        let answer = send(world, &source, &example(platform)["install"]).await;
        (source, contract, answer, started.elapsed())
    });
    for (source, contract, answer, took) in futures_util::future::join_all(sent).await {
        assert_eq!(answer.status, contract.unavailable.as_u16(), "{source}");
        assert_eq!(answer.problem(), "log-unavailable", "{source}");
        assert_eq!(answer.headers["retry-after"], "2", "{source}");
        assert!(took < contract.deadline, "{source} after {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missed_ack_is_ambiguous_only_where_the_platform_cancels() {
    let world = start(Setup::default()).await;
    let pid = world.nats.pid().unwrap().to_string();
    let signal = |name: &str| std::process::Command::new("kill").args([name, &pid]).status();
    for (source, platform, contract) in sources() {
        signal("-STOP").unwrap();
        let url = world.ingest_url(0, &format!("/callbacks/{source}"));
        let hung_up = world.http.post(&url).timeout(Duration::from_millis(300));
        assert!(hung_up.json(&example(platform)["install"]).send().await.is_err());
        tokio::time::sleep(Duration::from_millis(100)).await;
        signal("-CONT").unwrap();
        let expected = match contract.missed {
            MissedAck::Cancels => "unconfirmed",
            MissedAck::Stands => "active",
        };
        let example = example(platform);
        let id = example["installation_id"].as_str().unwrap();
        let path = format!("/v1/installations/{id}?source={source}");
        let found = eventually(async || world.read(&path).await.body["status"] == expected).await;
        assert!(found, "{source} is not {expected}: {:?}", world.read(&path).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_has_no_more_callbacks_waiting_than_it_may() {
    let setup = Setup { workers: 0, ..Setup::default() };
    let world = World::servers(setup);
    world.replace_in_config("[sources.blnk]", "[sources.blnk]\ncallbacks_max = 2");
    world.configure(&configuration());
    let world = &world.with_services().await;
    let pid = world.nats.pid().unwrap().to_string();
    let signal = |name: &str| std::process::Command::new("kill").args([name, &pid]).status();
    signal("-STOP").unwrap();
    let names = ["a", "b", "c", "d", "e"];
    let sent = names.map(async |name| world.send(&payload::install(name)).await);
    let answers = futures_util::future::join_all(sent);
    let other = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let url = world.ingest_url(0, "/callbacks/as-blnk");
        let callback = payload::install("z");
        let waiting = post(&world.http, &url, &callback);
        let later = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            signal("-CONT").unwrap();
        };
        futures_util::future::join(waiting, later).await.0.unwrap()
    };
    let (answers, other) = futures_util::future::join(answers, other).await;
    let full = answers.iter().filter(|answer| answer.problem() == "overloaded").count();
    assert_eq!(full, 3, "{answers:?}");
    assert!(answers.iter().all(|answer| [200, 503].contains(&answer.status)));
    assert_eq!(other.status, 200, "another source has places of its own");
}
