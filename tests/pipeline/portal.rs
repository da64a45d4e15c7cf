//! Users who launch an app from its platform: the app gets a URL for each, and learns from the
//! token in it who they are. As https://docs.blnkfinance.com/cloud/apps/launch-app has it.

use std::collections::BTreeMap;

use reqwest::Url;
use serde_json::{Value, json};
use sqlx::Row as _;

use crate::payload::{install, install_in, uninstall};
use crate::reads::{TOKEN_THAT_READS, configure_reader, token_section};
use crate::world::{Answer, Setup, World};

const TOKEN_OF_ANOTHER: &str = "a_token_of_another_app_0123456789";

/// As Blnk posts it now. It named more before.
fn launch(id: &str, instance: &str) -> Value {
    json!({ "installed_app_id": id, "app_id": "app_1", "instance_id": instance })
}

async fn post_as(world: &World, token: &str, path: &str, body: &Value) -> Answer {
    let request = world.http.post(world.worker_url(0, path)).bearer_auth(token).json(body);
    Answer::of(request.send().await.unwrap()).await.unwrap()
}

async fn post(world: &World, path: &str, body: &Value) -> Answer {
    post_as(world, &world.secrets.read("read-token").unwrap(), path, body).await
}

/// The token in the URL that a launch is answered with.
async fn opened(world: &World, launch: &Value) -> String {
    let answer = post(world, "/v1/portal-sessions", launch).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.headers["cache-control"], "no-store");
    let url = Url::parse(answer.body["portal_url"].as_str().unwrap()).unwrap();
    assert_eq!((url.host_str(), url.path()), (Some("127.0.0.1"), "/portal"));
    let query: BTreeMap<_, _> = url.query_pairs().into_owned().collect();
    assert_eq!(query.len(), 1);
    query["token"].clone()
}

async fn introspected(world: &World, token: &str) -> Answer {
    post(world, "/v1/portal-sessions/introspect", &json!({ "token": token })).await
}

fn refusal(answer: &Answer) -> (u16, &str) {
    (answer.status, answer.problem())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_launches_the_app_until_it_is_uninstalled() {
    let world = World::start(Setup::default()).await;
    // One that was installed just now is waited for.
    let launching = async { opened(&world, &launch("a", "inst_a")).await };
    let installing = async { world.acknowledged(&install("a")).await };
    let (token, _) = tokio::join!(launching, installing);
    let session = introspected(&world, &token).await;
    assert_eq!(session.status, 200, "{session:?}");
    let of = |name: &str| session.body[name].clone();
    assert_eq!((of("source"), of("installation_id")), (json!("blnk"), json!("a")));
    assert_eq!((of("app_id"), of("user_id")), (json!("app_1"), Value::Null));
    assert_eq!(of("scope"), json!({ "instance_id": "inst_a" }));

    let mut with_user = launch("a", "inst_a");
    with_user["user_id"] = json!("user_1");
    with_user["new_field"] = json!({});
    let second = opened(&world, &with_user).await;
    assert_ne!(token, second, "each launch has a URL of its own");
    assert_eq!(introspected(&world, &second).await.body["user_id"], "user_1");

    for wrong in ["", "x", &token[1..], "\0"] {
        let answer = introspected(&world, wrong).await;
        assert_eq!(refusal(&answer), (404, "no-portal-session"), "{wrong}");
    }
    world.acknowledged(&uninstall("a")).await;
    world.wait_for_status("a", "inactive").await;
    assert_eq!(refusal(&introspected(&world, &token).await), (410, "portal-session-expired"));
    let again = post(&world, "/v1/portal-sessions", &launch("a", "inst_a")).await;
    assert_eq!(refusal(&again), (409, "installation-not-active"));
    assert!(!world.worker_log().contains(&token), "a token is a secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_by_itself_and_is_forgotten_later() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    let token = opened(&world, &launch("a", "inst_a")).await;
    let mut connection = world.connection().await;
    let stored = sqlx::query("SELECT encode(token_sha256, 'hex') FROM mooring.portal_sessions");
    let stored: String = stored.fetch_one(&mut connection).await.unwrap().get(0);
    assert_ne!(stored, token, "only the digest is kept");
    let back = "UPDATE mooring.portal_sessions SET expires_at = expires_at - $1::interval";
    let mut age = async |by: &str| {
        let aged = sqlx::query(sqlx::AssertSqlSafe(back.replace("$1", &format!("'{by}'"))));
        aged.execute(&mut connection).await.unwrap();
    };
    age("899 s").await;
    assert_eq!(introspected(&world, &token).await.status, 200);
    age("2 s").await;
    assert_eq!(refusal(&introspected(&world, &token).await), (410, "portal-session-expired"));
    age("2 hours").await;
    opened(&world, &launch("a", "inst_a")).await;
    assert_eq!(refusal(&introspected(&world, &token).await), (404, "no-portal-session"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_launches_what_is_not_theirs() {
    let world = World::servers(Setup::default());
    configure_reader(&world);
    let more = "scopes = [\"portal_sessions:open\"]\nsources = [\"blnk\"]\napp_ids = [\"app_2\"]";
    world.configure(&token_section("another", TOKEN_OF_ANOTHER, more));
    world.configure(
        "[sources.other]\nplatform = \"blnk\"\nverification.unverified = true\n\
         [sources.other.portal]\nurl = \"https://app.example.com/open?from=blnk\"\n",
    );
    let world = world.with_services().await;
    world.acknowledged(&install("a")).await;
    world.wait_for_status("a", "active").await;
    let token = opened(&world, &launch("a", "inst_a")).await;

    let path = "/v1/portal-sessions";
    let body = launch("a", "inst_a");
    let reader = post_as(&world, TOKEN_THAT_READS, path, &body).await;
    assert_eq!(refusal(&reader), (403, "insufficient-scope"));
    let another = post_as(&world, TOKEN_OF_ANOTHER, path, &body).await;
    assert_eq!(refusal(&another), (404, "installation-not-found"));
    let known = json!({ "token": token });
    let introspect = "/v1/portal-sessions/introspect";
    let another = post_as(&world, TOKEN_OF_ANOTHER, introspect, &known).await;
    assert_eq!(refusal(&another), (404, "no-portal-session"));
    // Anybody may post to the app: each id must be right.
    let wrong_app = json!({ "installed_app_id": "a", "app_id": "app_2", "instance_id": "inst_a" });
    for wrong in [launch("a", "inst_b"), wrong_app, launch("b", "inst_a")] {
        let answer = post(&world, path, &wrong).await;
        assert_eq!(refusal(&answer), (404, "installation-not-found"), "{wrong}");
    }
    let bad = post(&world, path, &json!({ "app_id": 1 })).await;
    assert_eq!(refusal(&bad), (422, "invalid-field"));
    let long = post(&world, introspect, &json!({ "token": "t".repeat(20_000) })).await;
    assert_eq!(refusal(&long), (413, "payload-too-large"));

    // Two sources may know the same ids; each has a portal of its own.
    let same = world.http.post(world.ingest_url(0, "/callbacks/other"));
    let same = same.json(&install_in("a", "inst_a")).send().await.unwrap();
    assert_eq!(same.status(), 200);
    let found = world.read("/v1/installations/a?source=other&wait=20").await;
    assert_eq!(found.status, 200);
    assert_eq!(refusal(&post(&world, path, &body).await), (409, "ambiguous-installation"));
    let chosen = post(&world, "/v1/portal-sessions?source=other", &body).await;
    let url = chosen.body["portal_url"].as_str().unwrap();
    assert!(url.starts_with("https://app.example.com/open?from=blnk&token="), "{url}");
}
