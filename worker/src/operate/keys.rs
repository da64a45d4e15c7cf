//! `worker keys`: which keys are in use, sealing again under the active one, and
//! whether one can be retired.
//!
//! The log holds nothing that a key of the ring seals, but for secrets from
//! before there were data keys; so to rotate is to seal the pages again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use domain::id::KeyId;
use domain::key_pair::{NewPair, PrivateKey, PublicKey};
use domain::key_ring::KeyRing;
use domain::seal::SealedUnder;
use eventlog::connect::Connection;
use eventlog::keys::{self as data_keys, Pages, StoredPage};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use service::config::SealingSettings;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::operate::backends::Backends;
use crate::operate::consent::Consent;
use crate::operate::context::{self, Context};
use crate::operate::exit::{Differs, Interrupted};
use crate::operate::output::{Format, print};
use crate::store::database;
use crate::store::journal;
use crate::store::sealing_keys;

mod collect;
mod reseal;
mod running;

use reseal::reseal;
use running::Patience;
pub(crate) use running::disagreements;

/// The keys that seal: list, rotate, reseal, retire
#[derive(Args)]
#[command(after_help = "\
Each secret is sealed under a data key of its own, in the streams NEW_DATA_KEYS and DATA_KEYS. Data
keys are sealed to a key pair of the ring (`sealing` in the configuration): ingest has the public
half and can open nothing, the worker has the private half. To rotate, under live traffic and
without a replay:
  1. worker keys rotate --id k2 --file /run/secrets/sealing-key-k2
     makes a pair, and says what to append to the configuration on every host; ingest and worker
     read it by themselves
  2. worker keys activate k2
     waits until every worker can open with it; then set sealing.active to k2 on every host
  3. worker keys reseal
  4. worker keys retire k1
     waits until no service seals with it; then take k1 out of the configuration")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the keys of the ring, and what each of them seals
    List {
        #[command(flatten)]
        format: Format,
    },
    /// Make a key pair for a first configuration, and print its public half
    Generate {
        /// Where to write the private half; must not exist
        #[arg(long)]
        file: PathBuf,
    },
    /// Print the public half of a key pair
    Public {
        /// The file with the private half
        #[arg(long)]
        file: PathBuf,
        /// Write it to this file instead, which is replaced
        #[arg(long)]
        to: Option<PathBuf>,
    },
    /// Make a key pair, and say how to make it the active one
    Rotate {
        /// The id of the new pair
        #[arg(long, value_parser = |text: &str| KeyId::parse(text))]
        id: KeyId,
        /// Where to write the private half; must not exist
        #[arg(long)]
        file: PathBuf,
        #[command(flatten)]
        format: Format,
    },
    /// Wait until every worker can open with a key pair, and say how to make it the active one
    Activate {
        /// The id of the pair
        #[arg(value_parser = |text: &str| KeyId::parse(text))]
        id: KeyId,
        #[command(flatten)]
        patience: Patience,
        #[command(flatten)]
        format: Format,
    },
    /// Seal every data key under the active key; if interrupted, run it again
    Reseal {
        #[command(flatten)]
        format: Format,
    },
    /// Destroy data keys that no event needs and that are too old to be used
    #[command(after_help = collect::AFTER_HELP)]
    Collect {
        #[command(flatten)]
        consent: Consent,
        #[command(flatten)]
        format: Format,
    },
    /// Say whether anything needs a key, once no service seals with it; exit code 3 if so
    Retire {
        /// The id of the key
        #[arg(value_parser = |text: &str| KeyId::parse(text))]
        id: KeyId,
        #[command(flatten)]
        patience: Patience,
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct KeyUse {
    /// In the configuration.
    pub(crate) configured: bool,
    pub(crate) active: bool,
    /// Pages of data keys that it seals.
    pub(crate) pages: u64,
    /// Events with secrets that it seals itself, from before there were data
    /// keys.
    pub(crate) events: u64,
    /// Of those pages; not known of a key that is not configured.
    pub(crate) newest_page_opens: Option<bool>,
}

#[derive(Debug, Default, Serialize)]
pub(crate) struct KeysInUse {
    /// Every key that is configured or needed.
    pub(crate) keys: BTreeMap<String, KeyUse>,
    /// What stands where a page should, and is none.
    pub(crate) damaged_pages: u64,
}

#[derive(Debug, Serialize)]
struct Rotated {
    id: KeyId,
    public: String,
    /// Holds the private half.
    file: PathBuf,
}

#[derive(Debug, Serialize)]
struct Activable {
    id: KeyId,
    /// That can open with it: all that run.
    workers: usize,
}

#[derive(Debug, Serialize)]
struct Retirable {
    id: KeyId,
    /// What still needs the key, if anything does.
    needed: Option<String>,
}

impl context::Command for Arguments {
    const STOPS_WITHIN: Duration = Duration::from_secs(5);

    fn without_configuration(&self) -> Option<anyhow::Result<()>> {
        let print_it = |public: PublicKey| print(&public.to_string());
        Some(match &self.command {
            Command::Generate { file } => write_new_pair(file).and_then(print_it),
            Command::Public { file, to: None } => public_half(file).and_then(print_it),
            Command::Public { file, to: Some(to) } => public_half(file).and_then(|public| {
                fs::write(to, format!("{public}\n")).with_context(|| to.display().to_string())
            }),
            Command::List { .. }
            | Command::Rotate { .. }
            | Command::Activate { .. }
            | Command::Reseal { .. }
            | Command::Collect { .. }
            | Command::Retire { .. } => return None,
        })
    }

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let shutdown = &context.shutdown;
        if let Command::Rotate { id, file, format } = self.command {
            // The ring need not be usable: perhaps its first pair is made now.
            let rotated = rotate(&context.config.sealing, id, file)?;
            return format.print(&rotated, render_rotated);
        }
        let ring = context.key_ring()?;
        match self.command {
            Command::Generate { .. } | Command::Public { .. } | Command::Rotate { .. } => Ok(()),
            Command::List { format } => {
                let Backends { connection, pool, .. } = context.backends().await?;
                let found = list(&connection, &pool, &ring, shutdown).await?;
                format.print(&found, render)?;
                if found.keys.values().any(|found| !found.configured) {
                    bail!(Differs("a key that is needed is not in the configuration".to_owned()));
                }
                Ok(())
            }
            Command::Reseal { format } => {
                let backends = context.backends().await?;
                let report = reseal(&backends, &ring, shutdown).await?;
                format.print(&report, reseal::render)?;
                report.require_all_opened()
            }
            Command::Collect { consent, format } => {
                collect::run(context, &ring, &consent, &format).await
            }
            Command::Activate { id, patience, format } => {
                ensure!(ring.key_ids().any(|known| *known == id), no_such_key(&id, ring.key_ids()));
                let connection = context.backends().await?.connection;
                let workers =
                    running::every_worker_opens_with(&id, &connection, &patience, shutdown).await?;
                format.print(&Activable { id, workers }, render_activable)
            }
            Command::Retire { id, patience, format } => {
                let backends = context.backends().await?;
                if ring.active() != &id {
                    let connection = &backends.connection;
                    running::nobody_seals_with(&id, connection, &patience, shutdown).await?;
                }
                let needed = needed(&backends, &ring, &id, shutdown).await?;
                let report = Retirable { id, needed };
                format.print(&report, render_retirable)?;
                report.needed.map_or(Ok(()), |why| bail!(Differs(why)))
            }
        }
    }
}

fn render(found: &KeysInUse) -> String {
    let line = |(id, found): (&String, &KeyUse)| {
        let state = match (found.active, found.configured) {
            (true, _) => "active",
            (false, true) => "retired",
            (false, false) => "MISSING",
        };
        let opens = if found.newest_page_opens == Some(false) { ", DOES NOT OPEN" } else { "" };
        format!("{id:<32} {state:<8} {} pages, {} events{opens}", found.pages, found.events)
    };
    let mut lines: Vec<String> = found.keys.iter().map(line).collect();
    if found.damaged_pages > 0 {
        lines.push(format!("{} pages are damaged", found.damaged_pages));
    }
    lines.join("\n")
}

fn render_rotated(rotated: &Rotated) -> String {
    let Rotated { id, public, file } = rotated;
    format!(
        "# The private half of a new key pair is in {path} (mode 0600).\n\
         # Append this to the configuration on every host. Ingest does not read `private`: do not\n\
         # give it that file. Ingest and worker read the configuration again within seconds.\n\
         # Then run `worker keys activate {id}`.\n\n\
         [sealing.keys.{id}]\npublic = \"{public}\"\nprivate = {{ file = {quoted} }}",
        path = file.display(),
        quoted = serde_json::Value::from(file.to_string_lossy()),
    )
}

fn render_activable(Activable { id, workers }: &Activable) -> String {
    format!(
        "each of {workers} running workers can open with {id}: set `active = \"{id}\"` in [sealing] on \
         every host, then `worker keys reseal`"
    )
}

fn render_retirable(report: &Retirable) -> String {
    let Retirable { id, needed } = report;
    match needed {
        None => format!("nothing needs {id}: take it out of sealing.keys, then destroy it"),
        Some(_) => format!("{id} is needed"),
    }
}

pub(crate) async fn list(
    connection: &Connection,
    pool: &PgPool,
    ring: &KeyRing,
    shutdown: &CancellationToken,
) -> anyhow::Result<KeysInUse> {
    let mut found = KeysInUse::default();
    for id in ring.key_ids() {
        let active = id == ring.active();
        let key = KeyUse { configured: true, active, ..KeyUse::default() };
        found.keys.insert(id.to_string(), key);
    }
    let mut newest: BTreeMap<String, StoredPage> = BTreeMap::new();
    let mut pages = Pages::open(connection).await?;
    while let Some(page) = pages.next().await? {
        match sealed_by(&page) {
            Some(id) => {
                found.keys.entry(id.to_string()).or_default().pages += 1;
                newest.insert(id.to_string(), page);
            }
            None => found.damaged_pages += 1,
        }
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
    }
    for (id, page) in newest {
        let key = found.keys.entry(id).or_default();
        key.newest_page_opens = key.configured.then(|| page.open(ring).is_ok());
    }
    let mut postgres = database::acquire(pool).await.context("connecting to Postgres")?;
    for (id, events) in journal::sealed_by_ring_keys(&mut postgres).await? {
        found.keys.entry(id).or_default().events = events;
    }
    Ok(found)
}

/// `None` of what is not a page.
pub(crate) fn sealed_by(page: &StoredPage) -> Option<KeyId> {
    match page.sealed.under() {
        Ok(SealedUnder::SymmetricKey(id) | SealedUnder::KeyPair(id)) => Some(id),
        Ok(SealedUnder::DataKey(_)) | Err(_) => None,
    }
}

fn rotate(sealing: &SealingSettings, id: KeyId, file: PathBuf) -> anyhow::Result<Rotated> {
    ensure!(!sealing.keys.contains_key(&id), "there is a key {id} in the ring already");
    let public = write_new_pair(&file)?.to_string();
    Ok(Rotated { id, public, file })
}

/// The private half, in a file that only its owner can read.
fn write_new_pair(file: &Path) -> anyhow::Result<PublicKey> {
    let NewPair { public, private } = NewPair::generate();
    let write = || -> anyhow::Result<()> {
        let mut opened = File::options().write(true).create_new(true).mode(0o600).open(file)?;
        writeln!(opened, "{}", private.expose_secret())?;
        Ok(opened.sync_all()?)
    };
    write().with_context(|| format!("making {}", file.display()))?;
    Ok(public)
}

fn public_half(file: &Path) -> anyhow::Result<PublicKey> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    Ok(PrivateKey::parse(&SecretString::from(text))?.public())
}

fn no_such_key(id: &KeyId, known: impl Iterator<Item = impl ToString>) -> String {
    let known: Vec<String> = known.map(|id| id.to_string()).collect();
    format!("there is no key {id}: the keys are {}", known.join(", "))
}

/// What still needs the key. An error if nobody knows the key.
async fn needed(
    backends: &Backends,
    ring: &KeyRing,
    id: &KeyId,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<String>> {
    let Backends { connection, pool, .. } = backends;
    let found = list(connection, pool, ring, shutdown).await?;
    let mut postgres = database::acquire(pool).await.context("connecting to Postgres")?;
    let was_active = sealing_keys::needed(&mut postgres).await?.iter().any(|it| it == id.as_str());
    let used = found.keys.get(id.as_str()).cloned();
    let Some(KeyUse { active, pages, events, .. }) = used.or(was_active.then(KeyUse::default))
    else {
        bail!(no_such_key(id, found.keys.keys()));
    };
    let former_versions = data_keys::former_versions(connection).await?;
    Ok(if active {
        Some(format!("{id} is the active key: make another one active first"))
    } else if pages > 0 {
        Some(format!("{pages} pages of data keys are sealed with {id}: `worker keys reseal`"))
    } else if former_versions > 0 {
        let why = "former versions of pages are still stored: `worker keys reseal` destroys them";
        Some(why.to_owned())
    } else if events > 0 {
        Some(format!(
            "{events} events hold a secret sealed with {id} itself, from before there were data keys"
        ))
    } else {
        sealing_keys::retired(&mut postgres, id).await?;
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    fn key(id: &str) -> KeyId {
        KeyId::parse(id).unwrap()
    }

    #[test]
    fn keys_are_listed_with_what_they_seal() {
        let used = |configured, active, pages| KeyUse {
            configured,
            active,
            pages,
            events: 0,
            newest_page_opens: configured.then_some(active),
        };
        let keys = BTreeMap::from([
            ("k1".to_owned(), used(false, false, 2)),
            ("k2".to_owned(), used(true, false, 0)),
            ("k3".to_owned(), used(true, true, 40)),
        ]);
        assert_view("keys-list", &render(&KeysInUse { keys, damaged_pages: 1 }));
    }

    #[test]
    fn each_step_of_a_rotation_says_what_it_did() {
        let rotated = Rotated {
            id: key("k2"),
            public: "x25519-public.AAAA".to_owned(),
            file: "/run/secrets/sealing-key-k2".into(),
        };
        assert_view("keys-rotate", &render_rotated(&rotated));
        assert_view("keys-activate", &render_activable(&Activable { id: key("k2"), workers: 2 }));
        let retirable = |needed| render_retirable(&Retirable { id: key("k1"), needed });
        assert_view("keys-retire", &retirable(None));
        assert_view("keys-retire-needed", &retirable(Some("2 pages".to_owned())));
    }
}
