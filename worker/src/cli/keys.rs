//! `worker keys` and `worker erase`: arguments and answers.
#![expect(clippy::print_stdout, reason = "answers go to standard output")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use domain::id::{InstallationId, KeyId, SourceName};
use domain::seal::{KeyRing, new_key};
use secrecy::ExposeSecret as _;
use tokio_util::sync::CancellationToken;
use worker::operate::backends::Backends;
use worker::operate::erase::{self, ErasureReport};
use worker::operate::keys::{self, KeyUse};
use worker::store::erasures::ErasureOrder;
use worker::store::find::Which;

use super::dead_letters::By;
use super::{Differs, print_json};

#[derive(Subcommand)]
#[command(after_help = "\
Each secret is sealed under a data key of its own, in the stream DATA_KEYS; the keys of the ring
(`sealing` in the configuration) seal those. To rotate, under live traffic and without a replay:
  1. worker keys rotate --id k2 --file /run/secrets/sealing-key-k2
     makes a key, and says what to put into the configuration; ingest and worker read it again
     by themselves
  2. worker keys reseal
  3. worker keys retire k1, and take k1 out of the configuration")]
pub(crate) enum Keys {
    /// List the keys of the ring, and what each of them seals
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a new key, and say how to make it the active one
    Rotate {
        /// The id of the new key
        #[arg(long, value_parser = |text: &str| KeyId::parse(text))]
        id: KeyId,
        /// Where to write it; must not exist
        #[arg(long)]
        file: PathBuf,
    },
    /// Seal every data key under the active key; interrupted, run it again
    Reseal {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether a key is needed by anything; exit code 3 if it is
    Retire {
        /// The id of the key
        #[arg(value_parser = |text: &str| KeyId::parse(text))]
        id: KeyId,
    },
}

#[derive(Args)]
#[command(after_long_help = "\
Afterwards no secret of the installation opens any more, from log, journal or projection or from a
backup of any of them. What happened stays readable, and a rebuild equals the live projection.
Names and e-mail addresses in payloads are not secrets, and stay.

Not covered: a backup of the stream DATA_KEYS from before. Keep those no longer than you may keep
the secrets, and run the erasures of mooring.erasures again after you restored one. What the
platform sends of the installation afterwards is new, and not erased.

Example:
  worker erase instapp_1 --source blnk --why 'request 4711'")]
pub(crate) struct EraseArgs {
    /// The platform's id of the installation
    #[arg(value_parser = |text: &str| InstallationId::parse(text))]
    installation: InstallationId,
    /// The source that it came from
    #[arg(long, value_parser = |text: &str| SourceName::parse(text))]
    source: SourceName,
    /// The platform's id of the app; needed where several apps have the id
    #[arg(long, value_name = "APP_ID")]
    app: Option<String>,
    /// The place, as it is shown; needed where the id is in several
    #[arg(long)]
    place: Option<String>,
    /// Why, for the record
    #[arg(long)]
    why: String,
    #[command(flatten)]
    by: By,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(
    backends: &Backends,
    ring: &KeyRing,
    command: Keys,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    match command {
        Keys::List { json } => {
            let found = keys::list(backends, ring, shutdown).await?;
            if json { print_json(&found) } else { print_list(&found) }
        }
        Keys::Rotate { id, file } => rotate(ring, &id, &file),
        Keys::Reseal { json } => {
            let report = keys::reseal(backends, ring, shutdown).await?;
            if json {
                return print_json(&report);
            }
            println!(
                "{} pages sealed anew under {}, {} were already",
                report.resealed, report.active, report.up_to_date
            );
            Ok(())
        }
        Keys::Retire { id } => {
            match keys::check_retirable(backends, ring, &id, shutdown).await? {
                Ok(()) => {
                    println!("nothing needs {id}: take it out of sealing.keys, then destroy it")
                }
                Err(why) => bail!(Differs(why)),
            }
            Ok(())
        }
    }
}

fn print_list(found: &BTreeMap<String, KeyUse>) -> anyhow::Result<()> {
    for (id, found) in found {
        let state = match (found.active, found.configured) {
            (true, _) => "active",
            (false, true) => "retired",
            (false, false) => "MISSING",
        };
        println!("{id:<32} {state:<8} {} pages, {} events", found.pages, found.events);
    }
    if found.values().any(|found| !found.configured) {
        bail!(Differs("a key that is needed is not in the configuration".to_owned()));
    }
    Ok(())
}

fn rotate(ring: &KeyRing, id: &KeyId, file: &Path) -> anyhow::Result<()> {
    if ring.key_ids().any(|known| known == id) {
        bail!("there is a key {id} in the ring already");
    }
    let opened = File::options().write(true).create_new(true).mode(0o600).open(file);
    let mut opened = opened.with_context(|| format!("making {}", file.display()))?;
    writeln!(opened, "{}", new_key().expose_secret())?;
    opened.sync_all()?;
    println!(
        "a new key is in {path} (mode 0600). Put into the configuration, on every host:\n\n\
         [sealing]\nactive = \"{id}\"\n\n[sealing.keys]\n{id} = {{ file = \"{path}\" }}\n\n\
         and keep the other keys. Ingest and worker read it within seconds; then run\n\
         `worker keys reseal`.",
        path = file.display(),
    );
    Ok(())
}

pub(crate) async fn erase(
    backends: &Backends,
    ring: &KeyRing,
    args: EraseArgs,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let EraseArgs { installation, source, app, place, why, by: By { by }, json } = args;
    let which = Which { source: Some(source.into()), app_id: app, place };
    let order = ErasureOrder { installation, which, by, why };
    let report = erase::erase(backends, ring, &order, shutdown).await?;
    if json {
        print_json(&report)?
    } else {
        print_erasure(&report)
    }
    if !report.still_open_under.is_empty() {
        let keys: Vec<&str> = report.still_open_under.iter().map(String::as_str).collect();
        bail!(Differs(format!(
            "secrets from before there were data keys open until these keys are gone: {}",
            keys.join(", ")
        )));
    }
    Ok(())
}

fn print_erasure(report: &ErasureReport) {
    let ErasureReport { source, installation_id, sequence, secrets, .. } = report;
    println!("erased {installation_id} of {source}, at sequence {sequence} of the log");
    println!(
        "{secrets} sealed secrets found; {} keys destroyed, {} were before",
        report.keys_destroyed, report.keys_gone_before
    );
}
