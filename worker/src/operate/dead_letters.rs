//! `worker dead-letters`: events that could not be applied. They are looked at,
//! applied again, or given up.

use std::time::Duration;

use anyhow::{bail, ensure};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use domain::event_key::EventKeys;
use domain::id::SourceName;
use serde::Serialize;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::live::commit::{self, Arrival, Terms};
use crate::operate::consent::{self, By, Consent};
use crate::operate::context::{self, Context};
use crate::operate::exit::Differs;
use crate::operate::output::{self, Format};
use crate::operate::progress::note;
use crate::store::database;
use crate::store::dead_letters::{self, DeadLetterView, Reason, Selection};

/// Events that could not be applied: look at them, apply them again, give them up
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List dead letters, one per line, oldest first
    List {
        #[command(flatten)]
        which: Which,
        /// Include redriven and discarded ones
        #[arg(long)]
        resolved: bool,
        /// How many to list at most
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        format: Format,
    },
    /// Show one whole, with its body
    Show {
        /// Its sequence in the log
        sequence: u64,
        #[command(flatten)]
        format: Format,
    },
    /// Apply dead letters again, after their cause is fixed
    #[command(after_help = "Exit code 3: some could not be applied and stay as they are.")]
    Redrive {
        /// Their sequences in the log
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        sequences: Vec<u64>,
        /// All that are open
        #[arg(long)]
        all: bool,
        /// Also those that nobody with an event key wrote: whoever has a password of NATS may have
        #[arg(long, conflicts_with = "all")]
        unproven: bool,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        format: Format,
    },
    /// Give dead letters up for good; they are kept, with who did it and why
    Discard {
        /// Their sequences in the log
        #[arg(required = true)]
        sequences: Vec<u64>,
        /// Why it is right to give them up
        #[arg(long)]
        why: String,
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        consent: Consent,
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Args)]
struct Which {
    /// Only dead letters of this source
    #[arg(long, value_parser = |text: &str| SourceName::parse(text))]
    source: Option<SourceName>,
    /// Only dead letters with this reason
    #[arg(long, value_parser = PossibleValuesParser::new(Reason::NAMES))]
    reason: Option<String>,
}

impl Which {
    fn selection(self, sequences: Vec<u64>, resolved: bool) -> Selection {
        let source = self.source.map(|name| name.to_string());
        Selection { sequences, source, reason: self.reason, resolved }
    }
}

/// What came of applying dead letters again.
#[derive(Debug, Default, Serialize)]
struct Redriven {
    applied: Vec<u64>,
    /// They are dead letters still; `detail` says why.
    failed: Vec<DeadLetterView>,
}

/// What was given up.
#[derive(Debug, Serialize)]
struct Discarded {
    discarded: u64,
}

/// What would be given up.
#[derive(Debug, Serialize)]
struct WouldDiscard {
    would_discard: Vec<DeadLetterView>,
}

impl context::Command for Arguments {
    const STOPS_WITHIN: Duration = Duration::from_secs(5);

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self.command {
            Command::List { which, resolved, limit, format } => {
                let selection = which.selection(vec![], resolved);
                let found = dead_letters::list(&context.pool()?, &selection, limit).await?;
                format.print(found.as_slice(), render)
            }
            Command::Show { sequence, format } => {
                let found = dead_letters::show(&context.pool()?, sequence).await?;
                format.print(&found, output::fields)
            }
            Command::Redrive { sequences, all: _, unproven, which, by: By { by }, format } => {
                let backends = context.backends().await?;
                let event_keys =
                    if unproven { EventKeys::default() } else { context.event_keys()? };
                let terms = Terms { retention: backends.retention, event_keys };
                let selection = which.selection(sequences, false);
                let redriven = redrive(&backends.pool, &terms, &selection, &by).await?;
                format.print(&redriven, render_redriven)?;
                if !redriven.failed.is_empty() {
                    let count = redriven.failed.len();
                    bail!(Differs(format!("{count} could not be applied")));
                }
                Ok(())
            }
            Command::Discard { sequences, why, by: By { by }, consent, format } => {
                consent.can_be_given()?;
                let pool = context.pool()?;
                if !consent.yes {
                    let would_discard = open(&pool, &sequences).await?;
                    let what = WouldDiscard { would_discard };
                    if consent.dry_run {
                        return format.print(&what, render_would_discard);
                    }
                    ask(&what, &context.shutdown).await?;
                }
                let discarded = discard(&pool, &sequences, &by, &why).await?;
                format.print(&Discarded { discarded }, render_discarded)
            }
        }
    }
}

/// Applies them again, each by itself.
async fn redrive(
    pool: &PgPool,
    terms: &Terms,
    selection: &Selection,
    by: &str,
) -> anyhow::Result<Redriven> {
    let mut connection = database::acquire(pool).await?;
    let mut redriven = Redriven::default();
    let found = dead_letters::deliveries(&mut connection, selection).await?;
    ensure!(!found.is_empty() || selection.sequences.is_empty(), NONE_OPEN);
    for delivery in found {
        let sequence = delivery.sequence.0;
        let only = std::slice::from_ref(&delivery);
        let committed = commit::apply(pool, only, terms, Arrival::Late).await?;
        if committed.dead_letters > 0 {
            redriven.failed.push(dead_letters::show(pool, sequence).await?);
            continue;
        }
        dead_letters::resolve(&mut connection, &[sequence], "redriven", by, None).await?;
        redriven.applied.push(sequence);
    }
    Ok(redriven)
}

const NONE_OPEN: &str = "none of these is an open dead letter";

/// Those of these that are not resolved.
async fn open(pool: &PgPool, sequences: &[u64]) -> anyhow::Result<Vec<DeadLetterView>> {
    let selection = Selection { sequences: sequences.to_vec(), ..Selection::default() };
    let found = dead_letters::list(pool, &selection, u32::MAX).await?;
    ensure!(!found.is_empty(), NONE_OPEN);
    Ok(found)
}

async fn ask(what: &WouldDiscard, shutdown: &CancellationToken) -> anyhow::Result<()> {
    note(&render(&what.would_discard));
    let question = format!("discard these {} for good?", what.would_discard.len());
    ensure!(consent::ask(&question, shutdown).await?, "nothing was discarded");
    Ok(())
}

/// Gives them up, and keeps who did it and why. Says how many there were.
async fn discard(pool: &PgPool, sequences: &[u64], by: &str, why: &str) -> anyhow::Result<u64> {
    let mut connection = database::acquire(pool).await?;
    let resolved =
        dead_letters::resolve(&mut connection, sequences, "discarded", by, Some(why)).await?;
    ensure!(resolved > 0, NONE_OPEN);
    Ok(resolved)
}

fn render(found: &[DeadLetterView]) -> String {
    if found.is_empty() {
        return "no dead letters".to_owned();
    }
    let line = |letter: &DeadLetterView| {
        let DeadLetterView { sequence, dead_lettered_at: at, source, reason, detail, .. } = letter;
        let state = letter.resolution.as_deref().unwrap_or("open");
        format!("{sequence:>10} {at} {state:<10} {source:<12} {reason:<12} {detail}")
    };
    let lines: Vec<String> = found.iter().map(line).collect();
    lines.join("\n")
}

fn render_redriven(redriven: &Redriven) -> String {
    let mut text = format!("applied {}", redriven.applied.len());
    if !redriven.failed.is_empty() {
        text += &format!("\nnot applied:\n{}", render(&redriven.failed));
    }
    text
}

fn render_would_discard(what: &WouldDiscard) -> String {
    format!("would discard {}:\n{}", what.would_discard.len(), render(&what.would_discard))
}

fn render_discarded(report: &Discarded) -> String {
    format!("discarded {}", report.discarded)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::operate::tests::assert_view;

    fn letter(sequence: u64) -> DeadLetterView {
        DeadLetterView {
            sequence,
            source: "blnk".into(),
            installation_id: Some("instapp_1".into()),
            r#type: Some("installed".into()),
            message_id: Some("blnk:install:instapp_1".into()),
            reason: "unappliable".into(),
            detail: "new row violates check constraint \"no\"".into(),
            published_at: Timestamp::UNIX_EPOCH,
            dead_lettered_at: Timestamp::UNIX_EPOCH,
            resolution: None,
            resolved_at: None,
            resolved_by: None,
            resolved_why: None,
            body: None,
        }
    }

    #[test]
    fn dead_letters_are_listed_and_shown() {
        let discarded = DeadLetterView { resolution: Some("discarded".into()), ..letter(12) };
        assert_view("dead-letters-list", &render(&[letter(7), discarded]));
        assert_view("dead-letters-list-of-none", &render(&[]));
        let whole = DeadLetterView { body: Some("not JSON at all".into()), ..letter(7) };
        assert_view("dead-letters-show", &output::fields(&whole));
    }

    #[test]
    fn what_was_redriven_and_discarded_is_told() {
        let redriven = Redriven { applied: vec![3, 4], failed: vec![letter(7)] };
        assert_view("dead-letters-redrive", &render_redriven(&redriven));
        let what = WouldDiscard { would_discard: vec![letter(7)] };
        assert_view("dead-letters-discard-dry-run", &render_would_discard(&what));
        let discarded = render_discarded(&Discarded { discarded: 1 });
        assert_view("dead-letters-discard", &discarded);
    }
}
