//! Connecting to NATS, the same way for every process.

use std::time::Duration;

use async_nats::jetstream::stream::{Info, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, Event};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;

pub use async_nats::ConnectError;

/// Where and as whom to connect.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub url: String,
    pub user: Option<String>,
    pub password: Option<SecretString>,
}

/// A connection, which heals by itself. A clone is the same connection.
#[derive(Debug, Clone)]
pub struct Connection {
    pub(crate) client: Client,
    pub(crate) jetstream: Context,
    link: watch::Receiver<Link>,
}

/// What the client says of its connection.
#[derive(Debug, Clone, Copy, Default)]
struct Link {
    is_up: bool,
    /// How often it was lost.
    losses: u64,
}

impl Connection {
    /// Connects in the background and keeps reconnecting for ever: a service
    /// starts without NATS and says so in its readiness.
    ///
    /// Each user has an inbox of its own, so that the server can forbid it to
    /// read the answers to others.
    pub async fn open(to: &Endpoint, service: &str) -> Result<Self, ConnectError> {
        let (sender, link) = watch::channel(Link::default());
        let mut options = ConnectOptions::new()
            .name(format!("mooring-{service}"))
            .retry_on_initial_connect()
            .event_callback(move |event| {
                log(&event);
                sender.send_modify(|link| match event {
                    Event::Connected => link.is_up = true,
                    Event::Disconnected => {
                        *link = Link { is_up: false, losses: link.losses + 1 };
                    }
                    _ => {}
                });
                async {}
            });
        if let (Some(user), Some(password)) = (&to.user, &to.password) {
            options = options
                .user_and_password(user.clone(), password.expose_secret().to_owned())
                .custom_inbox_prefix(format!("_INBOX_{user}"));
        }
        let servers: Vec<&str> = to.url.split(',').map(str::trim).collect();
        let client = options.connect(servers).await?;
        Ok(Self { jetstream: jetstream::new(client.clone()), client, link })
    }

    pub fn is_connected(&self) -> bool {
        self.link.borrow().is_up
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

    pub(crate) async fn stream(&self, name: &str) -> anyhow::Result<Stream<Info>> {
        use anyhow::Context as _;
        self.jetstream.get_stream(name).await.with_context(|| {
            format!("asking for stream {name}: is NATS up, and was `worker migrate` run?")
        })
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
