//! Fills a log with events as they come from Blnk, as fast as it takes them.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use domain::data_key::DataKey;
use domain::event::{Callback, Event, Grant, Identity};
use domain::event_key::{Author, EventKey};
use domain::fingerprint::FingerprintKeys;
use domain::id::SourceName;
use domain::key_ring::SealingKey;
use domain::platform::Platform;
use domain::seal::SealingNonce;
use domain::tokens::{AnswerForm, Issued};
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
    fill(Connection::open(&nats, "fill").await?, keys, args.events).await
}

/// What ingest has, and a worker that renews tokens.
pub(crate) struct Keys {
    sealing: SealingKey,
    fingerprints: FingerprintKeys,
    ingest: Option<EventKey>,
    token_renewal: Option<EventKey>,
}

impl Keys {
    pub(crate) fn resolve(resolver: &mut Resolver<'_>, config: &Config) -> Option<Self> {
        let event_keys = config.event_keys.as_ref();
        Some(Self {
            sealing: resolver.sealing_key(&config.sealing)?,
            fingerprints: resolver.fingerprint_keys(&config.sealing)?,
            ingest: resolver.event_key(event_keys, Author::Ingest)?,
            token_renewal: resolver.event_key(event_keys, Author::TokenRenewal)?,
        })
    }
}

/// Each place is installed, uninstalled and installed anew: three events, two
/// installations. All are installed before the first is uninstalled, so that
/// the events of a place are far from each other in the log.
pub(crate) async fn fill(connection: Connection, keys: Keys, events: u64) -> Result<()> {
    let places = events.div_ceil(3);
    let now = Timestamp::now();
    let mut filler = Filler::new(connection, keys);
    for number in 0..events {
        let (round, place) = (number / places, number % places);
        let body = match round {
            0 => callback::install(place),
            1 => uninstall(place, now),
            _ => install_again(place),
        };
        filler.callback(&body, Timestamp::now()).await?;
    }
    filler.flush().await
}

/// Appends events as ingest and token renewal would.
pub(crate) struct Filler {
    connection: Connection,
    sealing: SealingKey,
    fingerprints: FingerprintKeys,
    ready: Vec<DataKey>,
    callbacks: Batches,
    renewals: Batches,
}

/// What one author writes.
struct Batches {
    writer: Writer,
    batch: Vec<LogMessage>,
}

impl Filler {
    pub(crate) fn new(connection: Connection, keys: Keys) -> Self {
        let Keys { sealing, fingerprints, ingest, token_renewal } = keys;
        let by = |key| Batches {
            writer: Writer::of_service(connection.clone(), key),
            batch: Vec::with_capacity(BATCH_EVENTS),
        };
        let (callbacks, renewals) = (by(ingest), by(token_renewal));
        Self { connection, sealing, fingerprints, ready: Vec::new(), callbacks, renewals }
    }

    /// As Blnk sends it. Says whose it is.
    pub(crate) async fn callback(
        &mut self,
        body: &[u8],
        received_at: Timestamp,
    ) -> Result<Option<Identity>> {
        let headers = hyper::HeaderMap::new();
        let delivery = Delivery {
            method: &hyper::Method::POST,
            path_token: None,
            query: None,
            headers: &headers,
            body,
            received_at,
        };
        let verified = Verification::Unverified.verify(delivery)?;
        let adapter =
            Platform::Blnk.adapter(&[], None).ok().context("Blnk needs no configuration")?;
        let event = self.seal(adapter.parse(&verified)?, received_at).await?;
        self.callbacks.push(LogMessage::new(&event)?).await?;
        Ok(event.fact.identity().cloned())
    }

    /// Tokens that were renewed.
    pub(crate) async fn renewal(&mut self, identity: &Identity, at: Timestamp) -> Result<()> {
        let token = format!("{}-{}", identity.installation_id, at.as_nanosecond());
        let answer = json!({ "access_token": token, "refresh_token": token, "expires_in": 3600 });
        let issued = Issued::parse(answer.to_string().as_bytes(), at, &AnswerForm::default())?;
        let callback =
            issued.callback(identity.clone(), Grant::RefreshToken, &self.fingerprints)?;
        let event = self.seal(callback, at).await?;
        self.renewals.push(LogMessage::new(&event)?).await
    }

    async fn seal(&mut self, callback: Callback, received_at: Timestamp) -> Result<Event> {
        if self.ready.is_empty() {
            self.ready.extend(add_page(&self.connection, &self.sealing).await?.keys());
        }
        // An uninstall holds no secret; its key is wasted.
        let key = self.ready.pop().context("a page without keys")?;
        let (source, platform) = (SourceName::parse("blnk")?, Platform::Blnk.to_name());
        let (keys, nonce) = (&self.fingerprints, SealingNonce::random);
        Ok(callback.seal(source, platform, received_at, keys, Some(&key), nonce)?)
    }

    pub(crate) async fn flush(&mut self) -> Result<()> {
        self.callbacks.flush().await?;
        self.renewals.flush().await
    }
}

impl Batches {
    async fn push(&mut self, message: LogMessage) -> Result<()> {
        self.batch.push(message);
        if self.batch.len() == BATCH_EVENTS { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<()> {
        for (_, result) in self.writer.write(std::mem::take(&mut self.batch)).await {
            result.context("appending a batch")?;
        }
        Ok(())
    }
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
