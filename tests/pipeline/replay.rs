//! The log can be read again and applied again, and only what was missing
//! changes.

use serde_json::Value;

use crate::payload::{api_key, install, uninstall};
use crate::world::{Setup, World};

async fn three_events() -> World {
    let world = World::start(Setup::default()).await;
    for callback in [install("a"), install("b"), uninstall("a")] {
        world.acknowledged(&callback).await;
    }
    world.wait_applied().await;
    world
}

async fn lines(world: &World, args: &[&str]) -> Vec<Value> {
    let done = world.operate(args).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert!(!done.stdout.contains(&api_key("a")), "a secret in clear");
    done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn sequences(lines: &[Value]) -> Vec<u64> {
    lines.iter().map(|line| line["sequence"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_printed_as_they_are_selected() {
    let world = three_events().await;
    let all = lines(&world, &["replay"]).await;
    assert_eq!(sequences(&all), [1, 2, 3]);
    assert_eq!(all[0]["event"]["fact"]["type"], "installed");
    assert_eq!(all[0]["event"]["payload"]["clear"]["api_key"]["$sealed"], "api_key");
    let second = all[1]["published_at"].as_str().unwrap();
    for (args, expected) in [
        (vec!["replay", "--from", "2"], vec![2, 3]),
        (vec!["replay", "--from", "2", "--to", "2"], vec![2]),
        (vec!["replay", "--since", second], vec![2, 3]),
        (vec!["replay", "--installation", "a"], vec![1, 3]),
        (vec!["replay", "--type", "uninstalled"], vec![3]),
        (vec!["replay", "--type", "authorized"], vec![]),
        (vec!["replay", "--source", "blnk", "--type", "installed"], vec![1, 2]),
        (vec!["replay", "--source", "other"], vec![]),
        (vec!["replay", "--from", "4"], vec![]),
    ] {
        assert_eq!(sequences(&lines(&world, &args).await), expected, "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_lost_is_applied_again_and_a_dry_run_says_it_before() {
    let world = three_events().await;
    let before = world.projection().await;
    let again = world.operate(&["replay", "--apply", "--json"]).await.json(0);
    assert_eq!((&again["appended"], &again["duplicates"]), (&0.into(), &3.into()));

    for sql in [
        "DELETE FROM mooring.journal WHERE stream_sequence = 3",
        "UPDATE projection.installations SET status = 'active', uninstalled_at = NULL \
          WHERE installation_id = 'a'",
    ] {
        sqlx::query(sql).execute(&mut world.connection().await).await.unwrap();
    }
    let would = world.operate(&["replay", "--apply", "--dry-run", "--json"]).await.json(0);
    assert_eq!((&would["appended"], &would["duplicates"]), (&1.into(), &2.into()));
    assert_eq!(would["would_change"], serde_json::json!(["a"]));
    assert_eq!(world.journal().await.len(), 2, "a dry run writes nothing");
    let done = world.operate(&["replay", "--apply", "--json"]).await.json(0);
    assert_eq!(done["appended"], 1);
    assert_eq!(world.projection().await, before);
}
