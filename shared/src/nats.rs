//! Connecting to NATS, the same way for both services.

use async_nats::{Client, ConnectOptions, Event};
use secrecy::{ExposeSecret, SecretString};

/// Where and as whom to connect.
#[derive(Debug, Clone)]
pub struct Connection {
    pub url: String,
    pub user: Option<String>,
    pub password: Option<SecretString>,
}

/// Connects in the background and keeps reconnecting for ever: a service starts
/// without NATS and says so in its readiness.
///
/// Each user has an inbox of its own, so that the server can forbid it to read
/// the answers to others.
pub async fn connect(to: &Connection, service: &str) -> Result<Client, async_nats::ConnectError> {
    let mut options = ConnectOptions::new()
        .name(format!("mooring-{service}"))
        .retry_on_initial_connect()
        .event_callback(|event| async move { log(&event) });
    if let (Some(user), Some(password)) = (&to.user, &to.password) {
        options = options
            .user_and_password(user.clone(), password.expose_secret().to_owned())
            .custom_inbox_prefix(format!("_INBOX_{user}"));
    }
    let servers: Vec<&str> = to.url.split(',').map(str::trim).collect();
    options.connect(servers).await
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
