//! What became of installations is pushed: signed, in order for each installation, and once more
//! rather than not at all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::net::TcpListener;

use crate::payload::{install, uninstall};
use crate::world::{Setup, World, eventually};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const FORMER: &str = "whsec_c2Vjb25kLXNlY3JldC1mb3ItYS1yb3RhdGlvbg==";

/// For an answer of an endpoint, in `worker/src/live/push/deliver.rs`.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// An app's service, which checks signatures with the library that Standard Webhooks gives out.
#[derive(Default)]
struct Seen {
    /// As they came.
    changes: Vec<Value>,
    unsigned: usize,
    /// It answers 500 to what is about these.
    failing: BTreeSet<String>,
    /// It answers nothing to what is about these.
    silent: BTreeSet<String>,
    /// It answers this to everything.
    answers: Option<StatusCode>,
}

struct Receiver {
    seen: Arc<Mutex<Seen>>,
    port: u16,
}

impl Receiver {
    async fn start() -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let router = Router::new().route("/hook", post(take)).with_state(Arc::clone(&seen));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { seen, port }
    }

    fn seen<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap())
    }

    /// The types of what came about one installation, in order, copies left out.
    fn told(&self, id: &str) -> Vec<String> {
        let mut last = 0;
        self.seen(|seen| {
            let of_it = seen.changes.iter().filter(|it| it["data"]["installation_id"] == id);
            let mut types = Vec::new();
            for change in of_it {
                let position = change["data"]["position"].as_u64().unwrap();
                if position > last {
                    types.push(change["type"].as_str().unwrap().to_owned());
                }
                last = last.max(position);
            }
            types
        })
    }

    fn section(&self, more: &str) -> String {
        format!(
            "[worker.push.crm]\nurl = \"http://127.0.0.1:{}/hook\"\nallow_private = true\n{more}",
            self.port
        )
    }
}

async fn take(
    State(seen): State<Arc<Mutex<Seen>>>,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    if let Some(id) = of_silent(&seen, &body) {
        eprintln!("silent about {id}");
        std::future::pending::<()>().await;
    }
    let mut seen = seen.lock().unwrap();
    let is_signed =
        |secret| Webhook::new(secret).unwrap().verify(body.as_bytes(), &headers).is_ok();
    if !is_signed(SECRET) || !is_signed(FORMER) {
        seen.unsigned += 1;
        return StatusCode::UNAUTHORIZED;
    }
    if let Some(status) = seen.answers {
        return status;
    }
    let change: Value = serde_json::from_str(&body).unwrap();
    let id = change["data"]["installation_id"].as_str().unwrap();
    if seen.failing.contains(id) {
        return StatusCode::INTERNAL_SERVER_ERROR;
    }
    seen.changes.push(change);
    StatusCode::NO_CONTENT
}

fn of_silent(seen: &Mutex<Seen>, body: &str) -> Option<String> {
    let change: Value = serde_json::from_str(body).ok()?;
    let id = change["data"]["installation_id"].as_str()?.to_owned();
    seen.lock().unwrap().silent.contains(&id).then_some(id)
}

/// Two secrets, as while they are rotated.
pub(crate) fn secrets(world: &World) -> String {
    let file = |name: &str, secret: &str| {
        let path = world.folder.path().join(name);
        std::fs::write(&path, secret).unwrap();
        format!("{{ file = \"{}\" }}", path.display())
    };
    format!("secrets = [{}, {}]\n", file("push-1", SECRET), file("push-2", FORMER))
}

async fn start(receiver: &Receiver, workers: usize) -> World {
    // What a killed worker held comes again soon.
    let setup = Setup::default().env("MOORING__WORKER__ACK_WAIT_MS", 1_000);
    let world = World::servers(Setup { workers, ..setup });
    world.configure(&receiver.section(&secrets(&world)));
    let world = world.with_services().await;
    assert!(eventually(async || !list(&world).await.is_empty()).await, "it is not enrolled");
    world
}

async fn list(world: &World) -> Vec<Value> {
    let listed = world.operate(&["push", "list", "--json"]).await.json(0);
    listed.as_array().unwrap().clone()
}

async fn push(world: &World, args: &[&str]) {
    let args = [&["push"], args].concat();
    let done = world.operate(&args).await;
    assert_eq!(done.code, 0, "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_delivered_in_order_whoever_fails() {
    let receiver = Receiver::start().await;
    receiver.seen(|seen| seen.failing = ["bad".to_owned()].into());
    let mut world = start(&receiver, 2).await;
    for round in 0..4 {
        for id in ["a", "b"] {
            world.acknowledged(&install(&format!("{id}{round}"))).await;
        }
        world.acknowledged(&install("bad")).await;
        world.workers[round % 2].kill().unwrap();
        world.workers[round % 2].start_again().unwrap();
        world.wait_worker_ready(round % 2);
        let id = format!("a{round}");
        world.wait_for_status(&id, "active").await;
        world.acknowledged(&uninstall(&id)).await;
    }
    world.wait_for_status("bad", "active").await;
    world.acknowledged(&uninstall("bad")).await;
    world.wait_applied().await;
    let ended = ["installation.activated", "installation.deactivated"];
    for round in 0..4 {
        let (a, b) = (format!("a{round}"), format!("b{round}"));
        let is_told = async || receiver.told(&a) == ended && receiver.told(&b) == ended[..1];
        assert!(eventually(is_told).await, "{:?} {:?}", receiver.told(&a), receiver.told(&b));
    }

    // What fails is behind itself only, and comes in its order when it can.
    assert_eq!(receiver.told("bad"), [""; 0]);
    let found = list(&world).await.remove(0);
    assert_eq!((&found["undelivered"], &found["problem"]), (&2.into(), &"answered 500".into()));
    receiver.seen(|seen| seen.failing.clear());
    push(&world, &["resume", "crm"]).await;
    assert!(eventually(async || receiver.told("bad") == ended).await, "{:?}", receiver.told("bad"));
    assert_eq!(receiver.seen(|seen| seen.unsigned), 0);

    // Who kept the last that came of each has what the list has.
    let mut last = BTreeMap::new();
    receiver.seen(|seen| {
        seen.changes.sort_by_key(|change| change["data"]["position"].as_u64());
        for change in &seen.changes {
            let data = &change["data"];
            last.insert(data["installation_id"].to_string(), data["installation"].clone());
        }
    });
    for installation in
        world.read("/v1/installations").await.body["installations"].as_array().unwrap()
    {
        assert_eq!(&last[&installation["installation_id"].to_string()], installation);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_not_answered_holds_up_neither_others_nor_the_end() {
    let receiver = Receiver::start().await;
    let mut world = start(&receiver, 1).await;
    receiver.seen(|seen| seen.silent = ["silent".to_owned()].into());
    world.acknowledged(&install("silent")).await;
    world.wait_for_status("silent", "active").await;
    for number in 0..40 {
        world.acknowledged(&install(&format!("a{number}"))).await;
    }
    let are_told = async || receiver.seen(|seen| seen.changes.len()) == 40;
    assert!(eventually(are_told).await);
    assert_eq!(list(&world).await[0]["problem"], Value::Null, "it waits for the answer still");
    let began = Instant::now();
    world.stop_workers();
    assert!(began.elapsed() < ANSWER_TIMEOUT, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_gone_is_paused_and_misses_nothing() {
    let receiver = Receiver::start().await;
    let world = start(&receiver, 1).await;
    receiver.seen(|seen| seen.answers = Some(StatusCode::GONE));
    for id in ["a", "b", "c"] {
        world.acknowledged(&install(id)).await;
    }
    world.wait_applied().await;
    let is_paused = async || !list(&world).await[0]["paused_at"].is_null();
    assert!(eventually(is_paused).await, "{}", world.worker_log());
    let found = list(&world).await.remove(0);
    assert!(found["paused_why"].as_str().unwrap().contains("answered 410"), "{found}");
    assert_eq!(found["undelivered"], 3, "{found}");

    receiver.seen(|seen| seen.answers = None);
    push(&world, &["skip", "crm", "2"]).await;
    assert_eq!(world.operate(&["push", "skip", "crm", "2"]).await.code, 1);
    assert_eq!(world.operate(&["push", "resume", "other"]).await.code, 1);
    push(&world, &["resume", "crm"]).await;
    let activated = ["installation.activated"];
    let is_told = async || receiver.told("a") == activated && receiver.told("c") == activated;
    assert!(eventually(is_told).await, "{}", world.worker_log());
    assert_eq!(receiver.told("b"), [""; 0], "it was skipped");

    let cursor = world.read("/v1/changes?limit=1").await.body["cursor"].clone();
    push(&world, &["redeliver", "crm", "--after", cursor.as_str().unwrap()]).await;
    assert!(eventually(async || receiver.told("b") == activated).await);
    push(&world, &["pause", "crm", "--why", "maintenance"]).await;
    world.acknowledged(&uninstall("a")).await;
    world.wait_for_status("a", "inactive").await;
    let found = list(&world).await.remove(0);
    assert_eq!((&found["paused_why"], &found["undelivered"]), (&"maintenance".into(), &1.into()));
    push(&world, &["resume", "crm"]).await;
    let is_told = async || receiver.told("a").last().unwrap() == "installation.deactivated";
    assert!(eventually(is_told).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_private_network_is_spoken_to_unless_it_is_meant() {
    let receiver = Receiver::start().await;
    let world = World::servers(Setup::default());
    let secrets = secrets(&world);
    world.configure(&format!(
        "[worker.push.inside]\nurl = \"https://localhost:{}/hook\"\n{secrets}",
        receiver.port
    ));
    let world = world.with_services().await;
    assert!(eventually(async || !list(&world).await.is_empty()).await, "it is not enrolled");
    world.acknowledged(&install("a")).await;
    let is_refused = async || {
        let found = list(&world).await.remove(0);
        found["problem"].as_str().is_some_and(|why| why.contains("set allow_private"))
    };
    assert!(eventually(is_refused).await, "{:?}", list(&world).await);
    assert_eq!(receiver.seen(|seen| seen.changes.len() + seen.unsigned), 0);

    for (setting, wrong) in [
        ("url", "url = \"http://shop.example/hook\"\nsecrets = [{ env = \"PUSH\" }]"),
        (
            "types",
            "types = [\"installed\"]\nurl = \"https://shop.example/\"\nsecrets = [{ env = \"PUSH\" }]",
        ),
        (
            "sources",
            "sources = [\"none\"]\nurl = \"https://shop.example/\"\nsecrets = [{ env = \"PUSH\" }]",
        ),
        ("secrets", "url = \"https://shop.example/\"\nsecrets = []"),
    ] {
        let path = world.folder.path().join("wrong.toml");
        let config = std::fs::read_to_string(world.config()).unwrap();
        std::fs::write(&path, format!("{config}\n[worker.push.wrong]\n{wrong}\n")).unwrap();
        let envs = [("MOORING_CONFIG", path.to_str().unwrap()), ("PUSH", SECRET)];
        let checked = world.operate_with(&["run", "--check-config"], &envs).await;
        assert_ne!(checked.code, 0, "{setting}");
        let said = format!("worker.push.wrong.{setting}");
        assert!(checked.stderr.contains(&said), "{setting}: {}", checked.stderr);
    }
}
