//! Who may write the pages of data keys, and what becomes of a page that
//! somebody forged.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use dev::ports::free_port;
use dev::services::Service;
use domain::data_key::Page;
use domain::id::KeyId;
use domain::key_pair::{NewPair, PrivateKey};
use domain::key_ring::{KeyRing, SealingKey};
use domain::seal::{SealingNonce, SymmetricKey, parse_key};
use eventlog::keys::NEW_STREAM;
use serde_json::json;
use service::config::{Config, Resolver};

use crate::erasure::{copies, erase, opened_by, page_of, pages, ring};
use crate::payload::{api_key, install};
use crate::world::{Answer, DEADLINE, Setup, World, eventually, post};

/// As long as a server that refuses says nothing.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Somebody with the password of a user of NATS.
async fn thief(world: &World, user: &str) -> jetstream::Context {
    let password = world.secrets.read(&format!("nats-{user}-password")).unwrap();
    let options = async_nats::ConnectOptions::new()
        .user_and_password(user.to_owned(), password)
        .custom_inbox_prefix(format!("_INBOX_{user}"));
    let client = options.connect(world.nats.url()).await.unwrap();
    jetstream::ContextBuilder::new().timeout(ANSWER_TIMEOUT).build(client)
}

/// Whether the server took it.
async fn publish(thief: &jetstream::Context, subject: String, body: &str) -> bool {
    match thief.publish(subject, body.to_owned().into()).await {
        Ok(sent) => sent.await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_page_is_written_over_with_the_password_of_ingest_or_the_renewer() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    let page = page_of(&world, "a").await;
    for user in ["ingest", "renewer", "worker"] {
        let thief = thief(&world, user).await;
        for subject in ["data_keys", "new_data_keys"] {
            let taken = publish(&thief, format!("{subject}.{page}"), "v1.k1.AAAA.AAAA").await;
            assert!(!taken, "{user} wrote over {subject}.{page}");
        }
    }
    assert_eq!(world.operate(&["doctor", "--json"]).await.code, 0);
    let resealed = world.operate(&["keys", "reseal", "--json"]).await.json(0);
    assert_eq!(resealed["resealed"], json!(0), "{resealed}");
    assert_eq!(world.credential("a").await.body["credential"], api_key("a").as_str());
}

/// What looks like a page that `key` seals.
fn forged(key: &str) -> String {
    format!("v3.{key}.{}.{}", "A".repeat(43), "A".repeat(64))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_page_displaces_no_good_one() {
    let world = World::start(Setup::default()).await;
    for id in ["a", "b"] {
        world.acknowledged(&install(id)).await;
    }
    world.wait_applied().await;
    let page = page_of(&world, "a").await;
    assert_eq!(page, page_of(&world, "b").await);
    let erased = erase(&world, "b").await;
    assert_eq!(erased["keys_destroyed"], 1);
    let opens = async || world.credential("a").await.body["credential"] == api_key("a").as_str();
    let reseal = async |code| world.operate(&["keys", "reseal", "--json"]).await.json(code);

    // The name is free again where new pages are stored, and what stands there does not count.
    let ingest = thief(&world, "ingest").await;
    assert!(publish(&ingest, format!("new_data_keys.{page}"), &forged("p1")).await);
    assert!(opens().await);
    assert_eq!(reseal(0).await["not_opened"], 0);
    let made = world.jetstream().await.get_stream(NEW_STREAM).await.unwrap();
    let left = made.direct_get_last_for_subject(format!("new_data_keys.{page}")).await;
    assert!(left.is_err(), "{left:?}");

    // Nor does rubbish under another name.
    assert!(publish(&ingest, "new_data_keys.rubbish".to_owned(), "rubbish").await);
    assert!(publish(&ingest, "new_data_keys.forged".to_owned(), &forged("p1")).await);
    let report = reseal(3).await;
    assert_eq!((&report["not_opened"], &report["mended"]), (&json!(2), &json!(0)), "{report}");
    let listed = world.operate(&["keys", "list", "--json"]).await.json(0);
    assert_eq!(listed["damaged_pages"], 1, "{listed}");
    assert!(opens().await);

    // With an operator's rights, as ingest's were once: the good one is found again.
    let operator = world.jetstream().await;
    assert!(publish(&operator, format!("data_keys.{page}"), &forged("p1")).await);
    assert!(!opens().await);
    let doctor = world.operate(&["doctor", "--json"]).await.json(3).to_string();
    assert!(doctor.contains("the newest page of data keys does not open"), "{doctor}");
    let report = reseal(3).await;
    assert_eq!((&report["not_opened"], &report["mended"]), (&json!(2), &json!(1)), "{report}");
    assert!(opens().await);
    assert_eq!(world.credential("b").await.problem(), "no-credential");
    let again = erase(&world, "b").await;
    assert_eq!((&again["keys_gone_before"], &again["keys_destroyed"]), (&json!(1), &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_from_before_key_pairs_and_two_streams_open_and_are_resealed() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    let (operator, ring) = (world.jetstream().await, ring(&world));
    let key = SymmetricKey::new(KeyId::parse("k1").unwrap(), &vec![7; 32].into()).unwrap();
    let made = operator.get_stream(NEW_STREAM).await.unwrap();
    for (id, sealed) in pages(&world).await {
        let page = Page::open(&ring, id.clone(), &sealed).unwrap();
        let before = page.seal_symmetric(&key, &SealingNonce::random()).unwrap();
        assert!(publish(&operator, format!("data_keys.{id}"), before.as_str()).await);
    }
    for sequence in 1..=made.cached_info().state.last_sequence {
        made.delete_message(sequence).await.unwrap();
    }
    world.migrate();
    assert_eq!(world.credential("a").await.status, 500, "k1 is not in the ring");
    let missing = world.operate(&["keys", "list"]).await;
    assert!(missing.code == 3 && missing.stdout.contains("MISSING"), "{missing:?}");
    let file = world.folder.path().join("k1");
    fs::write(&file, BASE64_STANDARD.encode([7; 32])).unwrap();
    world.configure(&format!("[sealing.keys]\nk1 = {{ file = {file:?} }}"));

    let opens = async || world.credential("a").await.body["credential"] == api_key("a").as_str();
    assert!(eventually(opens).await, "{}", world.worker_log());
    let resealed = world.operate(&["keys", "reseal", "--json"]).await.json(0);
    assert!(resealed["resealed"].as_u64().unwrap() > 0, "{resealed}");
    assert!(opens().await);
    assert_eq!(world.operate(&["keys", "retire", "k1"]).await.code, 0);
    assert_eq!(erase(&world, "a").await["keys_destroyed"], 1);
}

/// What ingest is given in its whole life.
const OF_INGEST: [&str; 5] = [
    "nats-ingest-password",
    "fingerprint-key",
    "event-key-ingest",
    "sealing-public-key",
    "blnk-path-token",
];

/// An ingest with a folder of its own, in which is only what it needs.
async fn lone_ingest(world: &World) -> (Service, PathBuf, String) {
    let folder = world.folder.path().join("of-ingest");
    fs::create_dir(&folder).unwrap();
    for name in OF_INGEST {
        fs::copy(world.secrets.path(name), folder.join(name)).unwrap();
    }
    let all = world.secrets.path("").to_string_lossy().trim_end_matches('/').to_owned();
    let config = fs::read_to_string(world.config()).unwrap();
    let path = folder.join("mooring.toml");
    fs::write(&path, config.replace(&all, &folder.to_string_lossy())).unwrap();
    let (listen, log) = (format!("127.0.0.1:{}", free_port().unwrap()), folder.join("ingest.log"));
    let args = ["run", "--config", &path.to_string_lossy()];
    let admin = format!("127.0.0.1:{}", free_port().unwrap());
    let envs = [("MOORING__INGEST__LISTEN", &*listen), ("MOORING__INGEST__ADMIN_LISTEN", &*admin)];
    let mut ingest = Service::start("ingest", &args, &envs, &log).unwrap();
    ingest.wait_ready(&format!("http://{listen}/readyz"), DEADLINE).unwrap();
    let token = world.secrets.read("blnk-path-token").unwrap();
    (ingest, folder, format!("http://{listen}/callbacks/blnk/{token}"))
}

/// Every key ring that a thief could try to make of a text.
fn rings_of(text: &str, public: &SealingKey) -> Vec<KeyRing> {
    let id = public.id();
    let mut found = Vec::new();
    let bytes = text.rsplit('.').next().unwrap().trim();
    let as_private = |text: String| PrivateKey::parse(&text.into()).ok();
    let base64url = bytes.replace('+', "-").replace('/', "_").replace('=', "");
    for private in [as_private(text.to_owned()), as_private(format!("x25519-private.{base64url}"))]
    {
        found.extend(private.map(|key| KeyRing::new(id.clone(), [(id.clone(), key)], []).unwrap()));
    }
    if let Ok(key) = parse_key(&bytes.to_owned().into()) {
        let pair = PrivateKey::parse(&NewPair::generate().private).unwrap();
        let symmetric = SymmetricKey::new(KeyId::parse("k1").unwrap(), &key).unwrap();
        found.push(KeyRing::new(id.clone(), [(id.clone(), pair)], [symmetric]).unwrap());
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_ingest_has_opens_no_credential() {
    let world = World::start(Setup { ingests: 0, ..Setup::default() }).await;
    let (_ingest, folder, url) = lone_ingest(&world).await;
    assert_eq!(post(&world.http, &url, &install("a")).await.unwrap().status, 200);
    world.wait_applied().await;
    assert_eq!(world.credential("a").await.body["credential"], api_key("a").as_str());

    // Its configuration makes no ring, and none of its secrets is a key that opens.
    let config = Config::load(&folder.join("mooring.toml")).unwrap();
    let no_variable = |_: &str| None;
    assert!(Resolver::new(&no_variable).key_ring(&config.sealing).is_none());
    let public = Resolver::new(&no_variable).sealing_key(&config.sealing).unwrap();
    let copies = copies(&world, "a").await;
    assert_eq!(opened_by(&ring(&world), &world, "a", &copies).await.len(), 2, "the worker's opens");
    let mut tried = 0;
    for name in OF_INGEST {
        let secret = world.secrets.read(name).unwrap();
        for ring in rings_of(&secret, &public) {
            tried += 1;
            let opened = opened_by(&ring, &world, "a", &copies).await;
            assert_eq!(opened, Vec::<String>::new(), "{name}");
        }
    }
    assert!(tried >= 3, "{tried}");

    // Nor does its password read a page or an event.
    let ingest = thief(&world, "ingest").await;
    let page = page_of(&world, "a").await;
    for request in [
        format!("$JS.API.DIRECT.GET.NEW_DATA_KEYS.new_data_keys.{page}"),
        format!("$JS.API.DIRECT.GET.DATA_KEYS.data_keys.{page}"),
        "$JS.API.STREAM.MSG.GET.NEW_DATA_KEYS".to_owned(),
        "$JS.API.STREAM.MSG.GET.INSTALLATIONS".to_owned(),
        "$JS.API.CONSUMER.CREATE.NEW_DATA_KEYS".to_owned(),
        "$JS.API.STREAM.CREATE.COPY".to_owned(),
        "$JS.API.STREAM.SNAPSHOT.NEW_DATA_KEYS".to_owned(),
    ] {
        let answer = ingest.publish(request.clone(), "{\"seq\":1}".into()).await.unwrap().await;
        assert!(answer.is_err(), "{request}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_activated_and_retired_when_every_service_is_ready_for_it() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    let file = world.folder.path().join("k2").to_string_lossy().into_owned();
    let rotated = world.operate(&["keys", "rotate", "--id", "k2", "--file", &file]).await;
    let unknown = world.operate(&["keys", "activate", "k2"]).await;
    assert!(unknown.code == 1 && unknown.stderr.contains("there is no key k2"), "{unknown:?}");
    world.configure(&rotated.stdout);

    // A worker on a host that has not got it yet.
    let report = async |service: &str, active: &str, opens: &[&str]| {
        let report = json!({ "service": service, "instance": "late", "active": active,
                             "public": "x25519-public.", "opens": opens });
        let subject = format!("key_rings.{service}.late");
        assert!(publish(&thief(&world, service).await, subject, &report.to_string()).await);
    };
    report("worker", "p1", &["p1"]).await;
    let late = world.operate(&["keys", "activate", "k2", "--wait-s", "1"]).await;
    assert!(late.code == 3 && late.stderr.contains("worker late cannot open with k2"), "{late:?}");
    report("worker", "p1", &["p1", "k2"]).await;
    let ready = world.operate(&["keys", "activate", "k2", "--json"]).await.json(0);
    assert_eq!(ready, json!({ "id": "k2", "workers": 2 }));

    world.replace_in_config("active = \"p1\"", "active = \"k2\"");
    report("ingest", "p1", &[]).await;
    report("worker", "k2", &["p1", "k2"]).await;
    assert_eq!(world.operate(&["keys", "reseal"]).await.code, 0);
    let late = world.operate(&["keys", "retire", "p1", "--wait-s", "10"]).await;
    let says = "ingest late still seals with p1: has its configuration been changed?";
    assert!(late.code == 3 && late.stderr.contains(says), "{late:?}");
    let doctor = world.operate(&["doctor", "--json"]).await.json(3).to_string();
    assert!(doctor.contains("worker late has another public half of k2"), "{doctor}");
    report("ingest", "k2", &[]).await;
    assert_eq!(world.operate(&["keys", "reseal"]).await.code, 0);
    let retired = world.operate(&["keys", "retire", "p1"]).await;
    assert_eq!(retired.code, 0, "{retired:?}");
}

/// What the worker says of its keys, and with which status.
async fn readiness(world: &World) -> (u16, String) {
    let request = world.http.get(world.admin_url("worker", 0, "/readyz"));
    // It may not listen yet.
    let Ok(response) = request.send().await else { return (0, String::new()) };
    let answer = Answer::of(response).await.unwrap();
    (answer.status, answer.body["keys"].as_str().unwrap_or_default().to_owned())
}

async fn becomes_ready(world: &World) -> bool {
    eventually(async || readiness(world).await == (200, "ready".to_owned())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lacks_a_key_that_was_active_is_not_ready() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    let before = fs::read_to_string(world.config()).unwrap();
    let file = world.folder.path().join("k2").to_string_lossy().into_owned();
    let rotated = world.operate(&["keys", "rotate", "--id", "k2", "--file", &file]).await;
    world.configure(&rotated.stdout);
    world.replace_in_config("active = \"p1\"", "active = \"k2\"");
    let sql = "SELECT count(*) FROM mooring.sealing_keys WHERE id = 'k2'";
    let is_remembered = async || {
        let mut postgres = world.connection().await;
        sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut postgres).await.unwrap() == 1
    };
    assert!(eventually(is_remembered).await);
    assert_eq!(world.operate(&["keys", "reseal"]).await.code, 0);

    // As an environment that forgets what was added to its configuration.
    let after = fs::read_to_string(world.config()).unwrap();
    fs::write(world.config(), before).unwrap();
    world.stop_workers();
    world.start_workers_again();
    let lacks_it = async || {
        let (status, keys) = readiness(&world).await;
        status == 503 && keys.contains("sealed with k2, which is not in the key ring")
    };
    assert!(eventually(lacks_it).await, "{:?}", readiness(&world).await);
    assert_eq!(world.operate(&["keys", "retire", "k2", "--wait-s", "1"]).await.code, 3);

    fs::write(world.config(), after).unwrap();
    assert!(becomes_ready(&world).await, "{:?}", readiness(&world).await);
    assert_eq!(world.credential("a").await.body["credential"], api_key("a").as_str());
    // One that was retired is not missed.
    let retired = world.operate(&["keys", "retire", "p1"]).await;
    assert_eq!(retired.code, 0, "{retired:?}");
    world.replace_in_config("keys.p1]", "keys.p0]");
    world.stop_workers();
    world.start_workers_again();
    assert!(becomes_ready(&world).await, "{:?}", readiness(&world).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_may_come_from_a_command_and_no_core_is_dumped() {
    let mut world = World::servers(Setup::default());
    let path = world.secrets.path("fingerprint-key").to_string_lossy().into_owned();
    let file = format!("{{ file = {path:?} }}");
    world.replace_in_config(&file, &format!("{{ command = [\"cat\", {path:?}] }}"));
    world = world.with_services().await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    for pid in [world.ingests[0].pid(), world.workers[0].pid()] {
        let limits = fs::read_to_string(format!("/proc/{}/limits", pid.unwrap())).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_fingerprint_key_changes_no_state() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    assert!(world.acknowledged(&install("a")).await, "a repeated callback");
    let before = world.installation("a").await;
    fs::write(world.secrets.path("fingerprint-key"), BASE64_STANDARD.encode([5; 32])).unwrap();
    world.ingests[0].stop(DEADLINE).unwrap();
    world.ingests[0].start_again().unwrap();
    world.wait_ingest_ready(0);
    assert!(!world.acknowledged(&install("a")).await, "it is new content by the new key");
    assert!(world.acknowledged(&install("a")).await, "and repeated from then on");
    world.wait_applied().await;
    let after = world.installation("a").await;
    for field in ["status", "generation", "installed_at", "granted_permissions"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    assert_eq!(world.callbacks_in_journal().await, 2);
    assert_eq!(world.credential("a").await.body["credential"], api_key("a").as_str());
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}
