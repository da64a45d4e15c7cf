//! Fills a log with events as they come from Blnk, as fast as it takes them.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use domain::data_key::DataKey;
use domain::event::Event;
use domain::fingerprint::FingerprintKeys;
use domain::id::SourceName;
use domain::key_ring::SealingKey;
use domain::platform::Platform;
use domain::seal::SealingNonce;
use domain::verify::{Delivery, Verification};
use eventlog::append::Writer;
use eventlog::connect::{Connection, Endpoint};
use eventlog::keys::add_page;
use eventlog::message::LogMessage;
use jiff::Timestamp;
use serde_json::{Value, json};
use service::config::{Config, Resolver};

use crate::callback;

/// The most that the server takes in one batch.
const BATCH_EVENTS: usize = 1_000;

/// Of `cargo dev bench -- fill`.
#[derive(clap::Args)]
pub(crate) struct Fill {
    /// The configuration of a running `cargo dev up`
    #[arg(long, value_name = "FILE", default_value = ".mooring/mooring.toml")]
    config: PathBuf,
    /// How many events
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(args: &Fill) -> Result<()> {
    let config = Config::load(&args.config)?;
    let env = |name: &str| std::env::var(name).ok();
    let mut resolver = Resolver::new(&env);
    let keys = Keys::resolve(&mut resolver, &config);
    let password = resolver.optional_secret("nats.password", config.nats.password.as_ref());
    let (keys, password) = resolver.finish(&args.config, keys.zip(password))?;
    let nats = Endpoint {
        url: config.nats.url,
        user: config.nats.user,
        password,
        nkey_seed: None,
        tls: None,
    };
    fill(&Connection::open(&nats, "fill").await?, &keys, args.events).await
}

/// What ingest has.
pub(crate) struct Keys {
    sealing: SealingKey,
    fingerprints: FingerprintKeys,
}

impl Keys {
    pub(crate) fn resolve(resolver: &mut Resolver<'_>, config: &Config) -> Option<Self> {
        let sealing = resolver.sealing_key(&config.sealing)?;
        Some(Self { sealing, fingerprints: resolver.fingerprint_keys(&config.sealing)? })
    }
}

/// Each place is installed, uninstalled and installed anew: three events, two
/// installations. All are installed before the first is uninstalled, so that
/// the events of a place are far from each other in the log.
pub(crate) async fn fill(connection: &Connection, keys: &Keys, events: u64) -> Result<()> {
    let places = events.div_ceil(3);
    let writer = Writer::new(connection.clone());
    let mut batch = Vec::with_capacity(BATCH_EVENTS);
    let now = Timestamp::now();
    let mut ready: Vec<DataKey> = Vec::new();
    for number in 0..events {
        let (round, place) = (number / places, number % places);
        let body = match round {
            0 => callback::install(place),
            1 => uninstall(place, now),
            _ => install_again(place),
        };
        if ready.is_empty() {
            ready.extend(add_page(connection, &keys.sealing).await?.keys());
        }
        // An uninstall holds no secret; its key is wasted.
        let key = ready.pop().context("a page without keys")?;
        batch.push(LogMessage::new(&event(&keys.fingerprints, &key, &body)?)?);
        if batch.len() == BATCH_EVENTS || number + 1 == events {
            commit(&writer, &mut batch).await?;
        }
    }
    Ok(())
}

fn uninstall(number: u64, now: Timestamp) -> Vec<u8> {
    let callback = json!({
        "installed_app_id": format!("instapp_{number:09}"),
        "app_id": "app_bench",
        "instance_id": format!("inst_{number:09}"),
        "uninstalled_at": now.to_string(),
        "idempotency_key": format!("uninstall:instapp_{number:09}"),
    });
    callback.to_string().into_bytes()
}

fn install_again(number: u64) -> Vec<u8> {
    let mut install: Value = serde_json::from_slice(&callback::install(number)).unwrap_or_default();
    if let Some(fields) = install.as_object_mut() {
        fields.insert("installed_app_id".to_owned(), json!(format!("instapp_{number:09}b")));
        fields.insert("idempotency_key".to_owned(), json!(format!("install:instapp_{number:09}b")));
    }
    install.to_string().into_bytes()
}

/// As ingest makes it.
fn event(fingerprints: &FingerprintKeys, key: &DataKey, body: &[u8]) -> Result<Event> {
    let headers = hyper::HeaderMap::new();
    let received_at = Timestamp::now();
    let delivery = Delivery { path_token: None, query: None, headers: &headers, body, received_at };
    let verified = Verification::Unverified.verify(delivery)?;
    let adapter = Platform::Blnk.adapter(&[], None).ok().context("Blnk needs no configuration")?;
    let callback = adapter.parse(&verified)?;
    let source = SourceName::parse("blnk")?;
    Ok(callback.seal(
        source,
        Platform::Blnk.to_name(),
        received_at,
        fingerprints,
        Some(key),
        SealingNonce::random,
    )?)
}

async fn commit(writer: &Writer, batch: &mut Vec<LogMessage>) -> Result<()> {
    for (_, result) in writer.write(std::mem::take(batch)).await {
        result.context("appending a batch")?;
    }
    Ok(())
}
