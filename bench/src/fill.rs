//! Fills a log with events as they come from Blnk, as fast as it takes them.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use async_nats::header::{
    NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL, NATS_BATCH_ID, NATS_BATCH_SEQUENCE,
};
use async_nats::{Client, Request};
use jiff::Timestamp;
use serde_json::{Value, json};
use shared::config::{Config, Resolver};
use shared::data_key::{DataKey, Page};
use shared::event::Event;
use shared::id::SourceName;
use shared::log::LogMessage;
use shared::nats;
use shared::platform::{Adapter, Platform};
use shared::seal::{KeyRing, SealingNonce};
use shared::stream::keys_subject;
use shared::verify::{Delivery, Verification};

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
    let ring = resolver.key_ring(&config.sealing);
    let password = resolver.optional_secret("nats.password", config.nats.password.as_ref());
    let (ring, password) = resolver.finish(&args.config, ring.zip(password))?;
    let nats = nats::Connection { url: config.nats.url, user: config.nats.user, password };
    fill(&nats::connect(&nats, "fill").await?, &ring, args.events).await
}

/// Each place is installed, uninstalled and installed anew: three events, two
/// installations. All are installed before the first is uninstalled, so that
/// the events of a place are far from each other in the log.
pub(crate) async fn fill(client: &Client, ring: &KeyRing, events: u64) -> Result<()> {
    let places = events.div_ceil(3);
    let mut batch = Vec::with_capacity(BATCH_EVENTS);
    let now = Timestamp::now();
    let mut keys: Vec<DataKey> = Vec::new();
    for number in 0..events {
        let (round, place) = (number / places, number % places);
        let body = match round {
            0 => callback::install(place),
            1 => uninstall(place, now),
            _ => install_again(place),
        };
        if keys.is_empty() {
            keys.extend(stored_page(client, ring).await?.keys());
        }
        // An uninstall holds no secret; its key is wasted.
        let key = keys.pop().context("a page without keys")?;
        batch.push(LogMessage::new(&event(ring, &key, &body)?)?);
        if batch.len() == BATCH_EVENTS || number + 1 == events {
            commit(client, &batch, number).await?;
            batch.clear();
        }
    }
    Ok(())
}

async fn stored_page(client: &Client, ring: &KeyRing) -> Result<Page> {
    let page = Page::generate()?;
    let sealed = page.seal(ring, &SealingNonce::random())?;
    let body = sealed.as_str().to_owned().into();
    let ack = client.request(keys_subject(page.id()), body).await.context("storing data keys")?;
    if ack.payload.starts_with(b"{\"error\"") {
        bail!("data keys were refused: {}", String::from_utf8_lossy(&ack.payload));
    }
    Ok(page)
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
fn event(ring: &KeyRing, key: &DataKey, body: &[u8]) -> Result<Event> {
    let headers = hyper::HeaderMap::new();
    let received_at = Timestamp::now();
    let delivery = Delivery { path_token: None, query: None, headers: &headers, body, received_at };
    let verified = Verification::Unverified.verify(delivery)?;
    let callback = Adapter::Blnk.parse(&verified)?;
    let source = SourceName::parse("blnk")?;
    Ok(callback.seal(source, Platform::Blnk, received_at, ring, Some(key), SealingNonce::random)?)
}

async fn commit(client: &Client, batch: &[LogMessage], id: u64) -> Result<()> {
    for (index, message) in batch.iter().enumerate() {
        let mut headers = message.headers();
        headers.insert(NATS_BATCH_ID, format!("fill-{id}"));
        headers.insert(NATS_BATCH_SEQUENCE, (index + 1).to_string());
        let (subject, body) = (message.subject.clone(), message.body.clone());
        if index + 1 < batch.len() {
            client.publish_with_headers(subject, headers, body).await?;
            continue;
        }
        headers.insert(NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL);
        let last = Request::new().headers(headers).payload(body);
        let ack = client.send_request(subject, last).await.context("committing a batch")?;
        if ack.payload.starts_with(b"{\"error\"") {
            bail!("a batch was refused: {}", String::from_utf8_lossy(&ack.payload));
        }
    }
    Ok(())
}
