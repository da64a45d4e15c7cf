//! `worker explain`: why an installation is in the state that it is in, from
//! everything that is known of it.

use anyhow::Context as _;
use clap::Args;
use domain::fold::{Installation, Recorded, Status, fold};
use domain::id::{InstallationId, SourceName};
use eventlog::audit::{self, Outcome};
use eventlog::connect::Connection;
use jiff::Timestamp;
use serde::Serialize;

use crate::operate::backends::Backends;
use crate::operate::context::{Command, Context};
use crate::operate::installations::WhichArguments;
use crate::operate::output::Format;
use crate::store::database;
use crate::store::dead_letters::{self, DeadLetterView};
use crate::store::find::{self, Which};
use crate::store::fold_unit::FoldUnit;
use crate::store::installations::InstallationView;
use crate::store::journal::{self, HistoryEntry};
use crate::store::reach::Reach;

/// Everything that is known of an installation, and why it is in its state
#[derive(Args)]
#[command(after_help = "\
Shows events, repeated callbacks, conflicts, dead letters and notes about answers in one timeline,
with the trace of each. Refused callbacks name no installation: see `worker callbacks`.")]
pub(crate) struct Arguments {
    /// The platform's id of the installation
    #[arg(value_parser = |text: &str| InstallationId::parse(text))]
    installation: InstallationId,
    #[command(flatten)]
    which: WhichArguments,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Explanation {
    installation: InstallationView,
    /// In one sentence.
    because: String,
    credential: String,
    timeline: Vec<Entry>,
}

/// Something that happened to it, or with it.
#[derive(Debug, Serialize)]
struct Entry {
    at: Timestamp,
    what: String,
    /// Its place in the log.
    sequence: Option<u64>,
    trace_id: Option<String>,
    /// The status that it led to, where that changed.
    status: Option<String>,
}

impl Command for Arguments {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let backends = context.backends().await?;
        let found = explain(&backends, &self.which.into(), &self.installation).await?;
        self.format.print(&found, render)
    }
}

fn render(explanation: &Explanation) -> String {
    let Explanation { installation, because, credential, timeline } = explanation;
    let mut lines = vec![
        format!("{} of {}", installation.installation_id, installation.source),
        because.clone(),
        format!("{credential}\n"),
    ];
    lines.extend(timeline.iter().map(|entry| {
        let sequence = entry.sequence.map(|sequence| sequence.to_string()).unwrap_or_default();
        let trace = entry.trace_id.as_ref().map(|id| format!("  trace {id}")).unwrap_or_default();
        format!("{:<30} {sequence:>8}  {}{trace}", entry.at.to_string(), entry.what)
    }));
    lines.join("\n")
}

async fn explain(
    backends: &Backends,
    which: &Which,
    id: &InstallationId,
) -> anyhow::Result<Explanation> {
    let mut connection = database::acquire(&backends.pool).await?;
    let chosen = find::choose(&mut connection, &Reach::Everything, which, id).await?;
    let installation = find::show(&backends.pool, &Reach::Everything, &chosen.which(), id).await?;
    let history =
        journal::history(&mut connection, &Reach::Everything, &chosen.events(), 0, i64::MAX)
            .await?;
    let source = chosen.source;
    let place = domain::id::Place::from_stored(installation.place.clone());
    let unit = FoldUnit { source: source.clone(), place };
    let mut of_place = journal::of_places(&mut connection, &[unit]).await?;
    of_place.sort_by_key(|recorded| recorded.sequence);
    drop(connection);

    let mut timeline = events(&history);
    timeline.extend(changes(backends, &of_place, id));
    timeline.extend(dead_letters(backends, &source, id).await?);
    timeline.extend(duplicates(&backends.connection, &source, id).await?);
    timeline.sort_by_key(|entry| (entry.at, entry.sequence));
    let now = fold(&of_place, backends.retention);
    let now = now.iter().find(|found| found.identity.installation_id == *id);
    let now = now.context("the journal has no event of it in the place of the projection")?;
    let (because, credential) = (because(now), credential(now, &history));
    Ok(Explanation { installation, because, credential, timeline })
}

fn events(history: &[HistoryEntry]) -> Vec<Entry> {
    let entry = |event: &HistoryEntry| {
        let conflict =
            if event.conflict { "; conflicts with another event, which wins" } else { "" };
        let occurred = event.occurred_at.map(|at| format!(", of {at}")).unwrap_or_default();
        Entry {
            at: event.received_at,
            what: format!("event {}{occurred}: {}{conflict}", event.r#type, event.message_id),
            sequence: Some(event.sequence.0),
            trace_id: event.traceparent.as_deref().and_then(trace_id),
            status: None,
        }
    };
    history.iter().map(entry).collect()
}

/// The second part of a `traceparent`.
fn trace_id(traceparent: &str) -> Option<String> {
    traceparent.split('-').nth(1).map(str::to_owned)
}

/// Where its status changed, as the events of its place came in.
fn changes(backends: &Backends, of_place: &[Recorded], id: &InstallationId) -> Vec<Entry> {
    let mut last = None;
    let mut found = Vec::new();
    for count in 1..=of_place.len() {
        let Some((known, newest)) = of_place.get(..count).zip(of_place.get(count - 1)) else {
            break;
        };
        let folded = fold(known, backends.retention);
        let state = folded.iter().find(|found| found.identity.installation_id == *id);
        let status = state.map(|found| found.status.clone());
        if status == last {
            continue;
        }
        if let Some(status) = &status {
            let own = newest.event.fact.identity().is_some_and(|it| it.installation_id == *id);
            let of = newest.event.fact.identity().map(|it| it.installation_id.to_string());
            let by = if own { "it".to_owned() } else { of.unwrap_or_default() };
            found.push(Entry {
                at: newest.event.received_at,
                what: format!(
                    "status {}, by event {} of {by}",
                    status.name(),
                    newest.event.fact.kind()
                ),
                sequence: Some(newest.sequence.0),
                trace_id: None,
                status: Some(status.name().to_owned()),
            });
        }
        last = status;
    }
    found
}

async fn dead_letters(
    backends: &Backends,
    source: &SourceName,
    id: &InstallationId,
) -> anyhow::Result<Vec<Entry>> {
    let selection = dead_letters::Selection {
        source: Some(source.to_string()),
        resolved: true,
        ..dead_letters::Selection::default()
    };
    let found = dead_letters::list(&backends.pool, &selection, u32::MAX).await?;
    let entry = |letter: DeadLetterView| Entry {
        at: letter.dead_lettered_at,
        what: format!(
            "dead letter, {}: {} ({})",
            letter.reason,
            letter.detail,
            letter.resolution.as_deref().unwrap_or("open")
        ),
        sequence: Some(letter.sequence),
        trace_id: None,
        status: None,
    };
    let of_it = |letter: &DeadLetterView| letter.installation_id.as_deref() == Some(id.as_str());
    Ok(found.into_iter().filter(of_it).map(entry).collect())
}

async fn duplicates(
    connection: &Connection,
    source: &SourceName,
    id: &InstallationId,
) -> anyhow::Result<Vec<Entry>> {
    let mut found = Vec::new();
    for record in audit::records(connection, Some(source)).await? {
        if let Outcome::Duplicate { installation_id, r#type, sequence } = record.outcome
            && installation_id.as_deref() == Some(id.as_str())
        {
            found.push(Entry {
                at: record.received_at,
                what: format!("the callback came again ({}): a duplicate of {sequence}", r#type),
                sequence: None,
                trace_id: record.trace_id,
                status: None,
            });
        }
    }
    Ok(found)
}

fn because(now: &Installation) -> String {
    let since = now.installed_at.map(|at| at.to_string()).unwrap_or_default();
    match &now.status {
        Status::Pending => "pending: it was authorized, and its install has not arrived".to_owned(),
        Status::Active => format!(
            "active: it was installed at {since}, no uninstall of it is known, and no later \
             installation took its place"
        ),
        Status::Suspended => format!(
            "suspended: it was installed at {since}, and the platform has stopped it; its \
             credential may not work until the platform resumes it"
        ),
        Status::Unverified => "unverified: it had ended, and then the platform sent a secret for \
             it that is none of those before; the secret is kept, try it. An uninstall or a newer \
             installation in the same place decides"
            .to_owned(),
        Status::Superseded { by } => {
            format!("superseded: {by} was installed later in the same place")
        }
        Status::Inactive { uninstalled_at } => format!(
            "inactive: it was uninstalled at {uninstalled_at}; an install of it that comes late or \
             again does not revive it"
        ),
        Status::Unconfirmed => "unconfirmed: the platform may not have got our answer to its last \
             change and may have cancelled it; a retry or a later install or \
             uninstall settles it"
            .to_owned(),
    }
}

fn credential(now: &Installation, history: &[HistoryEntry]) -> String {
    let erased = history.iter().rev().find(|event| event.r#type == "erased");
    match (&now.credential, erased, &now.credential_prefix) {
        (Some(_), _, _) => "a credential is kept, sealed".to_owned(),
        (None, Some(erased), _) => {
            format!("its secrets were erased, at sequence {}", erased.sequence)
        }
        (None, None, Some(_)) => "its credential was removed when it ended".to_owned(),
        (None, None, None) => "no credential of it is known".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;
    use crate::store::installations::example;

    #[test]
    fn a_state_is_explained_with_its_timeline() {
        let entry = |what: &str, sequence, trace_id: Option<&str>| Entry {
            at: Timestamp::UNIX_EPOCH,
            what: what.to_owned(),
            sequence,
            trace_id: trace_id.map(str::to_owned),
            status: None,
        };
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        let explanation = Explanation {
            installation: example("instapp_1", "superseded"),
            because: "superseded: instapp_2 was installed later in the same place".to_owned(),
            credential: "its credential was removed when it ended".to_owned(),
            timeline: vec![
                entry("event installed: blnk:install:instapp_1", Some(7), Some(trace)),
                entry("the callback came again (installed): a duplicate of 7", None, None),
            ],
        };
        assert_view("explain", &render(&explanation));
    }
}
