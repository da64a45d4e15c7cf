//! Connecting to NATS, the same way for every process.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Info, Stream};
use async_nats::jetstream::{self, Context, ErrorCode};
use async_nats::{Client, ConnectOptions, Event, ServerError};
use domain::id::StreamSequence;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{broadcast, watch};

pub use async_nats::{ConnectError, ConnectErrorKind};

/// How long a command waits for a server, and somebody for the command.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Refusals that wait to be heard by whoever asked.
const REFUSALS_MAX: usize = 64;

/// Where and as whom to connect.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub url: String,
    pub user: Option<String>,
    pub password: Option<SecretString>,
    /// The seed of an NKey, with which the user proves itself instead of a password.
    pub nkey_seed: Option<SecretString>,
    /// `None` leaves it to the URL: `tls://`.
    pub tls: Option<EndpointTls>,
}

/// What TLS needs beyond the system's certificates. Files are read at each connect.
#[derive(Debug, Clone, Default)]
pub struct EndpointTls {
    /// Who issues the server's certificate.
    pub ca: Option<PathBuf>,
    pub client: Option<ClientCertificate>,
}

#[derive(Debug, Clone)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A connection, which heals by itself. A clone is the same connection.
#[derive(Debug, Clone)]
pub struct Connection {
    pub(crate) client: Client,
    pub(crate) jetstream: Context,
    link: watch::Receiver<Link>,
    /// The last sequence of the log that was acknowledged on it.
    appended_to: Arc<AtomicU64>,
    /// What the server says that it refuses.
    refusals: broadcast::Sender<String>,
}

/// What the client says of its connection.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    is_up: bool,
    /// How often it was lost.
    losses: u64,
}

/// Why the server does not say what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    #[error("NATS refuses to tell about {what}: {refusal}")]
    Refused { what: String, refusal: String },
    #[error("there is no {what}: run `worker migrate`")]
    Missing { what: String },
    #[error("NATS does not answer about {what}: {why}")]
    Away { what: String, why: String },
}

impl Connection {
    /// Connects in the background and keeps reconnecting for ever: a service
    /// starts without NATS and says so in its readiness.
    pub async fn open(to: &Endpoint, service: &str) -> Result<Self, ConnectError> {
        Self::connect(to, service, ConnectOptions::new().retry_on_initial_connect()).await
    }

    /// Connects now, or says why not: a command can do nothing without NATS.
    pub async fn open_now(to: &Endpoint, service: &str) -> Result<Self, ConnectError> {
        let options = ConnectOptions::new().connection_timeout(CONNECT_TIMEOUT);
        Self::connect(to, service, options).await
    }

    /// Each user has an inbox of its own, so that the server can forbid it to
    /// read the answers to others.
    async fn connect(
        to: &Endpoint,
        service: &str,
        options: ConnectOptions,
    ) -> Result<Self, ConnectError> {
        let (sender, link) = watch::channel(Link::default());
        let refusals = broadcast::Sender::new(REFUSALS_MAX);
        let refused = refusals.clone();
        let mut options = options.name(format!("mooring-{service}")).event_callback(move |event| {
            log(&event);
            match event {
                Event::Connected => sender.send_modify(|link| link.is_up = true),
                Event::Disconnected => sender.send_modify(|link| {
                    *link = Link { is_up: false, losses: link.losses + 1 };
                }),
                Event::ServerError(ServerError::Other(refusal)) => {
                    refused.send(refusal).ok(); // perhaps nobody waits
                }
                _ => {}
            }
            async {}
        });
        if let Some(user) = &to.user {
            options = options.custom_inbox_prefix(format!("_INBOX_{user}"));
            if let Some(password) = &to.password {
                let password = password.expose_secret().to_owned();
                options = options.user_and_password(user.clone(), password);
            }
        }
        if let Some(seed) = &to.nkey_seed {
            options = options.nkey(seed.expose_secret().to_owned());
        }
        let servers: Vec<&str> = to.url.split(',').map(str::trim).collect();
        // Servers of a cluster tell of each other, without saying that they want TLS.
        if to.tls.is_some() || servers.iter().any(|url| url.starts_with("tls://")) {
            options = options.require_tls(true);
        }
        if let Some(EndpointTls { ca, client }) = &to.tls {
            if let Some(ca) = ca {
                options = options.add_root_certificates(ca.clone());
            }
            if let Some(ClientCertificate { certificate, key }) = client {
                options = options.add_client_certificate(certificate.clone(), key.clone());
            }
        }
        let client = options.connect(servers).await?;
        let appended_to = Arc::default();
        Ok(Self { jetstream: jetstream::new(client.clone()), client, link, appended_to, refusals })
    }

    pub fn is_connected(&self) -> bool {
        self.link.borrow().is_up
    }

    pub(crate) fn appended_to(&self) -> StreamSequence {
        StreamSequence(self.appended_to.load(Ordering::Relaxed))
    }

    pub(crate) fn has_appended(&self, sequence: StreamSequence) {
        self.appended_to.fetch_max(sequence.0, Ordering::Relaxed);
    }

    pub(crate) fn forget_appended(&self) {
        self.appended_to.store(0, Ordering::Relaxed);
    }

    /// Returns when there is a connection.
    pub(crate) async fn connected(&self) {
        // The sender lives as long as the client.
        self.link.clone().wait_for(|link| link.is_up).await.ok();
    }

    /// Returns when the connection is lost: what was asked gets no answer any more.
    pub(crate) async fn lost(&self) {
        let before = self.link.borrow().losses;
        self.link.clone().wait_for(|link| link.losses > before).await.ok();
    }

    /// Waits until everything that was sent has left.
    pub async fn flush(&self) -> anyhow::Result<()> {
        Ok(self.client.flush().await?)
    }

    /// The same connection, which waits no longer than this for an answer.
    pub(crate) fn with_timeout(&self, timeout: Duration) -> Context {
        jetstream::ContextBuilder::new().timeout(timeout).build(self.client.clone())
    }

    pub(crate) async fn stream(&self, name: &str) -> Result<Stream<Info>, Unanswered> {
        let what = format!("stream {name}");
        let api = format!("STREAM.INFO.{name}");
        let answer = self.unless_refused(&what, &api, self.jetstream.get_stream(name)).await?;
        answer.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(server)
                if server.error_code() == ErrorCode::STREAM_NOT_FOUND =>
            {
                Unanswered::Missing { what }
            }
            _ => Unanswered::Away { what, why: error.to_string() },
        })
    }

    /// What comes of a request to this part of the API, unless the server refuses
    /// it. To what a user may not ask there is no answer: the server only says so
    /// on the connection, and the request would wait for its timeout.
    pub(crate) async fn unless_refused<T>(
        &self,
        what: &str,
        api: &str,
        request: impl Future<Output = T>,
    ) -> Result<T, Unanswered> {
        let mut refusals = self.refusals.subscribe();
        let refused = async {
            loop {
                match refusals.recv().await {
                    Ok(refusal) if refusal.contains(api) => break refusal,
                    // Of something else; or too many to hear each, and then the timeout tells.
                    Ok(_) | Err(_) => {}
                }
            }
        };
        tokio::select! {
            answer = request => Ok(answer),
            refusal = refused => Err(Unanswered::Refused { what: what.to_owned(), refusal }),
        }
    }
}

fn log(event: &Event) {
    match event {
        Event::Connected => tracing::info!("NATS: connected"),
        Event::Disconnected => tracing::warn!("NATS: disconnected, reconnecting"),
        Event::Closed => tracing::debug!("NATS: closed"),
        Event::LameDuckMode => tracing::info!("NATS: the server is about to shut down"),
        other => tracing::warn!(event = %other, "NATS"),
    }
}
