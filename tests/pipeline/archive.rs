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

/// Everything that can be asked of history, after the log was trimmed.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_history_reads_archive_and_log() {
    let world = start(Setup::default(), AT_ONCE).await;
    some_installations(&world, "a").await;
    let events = async |id: &str| world.read(&format!("/v1/installations/{id}/events")).await;
    let before = (
        events("a29").await.body,
        world.operate(&["replay"]).await.stdout,
        world.operate(&["explain", "a29"]).await.stdout,
        world.projection().await,
    );
    let bytes = async || -> i64 {
        let sql = "SELECT sum(length(event::text)) FROM mooring.journal";
        sqlx::query_scalar(sql).fetch_one(&mut world.connection().await).await.unwrap()
    };
    let whole = bytes().await;
    assert_eq!(run(&world, &[]).await.json(0)["archived_to"], 30);
    assert!(bytes().await < whole, "payloads have left the journal");

    assert_eq!(events("a29").await.body, before.0);
    assert_eq!(before.0["events"][0]["payload"]["installed_app_id"], "a29");
    assert_eq!(world.operate(&["replay"]).await.stdout, before.1);
    assert_eq!(world.operate(&["explain", "a29"]).await.stdout, before.2);
    for (args, expected) in [
        (vec!["replay", "--from", "30", "--to", "31"], vec![30, 31]),
        (vec!["replay", "--installation", "a29"], vec![30, 31]),
        (vec!["replay", "--source", "other"], vec![]),
        (vec!["replay", "--since", "2100-01-01T00:00:00Z"], vec![]),
        (vec!["replay", "--since", "2000-01-01T00:00:00Z", "--to", "2"], vec![1, 2]),
    ] {
        let found = lines(&world.operate(&args).await.stdout);
        let found: Vec<u64> = found.iter().map(|it| it["sequence"].as_u64().unwrap()).collect();
        assert_eq!(found, expected, "{args:?}");
    }
    for parallel in ["1", "3"] {
        let rebuilt = world.operate(&["rebuild", "--json", "--parallel", parallel]).await.json(0);
        assert_eq!(rebuilt["events"], 31, "{rebuilt}");
        assert_eq!(
            (&rebuilt["comparison"]["different"], &rebuilt["swapped"]),
            (&0.into(), &true.into())
        );
    }
    let by_journal = world.operate(&["rebuild", "--json", "--from", "journal"]).await.json(0);
    assert_eq!(by_journal["comparison"]["different"], 0, "{by_journal}");
    assert_eq!(world.projection().await, before.3);
    let verified = world.operate(&["verify", "--json"]).await.json(0);
    assert_eq!((&verified["events"], &verified["archived_to"]), (&31.into(), &30.into()));
    assert_eq!(verified["folded_from"], "log");

    // What was altered in what the journal kept is found, too.
    for change in [
        "event = replace(event::text, 'data:read', 'data:admin')::json",
        "event_sha256 = sha256('another')",
    ] {
        let sql = format!("UPDATE mooring.journal SET {change} WHERE stream_sequence = 7");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(&mut world.connection().await)
            .await
            .unwrap();
        let report = world.operate(&["verify", "--json"]).await.json(DIFFERS);
        assert_eq!(report["journal"]["different"], json!([7]), "{report}");
        let sql = "UPDATE mooring.journal SET event = replace(event::text, 'data:admin', 'data:read')::json";
        sqlx::query(sql).execute(&mut world.connection().await).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_is_away_or_not_configured_stops_who_needs_it_and_nobody_else() {
    let world = start(Setup::default(), AT_ONCE).await;
    some_installations(&world, "a").await;
    assert_eq!(run(&world, &[]).await.json(0)["archived_to"], 30);
    let away = world.folder.path().join("unmounted");
    fs::rename(folder(&world), &away).unwrap();

    let said = "there is no such folder: create it, or mount what it is on";
    let erase = ["erase", "a29", "--source", "blnk", "--why", "asked for", "--yes"];
    for args in [&["rebuild"][..], &["verify"], &["replay"], &["archive", "verify"], &erase] {
        let refused = world.operate(args).await;
        assert!(refused.code == 1 && refused.stderr.contains(said), "{args:?}: {refused:?}");
    }
    let answer = world.read("/v1/installations/a29/events").await;
    assert_eq!((answer.status, answer.problem()), (503, "archive-unavailable"));
    let refused = run(&world, &[]).await;
    assert!(refused.code == 1 && refused.stderr.contains(said), "{refused:?}");

    // An empty folder is not the archive.
    fs::create_dir(folder(&world)).unwrap();
    let refused = run(&world, &[]).await;
    assert!(refused.stderr.contains("lacks what was proven to be in it"), "{refused:?}");
    let refused = world.operate(&["rebuild"]).await;
    let hole = "events are in neither log nor archive: the log begins at sequence 31";
    assert!(refused.code == 1 && refused.stderr.contains(hole), "{refused:?}");
    assert!(refused.stderr.contains("has nothing of this log"), "{refused:?}");
    assert_eq!(world.operate(&["archive", "verify"]).await.code, DIFFERS);

    world.replace_in_config("[worker.archive]", "[worker.other_archive]");
    let unconfigured = fs::read_to_string(world.config()).unwrap();
    let (kept, _) = unconfigured.split_once("[worker.other_archive]").unwrap();
    fs::write(world.config(), kept).unwrap();
    let refused = world.operate(&["rebuild"]).await;
    assert!(refused.stderr.contains("is not configured (worker.archive)"), "{refused:?}");
    assert!(refused.stderr.contains("`--from journal`"), "{refused:?}");
    let refused = world.operate(&["archive", "run"]).await;
    assert!(refused.stderr.contains("set worker.archive in the configuration"), "{refused:?}");

    // What needs no old payload goes on.
    assert_eq!(world.operate(&["rebuild", "--from", "journal"]).await.code, 0);
    assert_eq!(world.operate(&["explain", "a29"]).await.code, 0);
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    world.acknowledged(&install_in("b", "inst_b")).await;
    world.wait_for_status("b", "active").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_missing_is_named_and_nothing_is_let_go_of() {
    let world = start(Setup::default(), AT_ONCE).await;
    some_installations(&world, "a").await;
    assert_eq!(run(&world, &[]).await.json(0)["archived_to"], 30);
    some_installations(&world, "b").await;
    assert_eq!(run(&world, &[]).await.json(0)["archived_to"], 61);
    some_installations(&world, "c").await;
    let (first, journal) = (first_sequence(&world).await, world.journal().await.len());

    let segment = file_with(&world, "segments/00000000000000000031");
    let manifest = file_with(&world, "manifests/00000000000000000031");
    let older = file_with(&world, "manifests/00000000000000000001");
    type Damage = fn(&mut Vec<u8>);
    let flip: Damage = |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    };
    let truncate: Damage = |bytes| bytes.truncate(bytes.len() / 2);
    let empty: Damage = Vec::clear;
    for (file, damage, who_archives_sees_it) in [
        (&segment, flip, false),
        (&segment, truncate, false),
        (&segment, empty, false),
        (&manifest, flip, true),
        (&manifest, empty, true),
        (&older, truncate, true),
    ] {
        let good = fs::read(file).unwrap();
        let mut bad = good.clone();
        damage(&mut bad);
        fs::write(file, &bad).unwrap();
        let verified = world.operate(&["archive", "verify", "--json"]).await.json(DIFFERS);
        let findings = verified["findings"].to_string();
        let name = file.file_name().unwrap().to_string_lossy();
        assert!(findings.contains(&*name) && findings.contains("damaged"), "{findings}");
        for args in [&["rebuild"][..], &["replay"], &["verify"], &["archive", "restore"]] {
            let refused = world.operate(args).await;
            assert!(
                refused.code == 1 && refused.stderr.contains("damaged"),
                "{args:?}: {refused:?}"
            );
        }
        if who_archives_sees_it {
            let refused = run(&world, &[]).await;
            assert!(refused.code == 1 && refused.stderr.contains("damaged"), "{refused:?}");
            assert_eq!(first_sequence(&world).await, first);
        }
        fs::write(file, &good).unwrap();
    }
    for file in [&segment, &manifest] {
        let aside = world.folder.path().join("aside");
        fs::rename(file, &aside).unwrap();
        let verified = world.operate(&["archive", "verify", "--json"]).await.json(DIFFERS);
        let findings = verified["findings"].to_string();
        assert!(findings.contains("missing") || findings.contains("lacks"), "{findings}");
        assert_eq!(world.operate(&["rebuild"]).await.code, 1);
        fs::rename(&aside, file).unwrap();
    }
    // Without the last manifest the chain only ends earlier. Postgres knows better.
    let aside = world.folder.path().join("aside");
    fs::rename(&manifest, &aside).unwrap();
    let refused = run(&world, &[]).await;
    assert!(refused.stderr.contains("the segment from sequence 31 on is gone"), "{refused:?}");
    fs::rename(&aside, &manifest).unwrap();

    assert_eq!((first_sequence(&world).await, world.journal().await.len()), (first, journal));
    assert_eq!(world.operate(&["archive", "verify"]).await.code, 0);
    assert_eq!(run(&world, &[]).await.json(0)["archived_to"], 92);
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_the_journal_contradicts_is_not_let_go_of() {
    let world = start(Setup::default(), AT_ONCE).await;
    some_installations(&world, "a").await;
    for (change, back, said) in [
        (
            "DELETE FROM mooring.journal WHERE stream_sequence = 5",
            "",
            "at sequence 5 the archive has an event that neither the journal nor a dead letter has",
        ),
        (
            "UPDATE mooring.journal SET event = replace(event::text, 'data:read', 'data:admin')::json
             WHERE stream_sequence = 7",
            "UPDATE mooring.journal SET event = replace(event::text, 'data:admin', 'data:read')::json
             WHERE stream_sequence = 7",
            "at sequence 7 the archive has another event than the journal",
        ),
    ] {
        sqlx::query(change).execute(&mut world.connection().await).await.unwrap();
        let refused = run(&world, &[]).await;
        assert!(refused.code == 1 && refused.stderr.contains(said), "{refused:?}");
        assert!(refused.stderr.contains("nothing of the segment"), "{refused:?}");
        assert_eq!(first_sequence(&world).await, 1);
        let listed = world.operate(&["archive", "list", "--json"]).await.json(0);
        assert_eq!(listed["segments"], json!([]));
        assert_eq!(world.operate(&["replay", "--apply"]).await.code, 0);
        if !back.is_empty() {
            sqlx::query(back).execute(&mut world.connection().await).await.unwrap();
        }
    }
    let stream = world.stream().await;
    stream.delete_message(9).await.unwrap();
    let refused = run(&world, &[]).await;
    let said = "at sequence 9 the journal has an event that the archive lacks";
    assert!(refused.code == 1 && refused.stderr.contains(said), "{refused:?}");
    assert_eq!(first_sequence(&world).await, 1);
}
