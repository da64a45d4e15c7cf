//! After an erasure no copy opens, with whatever key is left; rotation needs no
//! replay and no restart.

use std::fs;
use std::path::Path;

use domain::data_key::{DataKey, Page};
use domain::event::{Event, Fact};
use domain::id::{InstallationId, MessageId, PageId, SourceName};
use domain::key_ring::KeyRing;
use domain::seal::{AssociatedData, Sealed, SealedUnder};
use eventlog::keys;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use service::config::{Config, Resolver};

use crate::load::Load;
use crate::operate::WRONG_ARGUMENTS;
use crate::payload::{api_key, install, uninstall, with_key};
use crate::reads::{configure_two_apps, in_shop, shop_key};
use crate::world::{Setup, World, eventually};

pub(crate) fn ring(world: &World) -> KeyRing {
    let config = Config::load(Path::new(&world.config())).unwrap();
    let env = |_: &str| None;
    let mut resolver = Resolver::new(&env);
    let ring = resolver.key_ring(&config.sealing);
    resolver.finish(Path::new("mooring.toml"), ring).unwrap()
}

/// Every version of every page that is stored.
pub(crate) async fn pages(world: &World) -> Vec<(PageId, Sealed)> {
    let mut found = Vec::new();
    for name in [keys::NEW_STREAM, keys::STREAM] {
        let stream = world.jetstream().await.get_stream(name).await.unwrap();
        for sequence in 1..=stream.cached_info().state.last_sequence {
            // A gap is a page that was replaced.
            let Ok(message) = stream.direct_get(sequence).await else { continue };
            let id = PageId::parse(message.subject.rsplit('.').next().unwrap()).unwrap();
            let sealed = String::from_utf8(message.payload.to_vec()).unwrap();
            found.push((id, Sealed::from_stored(sealed)));
        }
    }
    found
}

/// The page that holds the data key of an installation's credential.
pub(crate) async fn page_of(world: &World, id: &str) -> PageId {
    let copies = copies(world, id).await;
    match copies[0].sealed.under().unwrap() {
        SealedUnder::DataKey(key) => PageId::clone(&key.page),
        other => panic!("sealed under {other}"),
    }
}

/// A sealed secret and what it is bound to, as any backup has it.
pub(crate) struct Copy {
    pub(crate) event: MessageId,
    pub(crate) sealed: Sealed,
}

/// The copies of one installation in journal and projection; what the log holds
/// is what the journal holds.
pub(crate) async fn copies(world: &World, id: &str) -> Vec<Copy> {
    let mut found = Vec::new();
    for recorded in world.journal().await {
        let Event { fact, message_id, .. } = recorded.event;
        if let Fact::Installed { identity, credential: Some(credential), .. } = fact
            && identity.installation_id.as_str() == id
        {
            found.push(Copy { event: message_id, sealed: credential.sealed });
        }
    }
    for row in world.projection().await {
        if let (true, Some(sealed)) = (row.installation_id == id, row.credential_sealed) {
            let sealed = Sealed::from_stored(sealed);
            let event = found.iter().find(|copy| copy.sealed == sealed).unwrap().event.clone();
            found.push(Copy { event, sealed });
        }
    }
    found
}

/// What opens of them, with every key there is, by trial.
pub(crate) async fn opened(world: &World, id: &str, copies: &[Copy]) -> Vec<String> {
    opened_by(&ring(world), world, id, copies).await
}

/// What opens of them and of all stored pages with this ring.
pub(crate) async fn opened_by(
    ring: &KeyRing,
    world: &World,
    id: &str,
    copies: &[Copy],
) -> Vec<String> {
    let pages = pages(world).await;
    let pages = pages.iter().filter_map(|(id, sealed)| Page::open(ring, id.clone(), sealed).ok());
    let keys: Vec<DataKey> = pages.flat_map(|page| page.keys().collect::<Vec<_>>()).collect();
    let source = SourceName::parse("blnk").unwrap();
    let installation = InstallationId::parse(id).unwrap();
    let mut opened = Vec::new();
    for Copy { event, sealed } in copies {
        let bound_to = AssociatedData {
            source: &source,
            installation: Some(&installation),
            event,
            field: "api_key",
        };
        let by_ring = ring.open(sealed, bound_to).ok();
        let by_data_keys = keys.iter().filter_map(|key| key.open(sealed, bound_to).ok());
        opened.extend(by_ring.into_iter().chain(by_data_keys));
    }
    opened.into_iter().map(|secret| secret.expose_secret().to_owned()).collect()
}

fn files_below(folder: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        // Batches are staged in memory, behind a link.
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(fs::read(entry.path()).unwrap());
        }
    }
    found
}

fn on_disk(world: &World, sealed: &Sealed) -> bool {
    let files = files_below(&world.nats_folder());
    files.iter().any(|file| memchr::memmem::find(file, sealed.as_str().as_bytes()).is_some())
}

pub(crate) async fn erase(world: &World, id: &str) -> Value {
    let args = erase_args(id);
    world.operate(&[&args[..], &["--by", "ann", "--yes", "--json"]].concat()).await.json(0)
}

fn erase_args(id: &str) -> [&str; 6] {
    ["erase", id, "--source", "blnk", "--why", "asked for"]
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_erasure_no_copy_opens_and_history_stays() {
    let world = World::start(Setup::default()).await;
    for callback in
        [install("a"), with_key(install("a"), "blnk_key_replaced_0123456789"), install("b")]
    {
        world.acknowledged(&callback).await;
    }
    world.wait_applied().await;
    // What a backup of today holds.
    let (of_a, of_b) = (copies(&world, "a").await, copies(&world, "b").await);
    assert_eq!((of_a.len(), of_b.len()), (3, 2));
    assert_eq!(opened(&world, "a", &of_a).await.len(), 3, "they open before");
    let ring_before = ring(&world);
    let first =
        Page::open(&ring_before, pages(&world).await[0].0.clone(), &pages(&world).await[0].1);
    let holds_a = of_a.iter().any(|copy| {
        let shown = format!("{:?}", copy.sealed);
        shown.contains(first.as_ref().unwrap().id().as_str())
    });
    assert!(holds_a, "the first page was not used");
    let page_before = pages(&world).await[0].1.clone();
    assert!(on_disk(&world, &page_before));

    let dry_run = [&erase_args("a")[..], &["--dry-run", "--json"]].concat();
    let plan = world.operate(&dry_run).await.json(0);
    assert_eq!((&plan["secrets"], &plan["keys_to_destroy"]), (&2.into(), &2.into()), "{plan}");
    let unasked = world.operate(&erase_args("a")).await;
    assert_eq!(unasked.code, WRONG_ARGUMENTS, "{unasked:?}");
    assert!(unasked.stderr.contains("no terminal to ask on; pass --yes"), "{unasked:?}");
    assert_eq!(opened(&world, "a", &of_a).await.len(), 3, "nobody agreed");
    assert_eq!(world.journal().await.len(), 3, "nothing was appended");

    let report = erase(&world, "a").await;
    assert_eq!((&report["secrets"], &report["keys_destroyed"]), (&2.into(), &2.into()), "{report}");
    assert_eq!(opened(&world, "a", &of_a).await, Vec::<String>::new());
    assert!(!on_disk(&world, &page_before), "the page of before is on disk still");
    assert_eq!(opened(&world, "b", &of_b).await, [api_key("b"), api_key("b")]);
    assert_eq!(world.credential("b").await.body["credential"], api_key("b").as_str());

    assert_eq!(world.credential("a").await.problem(), "no-credential");
    let events = world.read("/v1/installations/a/events").await;
    let events = events.body["events"].as_array().unwrap().clone();
    let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["installed", "installed", "erased"]);
    assert_eq!(world.installation("a").await["status"], "active");
    let rebuilt = world.operate(&["rebuild", "--json"]).await.json(0);
    assert_eq!(rebuilt["comparison"]["different"], 0);
    assert_eq!(world.operate(&["verify"]).await.code, 0);

    // Again it finds nothing left; a new install brings a new secret.
    let plan = world.operate(&dry_run).await.json(0);
    assert_eq!((&plan["keys_to_destroy"], &plan["keys_gone_before"]), (&0.into(), &2.into()));
    assert_eq!(erase(&world, "a").await["keys_gone_before"], 2);
    world.acknowledged(&with_key(install("a"), "blnk_key_of_later_0123456789")).await;
    world.wait_applied().await;
    assert_eq!(world.credential("a").await.body["credential"], "blnk_key_of_later_0123456789");
    let unknown = world.operate(&[&erase_args("x")[..], &["--yes"]].concat()).await;
    assert!(unknown.stderr.contains("no event of an installation x"), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_apps_with_one_id_only_the_named_one_is_erased() {
    let world = World::servers(Setup::default());
    configure_two_apps(&world);
    let world = world.with_services().await;
    for app in ["app_1", "app_2"] {
        in_shop(&world, "installed", app, "7", "here").await;
    }
    // It is erased with what was installed. Its payload is sealed, too.
    in_shop(&world, "uninstalled", "app_1", "7", "there").await;
    world.wait_applied().await;
    let erase = ["erase", "7", "--source", "shop", "--why", "asked for", "--yes", "--json"];
    let refused = world.operate(&erase).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("app app_2, place app_2/here: active"), "{refused:?}");
    assert_eq!(world.journal().await.len(), 3, "nothing was appended");

    let erased = world.operate(&[&erase[..], &["--app", "app_1"]].concat()).await.json(0);
    assert_eq!(erased["places"], json!(["app_1/here", "app_1/there"]), "{erased}");
    assert_eq!((&erased["secrets"], &erased["keys_destroyed"]), (&2.into(), &2.into()));
    let credential =
        async |app: &str| world.read(&format!("/v1/installations/7/credential?app_id={app}")).await;
    assert_eq!(credential("app_1").await.problem(), "no-credential");
    assert_eq!(credential("app_2").await.body["credential"], shop_key("app_2", "7"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_it_is_erased_is_not_erased_and_a_dead_letter_is() {
    let mut world = World::start(Setup::default()).await;
    world.stop_workers();
    let sql = "ALTER TABLE mooring.journal ADD CONSTRAINT no CHECK (stream_sequence <> 2)";
    sqlx::query(sql).execute(&mut world.connection().await).await.unwrap();
    world.acknowledged(&install("a")).await;
    world.acknowledged(&with_key(install("a"), "blnk_key_in_a_dead_letter_0123")).await;
    world.start_workers_again();
    world.wait_worker_ready(0);
    world.wait_applied().await;
    world.stop_workers();

    let erasing = erase(&world, "a");
    let meanwhile = async {
        // It has said so in the log, and waits for a worker.
        let said = async || world.callbacks_in_log().await == 3;
        assert!(eventually(said).await);
        world.acknowledged(&with_key(install("a"), "blnk_key_of_later_0123456789")).await;
        let worker = world.spare_worker();
        let applied = eventually(async || world.journal().await.len() == 3).await;
        assert!(applied, "{}", worker.log().unwrap());
        worker
    };
    let (erased, mut worker) = tokio::join!(erasing, meanwhile);
    worker.kill().unwrap();
    assert_eq!(erased["keys_destroyed"], 2, "the journal's and the dead letter's");
    world.start_workers_again();
    world.wait_worker_ready(0);
    assert_eq!(world.credential("a").await.body["credential"], "blnk_key_of_later_0123456789");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_rotated_and_secrets_erased_under_load() {
    let world = World::start(Setup::default()).await;
    for id in ["a", "b"] {
        world.acknowledged(&install(id)).await;
    }
    let of_a = {
        world.wait_applied().await;
        copies(&world, "a").await
    };
    let load = Load::start(&world);
    let goes_on = async || {
        let before = load.acknowledged();
        assert!(eventually(async || load.acknowledged() > before + 100).await, "no more acks");
    };
    goes_on().await;

    let file = world.folder.path().join("sealing-key-k2");
    let path = file.to_string_lossy().into_owned();
    let rotate = ["keys", "rotate", "--id", "k2", "--file", &path];
    let rotated = world.operate(&rotate).await;
    assert_eq!(rotated.code, 0, "{rotated:?}");
    assert!(!rotated.stdout.contains(fs::read_to_string(&file).unwrap().trim()));
    assert_eq!(world.operate(&rotate).await.code, 1, "an existing file is not replaced");
    // As it is printed.
    world.configure(&rotated.stdout);
    world.replace_in_config("active = \"p1\"", "active = \"k2\"");

    // The services read it by themselves.
    let picked_up = |log: String| log.contains("the key ring has changed");
    assert!(
        eventually(async || picked_up(world.ingest_log()) && picked_up(world.worker_log())).await
    );
    goes_on().await;
    let needed = world.operate(&["keys", "retire", "p1"]).await;
    assert!(needed.code == 3 && needed.stderr.contains("keys reseal"), "{needed:?}");
    let typo = world.operate(&["keys", "retire", "k7"]).await;
    assert!(typo.code == 1 && typo.stderr.contains("there is no key k7"), "{typo:?}");

    let (resealed, erased) =
        tokio::join!(world.operate(&["keys", "reseal", "--json"]), erase(&world, "a"));
    assert!(resealed.json(0)["resealed"].as_u64().unwrap() > 0);
    assert_eq!(erased["keys_destroyed"], 1);
    goes_on().await;
    let acknowledged = load.stop().await;
    world.assert_exactly_once(&acknowledged).await;

    let retirable = world.operate(&["keys", "retire", "p1", "--json"]).await.json(0);
    assert_eq!(retirable, json!({ "id": "p1", "needed": null }));
    let listed = world.operate(&["keys", "list", "--json"]).await.json(0);
    assert_eq!(listed["keys"]["p1"]["pages"], 0, "{listed}");
    assert_eq!(listed["keys"]["k2"]["active"], true);
    world.replace_in_config("keys.p1]", "keys.old]");
    let changed = |log: String| log.matches("the key ring has changed").count() == 2;
    assert!(eventually(async || changed(world.worker_log())).await);
    assert_eq!(world.credential("b").await.body["credential"], api_key("b").as_str());
    assert_eq!(opened(&world, "a", &of_a).await, Vec::<String>::new());
    world.acknowledged(&uninstall("b")).await;
    world.wait_applied().await;
    assert_eq!(world.operate(&["verify"]).await.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_that_a_service_publishes_changes_nothing() {
    let world = World::start(Setup::default()).await;
    world.acknowledged(&install("a")).await;
    world.wait_applied().await;
    let installed = world.journal().await.remove(0).event;
    let identity = installed.fact.identity().unwrap().clone();
    let number = serde_json::from_str("\"00112233445566778899aabbccddeeff\"").unwrap();
    let (source, platform) = (installed.source.clone(), installed.platform.clone());
    let now = installed.received_at;
    let forged = Event::erased(source, platform, identity, now, &number).unwrap();

    let options = async_nats::ConnectOptions::new()
        .user_and_password("ingest".to_owned(), world.nats.credentials().ingest.clone())
        .custom_inbox_prefix("_INBOX_ingest");
    let client = options.connect(world.nats.url()).await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("ce-id", "another");
    let body = forged.encode().unwrap();
    client.request("installations.blnk.7", "not an event".into()).await.unwrap();
    let sent = async_nats::Request::new().headers(headers).payload(body.into());
    client.send_request("installations.blnk.7", sent).await.unwrap();
    world.acknowledged(&install("b")).await;
    world.wait_for_status("b", "active").await;
    world.wait_applied().await;
    assert_eq!(world.credential("a").await.body["credential"], api_key("a"));
    let listed = world.operate(&["dead-letters", "list", "--json"]).await.json(0);
    let reasons: Vec<&str> =
        listed.as_array().unwrap().iter().map(|it| it["reason"].as_str().unwrap()).collect();
    assert_eq!(reasons, ["undecodable", "not_entitled"], "{listed}");
}
