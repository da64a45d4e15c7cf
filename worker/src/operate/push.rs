//! `worker push`: the endpoints that changes are pushed to.

use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use domain::webhook::{self, WebhookKey};
use secrecy::ExposeSecret as _;
use serde::Serialize;

use crate::operate::context::{self, Context};
use crate::operate::output::{self, Format};
use crate::store::database;
use crate::store::feed::Cursor;
use crate::store::push::{self, EndpointView};

/// Look at, pause and resume what is pushed to your endpoints
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the endpoints: what waits, since when, and why
    List {
        #[command(flatten)]
        format: Format,
    },
    /// Stop pushing to an endpoint; what comes waits for it
    Pause {
        /// As `worker.push` names it
        endpoint: String,
        /// For whoever finds it paused
        #[arg(long, default_value = "by an operator")]
        why: String,
    },
    /// Push to an endpoint again, what waits first
    Resume {
        /// As `worker.push` names it
        endpoint: String,
    },
    /// Never deliver one change that waits, so that those behind it go on
    Skip {
        /// As `worker.push` names it
        endpoint: String,
        /// Of the change, in the feed
        position: u64,
    },
    /// Deliver everything after a cursor once more
    Redeliver {
        /// As `worker.push` names it
        endpoint: String,
        /// Of the feed
        #[arg(long, value_name = "CURSOR", value_parser = |text: &str| text.parse::<Cursor>())]
        after: Cursor,
    },
    /// Make a key pair that signs what is pushed, and print it once
    ///
    /// The private key is one of `secrets` of an endpoint. The endpoint verifies `v1a` signatures with
    /// the public key, and cannot sign with it.
    CreateKey {
        #[command(flatten)]
        format: Format,
    },
}

/// A key pair for signatures.
#[derive(Serialize)]
struct CreatedKey {
    private_key: String,
    public_key: String,
}

impl context::Command for Arguments {
    const STOPS_WITHIN: Duration = Duration::from_secs(2);

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        if let Command::CreateKey { format } = self.command {
            return format.print(&create_key(rand::random())?, render_key);
        }
        let pool = context.pool()?;
        let mut connection = database::acquire(&pool).await?;
        let (name, done, what) = match self.command {
            Command::List { format } => {
                return format.print(&push::all(&mut connection).await?, |all| render(all));
            }
            Command::CreateKey { .. } => return Ok(()), // above, without Postgres
            Command::Pause { endpoint, why } => {
                let paused = push::pause(&mut connection, &endpoint, &why).await?;
                (endpoint, paused, "is paused")
            }
            Command::Resume { endpoint } => {
                let resumed = push::resume(&mut connection, &endpoint).await?;
                (endpoint, resumed, "goes on")
            }
            Command::Skip { endpoint, position } => {
                if !push::skip(&mut connection, &endpoint, position).await? {
                    bail!("position {position} does not wait for '{endpoint}'");
                }
                (endpoint, true, "skips it")
            }
            Command::Redeliver { endpoint, after } => {
                let feed = push::feed(&mut connection).await?;
                if after.at(0) != Cursor::of(feed, 0) {
                    bail!("this cursor is of another feed");
                }
                let moved = push::redeliver(&mut connection, &endpoint, after.position).await?;
                (endpoint, moved, "is told again")
            }
        };
        if !done {
            bail!("there is no endpoint '{name}'; `worker push list` lists them");
        }
        output::print(&format!("{name} {what}"))
    }
}

fn create_key(seed: [u8; 32]) -> anyhow::Result<CreatedKey> {
    let private_key = webhook::private_key(seed);
    let public_key = WebhookKey::parse(&private_key)?.public().unwrap_or_default();
    Ok(CreatedKey { private_key: private_key.expose_secret().to_owned(), public_key })
}

fn render_key(CreatedKey { private_key, public_key }: &CreatedKey) -> String {
    format!(
        "The private key, which is shown this once. Give it to workers as one of \
         worker.push.<endpoint>.secrets:\n\n{private_key}\n\nThe public key, for whoever verifies \
         signatures (v1a):\n\n{public_key}"
    )
}

fn render(endpoints: &[EndpointView]) -> String {
    if endpoints.is_empty() {
        return "no endpoint was ever pushed to; see worker.push in the configuration".to_owned();
    }
    endpoints.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn line(endpoint: &EndpointView) -> String {
    let EndpointView { name, undelivered, oldest_at, paused_why, problem, .. } = endpoint;
    let state = match (paused_why, undelivered) {
        (Some(why), _) => format!("paused: {why}"),
        (None, 0) => "up to date".to_owned(),
        (None, _) => "delivering".to_owned(),
    };
    let since = oldest_at.map(|at| format!(" since {at}")).unwrap_or_default();
    let problem = problem.as_ref().map(|why| format!("; last problem: {why}")).unwrap_or_default();
    format!("{name:<20} {undelivered:>6} undelivered{since}  {state}{problem}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn a_key_is_printed_with_its_public_half() {
        assert_view("push-create-key", &render_key(&create_key([7; 32]).unwrap()));
    }

    #[test]
    fn endpoints_are_listed_one_per_line() {
        let endpoint = |name: &str, undelivered, paused: Option<&str>| EndpointView {
            name: name.to_owned(),
            taken_position: 7,
            undelivered,
            oldest_at: (undelivered > 0).then_some(jiff::Timestamp::UNIX_EPOCH),
            last_delivered_at: None,
            paused_at: paused.map(|_| jiff::Timestamp::UNIX_EPOCH),
            paused_why: paused.map(str::to_owned),
            problem: paused.map(|_| "answered 410".to_owned()),
        };
        let all = [
            endpoint("billing", 0, None),
            endpoint("crm", 12, Some("position 3: answered 410")),
            endpoint("search", 4, None),
        ];
        assert_view("push-list", &render(&all));
        assert_view("push-list-of-none", &render(&[]));
    }
}
