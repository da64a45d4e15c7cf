//! The doctor finds what is broken and says how to mend it.

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
    assert_eq!(findings.len(), 10, "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_is_named_with_how_to_mend_it() {
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
    world.replace_in_config("active = \"k1\"", "active = \"k2\"");
    world.replace_in_config("k1 = {", "k2 = {");

    let findings = examined(&world, 3).await;
    let worker = of(&findings, "worker");
    assert_eq!((&worker["verdict"], &worker["mend"]), (&"failed".into(), &"start a worker".into()));
    let postgres = of(&findings, "postgres");
    assert_eq!(postgres["mend"], "`worker migrate`", "{postgres}");
    let keys = of(&findings, "keys");
    assert!(keys["found"].as_str().unwrap().ends_with("not configured: k1"), "{keys}");
    assert_eq!(of(&findings, "privileges")["verdict"], "warning");
    assert_eq!(of(&findings, "rebuild")["verdict"], "warning");

    world.postgres.stop().unwrap();
    let findings = examined(&world, 3).await;
    assert_eq!(of(&findings, "postgres")["verdict"], "failed");
    assert_eq!(of(&findings, "nats")["verdict"], "ok", "the rest is examined all the same");
}
