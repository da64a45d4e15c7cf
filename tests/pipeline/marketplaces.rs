//! Marketplaces that are configured by the files in deploy/sources, through the whole pipeline.

use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, LOCATION, SET_COOKIE};
use ring::hmac;
use serde_json::{Value, json};

use crate::token_server::{Codes, TokenServer};
use crate::world::{Answer, Setup, World};

const SECRET: &str = "client-secret-0123456789";

/// The section of deploy/sources/`name`.toml, with one secret for all.
fn configure(world: &World, name: &str, changes: &[(&str, &str)]) {
    let path = dev::workspace_root().join("deploy/sources").join(format!("{name}.toml"));
    let mut text = std::fs::read_to_string(path).unwrap();
    let secret = world.folder.path().join("marketplace-secret");
    std::fs::write(&secret, SECRET).unwrap();
    while let Some((before, rest)) = text.clone().split_once("{ env = \"") {
        let (_, after) = rest.split_once("\" }").unwrap();
        text = format!("{before}{{ file = \"{}\" }}{after}", secret.display());
    }
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    world.configure(&text);
}

fn hmac_hex(text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    hex::encode(hmac::sign(&key, text.as_bytes()))
}

async fn github(world: &World, action: &str, updated_at: &str, more: Value) -> Answer {
    let mut installation = json!({
        "id": 957_387, "app_id": 12_345, "account": { "id": 1 },
        "permissions": { "issues": "read" },
        "created_at": "2026-07-08T16:18:44Z", "updated_at": updated_at
    });
    installation.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let repositories = vec![json!({ "id": 1, "full_name": "octo-org/repository" }); 3_000];
    let body =
        json!({ "action": action, "installation": installation, "repositories": repositories });
    let body = body.to_string();
    let url = world.ingest_url(0, &format!("/callbacks/github/{SECRET}"));
    let request = world.http.post(url).header(CONTENT_TYPE, "application/json");
    let request = request
        .header("X-GitHub-Event", "installation")
        .header("X-GitHub-Delivery", format!("{action}-{updated_at}"))
        .header("X-Hub-Signature-256", format!("sha256={}", hmac_hex(&body)));
    Answer::of(request.body(body).send().await.unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_github_app_is_suspended_resumed_and_given_other_permissions() {
    let world = World::servers(Setup::default());
    configure(&world, "github", &[]);
    let world = world.with_services().await;
    let at = |minute: u8| format!("2026-07-09T10:{minute:02}:00Z");
    let id = "957387";
    assert_eq!(github(&world, "created", &at(0), json!({})).await.status, 200);
    let created = world.wait_for_status(id, "active").await;
    assert_eq!(created["granted_permissions"], json!(["issues:read"]));

    assert_eq!(github(&world, "suspend", &at(10), json!({})).await.status, 200);
    world.wait_for_status(id, "suspended").await;
    let listed = world.read("/v1/installations?status=suspended").await.body;
    assert_eq!(listed["installations"][0]["installation_id"], id);

    let more = json!({ "permissions": { "issues": "write", "metadata": "read" } });
    assert_eq!(github(&world, "new_permissions_accepted", &at(15), more).await.status, 200);
    assert_eq!(github(&world, "unsuspend", &at(20), json!({})).await.status, 200);
    let resumed = world.wait_for_status(id, "active").await;
    assert_eq!(resumed["granted_permissions"], json!(["issues:write", "metadata:read"]));

    // A redelivery of something that was over.
    assert_eq!(github(&world, "suspend", &at(12), json!({})).await.status, 200);
    world.wait_applied().await;
    assert_eq!(world.installation(id).await["status"], "active");
    assert_eq!(github(&world, "deleted", &at(20), json!({})).await.status, 200);
    world.wait_for_status(id, "inactive").await;

    let events = world.read(&format!("/v1/installations/{id}/events")).await.body;
    let types: Vec<_> = events["events"].as_array().unwrap().iter().map(|it| &it["type"]).collect();
    let expected =
        ["installed", "suspended", "permissions_changed", "resumed", "suspended", "uninstalled"];
    assert_eq!(types, expected);
}

async fn slack(world: &World, body: &Value, signed: bool) -> (u16, String) {
    let (body, now) = (body.to_string(), jiff::Timestamp::now().as_second());
    let signature = format!("v0={}", hmac_hex(&format!("v0:{now}:{body}")));
    let request = world.http.post(world.ingest_url(0, "/callbacks/slack"));
    let request = request.header(CONTENT_TYPE, "application/json");
    let request = request.header("X-Slack-Request-Timestamp", now);
    let signature = if signed { signature } else { "v0=00".to_owned() };
    let answer = request.header("X-Slack-Signature", signature).body(body).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Goes through OAuth as a browser does; where it is sent, and what it is told then.
async fn grant(world: &World, source: &str, start: &str, code: &str) -> (String, u16) {
    let url = world.ingest_url(0, &format!("/oauth/{source}/authorize?{start}"));
    let answer = world.http.get(url).send().await.unwrap();
    let cookie = answer.headers()[SET_COOKIE].to_str().unwrap().to_owned();
    let to = answer.headers()[LOCATION].to_str().unwrap().to_owned();
    let (_, state) = to.split_once("state=").unwrap();
    let query = format!("code={code}&state={state}&{start}");
    let url = world.ingest_url(0, &format!("/oauth/{source}/callback?{query}"));
    let cookie = cookie.split(';').next().unwrap();
    let answer = world.http.get(url).header(COOKIE, cookie).send().await.unwrap();
    (to, answer.status().as_u16())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slack_workspace_installs_by_its_grant_and_uninstalls_by_an_event() {
    let team = json!({ "ok": true, "team": { "id": "T1" }, "scope": "chat:write,commands" });
    let server = TokenServer::start(Codes::from([("c1", team.clone()), ("c2", team)]), "", 0).await;
    let world = World::servers(Setup::default());
    configure(
        &world,
        "slack",
        &[
            ("1234567890.1234567890", "client-1"),
            ("https://slack.com/oauth/v2/authorize", &format!("{}/authorize", server.url)),
            ("https://slack.com/api/oauth.v2.access", &format!("{}/oauth/token", server.url)),
        ],
    );
    let world = world.with_services().await;
    let ask = json!({ "type": "url_verification", "challenge": "3eZbrw1a" });
    assert_eq!(slack(&world, &ask, true).await, (200, "3eZbrw1a".to_owned()));
    assert_eq!(slack(&world, &ask, false).await.0, 401);
    assert_eq!(world.callbacks_in_log().await, 0);

    let (to, status) = grant(&world, "slack", "", "c1").await;
    assert_eq!(status, 200);
    assert!(to.contains("scope=chat%3Awrite%2Ccommands"), "{to}");
    let found = world.wait_for_status("T1", "active").await;
    assert_eq!(found["granted_permissions"], json!(["chat:write", "commands"]));
    let uninstalled = json!({
        "type": "event_callback", "team_id": "T1", "api_app_id": "A0123456789", "event_id": "Ev1",
        "event_time": jiff::Timestamp::now().as_second() + 1, "event": { "type": "app_uninstalled" }
    });
    assert_eq!(slack(&world, &uninstalled, true).await.0, 200);
    world.wait_for_status("T1", "inactive").await;
    // As the platform sends it again, late and after the reinstall.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(grant(&world, "slack", "", "c2").await.1, 200);
    let again = world.wait_for_status("T1", "active").await;
    assert_eq!(again["generation"], 2);
    assert_eq!(slack(&world, &uninstalled, true).await.0, 200);
    world.wait_applied().await;
    assert_eq!(world.installation("T1").await["status"], "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn pipedrive_says_whose_a_token_is_and_uninstalls_by_delete() {
    let server = TokenServer::start(Codes::from([("c1", json!({}))]), "", 86_399).await;
    server.seen(|seen| seen.owner = json!({ "data": { "id": 456, "company_id": 123 } }));
    let world = World::servers(Setup::default());
    configure(
        &world,
        "pipedrive",
        &[
            ("3a1f0c5b9d2e4f67", "client-1"),
            ("client_authentication = \"client_secret_basic\"\n", ""),
            ("https://oauth.pipedrive.com/oauth/authorize", &format!("{}/authorize", server.url)),
            ("https://oauth.pipedrive.com/oauth/token", &format!("{}/oauth/token", server.url)),
            ("https://api.pipedrive.com/v1/users/me", &format!("{}/me", server.url)),
        ],
    );
    let world = world.with_services().await;
    assert_eq!(grant(&world, "pipedrive", "", "c1").await.1, 200);
    world.wait_for_status("123:456", "active").await;
    let opened = world.credential("123:456").await.body;
    assert!(opened["credential"].as_str().unwrap().contains("access-1"), "{opened}");

    let body = json!({
        "client_id": "client-1", "company_id": 123, "user_id": 456,
        "timestamp": jiff::Timestamp::now().to_string()
    });
    let delete = async |password: &str| {
        let url = world.ingest_url(0, "/oauth/pipedrive/callback");
        let request =
            world.http.request(Method::DELETE, url).basic_auth("client-1", Some(password));
        let request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(delete("another-secret-0123456789").await, 401);
    assert_eq!(world.installation("123:456").await["status"], "active");
    assert_eq!(delete(SECRET).await, 200);
    world.wait_for_status("123:456", "inactive").await;
    // It has no callbacks of other methods.
    let url = world.ingest_url(0, "/callbacks/pipedrive");
    let posted = world.http.post(url).header(AUTHORIZATION, "Basic eDp5").body("{}").send().await;
    let posted = posted.unwrap();
    assert_eq!(posted.status(), 405);
    assert_eq!(posted.headers()["allow"], "GET, HEAD, DELETE");
}

/// Nothing says that the callback is forged, so it is to come again.
#[tokio::test(flavor = "multi_thread")]
async fn while_a_platforms_keys_cannot_be_read_its_callbacks_are_to_come_again() {
    let world = World::servers(Setup { workers: 0, ..Setup::default() });
    let keys = "https://forge.cdn.prod.atlassian-dev.net/.well-known/jwks.json";
    let closed = format!("http://127.0.0.1:{}/jwks.json", dev::ports::free_port().unwrap());
    configure(&world, "atlassian-forge", &[(keys, &closed)]);
    let world = world.with_services().await;
    let send = async |token: &str| {
        let request = world.http.post(world.ingest_url(0, "/callbacks/forge")).bearer_auth(token);
        let request = request.header(CONTENT_TYPE, "application/json").body("{}");
        Answer::of(request.send().await.unwrap()).await.unwrap()
    };
    // {"alg":"RS256","kid":"forge-1"}
    let answer = send("eyJhbGciOiJSUzI1NiIsImtpZCI6ImZvcmdlLTEifQ.e30.AA").await;
    assert_eq!((answer.status, answer.problem()), (503, "keys-unavailable"), "{answer:?}");
    for forged in ["eyJhbGciOiJub25lIn0.e30.", "a.b.c"] {
        assert_eq!(send(forged).await.status, 401, "{forged}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shop_is_asked_at_its_own_host_and_no_other_one_is() {
    let world = World::servers(Setup { workers: 0, ..Setup::default() });
    configure(&world, "shopify", &[]);
    let world = world.with_services().await;
    let authorize = async |query: &str| {
        let url = world.ingest_url(0, &format!("/oauth/shopify/authorize?{query}"));
        let answer = world.http.get(url).send().await.unwrap();
        let to = answer.headers().get(LOCATION).map(|to| to.to_str().unwrap().to_owned());
        (answer.status().as_u16(), to)
    };
    let (status, to) = authorize("shop=super-toys.myshopify.com").await;
    let to = to.unwrap();
    assert_eq!(status, 303);
    assert!(to.starts_with("https://super-toys.myshopify.com/admin/oauth/authorize?"), "{to}");
    for query in ["", "shop=evil.example", "shop=evil.example%2F.myshopify.com", "shop="] {
        assert_eq!(authorize(query).await, (404, None), "{query}");
    }
}
