//! `simulate`: sends callbacks as a platform would, to any ingest.
#![allow(clippy::disallowed_methods, reason = "a platform has a clock of its own")]

mod plan;
mod platform;
mod send;
mod summary;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use jiff::Timestamp;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use secrecy::{ExposeSecret as _, SecretString};

use crate::plan::{Chances, Plan};
use crate::platform::{Platform, Sender};
use crate::summary::Summary;

/// Sends callbacks as a platform would: correctly signed, and if asked for twice, out of order,
/// late or forged.
///
/// Ids, keys and order follow from --seed: with the same one `uninstall` ends what `install` made.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
What the secret is: for blnk and securityscorecard the path token of the callback URL; for whop, \
outreach and stripe the secret of the signature; for github and monday that, which is the path token, too; for highlevel 32 bytes in base64, the seed of an Ed25519 key whose \
public half (--public-key) stands in `verification.highlevel.ed25519_keys`.

Exit codes: 0 every answer was as expected, 1 failed, 2 misused, 3 some answer was not, 130 interrupted.

Examples:
  simulate blnk install --secret-file token --count 1000 --rate 200
  simulate highlevel uninstall --secret-file seed --count 50 --late-uninstall 1 --reorder 0.5
  simulate github install --secret-file secret --duplicate 0.3 --forge 0.1 --seed 7
  simulate highlevel install --secret-file seed --public-key"
)]
struct Cli {
    platform: Platform,
    /// `uninstall` installs first, so that there is something to end
    action: Action,
    /// The ingest
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// The name of the source there; the platform's unless given
    #[arg(long)]
    source: Option<String>,
    /// Whose callbacks they are; must be one that the source accepts
    #[arg(long, default_value = "app_demo")]
    app: String,
    /// The file with the secret that callbacks are verified by
    #[arg(long, env = "MOORING_SIMULATE_SECRET_FILE")]
    secret_file: PathBuf,
    /// Installations
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Callbacks per second; as fast as the connections allow unless given
    #[arg(long)]
    rate: Option<f64>,
    /// Requests that are on their way at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Chance of each callback to be sent twice
    #[arg(long, default_value_t = 0.0, value_parser = chance)]
    duplicate: f64,
    /// Chance of each callback to change places with one of the next 16
    #[arg(long, default_value_t = 0.0, value_parser = chance)]
    reorder: f64,
    /// Chance of each installation to be installed again before its uninstall arrives
    #[arg(long, default_value_t = 0.0, value_parser = chance)]
    late_uninstall: f64,
    /// Chance of each callback to be followed by a forged one, which must be refused
    #[arg(long, default_value_t = 0.0, value_parser = chance)]
    forge: f64,
    /// The same seed makes the same callbacks; random unless given
    #[arg(long)]
    seed: Option<u64>,
    /// The summary as JSON
    #[arg(long)]
    json: bool,
    /// Print the public key to configure, send nothing; highlevel only
    #[arg(long)]
    public_key: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Action {
    Install,
    Uninstall,
}

fn chance(text: &str) -> Result<f64, String> {
    let chance: f64 = text.parse().map_err(|_| "must be a number".to_owned())?;
    if (0.0..=1.0).contains(&chance) { Ok(chance) } else { Err("must be 0 to 1".to_owned()) }
}

const EXIT_MISUSED: u8 = 2;
const EXIT_UNEXPECTED: u8 = 3;
const EXIT_INTERRUPTED: u8 = 130;

#[tokio::main]
#[expect(clippy::print_stderr, reason = "the last word of a command that failed")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.action == Action::Uninstall && !cli.platform.tells_of_uninstalls() {
        eprintln!("simulate: {} sends no uninstall callbacks", cli.platform.name());
        return ExitCode::from(EXIT_MISUSED);
    }
    match run(&cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("simulate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "what was asked for")]
async fn run(cli: &Cli) -> Result<ExitCode> {
    let secret = std::fs::read_to_string(&cli.secret_file)
        .with_context(|| format!("reading {}", cli.secret_file.display()))?;
    let sender = Sender::new(cli.platform, SecretString::from(secret.trim()), cli.app.clone())?;
    if cli.public_key {
        let pem = sender.public_key().context("only highlevel's callbacks are signed so")?;
        print!("{pem}");
        return Ok(ExitCode::SUCCESS);
    }
    let seed = cli.seed.unwrap_or_else(rand::random);
    let chances = Chances {
        duplicate: cli.duplicate,
        reorder: cli.reorder,
        late_uninstall: cli.late_uninstall,
        forge: cli.forge,
    };
    let ends = cli.action == Action::Uninstall;
    let mut rng = StdRng::seed_from_u64(seed);
    let plan = Plan { count: cli.count, ends, chances, began: Timestamp::now() };
    let deliveries = plan.deliveries(&mut rng, cli.platform.tells_of_uninstalls());

    let source = cli.source.as_deref().unwrap_or(cli.platform.name());
    let callback_url = format!("{}/callbacks/{source}", cli.url.trim_end_matches('/'));
    let load = send::Load { callback_url, rate: cli.rate, connections: cli.connections.into() };
    let (outcome, interrupted) = send::send(&sender, deliveries, &load).await?;
    let summary = Summary::of(cli.platform.name(), seed, &outcome);
    if cli.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        print!("{summary}");
    }
    Ok(match (interrupted, summary.unexpected) {
        (true, _) => ExitCode::from(EXIT_INTERRUPTED),
        (false, 0) => ExitCode::SUCCESS,
        (false, _) => ExitCode::from(EXIT_UNEXPECTED),
    })
}

impl Sender {
    /// HighLevel signs with one key for all apps.
    fn public_key(&self) -> Option<String> {
        self.ed25519().map(platform::public_key_pem)
    }
}

/// The text of a secret is needed by signatures alone.
fn exposed(secret: &SecretString) -> &[u8] {
    secret.expose_secret().as_bytes()
}
