//! `worker dead-letters`: arguments and answers.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line speaks on its terminal"
)]

use std::io::{self, IsTerminal as _};

use anyhow::bail;
use clap::{Args, Subcommand};
use worker::operate::backends::Backends;
use worker::operate::dead_letters::{discard, redrive};
use worker::store::dead_letters::{self, DeadLetterView, Selection};

use super::{print_fields, print_json};

#[derive(Subcommand)]
pub(crate) enum DeadLetters {
    /// List dead letters, a line each, oldest first
    List {
        #[command(flatten)]
        which: Which,
        /// Those that were redriven or discarded, too
        #[arg(long)]
        resolved: bool,
        /// How many at the most
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one whole, with its body
    Show {
        /// Its sequence in the log
        sequence: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Apply dead letters again, once their cause is mended
    #[command(after_help = "Exit code 3: some could not be applied and stay as they are.")]
    Redrive {
        /// Their sequences in the log
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        sequences: Vec<u64>,
        /// All that are not resolved
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        by: By,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give dead letters up; they are kept with who did it and why
    Discard {
        /// Their sequences in the log
        #[arg(required = true)]
        sequences: Vec<u64>,
        /// Why it is right to give them up
        #[arg(long)]
        why: String,
        #[command(flatten)]
        by: By,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Args)]
pub(crate) struct Which {
    /// Only of this source
    #[arg(long)]
    source: Option<String>,
    /// Only for this reason
    #[arg(long, value_parser = ["undecodable", "unappliable"])]
    reason: Option<String>,
}

#[derive(Args)]
pub(crate) struct By {
    /// Who does it, for the record
    #[arg(long, env = "USER", default_value = "unknown")]
    pub(crate) by: String,
}

impl Which {
    fn selection(self, sequences: Vec<u64>, resolved: bool) -> Selection {
        Selection { sequences, source: self.source, reason: self.reason, resolved }
    }
}

pub(crate) async fn run(backends: &Backends, command: DeadLetters) -> anyhow::Result<()> {
    let pool = &backends.pool;
    match command {
        DeadLetters::List { which, resolved, limit, json } => {
            let found = dead_letters::list(pool, &which.selection(vec![], resolved), limit).await?;
            if json { print_json(&found) } else { print_list(&found) }
        }
        DeadLetters::Show { sequence, json } => {
            print_fields(&dead_letters::show(pool, sequence).await?, json)
        }
        DeadLetters::Redrive { sequences, all: _, which, by, json } => {
            let selection = which.selection(sequences, false);
            let redriven = redrive(backends, &selection, &by.by).await?;
            if json {
                print_json(&redriven)?;
            } else {
                println!("applied {}", redriven.applied.len());
                print_list(&redriven.failed)?;
            }
            if !redriven.failed.is_empty() {
                let count = redriven.failed.len();
                bail!(super::Differs(format!("{count} could not be applied")));
            }
            Ok(())
        }
        DeadLetters::Discard { sequences, why, by, yes } => {
            if !yes && !agreed(sequences.len())? {
                bail!("nothing was discarded");
            }
            let discarded = discard(pool, &sequences, &by.by, &why).await?;
            println!("discarded {discarded}");
            Ok(())
        }
    }
}

fn agreed(count: usize) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("say --yes: there is no terminal to ask on");
    }
    eprint!("give up {count} dead letters for good? [y/N] ");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn print_list(found: &[DeadLetterView]) -> anyhow::Result<()> {
    if found.is_empty() {
        println!("no dead letters");
    }
    for letter in found {
        let state = letter.resolution.as_deref().unwrap_or("open");
        println!(
            "{:>10} {} {:<10} {:<12} {:<12} {}",
            letter.sequence,
            letter.dead_lettered_at,
            state,
            letter.source,
            letter.reason,
            letter.detail
        );
    }
    Ok(())
}
