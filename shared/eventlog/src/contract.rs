//! Is the log fit to acknowledge from? Asked at start and again and again,
//! because a stream's settings can be changed under a running service.

use std::time::Duration;

use async_nats::jetstream::stream::Info as StreamInfo;
use futures_util::future::join_all;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::append::CommitMode;
use crate::breach::{Breach, breaches_of};
use crate::connect::{Connection, Unanswered};
use crate::{keys, message};

const CHECK_EVERY: Duration = Duration::from_secs(10);
/// While it is not known, callbacks wait for the answer.
const CHECK_AGAIN_AFTER: Duration = Duration::from_millis(250);
/// From which on an operator is told that the log is filling.
pub const SCARCE_PERCENT: u64 = 80;
/// A full log refuses what is larger than what is left, the next batch for example.
const BATCH_BYTES: u64 = 1 << 20;
const MONITOR_TIMEOUT: Duration = Duration::from_secs(2);

/// What is known of the stream's durability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contract {
    Unknown {
        why: String,
    },
    /// `accepted` are breaches that the configuration allows by name.
    Met {
        accepted: Vec<Breach>,
        commit: CommitMode,
        fill: Fill,
    },
    Broken {
        breaches: Vec<Breach>,
    },
}

/// How full the log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    pub bytes: u64,
    /// From which on it refuses events; `None` without a limit.
    pub bytes_max: Option<u64>,
}

/// Whether the log takes more events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Enough,
    /// Above [`SCARCE_PERCENT`].
    Scarce,
    /// It refuses events, or will with the next batch.
    Full,
}

impl Fill {
    pub fn of(bytes: u64, bytes_max: i64) -> Self {
        Self { bytes, bytes_max: u64::try_from(bytes_max).ok().filter(|max| *max > 0) }
    }

    pub fn room(self) -> Room {
        let Some(max) = self.bytes_max else { return Room::Enough };
        if self.bytes.saturating_add(BATCH_BYTES.min(max / 16)) >= max {
            Room::Full
        } else if self.percent() >= SCARCE_PERCENT {
            Room::Scarce
        } else {
            Room::Enough
        }
    }

    /// 0 without a limit.
    pub fn percent(self) -> u64 {
        let of = |max| self.bytes.saturating_mul(100).checked_div(max);
        self.bytes_max.and_then(of).unwrap_or_default()
    }
}

impl Contract {
    pub fn is_met(&self) -> bool {
        matches!(self, Self::Met { .. })
    }

    /// `None` while it is not known, or nothing may be appended.
    pub fn fill(&self) -> Option<Fill> {
        match self {
            Self::Met { fill, .. } => Some(*fill),
            Self::Unknown { .. } | Self::Broken { .. } => None,
        }
    }

    /// Whether an operator has to be told of it, after the other.
    fn says_more_than(&self, last: &Self) -> bool {
        let room = |contract: &Self| contract.fill().map(Fill::room);
        match (self, last) {
            (
                Self::Met { accepted, commit, .. },
                Self::Met { accepted: before, commit: commit_before, .. },
            ) => accepted != before || commit != commit_before || room(self) != room(last),
            _ => self != last,
        }
    }

    pub fn commit_mode(&self) -> CommitMode {
        match self {
            Self::Met { commit, .. } => *commit,
            Self::Unknown { .. } | Self::Broken { .. } => CommitMode::Single,
        }
    }
}

/// What is checked, and what is accepted.
pub struct Check {
    pub connection: Connection,
    pub http: reqwest::Client,
    /// The servers' monitoring addresses, separated by commas.
    pub monitor_url: Option<String>,
    /// Breaches that the configuration allows by name.
    pub accepted: Vec<Breach>,
}

/// Starts the checking task. It ends at `shutdown`, or when nobody asks any
/// more; it holds nothing that could be lost.
pub fn watch(check: Check, shutdown: CancellationToken) -> watch::Receiver<Contract> {
    let unknown = Contract::Unknown { why: "not checked yet".to_owned() };
    let (sender, receiver) = watch::channel(unknown);
    tokio::spawn(async move {
        let checking = check_for_ever(&check, &sender);
        tokio::select! {
            () = checking => {}
            () = shutdown.cancelled() => {
                // Callbacks in flight still need the last answer.
                sender.closed().await;
            }
        }
    });
    receiver
}

async fn check_for_ever(check: &Check, sender: &watch::Sender<Contract>) {
    loop {
        let last = sender.borrow().clone();
        let now = check.contract(&last).await;
        let wait =
            if matches!(now, Contract::Unknown { .. }) { CHECK_AGAIN_AFTER } else { CHECK_EVERY };
        if now.says_more_than(&last) {
            report(&now);
        }
        if now != last {
            sender.send_replace(now);
        }
        tokio::time::sleep(wait).await;
    }
}

fn report(contract: &Contract) {
    match contract {
        Contract::Met { fill, .. } if fill.room() == Room::Full => {
            tracing::error!(
                "the log is full and refuses events: raise stream.max_bytes, run `worker migrate`"
            );
        }
        Contract::Met { fill, .. } if fill.room() == Room::Scarce => {
            tracing::warn!(
                "the log is more than {SCARCE_PERCENT} % full: raise stream.max_bytes, run `worker migrate`"
            );
        }
        Contract::Unknown { why } => tracing::warn!(why, "the log is not ready"),
        Contract::Met { accepted, commit, .. } if accepted.is_empty() => {
            tracing::info!(?commit, "the log meets the durability contract");
        }
        Contract::Met { accepted, .. } => {
            tracing::warn!(?accepted, "the log is laxer than the durability contract, as allowed");
        }
        Contract::Broken { breaches } => {
            tracing::error!(?breaches, "the log breaks the durability contract: nothing is acked");
        }
    }
}

impl Check {
    async fn contract(&self, last: &Contract) -> Contract {
        let streams = tokio::try_join!(self.stream(message::STREAM), self.stream(keys::NEW_STREAM));
        let (log, keys) = match streams {
            Ok(streams) => streams,
            Err(missing @ Unanswered::Missing { .. }) => {
                return Contract::Unknown { why: missing.to_string() };
            }
            // The settings have not changed because the server is away. Until
            // it is back, publishing is tried and not acknowledged.
            Err(other) => match last {
                Contract::Unknown { .. } => return Contract::Unknown { why: other.to_string() },
                Contract::Met { .. } | Contract::Broken { .. } => return last.clone(),
            },
        };
        let commit = CommitMode::of(log.config.num_replicas, log.config.allow_atomic_publish);
        let fill = Fill::of(log.state.bytes, log.config.max_bytes);
        // A secret is as lost without its data key as without its event.
        let mut found = breaches_of(&log.config);
        found.extend(breaches_of(&keys.config));
        found.sort();
        found.dedup();
        match self.sync_breach().await {
            Ok(breach) => found.extend(breach),
            Err(why) => match last {
                Contract::Unknown { .. } => return Contract::Unknown { why },
                Contract::Met { .. } | Contract::Broken { .. } => return last.clone(),
            },
        }
        let is_accepted = |breach: &Breach| self.accepted.contains(breach);
        let (accepted, broken): (Vec<_>, Vec<_>) = found.into_iter().partition(is_accepted);
        if broken.is_empty() {
            Contract::Met { accepted, commit, fill }
        } else {
            Contract::Broken { breaches: broken }
        }
    }

    async fn stream(&self, name: &str) -> Result<StreamInfo, Unanswered> {
        Ok(self.connection.stream(name).await?.cached_info().clone())
    }

    async fn sync_breach(&self) -> Result<Option<Breach>, String> {
        let Some(monitor_url) = &self.monitor_url else {
            return Ok(Some(Breach::SyncNotChecked));
        };
        let mut why = None;
        let mut is_known = false;
        for (_, answer) in ServerStatus::ask_each(&self.http, monitor_url).await {
            match answer {
                Ok(server) if !server.sync_always => return Ok(Some(Breach::SyncNotAlways)),
                Ok(_) => is_known = true,
                Err(error) => why = Some(format!("asking nats.monitor_url: {error}")),
            }
        }
        // One that is away acknowledges nothing now, and is asked again.
        why.filter(|_| !is_known).map_or(Ok(None), Err)
    }
}

/// Those of a setting that holds one, or several separated by commas.
pub fn addresses(monitor_urls: &str) -> impl Iterator<Item = &str> {
    monitor_urls.split(',').map(str::trim).filter(|url| !url.is_empty())
}

/// What a server says of itself on its monitoring endpoint, and nowhere else
/// (<https://docs.nats.io/running-a-nats-service/nats_admin/monitoring#general-information>).
#[derive(Debug, Clone, Copy)]
pub struct ServerStatus {
    /// Its clock, where it tells.
    pub now: Option<Timestamp>,
    /// Whether its `sync_interval` is `always`.
    pub sync_always: bool,
}

impl ServerStatus {
    /// What each of these addresses answers.
    pub async fn ask_each<'a>(
        http: &reqwest::Client,
        monitor_urls: &'a str,
    ) -> Vec<(&'a str, reqwest::Result<Self>)> {
        let ask = async |url: &'a str| (url, Self::ask(http, url).await);
        join_all(addresses(monitor_urls).map(ask)).await
    }

    async fn ask(http: &reqwest::Client, monitor_url: &str) -> reqwest::Result<Self> {
        #[derive(Deserialize)]
        struct Varz {
            now: Option<Timestamp>,
            jetstream: JetStream,
        }
        #[derive(Deserialize)]
        struct JetStream {
            config: JetStreamConfig,
        }
        #[derive(Deserialize)]
        struct JetStreamConfig {
            #[serde(default)]
            sync_always: bool,
        }

        let url = format!("{}/varz", monitor_url.trim_end_matches('/'));
        let answer = http.get(url).timeout(MONITOR_TIMEOUT).send().await?;
        let Varz { now, jetstream } = answer.json().await?;
        Ok(Self { now, sync_always: jetstream.config.sync_always })
    }
}
