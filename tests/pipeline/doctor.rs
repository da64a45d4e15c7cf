//! The doctor finds what is broken and says how to fix it.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::payload::install;
use crate::world::{Setup, World};

async fn examined(world: &World, code: i32) -> Vec<Value> {
    world.operate(&["doctor", "--json"]).await.json(code).as_array().unwrap().clone()
}

fn of<'a>(findings: &'a [Value], check: &str) -> &'a Value {
    findings.iter().find(|found| found["check"] == check).unwrap_or_else(|| panic!("{findings:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_system_is_found_sound() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    let findings = examined(&world, 0).await;
    let verdicts: Vec<&Value> = findings.iter().filter(|it| it["verdict"] != "ok").collect();
    assert!(verdicts.is_empty(), "{verdicts:?}");
    assert_eq!(findings.len(), 14, "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_is_named_with_how_to_fix_it() {
    let mut world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    world.stop_workers();
    world.acknowledged(&install("b")).await;
    for sql in [
        "GRANT DELETE ON mooring.journal TO mooring_worker",
        "DELETE FROM _sqlx_migrations WHERE version = 3",
        "INSERT INTO mooring.rebuilds (origin, target_sequence) VALUES ('log', 1)",
    ] {
        sqlx::query(sql).execute(&mut world.connection().await).await.unwrap();
    }
    world.replace_in_config("active = \"p1\"", "active = \"p2\"");
    world.replace_in_config("keys.p1]", "keys.p2]");

    let findings = examined(&world, 3).await;
    let worker = of(&findings, "worker");
    assert_eq!((&worker["verdict"], &worker["fix"]), (&"failed".into(), &"start a worker".into()));
    let postgres = of(&findings, "postgres");
    assert_eq!(postgres["fix"], "`worker migrate`", "{postgres}");
    let keys = of(&findings, "keys");
    assert!(keys["found"].as_str().unwrap().ends_with("not configured: p1"), "{keys}");
    assert_eq!(of(&findings, "privileges")["verdict"], "warning");
    assert_eq!(of(&findings, "rebuild")["verdict"], "warning");

    world.postgres.stop().unwrap();
    let findings = examined(&world, 3).await;
    assert_eq!(of(&findings, "postgres")["verdict"], "failed");
    assert_eq!(of(&findings, "nats")["verdict"], "ok", "the rest is examined all the same");
}

/// It took a minute once; a slow machine is given half of that.
const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_or_user_is_named_as_the_cause_and_soon() {
    let world = World::start(Setup { ingests: 0, workers: 0, ..Setup::default() }).await;
    sqlx::query("REVOKE USAGE ON SCHEMA mooring FROM mooring_worker")
        .execute(&mut world.connection().await)
        .await
        .unwrap();
    let secret = |name: &str| world.secrets.path(name).to_string_lossy().into_owned();
    let nats = |user: &str, password: &str| {
        vec![
            ("MOORING__NATS__USER", user.to_owned()),
            ("MOORING__NATS__PASSWORD__FILE", secret(password)),
        ]
    };
    let postgres = |role: &str, password: &str| {
        vec![
            ("MOORING__POSTGRES__URL", world.ports.postgres_url(role)),
            ("MOORING__POSTGRES__PASSWORD__FILE", secret(password)),
        ]
    };
    let admin = "use the NATS user of `worker migrate`";
    for (envs, check, cause, fix) in [
        (nats("admin", "read-token"), "nats", "does not accept nats.user", "correct nats.user"),
        (nats("ingest", "nats-ingest-password"), "worker", "Permissions Violation", admin),
        (nats("worker", "nats-worker-password"), "keys", "Permissions Violation", admin),
        (nats("renewer", "nats-renewer-password"), "nats", "Permissions Violation", admin),
        (
            postgres("mooring_owner", "read-token"),
            "postgres",
            "password authentication failed",
            "correct postgres.url or postgres.password",
        ),
        (
            postgres("mooring_worker", "postgres-worker-password"),
            "operations",
            "permission denied",
            "use the role that owns the database",
        ),
    ] {
        let envs: Vec<(&str, &str)> = envs.iter().map(|(name, value)| (*name, &**value)).collect();
        let started = Instant::now();
        let findings = world.operate_with(&["doctor", "--json"], &envs).await.json(3);
        let took = started.elapsed();
        eprintln!("doctor took {took:?} with {envs:?}");
        let found = of(findings.as_array().unwrap(), check);
        let says =
            |field: &str, text: &str| found[field].as_str().is_some_and(|it| it.contains(text));
        assert!(says("found", cause) && says("fix", fix), "{findings:#}");
        assert!(took < SOON, "{took:?}: {findings:#}");
    }
    let envs = [("MOORING__NATS__PASSWORD__FILE", &*secret("read-token"))];
    let refused = world.operate_with(&["replay"], &envs).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("NATS does not accept nats.user"), "{refused:?}");
}
