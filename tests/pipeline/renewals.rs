//! Tokens that last an hour: what was replaced does not pile up in Postgres.

use async_nats::HeaderMap;
use domain::event_key::{Author, EventKey};
use domain::id::{KeyId, PageId};
use domain::seal::parse_key;
use serde_json::{Value, json};

use crate::archive::{self, AT_ONCE};
use crate::erasure::{page_of, pages};
use crate::forged::{PROOF, append_as, proven};
use crate::payload::{install, uninstall};
use crate::world::{Setup, World, eventually};

/// More than the journal leaves as they are.
const RENEWALS: u64 = 150;
/// Of these surely none is left.
const FORGOTTEN: u64 = 20;
const LEFT_MAX: i64 = 70;

/// As a worker that renews tokens writes it; nothing here opens them.
fn renewal_of(installed: &Value, number: u64) -> Value {
    let mut body = installed.clone();
    let fact = &installed["fact"];
    let id = fact["identity"]["installation_id"].as_str().unwrap();
    body["message_id"] = format!("blnk:token:{id}:{number}#{number:032x}").into();
    body["idempotency_key"] = format!("token:{id}:{number}").into();
    body["secret_fingerprint"] = format!("{number:032x}").into();
    body["fact"] = json!({
        "type": "authorized",
        "identity": fact["identity"],
        "grant": "refresh_token",
        "granted_permissions": [],
        "expires_at": null,
        "credential": fact["credential"],
    });
    body
}

fn sealed_under(event: &mut Value, page: &PageId) {
    event["fact"]["credential"]["sealed"] = format!("v2.{page}-0.AAAAAAAAAAAAAAAA.AAAA").into();
}

async fn renew(world: &World, installed: &Value, numbers: std::ops::Range<u64>) {
    let key = parse_key(&world.secrets.read("event-key-token-renewal").unwrap().into()).unwrap();
    let key = EventKey::new(Author::TokenRenewal, KeyId::parse("r1").unwrap(), key, None);
    for number in numbers {
        let body = renewal_of(installed, number);
        let proof = key.prove(body.to_string().as_bytes());
        let headers = HeaderMap::from_iter([(PROOF.parse().unwrap(), proof.parse().unwrap())]);
        append_as(world, "renewer", &body, headers).await;
    }
}

async fn journaled(world: &World) -> i64 {
    let sql = "SELECT count(*) FROM mooring.journal WHERE event_type = 'authorized'";
    sqlx::query_scalar(sql).fetch_one(&mut world.connection().await).await.unwrap()
}

async fn last_tokens(world: &World) -> Value {
    let found = world.read("/v1/installations/a/events?limit=200").await;
    found.body["events"].as_array().unwrap().last().unwrap()["idempotency_key"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_tokens_leave_the_journal_with_the_log_and_nothing_misses_them() {
    let setup = Setup::default().env("MOORING__SEALING__DATA_KEY_UNUSED_MAX_S", 1);
    let mut world = archive::start(setup, AT_ONCE).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    let (mut installed, _) = proven(&world).await.remove(0);
    let used = page_of(&world, "a").await;
    let mut others = pages(&world).await.into_iter().map(|(id, _)| id).filter(|id| *id != used);
    let (first_page, other_page) = (others.next().unwrap(), others.next().unwrap());
    sealed_under(&mut installed, &first_page);
    renew(&world, &installed, 0..FORGOTTEN).await;
    sealed_under(&mut installed, &other_page);
    renew(&world, &installed, FORGOTTEN..RENEWALS).await;
    world.wait_applied().await;
    assert_eq!(journaled(&world).await, i64::try_from(RENEWALS).unwrap());
    // A worker marks them when it knows that they were acknowledged.
    let mut next = RENEWALS;
    let is_marked = eventually(async || {
        renew(&world, &installed, next..next + 1).await;
        next += 1;
        world.wait_applied().await;
        let sql = "SELECT count(*) FROM mooring.journal WHERE kept";
        let kept: i64 =
            sqlx::query_scalar(sql).fetch_one(&mut world.connection().await).await.unwrap();
        kept < LEFT_MAX
    });
    assert!(is_marked.await);

    let projection = world.projection().await;
    let done = archive::run(&world, &[]).await.json(0);
    assert!(done["forgotten_renewals"].as_u64().unwrap() > RENEWALS - 70, "{done}");
    assert!(journaled(&world).await < LEFT_MAX, "{} are left", journaled(&world).await);
    assert_eq!(last_tokens(&world).await, format!("token:a:{}", next - 1));
    assert_eq!(world.projection().await, projection);
    assert_eq!(archive::run(&world, &[]).await.json(0)["forgotten_renewals"], 0);

    // Nor do they need their keys, and the others do.
    assert_eq!(world.operate(&["keys", "collect", "--yes"]).await.code, 0);
    let left: Vec<PageId> = pages(&world).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!([&first_page, &other_page].map(|page| left.contains(page)), [false, true]);

    // Everything that compares knows why they are not there.
    for args in
        [&["archive", "verify"][..], &["verify"], &["rebuild"], &["keys", "collect", "--dry-run"]]
    {
        let compared = world.operate(args).await;
        assert_eq!(compared.code, 0, "{args:?} {}", compared.stderr);
    }
    assert_eq!(world.projection().await, projection);

    // Put back by an operator they are old still, and an uninstall ends them all.
    let replayed = world.operate(&["replay", "--apply", "--json"]).await.json(0);
    assert!(replayed["appended"].as_u64().unwrap() > RENEWALS - 70, "{replayed}");
    assert_eq!(world.projection().await, projection);
    world.acknowledged(&uninstall("a")).await;
    world.wait_for_status("a", "inactive").await;
    world.stop_workers();
    world.start_workers_again();
    world.wait_applied().await;
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_tokens_and_what_was_not_archived_are_never_forgotten() {
    let world = archive::start(Setup::default(), AT_ONCE).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    let (installed, _) = proven(&world).await.remove(0);
    renew(&world, &installed, 0..3).await;
    world.wait_applied().await;
    let forget = async |sql: &str| -> i64 {
        let mut connection = world.connection().await;
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        let forgotten = "SELECT mooring.forget_renewals(0, 1000)";
        sqlx::query_scalar(forgotten).fetch_one(&mut connection).await.unwrap()
    };
    assert_eq!(forget("UPDATE mooring.journal SET kept = false").await, 0, "nothing is archived");
    let archived = "INSERT INTO mooring.archived_segments
                        (first_sequence, last_sequence, manifest_sha256, trimmed_at)
                    VALUES (1, 1000, '', now())";
    assert_eq!(forget(archived).await, 0, "none that counts is newer");
    let last = "UPDATE mooring.journal SET kept = true
                WHERE stream_sequence = (SELECT max(stream_sequence) FROM mooring.journal)";
    assert_eq!(forget(last).await, 2);
    assert_eq!(journaled(&world).await, 1);
    assert_eq!(forget("SELECT").await, 0);
}
