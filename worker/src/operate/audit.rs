//! `worker audit`: the record of opened credentials and refused requests, as a file,
//! and proven to be whole.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use serde::Serialize;
use sqlx::{Connection as _, PgConnection};

use crate::operate::audit::chain::{Checked, Line, Link, check_export};
use crate::operate::consent::{self, By, Consent};
use crate::operate::context::{self, Context};
use crate::operate::exit::{Differs, WrongArguments};
use crate::operate::output::{self, Format};
use crate::store::access::{self, Ends};
use crate::store::database;

mod chain;

const PAGE: i64 = 1_000;

/// The record of who opened which credential and who was refused: write it out, prove it, prune it
#[derive(Args)]
#[command(after_help = "\
These commands need the role that owns the database: the worker's own may only add to the record.

Examples:
  worker audit export > access-2026-04.jsonl
  worker audit verify --export access-2026-04.jsonl
  worker audit prune --export access-2026-04.jsonl --dry-run")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the record as JSON lines to standard output
    Export {
        /// Only what comes after this number
        #[arg(long, default_value_t = 0, value_name = "NUMBER")]
        after: i64,
    },
    /// Prove that nothing in the record was changed, deleted or put in
    ///
    /// Who owns the database can write another record with a chain of its own. An export that is
    /// kept elsewhere shows that, too: its last line must still be in the chain.
    Verify {
        /// An export, which is proven as well
        #[arg(long, value_name = "PATH")]
        export: Option<PathBuf>,
        #[command(flatten)]
        format: Format,
    },
    /// Delete from the database what is in an export, once both are proven
    Prune {
        /// The export, which begins where the record does
        #[arg(long, value_name = "PATH")]
        export: PathBuf,
        #[command(flatten)]
        by: By,
        #[command(flatten)]
        consent: Consent,
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, Serialize)]
struct Verified {
    database: Checked,
    /// Records before these were pruned.
    pruned: i64,
    export: Option<Checked>,
}

#[derive(Debug, Serialize)]
struct Pruned {
    records: u64,
    up_to: i64,
    done: bool,
}

impl context::Command for Arguments {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let pool = context.pool()?;
        let mut connection = database::acquire(&pool).await?;
        match self.command {
            Command::Export { after } => export(&mut connection, after).await,
            Command::Verify { export, format } => {
                let verified = verify(&mut connection, export.as_deref()).await?;
                format.print(&verified, render_verified)
            }
            Command::Prune { export, by, consent, format } => {
                consent.can_be_given()?;
                let pruned = prune(&mut connection, context, &export, &by.by, &consent).await?;
                format.print(&pruned, render_pruned)
            }
        }
    }
}

async fn export(connection: &mut PgConnection, after: i64) -> anyhow::Result<()> {
    let Ends { pruned, last } = access::ends(connection).await?;
    let mut previous = if after <= pruned.0 {
        link(pruned)
    } else {
        // The digest of the one before is that of the record itself.
        let before = access::page(connection, after - 1, 1).await?;
        let before = before.into_iter().find(|record| record.number == after);
        let before = before.ok_or_else(|| WrongArguments(format!("there is no record {after}")))?;
        Link { number: before.number, digest: before.digest }
    };
    // What is recorded from now on is for the next export.
    while previous.number < last.0 {
        let limit = PAGE.min(last.0 - previous.number);
        let records = access::page(connection, previous.number, limit).await?;
        ensure!(!records.is_empty(), Differs(format!("nothing comes after {}", previous.number)));
        for record in records {
            let next = Link { number: record.number, digest: record.digest.clone() };
            let line = Line { previous: previous.digest, record };
            output::print(&serde_json::to_string(&line)?)?;
            previous = next;
        }
    }
    Ok(())
}

fn link((number, digest): (i64, String)) -> Link {
    Link { number, digest }
}

/// The chain as it stands in Postgres, up to its end, or up to `until`.
async fn check(connection: &mut PgConnection, until: Option<i64>) -> anyhow::Result<Checked> {
    let Ends { pruned, last } = access::ends(connection).await?;
    let last = link(last);
    let until = until.unwrap_or(last.number);
    let mut checked = Checked::nothing_after(link(pruned));
    while checked.last.number < until {
        let limit = PAGE.min(until - checked.last.number);
        let records = access::page(connection, checked.last.number, limit).await?;
        if records.is_empty() {
            let number = checked.last.number;
            bail!(Differs(format!("the records after {number} are missing, up to {until}")));
        }
        for record in &records {
            checked.extend(record)?;
        }
    }
    if checked.last.number == last.number && checked.last != last {
        bail!(Differs("the last record is not the one that was recorded last".to_owned()));
    }
    Ok(checked)
}

async fn verify(connection: &mut PgConnection, path: Option<&Path>) -> anyhow::Result<Verified> {
    let exported = path.map(open_export).transpose()?.flatten();
    let database = check(connection, None).await?;
    if let Some(exported) = &exported {
        stands_in(connection, &exported.last).await?;
    }
    let pruned = database.before.number;
    Ok(Verified { database, pruned, export: exported })
}

fn open_export(path: &Path) -> anyhow::Result<Option<Checked>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    check_export(BufReader::new(file))
}

/// Whether the database has this link, or has pruned it.
async fn stands_in(connection: &mut PgConnection, exported: &Link) -> anyhow::Result<()> {
    let Ends { pruned, last } = access::ends(connection).await?;
    let Link { number, digest } = exported;
    if *number > last.0 {
        bail!(Differs(format!("the export ends at record {number}, the database at {}", last.0)));
    }
    let found = if *number == pruned.0 {
        Some(pruned.1)
    } else if *number < pruned.0 {
        return Ok(()); // nobody can say any more
    } else {
        let page = access::page(connection, number - 1, 1).await?;
        page.into_iter().map(|record| record.digest).next()
    };
    if found.as_ref() != Some(digest) {
        let what = "has another record in the export than in the database";
        bail!(Differs(format!("number {number} {what}: one of them was rewritten")));
    }
    Ok(())
}

/// In one transaction, in which nobody records: what is deleted is what was proven.
async fn prune(
    connection: &mut PgConnection,
    context: &Context,
    path: &Path,
    by: &str,
    consent: &Consent,
) -> anyhow::Result<Pruned> {
    let Some(exported) = open_export(path)? else { bail!("the export is empty") };
    let ends = access::ends(connection).await?;
    let begins = link(ends.pruned);
    let up_to = exported.last.number;
    ensure!(
        exported.before == begins,
        Differs(format!("the export does not begin after record {}", begins.number))
    );
    let found = Pruned { records: exported.records, up_to, done: false };
    if consent.dry_run {
        stands_in(connection, &exported.last).await?;
        return Ok(found);
    }
    if !consent.yes {
        let question = format!("delete {} records, up to {up_to}?", exported.records);
        ensure!(consent::ask(&question, &context.shutdown).await?, "nothing was deleted");
    }
    let mut transaction = connection.begin().await?;
    access::lock_ends(&mut transaction).await?;
    let checked = check(&mut transaction, Some(up_to)).await?;
    ensure!(
        checked == exported,
        Differs("the export is not what the database has: nothing was deleted".to_owned())
    );
    let records = access::prune(&mut transaction, up_to, by).await?;
    transaction.commit().await?;
    Ok(Pruned { records, up_to, done: true })
}

fn render_verified(verified: &Verified) -> String {
    let Verified { database, pruned, export } = verified;
    let Checked { records, last, .. } = database;
    let mut lines =
        vec![format!("{records} records are as they were recorded, up to {}", last.number)];
    if *pruned > 0 {
        lines.push(format!("those up to {pruned} were exported and pruned"));
    }
    lines.extend(export.as_ref().map(|export| {
        format!("{} records of the export are unbroken and stand in the chain", export.records)
    }));
    lines.push(format!("digest of the last: {}", last.digest));
    lines.join("\n")
}

fn render_pruned(pruned: &Pruned) -> String {
    let Pruned { records, up_to, done } = pruned;
    let what = if *done { "deleted" } else { "would delete" };
    format!("{what} {records} records, up to {up_to}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn what_was_proven_is_told() {
        let link = |number| Link { number, digest: "00ff".to_owned() };
        let database = Checked { records: 5, before: link(2), last: link(7) };
        let export = Some(Checked { records: 3, before: link(2), last: link(5) });
        assert_view("audit-verify", &render_verified(&Verified { database, pruned: 2, export }));
        let pruned = Pruned { records: 3, up_to: 5, done: true };
        assert_view("audit-prune", &render_pruned(&pruned));
    }
}
