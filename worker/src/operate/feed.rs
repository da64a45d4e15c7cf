//! `worker feed`: the change feed, as apps that follow it see it.

use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, value_parser};
use domain::id::SourceName;

use crate::live::changes::TYPES;
use crate::operate::consent::{self, Consent};
use crate::operate::context::{self, Context};
use crate::operate::output::{self, Format};
use crate::operate::progress::note;
use crate::store::changes::{self, ChangeView};
use crate::store::database;
use crate::store::feed::{self, Cursor, FeedPage, Found, PAGE_MAX, Query};
use crate::store::reach::Reach;

/// Between two looks for something new.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Read the change feed: what became of installations
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Tail(Tail),
    Restart(Restart),
}

/// Print changes, oldest first
#[derive(Args)]
#[command(after_help = "\
Examples:
  worker feed tail --follow
  worker feed tail --type installation.activated --json | jq -r .changes[].installation_id")]
struct Tail {
    /// Go on and print what comes, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    follow: bool,
    /// Only what comes after this cursor [default: the oldest that is kept]
    #[arg(long, value_name = "CURSOR", value_parser = |text: &str| text.parse::<Cursor>())]
    after: Option<Cursor>,
    /// Only changes of this source
    #[arg(long, value_parser = |text: &str| SourceName::parse(text))]
    source: Option<SourceName>,
    /// Only changes of this type; may be given several times
    #[arg(long = "type", value_name = "TYPE", value_parser = PossibleValuesParser::new(TYPES))]
    types: Vec<String>,
    /// So many at once, at most 1,000
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u16).range(1..=i64::from(PAGE_MAX)))]
    limit: u16,
    #[command(flatten)]
    format: Format,
}

/// Begin another feed: every cursor that was given out is refused from here on
///
/// Do it after the files of Postgres were put back as they had been. The feed then has fewer changes
/// than its readers have seen, and gives their positions to other changes. Where Postgres began a new
/// timeline, by recovery to a point in time or because a standby took over, or was loaded from a
/// dump, cursors are refused without it. A reader whose cursor is refused lists the installations
/// and goes on from there. It needs the rights of `worker migrate`.
#[derive(Args)]
struct Restart {
    #[command(flatten)]
    consent: Consent,
}

impl context::Command for Arguments {
    const STOPS_WITHIN: Duration = Duration::from_secs(2);

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self.command {
            Command::Tail(tail) => tail.run(context).await,
            Command::Restart(Restart { consent }) => restart(&consent, context).await,
        }
    }
}

impl Tail {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let pool = context.pool()?;
        let mut query = Query {
            after: self.after,
            source: self.source.map(Into::into),
            types: Some(self.types).filter(|types| !types.is_empty()),
            limit: self.limit,
        };
        loop {
            let found = feed::read(&pool, &Reach::Everything, &query).await?;
            let Found { changes, cursor, .. } = found;
            if !self.follow {
                let page = FeedPage { changes, cursor: cursor.to_string() };
                return self.format.print(&page, render);
            }
            for change in &changes {
                output::print(&line(change))?;
            }
            let is_full = changes.len() >= usize::from(self.limit);
            query.after = Some(cursor);
            if context.shutdown.is_cancelled() {
                return Ok(());
            }
            if !is_full {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = context.shutdown.cancelled() => {}
                }
            }
        }
    }
}

async fn restart(consent: &Consent, context: &Context) -> anyhow::Result<()> {
    consent.can_be_given()?;
    let pool = context.pool()?;
    let mut connection = database::acquire(&pool).await?;
    let end = feed::end(&mut connection, &Reach::Everything).await?;
    note(&format!("the feed ends at {end}; every cursor of it would be refused"));
    if consent.dry_run {
        return Ok(());
    }
    if !consent.yes && !consent::ask("Begin another feed?", &context.shutdown).await? {
        return output::print("nothing was changed");
    }
    changes::begin_another_feed(&mut connection).await?;
    let end = feed::end(&mut connection, &Reach::Everything).await?;
    output::print(&format!("another feed begins after {end}"))
}

fn render(page: &FeedPage) -> String {
    let mut lines: Vec<String> = page.changes.iter().map(line).collect();
    if lines.is_empty() {
        lines.push("no changes".to_owned());
    }
    lines.push(format!("more: --after {}", page.cursor));
    lines.join("\n")
}

fn line(change: &ChangeView) -> String {
    let ChangeView { position, r#type, source, installation_id, generation, cause, .. } = change;
    let at = change.recorded_at.map(|at| at.to_string()).unwrap_or_default();
    let cause = if cause == "event" { String::new() } else { format!(", by {cause}") };
    format!(
        "{position:>8} {at:<27} {type:<25} {source:<12} {installation_id} generation \
         {generation}{cause}"
    )
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use sqlx::types::Json;

    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn changes_are_listed_one_per_line() {
        let change = |position, r#type: &str, cause: &str| ChangeView {
            position,
            r#type: r#type.to_owned(),
            cause: cause.to_owned(),
            source: "blnk".to_owned(),
            app_id: "app_1".to_owned(),
            installation_id: "instapp_1".to_owned(),
            generation: 1,
            occurred_at: Some(Timestamp::UNIX_EPOCH),
            recorded_at: Some(Timestamp::UNIX_EPOCH),
            installation: Json(serde_json::Value::Null),
        };
        let changes = vec![
            change(7, "installation.activated", "event"),
            change(8, "credential.replaced", "replay"),
        ];
        let page = FeedPage { changes, cursor: "1a2b3c4d5e6f-8".to_owned() };
        assert_view("feed-tail", &render(&page));
        let none = FeedPage { changes: vec![], cursor: "1a2b3c4d5e6f-8".to_owned() };
        assert_view("feed-tail-of-none", &render(&none));
    }
}
