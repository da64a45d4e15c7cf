//! The command line: what can be said, and how answers are printed.
#![expect(clippy::print_stdout, reason = "answers go to standard output")]

use std::path::PathBuf;

pub(crate) mod dead_letters;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod keys;
pub(crate) mod rebuild;
pub(crate) mod replay;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use domain::fold::Status;
use domain::id::{InstallationId, InvalidId};
use serde::Serialize;
use worker::store::find::{Filter, Page, Which};

use self::dead_letters::DeadLetters;
use self::doctor::DoctorArgs;
use self::explain::{CallbacksArgs, ExplainArgs};
use self::keys::{EraseArgs, Keys};
use self::rebuild::{RebuildArgs, VerifyArgs};
use self::replay::ReplayArgs;

/// Applies the log of installation events to Postgres and serves what comes of it.
#[derive(Parser)]
#[command(
    version,
    after_help = "Exit codes: 0 done or stopped as asked, 1 failed, 2 misused, 3 something differs,\n\
                  78 the configuration is not usable, 130 interrupted.\n\n\
                  Examples:\n  \
                  worker migrate                        bring schema, stream and consumer to this version\n  \
                  worker run                            apply events, serve reads\n  \
                  worker installations list --status active\n  \
                  worker installations show instapp_1 --json"
)]
pub(crate) struct Cli {
    /// The configuration file; MOORING__SECTION__SETTING variables override it
    #[arg(long, env = "MOORING_CONFIG", default_value = "mooring.toml", global = true)]
    pub(crate) config: PathBuf,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Apply events and serve the read API until SIGTERM or Ctrl-C
    Run {
        /// Check the configuration and the secrets it refers to, then exit
        #[arg(long)]
        check_config: bool,
    },
    /// Create or update the Postgres schema, the JetStream stream and its consumer
    ///
    /// Needs a Postgres role that owns the database and a NATS user that may
    /// manage streams: set MOORING__POSTGRES__URL and MOORING__NATS__USER for
    /// this one command. Safe to run again.
    Migrate,
    /// Read installations from Postgres
    Installations {
        #[command(subcommand)]
        command: Installations,
    },
    #[command(flatten)]
    Operation(Operation),
    #[command(flatten)]
    KeyOperation(KeyOperation),
}

/// What needs the keys of the ring besides.
#[derive(Subcommand)]
pub(crate) enum KeyOperation {
    /// The keys that seal: list, rotate, reseal, retire
    Keys {
        #[command(subcommand)]
        command: Keys,
    },
    /// Check configuration, streams, database, clocks, keys and rights; says how to mend
    Doctor(DoctorArgs),
    /// Make every secret of an installation unreadable for good
    Erase(EraseArgs),
}

/// What works on log and projection, with an operator's rights.
#[derive(Subcommand)]
pub(crate) enum Operation {
    /// Read the log again: print events, or apply them
    Replay(ReplayArgs),
    /// Build the projection anew beside the live one, compare, and swap it in
    Rebuild(RebuildArgs),
    /// Compare log, journal and projection; repairs nothing
    Verify(VerifyArgs),
    /// Everything that is known of an installation, and why it is in its state
    Explain(ExplainArgs),
    /// Callbacks that are not in the log: refused, or repeated; of the last days
    Callbacks(CallbacksArgs),
    /// Events that could not be applied: look at them, apply them again, give them up
    DeadLetters {
        #[command(subcommand)]
        command: DeadLetters,
    },
}

/// Something is not as it should be. The exit code for it is 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Differs(pub(crate) String);

#[derive(Subcommand)]
pub(crate) enum Installations {
    /// List installations, a line each
    List {
        #[command(flatten)]
        filter: FilterArgs,
        /// Print JSON, as the read API answers
        #[arg(long)]
        json: bool,
    },
    /// Show one installation
    Show {
        /// The platform's id of the installation
        #[arg(value_parser = parse_id)]
        id: InstallationId,
        #[command(flatten)]
        which: WhichArgs,
        /// Print JSON, as the read API answers
        #[arg(long)]
        json: bool,
    },
}

/// Needed where several installations have the id.
#[derive(Args)]
pub(crate) struct WhichArgs {
    /// Only the installation of this source
    #[arg(long)]
    source: Option<String>,
    /// Only the installation of this app, by the platform's id of it
    #[arg(long, value_name = "APP_ID")]
    app: Option<String>,
    /// Only the installation in this place, as it is shown
    #[arg(long)]
    place: Option<String>,
}

impl From<WhichArgs> for Which {
    fn from(WhichArgs { source, app, place }: WhichArgs) -> Self {
        Self { source, app_id: app, place }
    }
}

#[derive(Args)]
pub(crate) struct FilterArgs {
    /// Only installations of this source
    #[arg(long)]
    source: Option<String>,
    /// Only installations with this status
    #[arg(long, value_parser = PossibleValuesParser::new(Status::NAMES))]
    status: Option<String>,
    /// Only installations on this plan, by the platform's id of it
    #[arg(long)]
    plan: Option<String>,
    /// Where the page before ended (its next_cursor)
    #[arg(long)]
    cursor: Option<String>,
    /// How many at the most, up to 200
    #[arg(long)]
    limit: Option<u16>,
}

impl From<FilterArgs> for Filter {
    fn from(args: FilterArgs) -> Self {
        let FilterArgs { source, status, plan, cursor, limit } = args;
        Self { source, status, plan, cursor, limit }
    }
}

fn parse_id(text: &str) -> Result<InstallationId, InvalidId> {
    InstallationId::parse(text)
}

pub(crate) fn say(text: &str) {
    println!("{text}");
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

pub(crate) fn print_page(page: &Page, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(page);
    }
    if page.installations.is_empty() {
        println!("no installations");
    }
    for found in &page.installations {
        println!(
            "{:<11} {:<12} {:<32} generation {} in {}",
            found.status, found.source, found.installation_id, found.generation, found.place
        );
    }
    if let Some(cursor) = &page.next_cursor {
        println!("more: --cursor {cursor}");
    }
    Ok(())
}

/// Each field on a line of its own, named as in JSON.
pub(crate) fn print_fields(found: &impl Serialize, json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(found);
    }
    if let serde_json::Value::Object(fields) = serde_json::to_value(found)? {
        for (name, value) in fields {
            match value {
                serde_json::Value::Null => {}
                serde_json::Value::String(text) => println!("{name:<20} {text}"),
                other => println!("{name:<20} {other}"),
            }
        }
    }
    Ok(())
}
