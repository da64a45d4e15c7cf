//! What must be refused: with its status and problem type, and nothing stored.

use std::collections::BTreeMap;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::payload::{api_key, install, uninstall, with, without};
use crate::world::{Answer, Setup, World};

/// A body and what it is answered.
type Case = (&'static str, String, u16, &'static str);

const JSON: &str = "application/json";

fn case(what: &'static str, body: &Value, status: u16, problem: &'static str) -> Case {
    (what, body.to_string(), status, problem)
}

fn nested(levels: usize) -> String {
    let mut body = install("a").to_string();
    body.pop();
    format!("{body},\"deep\":{}{}}}", "[".repeat(levels), "]".repeat(levels))
}

fn malformed() -> Vec<Case> {
    let text = |text: &str| text.to_owned();
    vec![
        ("empty", text(""), 400, "malformed-json"),
        ("not JSON", text("installed"), 400, "malformed-json"),
        ("cut off", text("{\"installed_app_id\":\"a\""), 400, "malformed-json"),
        ("two values", format!("{0}{0}", install("a")), 400, "malformed-json"),
        ("a name that is no text", text("{\"\\ud800\":1}"), 400, "malformed-json"),
        ("an array", text("[]"), 400, "not-an-object"),
        ("a string", text("\"install:a\""), 400, "not-an-object"),
        ("null", text("null"), 400, "not-an-object"),
        ("33 levels", nested(33), 400, "json-too-deep"),
        ("10,000 levels", nested(10_000), 400, "json-too-deep"),
        (
            "too large",
            with(install("a"), "x", "x".repeat(64 * 1024)).to_string(),
            413,
            "payload-too-large",
        ),
    ]
}

fn wrong_fields() -> Vec<Case> {
    let mut cases = Vec::new();
    for field in [
        "installed_app_id",
        "app_id",
        "instance_id",
        "api_key",
        "granted_permissions",
        "idempotency_key",
    ] {
        cases.push(case("missing", &without(install("a"), field), 422, "missing-field"));
        cases.push(case("null", &with(install("a"), field, Value::Null), 422, "missing-field"));
        cases.push(case("a number", &with(install("a"), field, 7), 422, "invalid-field"));
        cases.push(case("an object", &with(install("a"), field, json!({})), 422, "invalid-field"));
    }
    for field in ["installed_app_id", "app_id", "instance_id", "api_key", "idempotency_key"] {
        cases.push(case("empty", &with(install("a"), field, ""), 422, "invalid-field"));
        for bad in ["install:a\0b", "install:a\r\nNats-Msg-Id: b", "install:a\u{7f}"] {
            cases.push(case(
                "a control character",
                &with(install("a"), field, bad),
                422,
                "invalid-field",
            ));
        }
    }
    for field in ["installed_app_id", "app_id", "instance_id", "idempotency_key"] {
        cases.push(case(
            "too long",
            &with(install("a"), field, "x".repeat(256)),
            422,
            "invalid-field",
        ));
    }
    let permissions = |value: Value| with(install("a"), "granted_permissions", value);
    cases.extend([
        case("a permission that is a number", &permissions(json!(["a", 1])), 422, "invalid-field"),
        case("257 permissions", &permissions(json!(vec!["a"; 257])), 422, "invalid-field"),
        case(
            "an install with uninstalled_at",
            &with(install("a"), "uninstalled_at", "2026-04-21T12:00:00Z"),
            422,
            "contradiction",
        ),
        case(
            "an uninstall with a key",
            &with(uninstall("a"), "api_key", api_key("a")),
            422,
            "contradiction",
        ),
    ]);
    cases
}

/// A refusal says what was wrong in a form that programs can read, and repeats
/// nothing of what was sent.
fn assert_refused(what: &str, answer: &Answer, status: u16, problem: &str) {
    assert_eq!((answer.status, answer.problem()), (status, problem), "{what}: {answer:?}");
    assert_eq!(answer.headers[CONTENT_TYPE], "application/problem+json", "{what}");
    assert_eq!(answer.body["status"], status, "{what}");
    let text = answer.body.to_string();
    assert!(!text.contains(&api_key("a")), "{what} repeats the key: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_refused_and_nothing_is_stored() {
    let world = World::start(Setup { workers: 0, ..Setup::default() }).await;
    let url = world.callback_url(0);
    let mut problems = BTreeMap::new();
    for (what, body, status, problem) in malformed().into_iter().chain(wrong_fields()) {
        let request = world.http.post(&url).header(CONTENT_TYPE, JSON).body(body.clone());
        let answer = Answer::of(request.send().await.unwrap()).await.unwrap();
        assert_refused(&format!("{what}: {body:.200}"), &answer, status, problem);
        if problem == "missing-field" || problem == "invalid-field" {
            let detail = answer.body["detail"].as_str().unwrap();
            assert!(detail.starts_with("the field '"), "the field is named: {detail}");
        }
        problems.insert(answer.body["detail"].to_string(), answer.body);
    }
    insta::assert_json_snapshot!("problems_of_bodies", problems);
    assert_eq!(world.callbacks_in_log().await, 0);
    assert!(!world.ingest_log().contains(&api_key("a")));
    // The same bytes with nothing wrong are taken, also at the limits.
    assert!(!world.acknowledged(&install("a")).await);
    let longest = with(install("a"), "idempotency_key", format!("install:{}", "k".repeat(247)));
    assert!(!world.acknowledged(&longest).await);
    let request = world.http.post(&url).header(CONTENT_TYPE, JSON).body(nested(31));
    assert_eq!(request.send().await.unwrap().status().as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests_are_refused_and_nothing_is_stored() {
    let world = World::start(Setup { workers: 0, ..Setup::default() }).await;
    let url = world.callback_url(0);
    let body = install("a").to_string();
    let send = |request: RequestBuilder| async move {
        Answer::of(request.send().await.unwrap()).await.unwrap()
    };
    let post = |url: &str| world.http.post(url).header(CONTENT_TYPE, JSON).body(body.clone());
    let typed = |kind: &str| world.http.post(&url).header(CONTENT_TYPE, kind).body(body.clone());
    let to = |path: &str| post(&world.ingest_url(0, path));
    let method = |method: Method| {
        world.http.request(method, &url).header(CONTENT_TYPE, JSON).body(body.clone())
    };

    let cases = [
        ("no token", to("/callbacks/blnk"), 401, "unauthentic"),
        ("a wrong token", to("/callbacks/blnk/0123456789abcdefghij0123456789"), 401, "unauthentic"),
        ("half a token", post(&url[..url.len() - 5]), 401, "unauthentic"),
        ("a longer token", post(&format!("{url}x")), 401, "unauthentic"),
        ("an unknown source", to("/callbacks/blink/token"), 404, "unknown-source"),
        ("a strange source", to("/callbacks/%00%0d%0a/token"), 404, "unknown-source"),
        ("a source that is not UTF-8", to("/callbacks/%ff/token"), 404, "not-found"),
        ("another path", to("/callback/blnk"), 404, "not-found"),
        ("one segment more", post(&format!("{url}/x")), 404, "not-found"),
        ("PUT", method(Method::PUT), 405, "method-not-allowed"),
        ("DELETE", method(Method::DELETE), 405, "method-not-allowed"),
        ("PATCH", method(Method::PATCH), 405, "method-not-allowed"),
        ("a form", typed("application/x-www-form-urlencoded"), 415, "unsupported-media-type"),
        ("text", typed("text/plain"), 415, "unsupported-media-type"),
        ("not quite JSON", typed("application/jsonp"), 415, "unsupported-media-type"),
    ];
    let mut problems = BTreeMap::new();
    for (what, request, status, problem) in cases {
        let answer = send(request).await;
        assert_refused(what, &answer, status, problem);
        problems.insert(what, answer.body);
    }
    insta::assert_json_snapshot!("problems_of_requests", problems);
    assert_eq!(world.callbacks_in_log().await, 0);
    // Other ways to say JSON are taken.
    for kind in
        ["application/json; charset=utf-8", "Application/JSON", "application/cloudevents+json"]
    {
        assert_eq!(send(typed(kind)).await.status, 200, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_app_is_refused_where_apps_are_listed() {
    let world = World::servers(Setup { workers: 0, ..Setup::default() });
    world.replace_in_config("platform = \"blnk\"", "platform = \"blnk\"\napp_ids = [\"app_1\"]");
    let world = world.with_services().await;
    let foreign = with(install("a"), "app_id", "app_2");
    assert_refused("foreign", &world.send(&foreign).await, 403, "foreign-app");
    assert_eq!(world.callbacks_in_log().await, 0);
    world.acknowledged(&install("a")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_is_cut_off() {
    let setup =
        Setup { workers: 0, ..Setup::default() }.env("MOORING__INGEST__READ_TIMEOUT_MS", 300);
    let world = World::start(setup).await;
    let url = world.callback_url(0);
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let begun = format!(
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {JSON}\r\nContent-Length: 500\r\n\r\n{{"
    );
    let unfinished = format!("POST /{path} HTTP/1.1\r\nHost: {host}\r\nX-Slow: ");
    for (sent, answered) in [(begun, "HTTP/1.1 408 "), (unfinished, "")] {
        let mut stream = TcpStream::connect(host).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap(); // it closes
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with(answered), "{answer}");
    }
    assert_eq!(world.callbacks_in_log().await, 0);
}
