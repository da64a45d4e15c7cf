//! OAuth 2.0 at install, against a token server of our own.

use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use serde_json::{Value, json};

use crate::platforms::{HighLevel, event};
use crate::token_server::{Codes, TokenServer, oauth_section};
use crate::world::{Setup, World, eventually};

const CLIENT_SECRET: &str = "client-secret-0123456789";
const LONG: u64 = 86_399;
const PAGE_HEADERS: [(&str, &str); 3] = [
    ("cache-control", "no-store"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
];

fn location(id: &str) -> Value {
    json!({ "userType": "Location", "locationId": id, "companyId": "c1", "userId": "u1" })
}

fn installed(id: &str) -> String {
    format!("my-app:location:{id}")
}

/// HighLevel, whose tokens come from a server of ours.
async fn start(server: &TokenServer, setup: Setup, more: &str) -> HighLevel {
    HighLevel::start_with(setup, |world| world.configure(&sections(world, server, more))).await
}

/// Of HighLevel's source, and of the workers.
pub(crate) fn sections(world: &World, server: &TokenServer, more: &str) -> String {
    let secret = world.folder.path().join("client-secret");
    std::fs::write(&secret, CLIENT_SECRET).unwrap();
    let renewer = world.secrets.path("nats-renewer-password");
    format!(
        "{}\n[worker.token_renewal]\nnats_user = \"renewer\"\n\
         nats_password = {{ file = \"{}\" }}\nevery_ms = 100\n",
        oauth_section(server, &secret.to_string_lossy(), more),
        renewer.display()
    )
}

/// Goes where a browser goes that starts with us; the cookie and the state.
async fn begin(world: &World) -> (String, String) {
    let url = world.ingest_url(0, "/oauth/highlevel/authorize");
    let answer = world.http.get(url).send().await.unwrap();
    assert_eq!(answer.status(), 303);
    let cookie = answer.headers()[SET_COOKIE].to_str().unwrap().to_owned();
    for attribute in ["__Host-", "HttpOnly", "Secure", "SameSite=Lax", "Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let to = answer.headers()[LOCATION].to_str().unwrap().to_owned();
    for part in ["response_type=code", "client_id=client-1", "scope=contacts.readonly"] {
        assert!(to.contains(part), "{to}");
    }
    let (_, state) = to.split_once("state=").unwrap();
    (cookie.split(';').next().unwrap().to_owned(), state.to_owned())
}

/// The status, and the page or the place where the browser is sent.
async fn come_back(world: &World, cookie: &str, query: &str) -> (u16, String) {
    let url = world.ingest_url(0, &format!("/oauth/highlevel/callback?{query}"));
    let answer = world.http.get(url).header(COOKIE, cookie).send().await.unwrap();
    for (name, value) in PAGE_HEADERS {
        assert_eq!(answer.headers()[name], value);
    }
    (answer.status().as_u16(), answer.text().await.unwrap())
}

pub(crate) async fn connect(world: &World, code: &str) {
    let (cookie, state) = begin(world).await;
    let (status, page) = come_back(world, &cookie, &format!("code={code}&state={state}")).await;
    assert_eq!(status, 200, "{page}");
    assert!(page.contains("Connected"), "{page}");
}

async fn access_token(world: &World, id: &str) -> Option<String> {
    let answer = world.credential(&installed(id)).await;
    let tokens = answer.body["credential"].as_str()?;
    let tokens: Value = serde_json::from_str(tokens).unwrap();
    Some(tokens["access_token"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_their_install_come_to_the_same_in_both_orders() {
    let codes = Codes::from([("code-1", location("l1")), ("code-2", location("l2"))]);
    let server = TokenServer::start(codes, "", LONG).await;
    let highlevel = start(&server, Setup::default(), "").await;
    let world = &highlevel.world;
    let install = |id: &str, n: &str| {
        let more = json!({ "locationId": id, "companyId": "c1" });
        event("INSTALL", n, "10.000", more)
    };

    connect(world, "code-1").await;
    let pending = world.wait_for_status(&installed("l1"), "pending").await;
    assert_eq!(pending["installed_at"], Value::Null);
    assert_eq!(access_token(world, "l1").await.as_deref(), Some("access-1"));
    assert!(!highlevel.acknowledged(&install("l1", "w1")).await);

    assert!(!highlevel.acknowledged(&install("l2", "w2")).await);
    world.wait_for_status(&installed("l2"), "active").await;
    assert_eq!(access_token(world, "l2").await, None);
    connect(world, "code-2").await;

    world.wait_applied().await;
    for (id, token) in [("l1", "access-1"), ("l2", "access-2")] {
        let found = world.installation(&installed(id)).await;
        assert_eq!((&found["status"], &found["generation"]), (&json!("active"), &json!(1)));
        assert_eq!(found["granted_permissions"], json!(["contacts.readonly", "contacts.write"]));
        assert!(found["credential_expires_at"].is_string(), "{found}");
        assert_eq!(access_token(world, id).await.as_deref(), Some(token));
    }
    let uninstall = event("UNINSTALL", "w3", "59.000", json!({ "locationId": "l1" }));
    assert!(!highlevel.acknowledged(&uninstall).await);
    // By its time it came before the tokens, which are those of the next installation.
    let found = world.wait_for_status(&installed("l1"), "pending").await;
    assert_eq!(found["generation"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_not_the_browsers_own_exchanges_nothing() {
    let server = TokenServer::start(Codes::from([("code-1", location("l1"))]), "", LONG).await;
    let highlevel = start(&server, Setup { workers: 0, ..Setup::default() }, "").await;
    let world = &highlevel.world;
    let (cookie, state) = begin(world).await;
    let (other_cookie, _) = begin(world).await;
    let refused = [
        (cookie.as_str(), "code=code-1".to_owned()),
        (&cookie, "code=code-1&state=".to_owned()),
        (&cookie, format!("code=code-1&state=9{state}")),
        (&other_cookie, format!("code=code-1&state={state}")),
        ("", format!("code=code-1&state={state}")),
    ];
    for (cookie, query) in refused {
        assert_eq!(come_back(world, cookie, &query).await.0, 403, "{query}");
    }
    assert_eq!(
        come_back(world, &cookie, &format!("error=access_denied&state={state}")).await.0,
        400
    );
    assert_eq!(come_back(world, &cookie, &format!("state={state}")).await.0, 400);
    assert_eq!(world.callbacks_in_log().await, 0);
    connect(world, "code-1").await;
    // The code can be used once.
    let (status, page) = come_back(world, &cookie, &format!("code=code-1&state={state}")).await;
    assert_eq!(status, 400, "{page}");
    assert_eq!(world.callbacks_in_log().await, 1);
    let unknown = world.http.get(world.ingest_url(0, "/oauth/blnk/callback?code=x"));
    assert_eq!(unknown.send().await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_is_good_for_one_grant_whichever_ingest_it_comes_to() {
    let codes = Codes::from([
        ("code-1", location("l1")),
        ("code-2", location("l2")),
        ("code-3", location("l3")),
    ]);
    let server = TokenServer::start(codes, "", LONG).await;
    let setup = Setup { ingests: 2, workers: 0, ..Setup::default() };
    let highlevel = start(&server, setup, "").await;
    let world = &highlevel.world;
    let (cookie, state) = begin(world).await;
    let back = async |ingest: usize, code: &str| {
        let path = format!("/oauth/highlevel/callback?code={code}&state={state}");
        let request = world.http.get(world.ingest_url(ingest, &path)).header(COOKIE, &cookie);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(back(0, "code-1").await, 200);
    for (ingest, code) in [(0, "code-2"), (1, "code-3")] {
        assert_eq!(back(ingest, code).await, 403, "{code} at {ingest}");
    }
    assert_eq!(world.callbacks_in_log().await, 1);
    // It was not spent where the use was known.
    connect(world, "code-2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_bound_to_who_was_sent_for_it_and_the_secret_goes_in_a_header() {
    let codes = Codes::from([("code-1", location("l1")), ("code-2", location("l2"))]);
    let server = TokenServer::start(codes, "", LONG).await;
    let more = "pkce = true\nclient_authentication = \"client_secret_basic\"";
    let setup = Setup { ingests: 2, workers: 0, ..Setup::default() };
    let highlevel = start(&server, setup, more).await;
    let world = &highlevel.world;
    let begun = async || {
        let url = world.ingest_url(0, "/oauth/highlevel/authorize");
        let answer = world.http.get(url).send().await.unwrap();
        let cookie = answer.headers()[SET_COOKIE].to_str().unwrap().to_owned();
        let to = reqwest::Url::parse(answer.headers()[LOCATION].to_str().unwrap()).unwrap();
        let asked =
            |name: &str| to.query_pairs().find(|(it, _)| it == name).unwrap().1.into_owned();
        assert_eq!(asked("code_challenge_method"), "S256");
        let cookie = cookie.split(';').next().unwrap().to_owned();
        (cookie, asked("state"), asked("code_challenge"))
    };
    let (cookie, state, challenge) = begun().await;
    let (_, _, of_another) = begun().await;
    assert_ne!(challenge, of_another);
    // A code that was meant for somebody else.
    server.seen(|seen| seen.challenge = Some(of_another));
    let query = |code: &str| format!("code={code}&state={state}");
    assert_eq!(come_back(world, &cookie, &query("code-1")).await.0, 400);
    server.seen(|seen| seen.challenge = Some(challenge));
    // Any ingest knows the verifier.
    let url = world.ingest_url(1, &format!("/oauth/highlevel/callback?{}", query("code-2")));
    let answer = world.http.get(url).header(COOKIE, &cookie).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(world.callbacks_in_log().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refreshed_token_that_is_the_same_as_before_is_renewed_all_the_same() {
    let server = TokenServer::start(Codes::from([("c1", location("l1"))]), "", 4).await;
    server.seen(|seen| seen.repeats = true);
    let highlevel = start(&server, Setup::default(), "state = \"when_present\"").await;
    let world = &highlevel.world;
    assert_eq!(come_back(world, "", "code=c1").await.0, 200);
    assert!(eventually(async || server.seen(|seen| seen.refreshed) >= 3).await);
    assert_eq!(server.seen(|seen| seen.reused.clone()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_not_spent_while_what_it_brings_cannot_be_kept() {
    let server = TokenServer::start(Codes::from([("c1", location("l1"))]), "", LONG).await;
    let setup = Setup { workers: 0, ..Setup::default() };
    let mut highlevel = start(&server, setup, "state = \"when_present\"").await;
    highlevel.world.nats.kill().unwrap();
    // Until ingest has noticed, it may take the code for one whose tokens it can keep.
    let noticed = async || {
        let ready = highlevel.world.ingest_url(0, "/readyz");
        highlevel.world.http.get(ready).send().await.unwrap().status() == 503
    };
    assert!(eventually(noticed).await);
    assert_eq!(come_back(&highlevel.world, "", "code=c1").await.0, 503);
    highlevel.world.nats.start_again().unwrap();
    highlevel.world.wait_ingest_ready(0);
    assert_eq!(come_back(&highlevel.world, "", "code=c1").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn erased_tokens_do_not_come_back_by_themselves() {
    let server =
        TokenServer::start(Codes::from([("c1", location("l1")), ("c2", location("l1"))]), "", 4);
    let server = server.await;
    let highlevel = start(&server, Setup::default(), "state = \"when_present\"").await;
    let world = &highlevel.world;
    assert_eq!(come_back(world, "", "code=c1").await.0, 200);
    assert!(eventually(async || server.seen(|seen| seen.refreshed) >= 1).await);
    let id = installed("l1");
    let args =
        ["erase", &id, "--source", "highlevel", "--why", "asked", "--by", "ann", "--yes", "--json"];
    let report = world.operate(&args).await.json(0);
    // Two for each event: the tokens, and the answer that brought them.
    assert!(report["keys_destroyed"].as_u64().unwrap() >= 2, "{report}");
    let before = server.seen(|seen| seen.refreshed);
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert!(server.seen(|seen| seen.refreshed) <= before + 1, "one may have been on its way");
    assert_eq!(access_token(world, "l1").await, None);
    assert_eq!(come_back(world, "", "code=c2").await.0, 200);
    assert!(eventually(async || access_token(world, "l1").await.is_some()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_endpoint_that_stumbles_is_asked_again_and_one_that_is_away_is_our_fault() {
    let codes = Codes::from([("code-1", location("l1")), ("code-2", json!({ "userType": "?" }))]);
    let server = TokenServer::start(codes, "", LONG).await;
    let more = "state = \"when_present\"\nafter_url = \"https://app.example.com/welcome\"";
    let highlevel = start(&server, Setup { workers: 0, ..Setup::default() }, more).await;
    let world = &highlevel.world;
    server.seen(|seen| seen.failing = 2);
    let url = world.ingest_url(0, "/oauth/highlevel/callback?code=code-1");
    let answer = world.http.get(url).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), answer.headers()[LOCATION].to_str().unwrap()),
        (303, "https://app.example.com/welcome")
    );
    server.seen(|seen| seen.failing = 99);
    assert_eq!(come_back(world, "", "code=code-2").await.0, 503);
    server.seen(|seen| seen.failing = 0);
    // Whose tokens these are is not said.
    assert_eq!(come_back(world, "", "code=code-2").await.0, 502);
    assert_eq!(world.callbacks_in_log().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_token_is_used_once_however_many_workers_there_are() {
    const INSTALLATIONS: usize = 6;
    let ids = ["l1", "l2", "l3", "l4", "l5", "l6"];
    let codes = ["c1", "c2", "c3", "c4", "c5", "c6"].into_iter().zip(ids);
    let codes = codes.map(|(code, id)| (code, location(id))).collect();
    let server = TokenServer::start(codes, "", 6).await;
    let setup = Setup { workers: 3, ..Setup::default() };
    let highlevel = start(&server, setup, "state = \"when_present\"").await;
    let world = &highlevel.world;
    for code in ["c1", "c2", "c3", "c4", "c5", "c6"] {
        assert_eq!(come_back(world, "", &format!("code={code}")).await.0, 200);
    }
    let renewed = async || server.seen(|seen| seen.refreshed) >= 3 * INSTALLATIONS as u64;
    assert!(eventually(renewed).await, "{}", world.worker_log());
    assert_eq!(server.seen(|seen| seen.reused.clone()), Vec::<String>::new());
    world.wait_applied().await;
    for id in ids {
        let number = access_token(world, id).await.unwrap();
        let number: usize = number.strip_prefix("access-").unwrap().parse().unwrap();
        assert!(number > INSTALLATIONS, "{id} holds the tokens of access-{number}");
        let history = world.read(&format!("/v1/installations/{}/events", installed(id))).await;
        assert!(history.body["events"].as_array().unwrap().len() > 2, "{history:?}");
    }
    assert!(!world.worker_log().contains("refresh-"), "a token is in the log of a worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_a_company_is_exchanged_for_those_of_its_locations() {
    let company = json!({ "userType": "Company", "companyId": "c1" });
    let server = TokenServer::start(Codes::from([("code-1", company)]), "", LONG).await;
    let setup = Setup { workers: 2, ..Setup::default() };
    let highlevel = start(&server, setup, "state = \"when_present\"").await;
    let world = &highlevel.world;
    // One is installed before the company's tokens come, one after.
    let install = |n: &str, id: &str| {
        event("INSTALL", n, "10.000", json!({ "locationId": id, "companyId": "c1" }))
    };
    assert!(!highlevel.acknowledged(&install("w1", "l1")).await);
    world.wait_for_status(&installed("l1"), "active").await;
    assert_eq!(come_back(world, "", "code=code-1").await.0, 200);
    assert!(!highlevel.acknowledged(&install("w2", "l2")).await);
    for id in ["l1", "l2"] {
        let exchanged = async || access_token(world, id).await.is_some();
        assert!(eventually(exchanged).await, "{}", world.worker_log());
    }
    let company = world.installation("my-app:company:c1").await;
    assert_eq!(company["status"], "active", "its INSTALL may never come");
    assert_eq!(server.seen(|seen| seen.locations), 2, "each location is asked for once");

    // Installed again it needs a token of its own again.
    let before = access_token(world, "l1").await;
    let now = jiff::Timestamp::now();
    let dated = |kind: &str, n: &str, seconds: i64| {
        let at = now + jiff::SignedDuration::from_secs(seconds);
        let mut event = event(kind, n, "10.000", json!({ "locationId": "l1", "companyId": "c1" }));
        event["timestamp"] = at.to_string().into();
        event
    };
    assert!(!highlevel.acknowledged(&dated("UNINSTALL", "w4", 1)).await);
    world.wait_for_status(&installed("l1"), "inactive").await;
    assert!(!highlevel.acknowledged(&dated("INSTALL", "w5", 2)).await);
    let again = async || {
        let token = access_token(world, "l1").await;
        token.is_some() && token != before
    };
    assert!(eventually(again).await, "{}", world.worker_log());
}

/// HighLevel's INSTALL for a location that was made later may lack `companyId`.
#[tokio::test(flavor = "multi_thread")]
async fn a_location_that_names_no_company_gets_tokens_from_the_one_that_has_it() {
    let company = |id: &str| json!({ "userType": "Company", "companyId": id });
    let codes = [("code-1", "c1"), ("code-2", "c2"), ("code-3", "c3")];
    let codes = codes.map(|(code, id)| (code, company(id)));
    let server = TokenServer::start(Codes::from(codes), "", LONG).await;
    server.seen(|seen| seen.company_of = [("l1", "c2"), ("l2", "none")].into());
    let highlevel = start(&server, Setup::default(), "state = \"when_present\"").await;
    let world = &highlevel.world;
    for number in 1..=3 {
        assert_eq!(come_back(world, "", &format!("code=code-{number}")).await.0, 200);
    }
    // What is known of all three is asked of all three, once.
    world.wait_applied().await;
    for (n, id) in [("w1", "l1"), ("w2", "l2")] {
        let install = event("INSTALL", n, "10.000", json!({ "locationId": id }));
        assert!(!highlevel.acknowledged(&install).await);
    }
    let exchanged = async || access_token(world, "l1").await.is_some();
    assert!(eventually(exchanged).await, "{}", world.worker_log());
    let location = world.installation(&installed("l1")).await;
    assert_eq!(location["scope"], json!({ "location_id": "l1", "company_id": "c2" }));
    let parent = json!({ "installation_id": "my-app:company:c2", "status": "active" });
    assert_eq!(location["parent"], parent);
    let company = world.installation("my-app:company:c2").await;
    let children = json!([{ "installation_id": installed("l1"), "status": "active" }]);
    assert_eq!((&company["children"], &company["children_count"]), (&children, &json!(1)));

    // A company's own INSTALL may come all the same, and is the same install.
    let mut install = event("INSTALL", "w3", "12.000", json!({ "companyId": "c2" }));
    install.as_object_mut().unwrap().remove("locationId");
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
    install["timestamp"] = later.to_string().into();
    assert!(!highlevel.acknowledged(&install).await);
    world.wait_applied().await;
    let company = world.installation("my-app:company:c2").await;
    assert_eq!((&company["status"], &company["generation"]), (&json!("active"), &json!(1)));
    assert!(world.credential("my-app:company:c2").await.body["credential"].is_string());

    // All were asked for the one that belongs to none, which is not asked for over and over.
    let asked = || server.seen(|seen| seen.locations);
    assert!(eventually(async || asked() == 3 + 2).await, "{}", asked());
    tokio::time::sleep(std::time::Duration::from_secs(1)).await; // ten rounds
    assert_eq!(asked(), 3 + 2);
    assert!(access_token(world, "l2").await.is_none());
    let other = world.installation(&installed("l2")).await;
    assert_eq!((&other["status"], &other["parent"]), (&json!("active"), &Value::Null));
}
