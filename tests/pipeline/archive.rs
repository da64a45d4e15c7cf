//! Old events leave the log for the archive, and nothing is let go of that was not
//! proven to be there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use domain::event::{Event, Fact};
use serde_json::{Value, json};

use crate::erasure::{Copy, opened};
use crate::load::Load;
use crate::other_log::restored_after;
use crate::payload::{api_key, install, install_in, uninstall_in, with_key};
use crate::world::{Setup, World, eventually};

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

/// Running workers archive, all the time.
pub(crate) fn by_workers(world: &World, more: &str) -> String {
    let password = world.secrets.path("nats-archiver-password");
    let nats = format!("nats_user = \"archiver\"\nnats_password = {{ file = {password:?} }}");
    format!("{nats}\nevery_ms = 100\n{more}")
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
    let mut files = files_below(&folder(world)).into_iter();
    files.find(|file| file.to_string_lossy().contains(part)).unwrap()
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
    let done = run(&world, &[]).await.json(0);
    assert_eq!(done["archived_to"], 30);
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

/// Every step can be the last before a crash. What hinders it here is what stays of
/// an archiver that died there.
#[tokio::test(flavor = "multi_thread")]
async fn an_archiver_that_stopped_at_any_step_is_finished_by_the_next_one() {
    let world = start(Setup::default(), AT_ONCE).await;
    let mut postgres = world.connection().await;
    let all = async || world.operate(&["replay"]).await.stdout;
    let mut archived = 0;
    let mut next = async |name: &str| {
        some_installations(&world, name).await;
        archived += 31;
        all().await
    };

    // The disk is full, or cannot be written: nothing is stored.
    let before = next("a").await;
    let log = world.operate(&["archive", "list", "--json"]).await.json(0);
    let log = folder(&world).join(log["log"].as_str().unwrap());
    fs::create_dir(&log).unwrap();
    fs::write(log.join("segments"), "in the way").unwrap();
    let failed = run(&world, &[]).await;
    assert!(failed.code == 1 && failed.stderr.contains("does not answer: storing"), "{failed:?}");
    fs::remove_file(log.join("segments")).unwrap();
    assert_eq!((first_sequence(&world).await, all().await), (1, before.clone()));

    // Between segment and manifest: the file does not count.
    let manifest = log.join("manifests/00000000000000000001.json");
    fs::create_dir_all(&manifest).unwrap();
    let failed = run(&world, &[]).await;
    let said = "another archiver has written the segment from sequence 1 on";
    assert!(failed.code == 1 && failed.stderr.contains(said), "{failed:?}");
    fs::remove_dir(&manifest).unwrap();
    let listed = world.operate(&["archive", "list", "--json"]).await.json(0);
    assert_eq!((&listed["events"], first_sequence(&world).await), (&0.into(), 1));
    assert_eq!(listed["without_manifest"].as_array().unwrap().len(), 1);

    // Between manifest and trimming: somebody reads the log.
    let lock = "SELECT pg_advisory_lock_shared(28015, 41)";
    sqlx::query(lock).execute(&mut postgres).await.unwrap();
    let waits = run(&world, &[]).await;
    let report = waits.json(DIFFERS);
    assert_eq!(
        (&report["archived_to"], first_sequence(&world).await),
        (&30.into(), 1),
        "{waits:?}"
    );
    assert!(waits.stderr.contains("a command reads old events of the log"), "{waits:?}");
    assert_eq!(all().await, before);
    let unlock = "SELECT pg_advisory_unlock_shared(28015, 41)";
    sqlx::query(unlock).execute(&mut postgres).await.unwrap();

    // Before Postgres knew of the manifest.
    sqlx::query("DELETE FROM mooring.archived_segments").execute(&mut postgres).await.unwrap();
    let finished = run(&world, &[]).await.json(0);
    assert_eq!((&finished["finished_before"], first_sequence(&world).await), (&1.into(), 31));
    assert_eq!(all().await, before);

    // Between trimming and the journal.
    let before = next("b").await;
    for sql in [
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$",
        "CREATE TRIGGER refuse BEFORE UPDATE OF event_sha256 ON mooring.journal
         FOR EACH ROW EXECUTE FUNCTION refuse()",
    ] {
        sqlx::query(sql).execute(&mut postgres).await.unwrap();
    }
    assert_eq!(run(&world, &[]).await.code, 1);
    assert_eq!((first_sequence(&world).await, all().await), (62, before.clone()));
    sqlx::query("DROP TRIGGER refuse ON mooring.journal").execute(&mut postgres).await.unwrap();
    // In the middle of trimming, not in order: some at the end are gone, and Postgres does not know.
    let before = next("c").await;
    sqlx::query(lock).execute(&mut postgres).await.unwrap();
    assert_eq!(run(&world, &[]).await.json(DIFFERS)["archived_to"], 92);
    sqlx::query(unlock).execute(&mut postgres).await.unwrap();
    for sequence in [64, 65, 70] {
        world.stream().await.delete_message(sequence).await.unwrap();
    }
    assert_eq!(all().await, before);
    assert_eq!(run(&world, &[]).await.json(0)["log_begins_at"], 93);
    assert_eq!(all().await, before);
    assert_eq!(world.operate(&["archive", "verify"]).await.code, 0);
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    let relieved = "SELECT count(*) FROM mooring.journal WHERE event_sha256 IS NOT NULL";
    let relieved: i64 = sqlx::query_scalar(relieved).fetch_one(&mut postgres).await.unwrap();
    assert_eq!(relieved, 92, "the payload of the last event stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn archivers_killed_under_load_and_two_at_once_lose_nothing() {
    let setup = Setup { workers: 2, ..Setup::default() };
    // Small segments, so that there are many steps to die at.
    let world = start(setup, "retention_days = 0\nsegment_bytes = 20_000").await;
    let load = Load::start(&world);
    let goes_on = async || {
        let before = load.acknowledged();
        assert!(eventually(async || load.acknowledged() > before + 150).await, "no more acks");
    };
    goes_on().await;
    let envs = as_archiver(&world);
    let mut said = String::new();
    for round in 0..14 {
        let mut archivers: Vec<_> = (0..1 + round % 2)
            .map(|_| {
                let mut command = world.operator_command(&["archive", "run"]);
                command.envs(envs.iter().map(|(name, value)| (*name, value))).spawn().unwrap()
            })
            .collect();
        tokio::time::sleep(std::time::Duration::from_millis(40 + 45 * round)).await;
        archivers.iter_mut().for_each(|it| it.kill().unwrap());
        for archiver in archivers {
            said += &format!("{:?}\n", crate::operate::ended(archiver).await);
        }
    }
    goes_on().await;
    let acknowledged = load.stop().await;
    world.wait_applied().await;
    eprintln!("archived up to {}, killed", first_sequence(&world).await);
    let (one, other) = tokio::join!(run(&world, &[]), run(&world, &[]));
    for done in [&one, &other] {
        let is_second = done.code == 1 && done.stderr.contains("another archiver is at work");
        assert!(done.code == 0 || is_second, "{done:?}");
    }
    assert!(one.code == 0 || other.code == 0, "{one:?} {other:?}");
    assert!(first_sequence(&world).await > 100, "{said}");

    // Each acknowledged key is in the archive or the log, and once in the journal.
    let history = lines(&world.operate(&["replay"]).await.stdout);
    let keys: BTreeSet<&str> =
        history.iter().map(|it| it["event"]["idempotency_key"].as_str().unwrap()).collect();
    for key in &acknowledged {
        assert!(keys.contains(key.as_str()), "{key} was acknowledged");
    }
    let sequences: Vec<u64> = history.iter().map(|it| it["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    let verified = world.operate(&["archive", "verify", "--json"]).await.json(0);
    assert!(verified["segments"].as_u64().unwrap() > 5, "{verified}");
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    let rebuilt = world.operate(&["rebuild", "--json"]).await.json(0);
    assert_eq!(rebuilt["comparison"]["different"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_archivers_that_write_the_same_segment_one_wins() {
    let world = start(Setup::default(), AT_ONCE).await;
    some_installations(&world, "a").await;
    // As if it had no lock: it has written the manifest that the other one is about to write.
    assert_eq!(run(&world, &[]).await.json(0)["archived_to"], 30);
    let manifest = file_with(&world, "manifests");
    let text = fs::read_to_string(&manifest).unwrap();
    some_installations(&world, "b").await;
    let next = manifest.with_file_name("00000000000000000031.json");
    fs::write(&next, text).unwrap();
    let refused = run(&world, &[]).await;
    assert!(refused.code == 1 && refused.stderr.contains("damaged"), "{refused:?}");
    assert_eq!((fs::read(&next).unwrap().len() > 10, first_sequence(&world).await), (true, 31));
    fs::remove_file(&next).unwrap();
    assert_eq!(run(&world, &[]).await.json(0)["archived_to"], 61);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_is_filled_again_from_archive_and_log() {
    let mut world = start(Setup::default(), AT_ONCE).await;
    some_installations(&world, "a").await;
    assert_eq!(run(&world, &[]).await.json(0)["archived_to"], 30);
    let before = (world.projection().await, world.journal().await.len());
    world.stop_workers();
    for sql in [
        "TRUNCATE mooring.journal, mooring.archived_segments, mooring.log_identity",
        "TRUNCATE projection.installations",
    ] {
        sqlx::query(sql).execute(&mut world.connection().await).await.unwrap();
    }
    world.acknowledged(&install_in("later", "inst_later")).await;

    // A worker would show a projection without everything that was archived.
    world.start_workers_again();
    let said = || {
        world.worker_log().contains("the journal ends at 0: what is between them is in the archive")
    };
    assert!(eventually(async || said()).await, "{}", world.worker_log());
    let refused = run(&world, &[]).await;
    assert!(refused.code == 1 && refused.stderr.contains("worker replay --apply"), "{refused:?}");
    let doctor = world.operate(&["doctor"]).await;
    assert!(
        doctor.code == DIFFERS && doctor.stdout.contains("fix: `worker replay --apply`"),
        "{doctor:?}"
    );

    let applied = world.operate(&["replay", "--apply", "--json"]).await.json(0);
    assert_eq!(applied["appended"], 32, "{applied}");
    world.stop_workers();
    world.start_workers_again();
    world.wait_worker_ready(0);
    world.wait_for_status("later", "active").await;
    let rows = world.projection().await;
    assert_eq!(rows.len(), before.0.len() + 1);
    assert!(before.0.iter().all(|row| rows.contains(row)), "{rows:?}");
    assert_eq!(world.journal().await.len(), before.1 + 1);
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    // What is archived is proven again before its payloads leave the journal again.
    let again = run(&world, &[]).await.json(0);
    assert_eq!(
        (&again["finished_before"], &again["archived_to"]),
        (&1.into(), &31.into()),
        "{again}"
    );
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_archived_that_the_workers_have_not_applied() {
    let mut world = start(Setup::default(), AT_ONCE).await;
    some_installations(&world, "a").await;
    world.stop_workers();
    for index in 0..20 {
        world.acknowledged(&install_in(&format!("b{index}"), "inst_b")).await;
    }
    assert_eq!(run(&world, &[]).await.json(0)["archived_to"], 30);
    assert_eq!(first_sequence(&world).await, 31);
    world.start_workers_again();
    world.wait_worker_ready(0);
    world.wait_applied().await;
    assert_eq!(run(&world, &[]).await.json(0)["archived_to"], 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_young_is_archived_unless_the_log_is_too_full() {
    let setup = Setup::default().env("MOORING__STREAM__MAX_BYTES", 200_000);
    let world = start(setup, "log_full_percent = 50").await;
    some_installations(&world, "a").await;
    let nothing = run(&world, &[]).await.json(0);
    assert_eq!(nothing["segments"], json!([]), "{nothing}");
    some_installations(&world, "b").await;
    some_installations(&world, "c").await;
    let bytes = async || world.stream().await.cached_info().state.bytes;
    assert!(bytes().await > 100_000, "{}", bytes().await);
    let done = run(&world, &[]).await.json(0);
    let left = bytes().await;
    assert!(left < 90_000 && left > 50_000, "{left}: {done}");
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn running_workers_archive_one_at_a_time_before_the_log_is_full() {
    // It would be full after some 150 events.
    let setup = Setup { workers: 2, scraped: true, ..Setup::default() };
    let world = World::servers(setup.env("MOORING__STREAM__MAX_BYTES", 250_000));
    configure(&world, &by_workers(&world, "log_full_percent = 40"));
    let world = world.with_services().await;
    for name in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        some_installations(&world, name).await;
    }
    let trimmed = async || first_sequence(&world).await > 150;
    assert!(eventually(trimmed).await, "{}", world.worker_log());
    let log = world.worker_log();
    assert!(log.contains("archived ") && !log.contains("archiving failed"), "{log}");
    let gaps = "SELECT count(*) FROM mooring.archived_segments AS one
                WHERE first_sequence > 1 AND NOT EXISTS (
                    SELECT FROM mooring.archived_segments AS other
                    WHERE other.last_sequence = one.first_sequence - 1)";
    let gaps: i64 =
        sqlx::query_scalar(gaps).fetch_one(&mut world.connection().await).await.unwrap();
    assert_eq!(gaps, 0, "two archived at a time");
    assert_eq!(world.operate(&["archive", "verify"]).await.code, 0);
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    let metrics = async |index| {
        let url = format!("http://127.0.0.1:{}/metrics", world.metrics_port("worker", index));
        world.http.get(url).send().await.unwrap().text().await.unwrap()
    };
    let told = async || {
        let both = metrics(0).await + &metrics(1).await;
        both.contains("mooring_archive_failing") && both.contains("mooring_archive_sequence")
    };
    assert!(eventually(told).await, "{}", metrics(0).await);

    // What hinders it is said, and is over when it is over.
    let away = world.folder.path().join("unmounted");
    fs::rename(folder(&world), &away).unwrap();
    let is_failing = async || {
        let told = metrics(0).await + &metrics(1).await;
        told.lines().any(|it| it == "mooring_archive_failing 1")
    };
    assert!(eventually(is_failing).await, "{}", metrics(0).await);
    fs::rename(&away, folder(&world)).unwrap();
    assert!(eventually(async || !is_failing().await).await, "{}", metrics(0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_covers_what_is_archived_and_changes_no_segment() {
    let world = start(Setup::default(), AT_ONCE).await;
    // The second copy of the log is not in the journal, and has a secret of its own.
    for callback in [install_in("a", "inst_a"), install_in("b", "inst_b")] {
        world.acknowledged(&callback).await;
    }
    world.acknowledged(&with_key(install_in("a", "inst_a"), "blnk_key_replaced_0123456789")).await;
    some_installations(&world, "c").await;
    assert_eq!(run(&world, &[]).await.json(0)["archived_to"], 33);
    let restored = async || world.operate(&["archive", "restore"]).await.stdout;
    let (files, archived) = (files_below(&folder(&world)), restored().await);
    let contents: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    // As a stranger has it who copied the archive: the envelopes, by installation.
    let envelopes = |id: &str| -> Vec<Copy> {
        let of_it = lines(&archived).into_iter().filter_map(|line| {
            let event = Event::decode(line["body"].as_str().unwrap().as_bytes()).unwrap();
            match event.fact {
                Fact::Installed { identity, credential: Some(credential), .. }
                    if identity.installation_id.as_str() == id =>
                {
                    Some(Copy { event: event.message_id, sealed: credential.sealed })
                }
                _ => None,
            }
        });
        of_it.collect()
    };
    let (of_a, of_b) = (envelopes("a"), envelopes("b"));
    assert_eq!(
        (opened(&world, "a", &of_a).await.len(), opened(&world, "b", &of_b).await.len()),
        (2, 1)
    );

    let erase = ["erase", "a", "--source", "blnk", "--why", "asked for", "--yes", "--json"];
    let report = world.operate(&erase).await.json(0);
    assert_eq!((&report["secrets"], &report["keys_destroyed"]), (&2.into(), &2.into()), "{report}");
    assert_eq!(opened(&world, "a", &of_a).await, Vec::<String>::new());
    assert_eq!(opened(&world, "b", &of_b).await, [api_key("b")]);
    assert_eq!(world.credential("a").await.problem(), "no-credential");
    assert_eq!(world.credential("b").await.body["credential"], api_key("b").as_str());

    let now: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(contents == now && files == files_below(&folder(&world)), "a segment was changed");
    assert_eq!(world.operate(&["archive", "verify"]).await.code, 0);
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    assert_eq!(world.operate(&["rebuild", "--json"]).await.json(0)["comparison"]["different"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_restored_log_too_only_what_is_archived_leaves_the_journal() {
    // A segment for each event. Restored events stand elsewhere in the log than in the journal.
    let mut world = start(Setup::default(), "retention_days = 0\nsegment_bytes = 1").await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    restored_after(&mut world, &["b", "c", "d"]).await;
    for id in ["w", "x", "y"] {
        world.acknowledged(&install(id)).await;
    }
    assert_eq!(world.operate(&["restore", "--yes"]).await.code, 0);
    world.start_workers_again();
    world.wait_worker_ready(0);
    world.acknowledged(&install("later")).await;
    world.wait_applied().await;

    let log = world.operate(&["archive", "list", "--json"]).await.json(0);
    let manifests = folder(&world).join(log["log"].as_str().unwrap()).join("manifests");
    let manifest = |sequence: u64| manifests.join(format!("{sequence:020}.json"));
    for sequence in 1..30 {
        fs::create_dir_all(manifest(sequence)).unwrap();
    }
    let mut stops = 0;
    loop {
        let done = run(&world, &[]).await;
        let archived: BTreeSet<String> =
            lines(&world.operate(&["archive", "restore"]).await.stdout)
                .iter()
                .map(|it| serde_json::from_str::<Value>(it["body"].as_str().unwrap()).unwrap())
                .map(|event| event["message_id"].as_str().unwrap().to_owned())
                .collect();
        let sql = "SELECT message_id FROM mooring.journal WHERE event_sha256 IS NOT NULL";
        let relieved: Vec<String> =
            sqlx::query_scalar(sql).fetch_all(&mut world.connection().await).await.unwrap();
        assert!(relieved.iter().all(|id| archived.contains(id)), "{relieved:?} {archived:?}");
        if done.code == 0 {
            assert_eq!(relieved.len(), 7, "all but the last: {relieved:?}");
            break;
        }
        let (_, at) = done.stderr.split_once("the segment from sequence ").expect(&done.stderr);
        let sequence = at.split(' ').next().unwrap().parse().unwrap();
        fs::remove_dir(manifest(sequence)).unwrap();
        stops += 1;
    }
    assert!(stops > 5, "{stops}");
    assert_eq!(world.operate(&["archive", "verify"]).await.code, 0);
    assert_eq!(world.operate(&["verify"]).await.code, 0);
    assert_eq!(world.operate(&["rebuild", "--json"]).await.json(0)["comparison"]["different"], 0);
}
