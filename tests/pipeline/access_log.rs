//! The record of opened credentials and refused requests, and what those try who would
//! have it otherwise.

use std::collections::BTreeMap;

use dev::postgres::Role;
use serde_json::Value;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Row as _};

use crate::payload::install;
use crate::reads::{TOKEN_THAT_READS, ask, configure_reader, token_section};
use crate::world::{Setup, World, eventually};

const EXPIRED: &str = "a_token_that_has_ended_0123456789";
const HASTY: &str = "a_token_that_asks_too_often_0123456789";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const READ: &str = "scopes = [\"installations:read\"]\nsources = [\"*\"]";

async fn world() -> World {
    let world = World::servers(Setup::default());
    configure_reader(&world);
    let expired = token_section("ended", EXPIRED, READ);
    world.configure(&expired.replace("2100-", "1999-"));
    world.configure(&token_section("hasty", HASTY, &format!("{READ}\nrequests_per_second = 1")));
    let world = world.with_services().await;
    world.acknowledged(&install("a")).await;
    world.wait_for_status("a", "active").await;
    world
}

/// What is recorded, in order.
async fn records(world: &World) -> Vec<Value> {
    let sql = "SELECT to_jsonb(entry) - 'digest' FROM mooring.access_log AS entry ORDER BY number";
    let rows = sqlx::query(sql).fetch_all(&mut world.connection().await).await.unwrap();
    rows.into_iter().map(|row| row.get(0)).collect()
}

/// How many requests the records with this reason stand for.
async fn requests(world: &World, reason: &str) -> u64 {
    let of = |record: &Value| {
        if record["reason"] == reason { record["requests"].as_u64().unwrap() } else { 0 }
    };
    records(world).await.iter().map(of).sum()
}

async fn as_worker(world: &World) -> PgPool {
    PgPool::connect(&world.postgres.url(Role::Worker, "mooring")).await.unwrap()
}

async fn as_superuser(world: &World, sql: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
        .execute(&mut world.connection().await)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_denial_and_opening_says_who_from_where_which_trace_and_why() {
    let world = world().await;
    let list = "/v1/installations";
    ask(&world, list, None).await;
    let request = world.http.get(world.worker_url(0, list)).bearer_auth("unknown");
    let request = request.header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"));
    assert_eq!(request.send().await.unwrap().status(), 401);
    ask(&world, list, Some(EXPIRED)).await;
    ask(&world, "/v1/installations/a/credential", Some(TOKEN_THAT_READS)).await;
    let limited = async || ask(&world, "/v1/installations/a", Some(HASTY)).await.status == 429;
    assert!(eventually(limited).await);
    assert_eq!(world.credential("a").await.status, 200);

    let expected = BTreeMap::from([
        ("no-token", (401, Value::Null, list)),
        ("unknown-token", (401, Value::Null, list)),
        ("expired", (401, "ended".into(), list)),
        ("insufficient-scope", (403, "reader".into(), "/v1/installations/{id}/credential")),
        ("rate-limited", (429, "hasty".into(), "/v1/installations/{id}")),
    ]);
    let all = async || records(&world).await.len() == expected.len() + 1;
    assert!(eventually(all).await, "{:?}", records(&world).await);
    for record in records(&world).await {
        assert_eq!(record["client_address"], "127.0.0.1", "{record}");
        assert_eq!(record["recorded_by"], "mooring_worker", "{record}");
        let reason = record["reason"].as_str().unwrap();
        if let Some((status, caller, route)) = expected.get(reason) {
            let found = (&record["status"], &record["caller"], &record["route"]);
            assert_eq!(found, (&(*status).into(), caller, &(*route).into()), "{record}");
            assert_eq!(record["outcome"], "refused");
            let trace = if reason == "unknown-token" { TRACE.into() } else { Value::Null };
            assert_eq!(record["trace_id"], trace);
        } else {
            assert_eq!(
                (reason, &record["outcome"]),
                ("credential-with-refresh-token", &"opened".into())
            );
            assert_eq!(
                (&record["caller"], &record["installation_id"]),
                (&"dev".into(), &"a".into())
            );
            assert_eq!(
                (&record["place"], &record["generation"]),
                (&"app_1/inst_a".into(), &1.into())
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_denials_is_counted_and_hides_no_other() {
    const FLOOD: u64 = 3_000;
    let mut world = world().await;
    for number in 0..FLOOD {
        let token = format!("guess-{number}");
        assert_eq!(ask(&world, "/v1/installations", Some(&token)).await.status, 401);
        if number == FLOOD / 2 {
            ask(&world, "/v1/installations/a/credential", Some(TOKEN_THAT_READS)).await;
        }
    }
    // What is not recorded yet is at the end.
    world.stop_workers();
    assert_eq!(requests(&world, "unknown-token").await, FLOOD);
    assert_eq!(requests(&world, "insufficient-scope").await, 1);
    let rows = records(&world).await.len();
    assert!(rows < 100, "{rows} records");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_record_there_is_no_secret_and_denials_are_recorded_later() {
    let world = world().await;
    as_superuser(
        &world,
        "REVOKE EXECUTE ON FUNCTION mooring.record_access(jsonb) FROM mooring_worker",
    )
    .await;
    let refused = world.credential("a").await;
    assert_eq!((refused.status, refused.problem()), (503, "database-unavailable"), "{refused:?}");
    for _ in 0..3 {
        ask(&world, "/v1/installations", None).await;
    }
    let noted = async || world.worker_log().contains("refused requests are recorded later");
    assert!(eventually(noted).await);
    ask(&world, "/v1/installations", None).await;
    as_superuser(
        &world,
        "GRANT EXECUTE ON FUNCTION mooring.record_access(jsonb) TO mooring_worker",
    )
    .await;
    assert!(eventually(async || requests(&world, "no-token").await == 4).await);
    assert_eq!(world.credential("a").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_workers_password_can_add_to_the_record_and_no_more() {
    let world = world().await;
    assert_eq!(world.credential("a").await.status, 200);
    // Ours may not even do this.
    as_superuser(&world, "GRANT TEMPORARY ON DATABASE mooring TO mooring_worker").await;
    let pool = as_worker(&world).await;
    let mut worker = pool.acquire().await.unwrap();
    // Times, numbers and digests that are given, and functions that would be found first.
    for sql in [
        "CREATE FUNCTION pg_temp.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS 'SELECT ''epoch''::timestamptz'",
        "CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT $1'",
        "CREATE TEMPORARY TABLE access_log_ends (last_number bigint)",
        "SET search_path = pg_temp, mooring, public",
        r#"SELECT mooring.record_access('[{"outcome":"refused","reason":"forged","requests":1,
            "number":1,"recorded_at":"1999-01-01T00:00:00Z","recorded_by":"me","digest":"\\x00"}]')"#,
    ] {
        sqlx::query(sql).execute(&mut *worker).await.unwrap();
    }
    let forged = records(&world).await.into_iter().find(|it| it["reason"] == "forged").unwrap();
    assert_eq!((&forged["number"], &forged["recorded_by"]), (&2.into(), &"mooring_worker".into()));
    assert!(forged["recorded_at"].as_str().unwrap() > "2026", "{forged}");
    // Too much at once, or what no request would leave.
    for given in [
        r#"(SELECT jsonb_agg(jsonb_build_object('outcome','refused','reason','x','requests',1)) FROM generate_series(1, 1001))"#,
        r#"'[{"outcome":"refused","reason":"x","requests":0}]'"#,
        r#"'[{"outcome":"erased","reason":"x","requests":1}]'"#,
    ] {
        let sql = format!("SELECT mooring.record_access({given})");
        let refused = sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut *worker).await;
        assert!(refused.is_err(), "{given}");
    }
    // It cannot even read who did what.
    assert!(sqlx::query("SELECT * FROM mooring.access_log").execute(&mut *worker).await.is_err());
    let verified = world.operate(&["audit", "verify", "--json"]).await.json(0);
    assert_eq!(verified["database"]["records"], 2, "{verified}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_proves_the_chain_and_shows_what_was_rewritten() {
    let world = world().await;
    for _ in 0..4 {
        assert_eq!(world.credential("a").await.status, 200);
    }
    let exported = world.operate(&["audit", "export"]).await;
    assert_eq!((exported.code, exported.stdout.lines().count()), (0, 4), "{exported:?}");
    let line: Value = serde_json::from_str(exported.stdout.lines().nth(1).unwrap()).unwrap();
    assert_eq!((&line["number"], &line["caller"]), (&2.into(), &"dev".into()));
    let file = world.folder.path().join("export.jsonl");
    std::fs::write(&file, &exported.stdout).unwrap();
    let path = file.to_string_lossy().into_owned();
    let verify = ["audit", "verify", "--export", &path];
    let code = async |args: &[&str]| world.operate(args).await.code;
    assert_eq!(code(&verify).await, 0);
    assert_eq!(world.credential("a").await.status, 200);
    assert_eq!(code(&verify).await, 0);

    as_superuser(&world, "CREATE TABLE kept AS TABLE mooring.access_log").await;
    let restore = "TRUNCATE mooring.access_log; INSERT INTO mooring.access_log SELECT * FROM kept";
    for tampering in [
        "UPDATE mooring.access_log SET caller = 'nobody' WHERE number = 3",
        "UPDATE mooring.access_log SET recorded_at = recorded_at - interval '1 day' WHERE number = 1",
        "DELETE FROM mooring.access_log WHERE number = 2",
        "DELETE FROM mooring.access_log WHERE number = 1",
        "DELETE FROM mooring.access_log WHERE number = 5",
        "UPDATE mooring.access_log SET digest = '\\x00' WHERE number = 5",
    ] {
        as_superuser(&world, tampering).await;
        let found = world.operate(&["audit", "verify"]).await;
        assert_eq!(found.code, 3, "{tampering}: {found:?}");
        as_superuser(&world, restore).await;
        assert_eq!(code(&["audit", "verify"]).await, 0, "{tampering}");
    }
    // The owner writes another history, with a chain that is whole.
    as_superuser(
        &world,
        "UPDATE mooring.access_log SET caller = 'nobody' WHERE number = 3;
         DO $$
         DECLARE entry mooring.access_log; previous bytea := '';
         BEGIN
             FOR entry IN SELECT * FROM mooring.access_log ORDER BY number LOOP
                 previous := mooring.access_digest(previous, entry);
                 UPDATE mooring.access_log SET digest = previous WHERE number = entry.number;
             END LOOP;
             UPDATE mooring.access_log_ends SET last_digest = previous;
         END $$",
    )
    .await;
    assert_eq!(code(&["audit", "verify"]).await, 0);
    let found = world.operate(&verify).await;
    assert!(found.code == 3 && found.stderr.contains("rewritten"), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pruned_was_exported_and_the_chain_goes_on() {
    let world = world().await;
    let export = async |name: &str| {
        let exported = world.operate(&["audit", "export"]).await;
        assert_eq!(exported.code, 0, "{exported:?}");
        let file = world.folder.path().join(name);
        std::fs::write(&file, &exported.stdout).unwrap();
        (file.to_string_lossy().into_owned(), exported.stdout)
    };
    for _ in 0..3 {
        assert_eq!(world.credential("a").await.status, 200);
    }
    let (first, text) = export("first").await;
    let damaged = world.folder.path().join("damaged");
    std::fs::write(&damaged, text.replacen("dev", "ved", 1)).unwrap();
    let damaged = damaged.to_string_lossy();
    assert_eq!(world.operate(&["audit", "prune", "--export", &damaged, "--yes"]).await.code, 3);
    assert_eq!(world.operate(&["audit", "prune", "--export", &first]).await.code, 2);
    assert_eq!(world.credential("a").await.status, 200);
    let pruned = world.operate(&["audit", "prune", "--export", &first, "--yes", "--json"]).await;
    assert_eq!(pruned.json(0)["records"], 3);
    assert_eq!(records(&world).await.len(), 1);
    assert_eq!(world.operate(&["audit", "prune", "--export", &first, "--yes"]).await.code, 3);
    assert_eq!(world.credential("a").await.status, 200);
    let (second, text) = export("second").await;
    assert_eq!(text.lines().count(), 2);
    let verified = world.operate(&["audit", "verify", "--export", &second, "--json"]).await.json(0);
    assert_eq!((&verified["pruned"], &verified["export"]["records"]), (&3.into(), &2.into()));
}

/// Of before there was a chain.
#[tokio::test(flavor = "multi_thread")]
async fn openings_that_were_recorded_before_are_the_beginning_of_the_chain() {
    let world = World::servers(Setup { ingests: 0, workers: 0, ..Setup::default() });
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/migrations");
    let all = Migrator::new(std::path::Path::new(folder)).await.unwrap();
    let before: Vec<_> = all.iter().filter(|it| it.version < 9).cloned().collect();
    let owner = world.postgres.url(Role::Owner, "mooring");
    let pool = PgPoolOptions::new().max_connections(1).connect(&owner).await.unwrap();
    Migrator { migrations: before.into(), ..Migrator::DEFAULT }.run(&pool).await.unwrap();
    as_superuser(
        &world,
        "INSERT INTO mooring.credential_access
             (accessed_at, caller, source, installation_id, generation, key_id, place)
         SELECT timestamptz '2026-01-01' + number * interval '1 hour', 'app', 'blnk', 'a', 1, 'k1', 'here'
         FROM generate_series(1, 3) AS number",
    )
    .await;
    world.migrate();
    let found = records(&world).await;
    assert_eq!(found.len(), 3);
    assert_eq!(found[2]["recorded_at"], "2026-01-01T03:00:00+00:00");
    assert_eq!((&found[0]["caller"], &found[0]["outcome"]), (&"app".into(), &"opened".into()));
    assert_eq!(world.operate(&["audit", "verify"]).await.code, 0);
}
