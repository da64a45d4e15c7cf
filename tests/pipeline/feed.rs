//! The change feed: what a reader is told, in order and without a hole, whatever dies meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::load::Load;
use crate::payload::{install, install_in, uninstall, uninstall_in, with_key};
use crate::reads::{ask, configure_two_apps, in_shop, token_section};
use crate::world::{Answer, Setup, World, eventually};

async fn page(world: &World, query: &str) -> (Vec<Value>, String) {
    let answer = world.read(&format!("/v1/changes?{query}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let changes = answer.body["changes"].as_array().unwrap().clone();
    (changes, answer.body["cursor"].as_str().unwrap().to_owned())
}

fn text<'a>(change: &'a Value, field: &str) -> &'a str {
    change[field].as_str().unwrap()
}

/// Type and installation of each.
fn told(changes: &[Value]) -> Vec<(&str, &str)> {
    changes.iter().map(|it| (text(it, "type"), text(it, "installation_id"))).collect()
}

fn positions(changes: &[Value]) -> Vec<u64> {
    changes.iter().map(|it| it["position"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_is_told_what_became_of_each_installation() {
    let world = World::start(Setup::default()).await;
    let begin = page(&world, "").await;
    assert_eq!(begin.0, [Value::Null; 0]);
    for callback in [
        install("a"),
        install("a"),
        with_key(install("a"), "blnk_key_that_was_replaced_987"),
        install_in("b", "inst_a"),
        uninstall_in("b", "inst_a"),
    ] {
        world.acknowledged(&callback).await;
        world.wait_applied().await;
    }
    let (changes, cursor) = page(&world, &format!("after={}", begin.1)).await;
    assert_eq!(
        told(&changes),
        [
            ("installation.activated", "a"),
            ("credential.replaced", "a"),
            ("installation.superseded", "a"),
            ("installation.activated", "b"),
            ("installation.deactivated", "b"),
        ]
    );
    assert_eq!(positions(&changes), [1, 2, 3, 4, 5]);
    let last = &changes[4];
    assert_eq!((&last["cause"], &last["source"]), (&json!("event"), &json!("blnk")));
    // What stands in the feed is what the read API showed.
    assert_eq!(last["installation"], world.installation("b").await);
    assert!(!json!(changes).to_string().contains("v1."), "no secret, sealed or not");
    assert_eq!(page(&world, &format!("after={cursor}")).await, (vec![], cursor.clone()));

    let only = page(&world, "type=installation.activated&limit=1").await;
    assert_eq!(told(&only.0), [("installation.activated", "a")]);
    let next = page(&world, &format!("type=installation.activated&after={}", only.1)).await;
    assert_eq!(told(&next.0), [("installation.activated", "b")]);
    assert_eq!(page(&world, "source=other").await.0, [Value::Null; 0]);

    assert_eq!(
        world.operate(&["erase", "a", "--source", "blnk", "--why", "asked", "--yes"]).await.code,
        0
    );
    let erased = eventually(async || {
        told(&page(&world, &format!("after={cursor}")).await.0) == [("installation.erased", "a")]
    });
    assert!(erased.await, "{:?}", page(&world, &format!("after={cursor}")).await);
    let tail = world.operate(&["feed", "tail", "--type", "installation.erased"]).await;
    assert!(tail.stdout.contains("installation.erased"), "{tail:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_and_rebuild_are_silent() {
    let world = World::start(Setup::default()).await;
    for callback in [install("a"), uninstall("a"), install("b")] {
        world.acknowledged(&callback).await;
    }
    world.wait_applied().await;
    let before = page(&world, "").await;
    assert_eq!(before.0.len(), 3);
    assert_eq!(world.operate(&["replay", "--apply"]).await.code, 0);
    assert_eq!(world.operate(&["rebuild"]).await.code, 0);
    assert_eq!(page(&world, "").await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_rebuild_finds_otherwise_is_told() {
    let world = World::start(Setup::default()).await;
    for id in ["a", "b"] {
        world.acknowledged(&install(id)).await;
    }
    world.wait_applied().await;
    // As a defect of an earlier version might have left it.
    let broken = "UPDATE projection.installations
                  SET status = 'inactive', uninstalled_at = now() WHERE installation_id = 'a'";
    sqlx::query(broken).execute(&mut world.connection().await).await.unwrap();
    let (_, cursor) = page(&world, "").await;
    let expect = ["rebuild", "--expect", "status", "--expect", "uninstalled_at"];
    assert_eq!(world.operate(&expect).await.code, 0);
    let (changes, _) = page(&world, &format!("after={cursor}")).await;
    assert_eq!(told(&changes), [("installation.activated", "a")]);
    assert_eq!(changes[0]["cause"], "rebuild");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_and_the_feed_after_it_have_no_hole_between_them() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    let listed = world.read("/v1/installations").await.body;
    let cursor = listed["changes_cursor"].as_str().unwrap().to_owned();
    assert_eq!(page(&world, &format!("after={cursor}")).await.0, [Value::Null; 0]);

    // A reader that waits hears at once, and one that hears nothing is answered in time.
    let after = format!("after={cursor}&wait=20");
    let (heard, _) = tokio::join!(page(&world, &after), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.acknowledged(&install("b")).await;
    });
    assert_eq!(told(&heard.0), [("installation.activated", "b")]);
    assert_eq!(page(&world, &format!("after={}&wait=1", heard.1)).await.0, [Value::Null; 0]);
    // What others hear of does not end its wait.
    let after = format!("after={}&type=installation.erased&wait=1", heard.1);
    let (nothing, _) =
        tokio::join!(page(&world, &after), async { world.acknowledged(&install("c")).await });
    assert_eq!(nothing.0, [Value::Null; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_that_would_pass_over_something_is_refused() {
    let world = World::start(Setup::default()).await;
    for id in ["a", "b"] {
        world.acknowledged(&install(id)).await;
    }
    world.wait_applied().await;
    let (_, cursor) = page(&world, "limit=1").await;
    let refused = async |query: &str| {
        let Answer { status, body, .. } = world.read(&format!("/v1/changes?{query}")).await;
        (status, body["type"].as_str().unwrap_or_default().to_owned())
    };
    let invalid = (400, "urn:mooring:problem:invalid-parameter".to_owned());
    for query in
        ["after=1", "type=gone", "limit=0", "limit=1001", "wait=51", "since=1", "source=%00"]
    {
        assert_eq!(refused(query).await, invalid, "{query}");
    }
    let expired = (410, "urn:mooring:problem:cursor-expired".to_owned());
    let (feed, _) = cursor.split_once('-').unwrap();
    assert_eq!(refused(&format!("after={feed}-3")).await, expired, "it is ahead");

    // A day old: they may go.
    let mut connection = world.connection().await;
    let aged = "UPDATE mooring.changes SET recorded_at = recorded_at - interval '2 days'";
    sqlx::query(aged).execute(&mut connection).await.unwrap();
    let prune = "SELECT mooring.prune_changes(interval '0', 1)";
    sqlx::query(prune).execute(&mut connection).await.unwrap();
    assert_eq!(refused(&format!("after={feed}-0")).await, expired, "it is pruned");
    assert_eq!(told(&page(&world, &format!("after={cursor}")).await.0).len(), 1);
    assert_eq!(told(&page(&world, "").await.0), [("installation.activated", "b")]);
    world.acknowledged(&install("c")).await;
    world.wait_applied().await;
    sqlx::query(prune).execute(&mut connection).await.unwrap();
    sqlx::query(prune).execute(&mut connection).await.unwrap();
    let kept = page(&world, "").await.0;
    assert_eq!(told(&kept), [("installation.activated", "c")], "what is not a day old stays");

    assert_eq!(world.operate(&["feed", "restart"]).await.code, 2, "nobody to ask");
    assert_eq!(world.operate(&["feed", "restart", "--yes"]).await.code, 0);
    assert_eq!(refused(&format!("after={cursor}")).await, expired, "of another feed");
}

/// The events of a stream, until `enough`.
async fn stream(world: &World, last: Option<&str>, enough: usize) -> Vec<(String, Value)> {
    let token = world.secrets.read("read-token").unwrap();
    let url = world.worker_url(0, "/v1/changes");
    let mut request = world.http.get(url).bearer_auth(token).header("accept", "text/event-stream");
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let (mut bytes, mut text) = (answer.bytes_stream(), String::new());
    while text.matches("\ndata: ").count() < enough {
        text.push_str(std::str::from_utf8(&bytes.next().await.unwrap().unwrap()).unwrap());
    }
    let field = |event: &str, name: &str| {
        event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
    };
    let event = |event: &str| {
        let data = serde_json::from_str(&field(event, "data: ")?).unwrap();
        Some((field(event, "id: ").unwrap(), data))
    };
    text.split("\n\n").filter_map(event).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_it_was_left() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    let first = stream(&world, None, 1).await;
    assert_eq!(first[0].1["installation_id"], "a");
    let (_, then) = tokio::join!(
        async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            world.acknowledged(&install("b")).await;
            world.acknowledged(&install("c")).await;
        },
        stream(&world, Some(&first[0].0), 2)
    );
    let ids: Vec<&Value> = then.iter().map(|(_, change)| &change["installation_id"]).collect();
    assert_eq!(ids, ["b", "c"]);
    let url = world.worker_url(0, "/v1/changes?after=abc-1");
    let token = world.secrets.read("read-token").unwrap();
    let request = world.http.get(url).bearer_auth(token).header("accept", "text/event-stream");
    assert_eq!(request.send().await.unwrap().status(), 410);
}

const ONE: &str = "a_token_of_app_1_0123456789_0123456789_012";

#[tokio::test(flavor = "multi_thread")]
async fn of_another_app_nothing_is_told() {
    let world = World::servers(Setup::default());
    configure_two_apps(&world);
    let reach = "scopes = [\"installations:read\"]\nsources = [\"shop\"]\napp_ids = [\"app_1\"]";
    world.configure(&token_section("one", ONE, reach));
    let world = world.with_services().await;
    let one = async |query: &str| ask(&world, query, Some(ONE)).await.body;
    in_shop(&world, "installed", "app_1", "7", "here").await;
    world.wait_applied().await;
    let (listed, followed) = (one("/v1/installations").await, one("/v1/changes").await);
    for id in ["8", "9"] {
        in_shop(&world, "installed", "app_2", id, id).await;
    }
    world.acknowledged(&install("blnk_1")).await;
    world.wait_applied().await;
    assert_eq!(one("/v1/installations").await, listed);
    assert_eq!(one("/v1/changes").await, followed);
    let after = followed["cursor"].as_str().unwrap();
    let nothing = one(&format!("/v1/changes?after={after}&wait=1")).await;
    assert_eq!((&nothing["changes"], &nothing["cursor"]), (&json!([]), &json!(after)));
    let denied = ask(&world, "/v1/changes", None).await;
    assert_eq!(denied.status, 401);
}

/// An event that changes nothing but itself is no news.
fn seen(installation: &Value) -> Value {
    let mut seen = installation.clone();
    seen.as_object_mut().unwrap().shift_remove("last_event");
    seen
}

/// A consumer that keeps state and cursor together, as one should.
#[derive(Default)]
struct Mirror {
    cursor: Option<String>,
    installations: BTreeMap<String, Value>,
    last_position: u64,
}

impl Mirror {
    /// Takes what there is; says whether there was something.
    async fn follow(&mut self, world: &World) -> bool {
        let after = self.cursor.as_ref().map(|it| format!("after={it}")).unwrap_or_default();
        let path = format!("/v1/changes?limit=7&{after}");
        let token = world.secrets.read("read-token").unwrap();
        let request = world.http.get(world.worker_url(0, &path)).bearer_auth(token);
        // The worker may be dead just now.
        let Ok(answer) = request.send().await else { return false };
        let Some(answer) = Answer::of(answer).await.ok().filter(|it| it.status == 200) else {
            return false;
        };
        for change in answer.body["changes"].as_array().unwrap() {
            let position = change["position"].as_u64().unwrap();
            assert_eq!(position, self.last_position + 1, "a hole, or one twice");
            self.last_position = position;
            let id = change["installation_id"].as_str().unwrap().to_owned();
            self.installations.insert(id, seen(&change["installation"]));
        }
        self.cursor = answer.body["cursor"].as_str().map(str::to_owned);
        !answer.body["changes"].as_array().unwrap().is_empty()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_ends_with_the_state_of_the_list_whatever_is_killed() {
    let mut world = World::start(
        Setup { workers: 2, ..Setup::default() }.env("MOORING__WORKER__ACK_WAIT_MS", 1_000),
    )
    .await;
    let load = Load::start(&world);
    let mut mirror = Mirror::default();
    for round in 0..6 {
        for _ in 0..20 {
            mirror.follow(&world).await;
        }
        if round % 2 == 1 {
            world.nats.kill().unwrap();
            world.nats.start_again().unwrap();
        }
        world.workers.iter_mut().for_each(|worker| worker.kill().unwrap());
        world.start_workers_again();
        world.wait_worker_ready(0);
    }
    let acknowledged = load.stop().await;
    world.wait_applied().await;
    while mirror.follow(&world).await {}
    let mut listed = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let answer = world.read(&format!("/v1/installations?limit=200{cursor}")).await.body;
        for found in answer["installations"].as_array().unwrap() {
            listed.insert(text(found, "installation_id").to_owned(), seen(found));
        }
        let Some(next) = answer["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let installs = acknowledged.iter().filter(|key| key.starts_with("install:")).count();
    assert!(listed.len() >= installs && installs > 50, "{installs} of {}", listed.len());
    let differ = listed.iter().filter(|(id, found)| mirror.installations.get(*id) != Some(*found));
    assert_eq!(differ.count(), 0);
    assert_eq!(mirror.installations.len(), listed.len());
}
