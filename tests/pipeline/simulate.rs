//! `simulate` against the whole pipeline: every platform's own histories,
//! shuffled, repeated and forged.

use dev::config::{SIMULATED, simulated_sources};
use serde_json::{Value, json};

use crate::world::{Setup, World};

/// The sources whose callbacks it can sign.
pub(crate) fn configure(world: &World) {
    let seed = world.secrets.path("highlevel-signing-seed").to_string_lossy().into_owned();
    let args = ["highlevel", "install", "--public-key", "--secret-file", &seed];
    let key = world.command("simulate", &args, &[]).unwrap();
    assert!(key.starts_with("-----BEGIN PUBLIC KEY-----\n"), "{key}");
    world.configure(&simulated_sources(&world.secrets, &key));
}

fn simulate(world: &World, args: &[&str]) -> anyhow::Result<Value> {
    let printed = world.command("simulate", args, &[])?;
    Ok(serde_json::from_str(&printed)?)
}

/// Of one source, by status: how many, and the highest generation.
async fn by_status(world: &World, source: &str) -> Value {
    let mut found = serde_json::Map::new();
    for status in ["active", "inactive", "superseded", "unconfirmed", "pending"] {
        let path = format!("/v1/installations?source={source}&status={status}&limit=200");
        let page = world.read(&path).await.body;
        let installations = page["installations"].as_array().unwrap();
        let generation = installations.iter().map(|it| it["generation"].as_u64().unwrap()).max();
        if let Some(generation) = generation {
            found.insert(status.to_owned(), json!([installations.len(), generation]));
        }
    }
    Value::Object(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_platforms_histories_converge_in_any_order() {
    const COUNT: u64 = 20;
    let world = World::servers(Setup::default());
    configure(&world);
    let world = world.with_services().await;
    let url = world.ingest_url(0, "");
    for (platform, secret) in SIMULATED {
        let secret = world.secrets.path(secret).to_string_lossy().into_owned();
        let action = if platform == "securityscorecard" { "install" } else { "uninstall" };
        let args = [
            platform,
            action,
            "--url",
            &url,
            "--secret-file",
            &secret,
            "--seed",
            "7",
            "--json",
            "--count",
            "20",
            "--late-uninstall",
            "1",
            "--reorder",
            "1",
            "--duplicate",
            "0.5",
            "--forge",
            "0.3",
        ];
        let summary = simulate(&world, &args).unwrap();
        assert_eq!(summary["unexpected"], 0, "{summary}");
        let forged = summary["forged_answers"]["401"].as_u64().unwrap();
        let duplicates = summary["duplicates"].as_u64().unwrap();
        let events = if platform == "securityscorecard" { 2 } else { 3 };
        assert_eq!(summary["sent"].as_u64().unwrap(), events * COUNT + duplicates + forged);
        assert!(forged > 0 && duplicates > 0, "{summary}");
    }
    world.assert_exactly_once(&[]).await;
    // A late uninstall ends the installation before, and never the one that is there now.
    for platform in ["highlevel", "securityscorecard", "monday", "stripe"] {
        assert_eq!(
            by_status(&world, platform).await,
            json!({ "active": [COUNT, 2] }),
            "{platform}"
        );
    }
    for platform in ["blnk", "github"] {
        let found = by_status(&world, platform).await;
        assert_eq!(found["inactive"][0], COUNT, "{platform}: {found}");
        assert_eq!(found["active"][0], COUNT, "{platform}: {found}");
    }
    for platform in ["whop", "outreach"] {
        let found = by_status(&world, platform).await;
        let both = (&found["inactive"][0], &found["active"][0]);
        assert_eq!(both, (&json!(COUNT), &json!(COUNT)), "{platform}: {found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_simulate_cannot_do_it_says() {
    let world = World::start(Setup { workers: 0, ..Setup::default() }).await;
    let (url, token) = (world.ingest_url(0, ""), world.secrets.path("blnk-path-token"));
    let token = token.to_string_lossy().into_owned();
    let refused = |args: &[&str]| world.command("simulate", args, &[]).unwrap_err().to_string();
    let none = refused(&["securityscorecard", "uninstall", "--secret-file", &token]);
    assert!(none.contains("sends no uninstall callbacks"), "{none}");
    let unexpected =
        refused(&["blnk", "install", "--url", &url, "--secret-file", &token, "--source", "other"]);
    assert!(
        unexpected.contains("exit status: 3") && unexpected.contains("1 × 404"),
        "{unexpected}"
    );
    let misused = refused(&["blnk", "install", "--secret-file", &token, "--forge", "2"]);
    assert!(misused.contains("must be 0 to 1"), "{misused}");
}
