//! Old events leave the log for the archive, and nothing is let go of that was not
//! proven to be there.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::payload::{install_in, uninstall_in};
use crate::world::{Setup, World};

const DIFFERS: i32 = 3;

/// Everything is due, except the last event of the journal.
pub(crate) const AT_ONCE: &str = "retention_days = 0";

/// With an archive in a folder.
pub(crate) async fn start(setup: Setup, more: &str) -> World {
    let world = World::servers(setup);
    configure(&world, more);
    world.with_services().await
}

pub(crate) fn configure(world: &World, more: &str) {
    let folder = folder(world);
    fs::create_dir(&folder).unwrap();
    world.configure(&format!("[worker.archive]\nurl = \"file://{}\"\n{more}", folder.display()));
}

pub(crate) fn folder(world: &World) -> PathBuf {
    world.folder.path().join("archive")
}

/// As the user that may delete from the log and nothing else.
pub(crate) fn as_archiver(world: &World) -> Vec<(&'static str, String)> {
    let password = world.secrets.path("nats-archiver-password");
    vec![
        ("MOORING__WORKER__ARCHIVE__NATS_USER", "archiver".to_owned()),
        ("MOORING__WORKER__ARCHIVE__NATS_PASSWORD__FILE", password.to_string_lossy().into_owned()),
    ]
}

pub(crate) async fn run(world: &World, args: &[&str]) -> crate::operate::Done {
    let envs = as_archiver(world);
    let envs: Vec<(&str, &str)> = envs.iter().map(|(name, value)| (*name, &**value)).collect();
    world.operate_with(&[&["archive", "run", "--json"], args].concat(), &envs).await
}

/// Thirty installs in ten places, and an uninstall: 31 events.
pub(crate) async fn some_installations(world: &World, name: &str) {
    for index in 0..30 {
        let (id, instance) = (format!("{name}{index}"), format!("inst_{name}{}", index % 10));
        world.acknowledged(&install_in(&id, &instance)).await;
    }
    world.acknowledged(&uninstall_in(&format!("{name}29"), &format!("inst_{name}9"))).await;
    world.wait_applied().await;
}

pub(crate) async fn first_sequence(world: &World) -> u64 {
    world.stream().await.cached_info().state.first_sequence
}

/// Each message of the log, as the leader tells it.
async fn messages(world: &World) -> Vec<Value> {
    let stream = world.stream().await;
    let state = stream.cached_info().state.clone();
    let mut found = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let mut headers: Vec<(String, String)> = message
            .headers
            .iter()
            .map(|(name, values)| (name.to_string(), values[0].to_string()))
            .collect();
        headers.sort();
        found.push(json!({
            "sequence": sequence,
            "stored_at": jiff::Timestamp::from_nanosecond(message.time.unix_timestamp_nanos()).unwrap(),
            "subject": message.subject.as_str(),
            "headers": headers,
            "body": String::from_utf8(message.payload.to_vec()).unwrap(),
        }));
    }
    found
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() { found.extend(files_below(&entry)) } else { found.push(entry) }
    }
    found.sort();
    found
}

/// The file of the archive whose path has this in it.
fn file_with(world: &World, part: &str) -> PathBuf {
    let files = files_below(&folder(world)).into_iter();
    files.filter(|file| file.to_string_lossy().contains(part)).next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn old_events_are_archived_as_they_stood_in_the_log_and_the_log_is_trimmed() {
    let world = start(Setup::default(), AT_ONCE).await;
    some_installations(&world, "a").await;
    let before = messages(&world).await;
    let (rows, journal) = (world.projection().await, world.journal().await.len());

    let would = run(&world, &["--dry-run"]).await.json(0);
    assert_eq!(would["segments"][0]["events"], 30, "{would}");
    assert_eq!((would["archived_to"].clone(), first_sequence(&world).await), (0.into(), 1));
    assert!(files_below(&folder(&world)).is_empty(), "a dry run writes nothing");

    let done = run(&world, &[]).await.json(0);
    assert_eq!((&done["archived_to"], &done["log_begins_at"]), (&30.into(), &31.into()), "{done}");
    assert_eq!(first_sequence(&world).await, 31, "the journal's last event stays");
    let again = run(&world, &[]).await.json(0);
    assert_eq!((&again["segments"], &again["archived_to"]), (&json!([]), &30.into()), "{again}");

    let restored = world.operate(&["archive", "restore"]).await;
    assert_eq!(lines(&restored.stdout), before[..30]);
    let some = world.operate(&["archive", "restore", "--from", "7", "--to", "9"]).await;
    assert_eq!(lines(&some.stdout), before[6..9]);
    let into = world.folder.path().join("unpacked");
    fs::create_dir(&into).unwrap();
    let unpacked = world.operate(&["archive", "restore", "--into", &into.to_string_lossy()]).await;
    assert_eq!(unpacked.code, 0, "{unpacked:?}");
    let text = fs::read_to_string(&files_below(&into)[0]).unwrap();
    assert_eq!(lines(&text), before[..30]);

    let verified = world.operate(&["archive", "verify", "--json"]).await.json(0);
    assert_eq!((&verified["events"], &verified["findings"]), (&30.into(), &json!([])));
    let listed = world.operate(&["archive", "list", "--json"]).await.json(0);
    assert_eq!((&listed["events"], &listed["without_manifest"]), (&30.into(), &json!([])));
    let log = listed["log"].as_str().unwrap();
    let by_name = world.operate(&["archive", "verify", "--log", log, "--json"]).await.json(0);
    assert_eq!(by_name["compared_with_journal"], false);

    // Nothing of the state has changed, and everything goes on.
    assert_eq!((world.projection().await, world.journal().await.len()), (rows, journal));
    some_installations(&world, "b").await;
    let more = run(&world, &[]).await.json(0);
    assert_eq!(more["segments"][0]["first_sequence"], 31, "{more}");
    assert_eq!(world.operate(&["archive", "verify"]).await.code, 0);
}
