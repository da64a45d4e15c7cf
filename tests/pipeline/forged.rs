//! What somebody puts into the log who has a password of NATS, and no event key.

use async_nats::{HeaderMap, Request};
use serde_json::{Value, json};

use crate::payload::{api_key, install, uninstall};
use crate::world::{STOP_DEADLINE, Setup, World};

pub(crate) const PROOF: &str = "mooring-proof";

/// Appends with the password of a service, as whoever stole it would.
pub(crate) async fn append_as(world: &World, user: &str, body: &Value, mut headers: HeaderMap) {
    let password = world.secrets.read(&format!("nats-{user}-password")).unwrap();
    let options = async_nats::ConnectOptions::new()
        .user_and_password(user.to_owned(), password)
        .custom_inbox_prefix(format!("_INBOX_{user}"));
    let client = options.connect(world.nats.url()).await.unwrap();
    let id = body["message_id"].as_str().unwrap();
    headers.insert("ce-id", id);
    headers.insert("Nats-Msg-Id", id);
    let request = Request::new().headers(headers).payload(body.to_string().into());
    let place = &body["fact"]["identity"]["place"];
    let source = domain::id::SourceName::parse(body["source"].as_str().unwrap()).unwrap();
    let subject = eventlog::message::subject_of(&source, place.as_str().unwrap());
    let answer = client.send_request(subject, request).await.unwrap();
    assert!(!String::from_utf8_lossy(&answer.payload).contains("error"), "{answer:?}");
}

/// An uninstall as ingest would write it, of what `installed` has brought.
fn uninstall_of(installed: &Value, number: u64) -> Value {
    let mut body = installed.clone();
    let id = installed["fact"]["identity"]["installation_id"].as_str().unwrap();
    body["message_id"] = format!("blnk:uninstall:{id}#{number:032x}").into();
    body["idempotency_key"] = format!("uninstall:{id}").into();
    body["secret_fingerprint"] = Value::Null;
    body["fact"] = json!({"type": "uninstalled", "identity": installed["fact"]["identity"]});
    body
}

/// Body and proof of each event in the log.
pub(crate) async fn proven(world: &World) -> Vec<(Value, Option<String>)> {
    let stream = world.stream().await;
    let mut found = Vec::new();
    for sequence in 1..=stream.cached_info().state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let proof = message.headers.get(PROOF).map(ToString::to_string);
        found.push((serde_json::from_slice(&message.payload).unwrap(), proof));
    }
    found
}

async fn dead(world: &World) -> Vec<(String, String)> {
    let listed = world.operate(&["dead-letters", "list", "--json"]).await.json(0);
    let text = |it: &Value, name: &str| it[name].as_str().unwrap().to_owned();
    let letters = listed.as_array().unwrap().iter();
    letters.map(|it| (text(it, "reason"), text(it, "detail"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_of_nats_alone_uninstalls_nothing() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    let (installed, proof) = proven(&world).await.remove(0);
    let proof = proof.expect("ingest proves what it writes");

    let with =
        |proof: &str| HeaderMap::from_iter([(PROOF.parse().unwrap(), proof.parse().unwrap())]);
    append_as(&world, "ingest", &uninstall_of(&installed, 1), HeaderMap::new()).await;
    append_as(&world, "ingest", &uninstall_of(&installed, 2), with(&proof)).await;
    append_as(&world, "ingest", &uninstall_of(&installed, 3), with("v1.ingest.i9.AAAA")).await;
    append_as(&world, "renewer", &uninstall_of(&installed, 4), with("v1.token_renewal.r1.AAAA"))
        .await;
    world.acknowledged(&install("b")).await;
    world.wait_for_status("b", "active").await;
    world.wait_applied().await;
    let expected = [
        "it carries no message authentication code (see [event_keys])",
        "its message authentication code is wrong",
        "its message authentication code is not of a key in [event_keys]",
        "its message authentication code is wrong",
    ];
    let expected = expected.map(|detail| ("not_entitled".to_owned(), detail.to_owned()));
    assert_eq!(dead(&world).await, expected);
    assert_eq!(world.installation("a").await["status"], "active");
    assert_eq!(world.credential("a").await.body["credential"], api_key("a"));
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    assert_eq!(world.operate(&["rebuild"]).await.code, 0);

    // Nor does it count once operators have put everything back.
    world.stop_workers();
    world.jetstream().await.delete_stream("INSTALLATIONS").await.unwrap();
    world.migrate();
    world.migrate();
    world.wait_ingest_ready(0);
    assert_eq!(world.operate(&["restore", "--yes"]).await.code, 0);
    world.start_workers_again();
    world.wait_applied().await;
    assert_eq!(dead(&world).await, expected);
    assert_eq!(world.installation("a").await["status"], "active");

    // Redriving asks again, and only a word of the operator lets one in.
    let redriven = world.operate(&["dead-letters", "redrive", "--all", "--by", "test"]).await;
    assert_eq!(redriven.code, 3, "{}", redriven.stderr);
    assert_eq!(world.installation("a").await["status"], "active");
    let unproven = ["dead-letters", "redrive", "2", "--unproven", "--by", "test"];
    assert_eq!(world.operate(&unproven).await.code, 0);
    world.wait_for_status("a", "inactive").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_begin_and_change_without_losing_an_event() {
    let mut world = World::start(Setup::default()).await;
    let config = std::fs::read_to_string(world.config()).unwrap();
    let (before, rest) = config.split_once("[event_keys.ingest]").unwrap();
    let (_, after) = rest.split_once("[ingest]").unwrap();
    let key = |name: &str| format!("{{ file = {:?} }}", world.secrets.path(name));
    let i1 = key("event-key-ingest");
    let i2 = key("fingerprint-key"); // any 32 bytes
    let keys = |event_keys: &str| format!("{before}{event_keys}\n[ingest]{after}");
    let write = |world: &World, text: String| std::fs::write(world.config(), text).unwrap();
    let ingest_with = |world: &mut World, text: String| {
        write(world, text);
        world.ingests[0].stop(STOP_DEADLINE).unwrap();
        world.ingests[0].start_again().unwrap();
        world.wait_ingest_ready(0);
    };
    let workers_with = |world: &mut World, text: String| {
        write(world, text);
        world.stop_workers();
        world.start_workers_again();
        world.wait_worker_ready(0);
    };

    let none = keys("");
    workers_with(&mut world, none.clone());
    ingest_with(&mut world, none);
    world.acknowledged(&install("old")).await;
    world.wait_applied().await;

    // Ingest begins to prove, then the workers begin to ask.
    let first = keys(&format!("[event_keys.ingest]\nactive = \"i1\"\nkeys.i1 = {i1}\n"));
    ingest_with(&mut world, first.clone());
    world.acknowledged(&install("between")).await;
    workers_with(&mut world, first);

    // The workers know the next key, then ingest uses it, then the former one ends.
    let both = format!("[event_keys.ingest]\nactive = \"i1\"\nkeys.i1 = {i1}\nkeys.i2 = {i2}\n");
    workers_with(&mut world, keys(&both));
    ingest_with(&mut world, keys(&both.replace("active = \"i1\"", "active = \"i2\"")));
    world.acknowledged(&install("new")).await;
    world.wait_for_status("new", "active").await;
    let ended = format!("{both}accepted_until.i1 = \"2020-01-01T00:00:00Z\"\n");
    workers_with(&mut world, keys(&ended));
    world.acknowledged(&uninstall("new")).await;
    world.wait_for_status("new", "inactive").await;

    // What the journal has is proven by that.
    let proofs: Vec<bool> = proven(&world).await.iter().map(|(_, proof)| proof.is_some()).collect();
    assert_eq!(proofs, [false, true, true, true]);
    let replayed = world.operate(&["replay", "--apply", "--json"]).await.json(0);
    assert_eq!([&replayed["duplicates"], &replayed["dead_letters"]], [4, 0], "{replayed}");
    assert_eq!(dead(&world).await, []);
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}
