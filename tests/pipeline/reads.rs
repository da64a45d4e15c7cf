//! The read API and the command line.

use serde_json::{Value, json};
use sqlx::Row as _;

use crate::payload::{api_key, install, install_in, uninstall};
use crate::world::{Answer, Setup, World, post};

pub(crate) const TOKEN_THAT_READS: &str = "a_token_that_only_reads_0123456789";

/// A second token, for reading only.
pub(crate) fn configure_reader(world: &World) {
    let more = "scopes = [\"installations:read\"]\nsources = [\"*\"]";
    world.configure(&token_section("reader", TOKEN_THAT_READS, more));
}

/// `[worker.api_tokens.<name>]` of a token that lasts.
pub(crate) fn token_section(name: &str, token: &str, more: &str) -> String {
    let hash = hex::encode(ring::digest::digest(&ring::digest::SHA256, token.as_bytes()));
    format!(
        "[worker.api_tokens.{name}]\nsha256 = \"{hash}\"\nexpires_at = \"2100-01-01T00:00:00Z\"\n{more}\n"
    )
}

/// A source whose installation ids are those of an app.
pub(crate) fn configure_two_apps(world: &World) {
    world.configure(
        "[sources.shop]\nplatform = \"generic\"\nverification.unverified = true\n\
         [sources.shop.mapping]\nevent_type = [\"/type\"]\ninstalled = [\"installed\"]\n\
         uninstalled = [\"uninstalled\"]\napp_id = \"/app\"\ninstallation_id = [\"/id\"]\n\
         place = [\"/where\"]\nsecrets = [\"/key\"]\n",
    );
}

pub(crate) async fn in_shop(world: &World, kind: &str, app: &str, id: &str, place: &str) {
    let key = shop_key(app, id);
    let callback = json!({ "type": kind, "app": app, "id": id, "where": place, "key": key });
    let answer = post(&world.http, &world.ingest_url(0, "/callbacks/shop"), &callback).await;
    assert_eq!(answer.unwrap().status, 200);
}

pub(crate) fn shop_key(app: &str, id: &str) -> String {
    format!("key-of-{app}-{id}-0123456789")
}

pub(crate) async fn ask(world: &World, path: &str, token: Option<&str>) -> Answer {
    let mut request = world.http.get(world.worker_url(0, path));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    Answer::of(request.send().await.unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_read_needs_a_token_with_its_scope() {
    let world = World::servers(Setup::default());
    configure_reader(&world);
    let world = world.with_services().await;
    world.acknowledged(&install("a")).await;
    world.wait_for_status("a", "active").await;

    let all = world.secrets.read("read-token").unwrap();
    let paths = ["/v1/installations", "/v1/installations/a", "/v1/installations/a/events"];
    let credential = "/v1/installations/a/credential";
    for path in paths.iter().copied().chain([credential]) {
        for token in [None, Some(""), Some("wrong"), Some(&all[1..])] {
            let answer = ask(&world, path, token).await;
            assert_eq!((answer.status, answer.problem()), (401, "unauthorized"), "{path}");
            assert_eq!(answer.headers["www-authenticate"], "Bearer realm=\"mooring\"");
        }
        assert_eq!(ask(&world, path, Some(&all)).await.status, 200, "{path}");
    }
    let reader = Some(TOKEN_THAT_READS);
    for path in paths {
        assert_eq!(ask(&world, path, reader).await.status, 200, "{path}");
    }
    let refused = ask(&world, credential, reader).await;
    assert_eq!((refused.status, refused.problem()), (403, "insufficient-scope"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opened_credential_is_audited_and_not_cached() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_for_status("a", "active").await;
    let opened = world.credential("a").await;
    assert_eq!(opened.headers["cache-control"], "no-store");
    assert_eq!(opened.body["credential"], api_key("a"));
    assert_eq!(world.credential("unknown").await.problem(), "installation-not-found");

    let sql = "SELECT caller, source, installation_id, place, key_id, generation, \
               recorded_at <= now() FROM mooring.access_log WHERE outcome = 'opened'";
    let rows = sqlx::query(sql).fetch_all(&mut world.connection().await).await.unwrap();
    assert_eq!(rows.len(), 1);
    let text = |column: usize| rows[0].get::<String, _>(column);
    assert_eq!([text(0), text(1), text(2), text(3)], ["dev", "blnk", "a", "app_1/inst_a"]);
    assert!(domain::id::DataKeyId::parse(&text(4)).is_some(), "{}", text(4));
    assert_eq!((rows[0].get::<i32, _>(5), rows[0].get::<bool, _>(6)), (1, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_cannot_be_changed_by_the_worker() {
    let world = World::start(Setup::default()).await;
    let url = world.postgres.url(dev::postgres::Role::Worker, "mooring");
    let pool = sqlx::PgPool::connect(&url).await.unwrap();
    for sql in [
        "DELETE FROM mooring.access_log",
        "UPDATE mooring.access_log SET caller = 'nobody'",
        "INSERT INTO mooring.access_log SELECT * FROM mooring.access_log",
        "UPDATE mooring.access_log_ends SET last_number = 0",
        "ALTER FUNCTION mooring.record_access(jsonb) SET search_path = public",
        "CREATE FUNCTION mooring.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT $1'",
        "UPDATE mooring.journal SET message_id = 'x'",
        "UPDATE mooring.journal SET source = 'x', place = 'x', idempotency_key = 'x'",
        "DELETE FROM mooring.journal",
        "TRUNCATE projection.installations",
        "CREATE TABLE mooring.own (id int)",
    ] {
        let refused = sqlx::query(sql).execute(&pool).await.unwrap_err();
        let code = refused.as_database_error().unwrap().code().unwrap().into_owned();
        assert_eq!(code, "42501", "{sql}: insufficient_privilege");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_filtered_and_paged() {
    let world = World::start(Setup::default()).await;
    for number in 0..7 {
        world.acknowledged(&install_in(&format!("a{number}"), &format!("i{number}"))).await;
    }
    world.acknowledged(&uninstall("b")).await;
    world.wait_applied().await;

    let mut seen: Vec<String> = Vec::new();
    let mut path = "/v1/installations?status=active&limit=3".to_owned();
    let mut pages = 0;
    loop {
        let page = world.read(&path).await;
        assert_eq!(page.status, 200, "{page:?}");
        let installations = page.body["installations"].as_array().unwrap();
        seen.extend(
            installations.iter().map(|it| it["installation_id"].as_str().unwrap().to_owned()),
        );
        pages += 1;
        match page.body["next_cursor"].as_str() {
            Some(cursor) => {
                path = format!("/v1/installations?status=active&limit=3&cursor={cursor}")
            }
            None => break,
        }
    }
    assert_eq!((pages, seen.len()), (3, 7));
    seen.dedup();
    assert_eq!(seen.len(), 7);

    let count =
        async |path: &str| world.read(path).await.body["installations"].as_array().unwrap().len();
    assert_eq!(count("/v1/installations?status=inactive").await, 1);
    assert_eq!(count("/v1/installations?source=blnk").await, 8);
    assert_eq!(count("/v1/installations?source=other").await, 0);
    for bad in ["status=gone", "limit=0", "limit=201", "limit=x", "cursor=AAAA", "stauts=active"] {
        let answer = world.read(&format!("/v1/installations?{bad}")).await;
        assert_eq!((answer.status, answer.problem()), (400, "invalid-parameter"), "{bad}");
    }
}

/// Every text in a value, names included.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(fields) => fields.iter().for_each(|(name, field)| {
            found.push(name.clone());
            texts(field, found);
        }),
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_hold_no_sealed_bytes() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_for_status("a", "active").await;
    let sealed = world.projection().await[0].credential_sealed.clone().unwrap();
    for path in ["/v1/installations", "/v1/installations/a", "/v1/installations/a/events"] {
        let mut found = Vec::new();
        texts(&world.read(path).await.body, &mut found);
        assert!(
            !found.iter().any(|text| text.contains(&sealed) || text.starts_with("v1.")),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_reads_what_the_api_reads() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_for_status("a", "active").await;
    let run = |args: &[&str]| world.command("worker", args, &[]);
    let shown = run(&["installations", "show", "a", "--json"]).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown, world.installation("a").await);
    let listed = run(&["installations", "list", "--json"]).unwrap();
    let mut listed: Value = serde_json::from_str(&listed).unwrap();
    let cursor = listed.as_object_mut().unwrap().shift_remove("changes_cursor").unwrap();
    assert!(cursor.as_str().unwrap().ends_with("-1"), "{cursor}");
    assert_eq!(listed, json!({ "installations": [shown], "next_cursor": null }));
    let text = run(&["installations", "list", "--status", "active"]).unwrap();
    assert!(text.starts_with("active      blnk         a "), "{text}");
    let missing = run(&["installations", "show", "b"]).unwrap_err().to_string();
    assert!(missing.contains("there is no installation with this id"), "{missing}");
    let misused = run(&["installations", "list", "--status", "gone"]).unwrap_err().to_string();
    let statuses = "[possible values: pending, active, suspended, superseded, inactive, \
                    unconfirmed, unverified]";
    assert!(misused.contains(statuses), "{misused}");
    let help = run(&["installations", "list", "--help"]).unwrap();
    let words: Vec<&str> = help.split_whitespace().collect();
    assert!(words.join(" ").contains(statuses), "{help}");
}

/// Two apps have the id 7 in one source, and Blnk has it, too.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_several_installations_have_is_not_guessed() {
    let world = World::servers(Setup::default());
    configure_two_apps(&world);
    let world = world.with_services().await;
    for app in ["app_1", "app_2"] {
        in_shop(&world, "installed", app, "7", "here").await;
    }
    world.acknowledged(&install("7")).await;
    world.wait_applied().await;

    let read = async |end: &str| world.read(&format!("/v1/installations/7{end}")).await;
    let of_shop = json!([
        { "source": "shop", "app_id": "app_1", "place": "app_1/here", "status": "active" },
        { "source": "shop", "app_id": "app_2", "place": "app_2/here", "status": "active" },
    ]);
    for path in ["", "/events", "/credential"] {
        let refused = read(path).await;
        assert_eq!((refused.status, refused.problem()), (409, "ambiguous-installation"), "{path}");
        assert_eq!(refused.body["candidates"].as_array().unwrap().len(), 3);
        let refused = read(&format!("{path}?source=shop")).await;
        assert_eq!((refused.status, &refused.body["candidates"]), (409, &of_shop), "{path}");
        let unknown = read(&format!("{path}?source=shop&app_id=app_3")).await;
        assert_eq!((unknown.status, unknown.problem()), (404, "installation-not-found"), "{path}");
    }
    for (query, place, credential) in [
        ("?app_id=app_2", "app_2/here", shop_key("app_2", "7")),
        ("?place=app_1%2Fhere", "app_1/here", shop_key("app_1", "7")),
        ("?source=blnk", "app_1/inst_7", api_key("7")),
    ] {
        assert_eq!(read(query).await.body["place"], place, "{query}");
        let opened = read(&format!("/credential{query}")).await;
        assert_eq!(opened.body["credential"], credential, "{query}");
        let events = read(&format!("/events{query}")).await;
        assert_eq!(events.body["events"].as_array().unwrap().len(), 1, "{query}");
    }

    let show = ["installations", "show", "7"];
    let refused = world.operate(&show).await;
    assert_eq!(refused.code, 1);
    let candidate = "source shop, app app_2, place app_2/here: active";
    assert!(refused.stderr.contains(candidate), "{}", refused.stderr);
    let shown = [&show[..], &["--app", "app_2"]].concat();
    assert!(world.operate(&shown).await.stdout.contains("app_2/here"));
    let explained = world.operate(&["explain", "7", "--place", "app_1/here", "--json"]).await;
    assert_eq!(explained.json(0)["installation"]["app_id"], "app_1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uninstall_that_names_another_place_is_history_of_what_was_installed() {
    let world = World::servers(Setup::default());
    configure_two_apps(&world);
    let world = world.with_services().await;
    in_shop(&world, "installed", "app_1", "7", "here").await;
    in_shop(&world, "uninstalled", "app_1", "7", "there").await;
    in_shop(&world, "uninstalled", "app_1", "8", "there").await;
    world.wait_applied().await;
    assert_eq!(world.installation("7").await["place"], "app_1/here");
    let events = world.read("/v1/installations/7/events").await;
    assert_eq!(events.body["events"].as_array().unwrap().len(), 2);
    let there = world.read("/v1/installations/7?place=app_1%2Fthere").await;
    assert_eq!(there.problem(), "installation-not-found");
    assert_eq!(world.installation("8").await["place"], "app_1/there", "never installed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_or_a_path_cannot_hold_is_refused_with_a_problem() {
    let world = World::start(Setup::default()).await;
    let paths = ["/a?source=%00", "/a/credential?source=%00", "/a/events?place=%00", "?plan=%00"];
    for path in paths.into_iter().chain(["/a?app_id=x%00y"]) {
        let answer = world.read(&format!("/v1/installations{path}")).await;
        assert_eq!((answer.status, answer.problem()), (400, "invalid-parameter"), "{path}");
    }
    for path in ["/%ff", "/%ff/events", "/%ff/credential", "/%00"] {
        let answer = world.read(&format!("/v1/installations{path}")).await;
        assert_eq!((answer.status, answer.problem()), (404, "installation-not-found"), "{path}");
        assert_eq!(answer.headers["content-type"], "application/problem+json");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_is_not_usable_says_all_that_is_wrong() {
    let world = World::servers(Setup::default());
    let wrong = [
        ("MOORING__SEALING__ACTIVE", "k9".to_owned()),
        ("MOORING__NATS__PASSWORD__FILE", "/no/such/file".to_owned()),
    ];
    for service in ["ingest", "worker"] {
        let fine = world.command(service, &["run", "--check-config"], &[]).unwrap();
        assert!(fine.contains("is usable by"), "{fine}");
        let error =
            world.command(service, &["run", "--check-config"], &wrong).unwrap_err().to_string();
        assert!(error.contains("exit status: 78"), "{error}");
        assert!(error.contains("sealing.active: "), "{error}");
        assert!(error.contains("nats.password: "), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_says_how_often_its_caller_may_still_ask() {
    let world = World::servers(Setup::default());
    let more = "scopes = [\"installations:read\"]\nsources = [\"*\"]\nrequests_per_second = 3";
    world.configure(&token_section("slow", TOKEN_THAT_READS, more));
    let world = world.with_services().await;
    let mut answer = ask(&world, "/v1/installations", Some(TOKEN_THAT_READS)).await;
    assert_eq!(answer.headers["ratelimit-policy"], "\"caller\";q=3;w=1");
    assert_eq!(answer.headers["ratelimit"], "\"caller\";r=2");
    // A slow machine gets some back meanwhile.
    for _ in 0..50 {
        if answer.status == 429 {
            break;
        }
        answer = ask(&world, "/v1/installations", Some(TOKEN_THAT_READS)).await;
    }
    assert_eq!(
        (answer.status, &answer.headers["ratelimit"]),
        (429, &"\"caller\";r=0;t=1".parse().unwrap())
    );
    let stranger = ask(&world, "/v1/installations", None).await;
    assert!(!stranger.headers.contains_key("ratelimit"), "nobody knows who it is");
}
