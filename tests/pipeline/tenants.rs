//! Several callers, of whom none may learn of what another one reaches.

use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use crate::oauth;
use crate::payload::install;
use crate::platforms::HighLevel;
use crate::reads::{ask, configure_two_apps, in_shop, shop_key, token_section};
use crate::token_server::{Codes, TokenServer};
use crate::world::{Answer, Setup, World, eventually};

/// Reaches app_1 of the shop.
const ONE: &str = "a_token_of_app_1_0123456789";
/// Reaches app_2 of the shop.
const TWO: &str = "a_token_of_app_2_0123456789";
const BOTH_SCOPES: &str = "scopes = [\"installations:read\", \"credentials:open\"]";

async fn world() -> World {
    let world = World::servers(Setup::default());
    configure_two_apps(&world);
    for (name, token, app) in [("one", ONE, "app_1"), ("two", TWO, "app_2")] {
        let reach = format!("{BOTH_SCOPES}\nsources = [\"shop\"]\napp_ids = [\"{app}\"]");
        world.configure(&token_section(name, token, &reach));
    }
    world.with_services().await
}

/// Everything that an answer tells, but for the time and what the caller itself has used.
fn told(answer: Answer) -> (u16, HeaderMap, Value) {
    let Answer { status, mut headers, body } = answer;
    headers.remove("date");
    headers.remove("ratelimit");
    (status, headers, body)
}

fn ids(page: &Answer) -> Vec<String> {
    let found = page.body["installations"].as_array().unwrap().iter();
    found.map(|it| it["place"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_another_app_not_even_that_an_id_exists_is_told() {
    let world = world().await;
    in_shop(&world, "installed", "app_1", "7", "here").await;
    in_shop(&world, "installed", "app_2", "7", "here").await;
    in_shop(&world, "installed", "app_2", "8", "there").await;
    // Only events are known of these: of an unknown kind, and of an uninstall.
    in_shop(&world, "strange", "app_2", "9", "there").await;
    in_shop(&world, "uninstalled", "app_2", "10", "there").await;
    world.acknowledged(&install("blnk_1")).await;
    world.wait_applied().await;

    let one = async |path: &str| ask(&world, &format!("/v1/installations/{path}"), Some(ONE)).await;
    for end in ["", "/events", "/credential"] {
        let unknown = told(one(&format!("unknown{end}")).await);
        assert_eq!(
            (unknown.0, &unknown.2["type"]),
            (404, &json!("urn:mooring:problem:installation-not-found"))
        );
        for id in ["8", "9", "10", "blnk_1"] {
            for query in
                ["", "?source=shop", "?app_id=app_2", "?source=blnk", "?place=app_2%2Fthere"]
            {
                assert_eq!(
                    told(one(&format!("{id}{end}{query}")).await),
                    unknown,
                    "{id}{end}{query}"
                );
            }
        }
        // An id that both have is not ambiguous to either of them.
        assert_eq!(one(&format!("7{end}")).await.status, 200);
        assert_eq!(told(one(&format!("7{end}?app_id=app_2")).await), unknown);
        assert_eq!(told(one(&format!("7{end}?place=app_2%2Fhere")).await), unknown);
    }
    assert_eq!(one("7").await.body["place"], "app_1/here");
    assert_eq!(one("7/credential").await.body["credential"], shop_key("app_1", "7"));
    let events = one("7/events").await.body["events"].as_array().unwrap().clone();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["payload"]["app"], "app_1");
    let two = ask(&world, "/v1/installations/7/credential", Some(TWO)).await;
    assert_eq!(two.body["credential"], shop_key("app_2", "7"));
    // Who reaches both is asked which one is meant.
    assert_eq!(world.read("/v1/installations/7").await.problem(), "ambiguous-installation");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_sees_of_its_own_does_not_change_with_what_others_have() {
    let world = world().await;
    let one = async |path: &str| told(ask(&world, path, Some(ONE)).await);
    in_shop(&world, "uninstalled", "app_1", "7", "elsewhere").await;
    in_shop(&world, "installed", "app_1", "8", "here").await;
    world.wait_applied().await;
    let paths = [
        "/v1/installations/7",
        "/v1/installations/7/events",
        "/v1/installations/8/events",
        "/v1/installations",
    ];
    let mut before = Vec::new();
    for path in paths {
        before.push(one(path).await);
        assert_eq!(before.last().unwrap().0, 200, "{path}");
    }
    // An uninstall is hidden behind an install with its id: but not behind one of another app.
    in_shop(&world, "installed", "app_2", "7", "here").await;
    in_shop(&world, "installed", "app_2", "8", "here").await;
    in_shop(&world, "strange", "app_2", "7", "nowhere").await;
    world.wait_applied().await;
    for (path, before) in paths.into_iter().zip(before) {
        assert_eq!(one(path).await, before, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_cursors_stay_within_what_is_reached() {
    let world = world().await;
    for number in 0..4 {
        for app in ["app_1", "app_2", "app_10"] {
            in_shop(&world, "installed", app, &format!("{number}"), &format!("at-{number}")).await;
        }
        world.acknowledged(&install(&format!("b{number}"))).await;
    }
    world.wait_applied().await;
    let list = async |query: &str, token| {
        let answer = ask(&world, &format!("/v1/installations{query}"), Some(token)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer
    };
    let own: Vec<String> = (0..4).map(|number| format!("app_1/at-{number}")).collect();
    assert_eq!(ids(&list("", ONE).await), own);
    assert_eq!(ids(&list("?source=shop&status=active", ONE).await), own);
    let nothing = told(list("?source=unknown", ONE).await);
    assert_eq!(told(list("?source=blnk", ONE).await), nothing);
    assert_eq!(told(list("?status=inactive", ONE).await), nothing);

    // Page by page, and no page is short or tells of more.
    let first = list("?limit=2", ONE).await;
    assert_eq!(ids(&first), own[..2]);
    let cursor = first.body["next_cursor"].as_str().unwrap();
    let second = list(&format!("?limit=2&cursor={cursor}"), ONE).await;
    assert_eq!((ids(&second), &second.body["next_cursor"]), (own[2..].to_vec(), &Value::Null));
    // The cursor of another caller moves within one's own.
    let others = list("?limit=1", TWO).await;
    let others = others.body["next_cursor"].as_str().unwrap();
    assert_eq!(told(list(&format!("?cursor={others}"), ONE).await), nothing);

    let everything = world.read("/v1/installations?limit=200").await;
    assert_eq!(ids(&everything).len(), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_come_and_go_without_a_restart() {
    let mut world = World::servers(Setup::default());
    let hour = "\"1999-01-01T00:00:00Z\"";
    let expired = token_section("expired", TWO, &format!("{BOTH_SCOPES}\nsources = [\"blnk\"]"));
    world.configure(&expired.replace("\"2100-01-01T00:00:00Z\"", hour));
    world = world.with_services().await;
    let status = async |token: &str| ask(&world, "/v1/installations", Some(token)).await;
    let refused = status(TWO).await;
    assert_eq!((refused.status, refused.problem()), (401, "unauthorized"));
    assert_eq!(refused.body["detail"], "the token 'expired' has expired");
    assert_eq!(status(ONE).await.status, 401);

    let arguments =
        ["tokens", "create", "made", "--source", "blnk", "--scope", "installations:read", "--json"];
    let made: Value =
        serde_json::from_str(&world.command("worker", &arguments, &[]).unwrap()).unwrap();
    let token = made["token"].as_str().unwrap();
    let section = made["configuration"].as_str().unwrap();
    assert!(!section.contains(token) && token.starts_with("mooring_"), "{section}");
    world.configure(section);
    assert!(eventually(async || status(token).await.status == 200).await, "it is not let in");
    assert_eq!(ask(&world, "/v1/installations/a/credential", Some(token)).await.status, 403);

    // One that is wrong does not keep one that is deleted.
    world.replace_in_config(
        section,
        "[worker.api_tokens.odd]\nscopes = [\"installations:read\"]\nsources = [\"*\"]\n",
    );
    assert!(eventually(async || status(token).await.status == 401).await, "it is still let in");
    assert_eq!(world.read("/v1/installations").await.status, 200);
    assert!(world.worker_log().contains("worker.api_tokens.odd"), "{}", world.worker_log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_token_of_before_is_refused_with_what_to_do() {
    let world = World::servers(Setup::default());
    let file = world.secrets.path("read-token");
    world.configure(&format!(
        "[worker.api_tokens.old]\ntoken = {{ file = \"{}\" }}\nscopes = [\"installations:read\"]",
        file.display()
    ));
    let error = world.command("worker", &["run", "--check-config"], &[]).unwrap_err().to_string();
    assert!(
        error.contains("exit status: 78") && error.contains("worker tokens create old"),
        "{error}"
    );
    let path = file.to_string_lossy();
    let arguments = [
        "tokens",
        "create",
        "old",
        "--source",
        "*",
        "--scope",
        "installations:read",
        "--token-file",
        &path,
    ];
    let made = world.command("worker", &arguments, &[]).unwrap();
    let token = world.secrets.read("read-token").unwrap();
    assert!(made.contains("sha256 = ") && !made.contains(&token), "{made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_to_wait_and_disturbs_nobody() {
    let world = World::servers(Setup::default());
    let reach = format!("{BOTH_SCOPES}\nsources = [\"blnk\"]");
    world.configure(&token_section("hasty", ONE, &format!("{reach}\nrequests_per_second = 2")));
    world.configure(&token_section("calm", TWO, &reach));
    let world = world.with_services().await;
    let mut refused = None;
    let too_often = async || {
        let answer = ask(&world, "/v1/installations", Some(ONE)).await;
        let is_refused = answer.status != 200;
        refused = Some(answer);
        is_refused
    };
    assert!(eventually(too_often).await);
    let refused = refused.unwrap();
    assert_eq!((refused.status, refused.problem()), (429, "rate-limited"));
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(ask(&world, "/v1/installations", Some(TWO)).await.status, 200);
    assert!(
        eventually(async || ask(&world, "/v1/installations", Some(ONE)).await.status == 200).await
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_leaves_for_its_own_scope_only() {
    let codes = Codes::from([(
        "code-1",
        json!({ "userType": "Location", "locationId": "l1", "companyId": "c1" }),
    )]);
    let server = TokenServer::start(codes, "secret-", 86_399).await;
    let highlevel = HighLevel::start_with(Setup::default(), |world| {
        world.configure(&oauth::sections(world, &server, ""));
        let reach = format!("{BOTH_SCOPES}\nsources = [\"highlevel\"]");
        world.configure(&token_section("app", ONE, &reach));
    })
    .await;
    let world = &highlevel.world;
    oauth::connect(world, "code-1").await;
    let id = "my-app:location:l1";
    world.wait_for_status(id, "pending").await;
    let path = format!("/v1/installations/{id}/credential");
    let opened = ask(world, &path, Some(ONE)).await;
    assert_eq!(opened.body["credential"], r#"{"access_token":"secret-access-1"}"#);
    assert_eq!(opened.body["expires_at"], world.installation(id).await["credential_expires_at"]);
    assert!(opened.body["expires_at"].is_string());
    // The environment's own token has the scope.
    let whole = world.credential(id).await.body["credential"].as_str().unwrap().to_owned();
    assert_eq!(whole, r#"{"access_token":"secret-access-1","refresh_token":"secret-refresh-1"}"#);
}
