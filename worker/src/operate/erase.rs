//! `worker erase`: after it no secret of an installation opens any more, from
//! whatever copy of log, journal or projection.
//!
//! 1. That it was erased is appended to the log, so that the projection drops
//!    the credential, and every rebuild does, too.
//! 2. When the workers have applied that, archive, log, journal and dead letters are
//!    read for every envelope of the installation up to there.
//! 3. The data keys of these envelopes are destroyed: their pages are stored
//!    without them, and what was stored before is overwritten.
//!
//! Interrupted, it is run again; what is destroyed already stays so.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use domain::event::Event;
use domain::fingerprint;
use domain::id::{InstallationId, Place, SourceName};
use domain::key_ring::KeyRing;
use eventlog::append::Writer;
use eventlog::message::LogMessage;
use eventlog::status;
use serde::Serialize;
use service::clock;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;
use tokio_util::sync::CancellationToken;

use crate::operate::backends::{Backends, wait_for_workers};
use crate::operate::consent::{self, By, Consent};
use crate::operate::context::{Command, Context};
use crate::operate::exit::Differs;
use crate::operate::output::Format;
use crate::operate::progress::note;
use crate::operate::sealed_secrets::{Found, Sought, found};
use crate::store::database;
use crate::store::erasures::{self, ErasureOrder};
use crate::store::find::{self, Chosen, FindError, Which};
use crate::store::journal::{self, Known};
use crate::store::reach::Reach;

const APPEND_WITHIN: Duration = Duration::from_secs(30);

/// Make every secret of an installation unreadable for good
#[derive(Args)]
#[command(after_long_help = "\
Afterwards no secret of the installation opens any more, from archive, log, journal or projection
or from a backup of any of them. What happened stays readable, and a rebuild equals the live
projection.
Names and e-mail addresses in payloads are not secrets, and stay.

Not covered: a backup of the streams DATA_KEYS and NEW_DATA_KEYS from before. Keep those no longer
than you may keep the secrets, and run `worker erase-again` after you restored one. What the
platform sends about the installation afterwards is new, and not erased.

It asks before it destroys anything. Without a terminal it needs --yes.

Examples:
  worker erase instapp_1 --source blnk --why 'request 4711' --dry-run     what would it destroy?
  worker erase instapp_1 --source blnk --why 'request 4711'")]
pub(crate) struct Arguments {
    /// The platform's id of the installation
    #[arg(value_parser = |text: &str| InstallationId::parse(text))]
    installation: InstallationId,
    /// The source that it came from
    #[arg(long, value_parser = |text: &str| SourceName::parse(text))]
    source: SourceName,
    /// The platform's id of the app; needed if several apps have the id
    #[arg(long, value_name = "APP_ID")]
    app: Option<String>,
    /// The place, as it is shown; needed if the id is in several
    #[arg(long)]
    place: Option<String>,
    /// Why, for the record
    #[arg(long)]
    why: String,
    #[command(flatten)]
    by: By,
    #[command(flatten)]
    consent: Consent,
    #[command(flatten)]
    format: Format,
}

/// What there is to destroy.
#[derive(Debug, Serialize)]
struct Plan {
    source: SourceName,
    installation_id: InstallationId,
    places: Vec<Place>,
    /// Secrets that were found.
    secrets: usize,
    keys_to_destroy: usize,
    /// They were destroyed before.
    keys_gone_before: usize,
    /// Sealed by these keys of the ring itself, before there were data keys.
    still_open_under: BTreeSet<String>,
}

/// What was destroyed.
#[derive(Debug, Serialize)]
struct Report {
    source: SourceName,
    installation_id: InstallationId,
    /// Where it is, or was said to be by an uninstall.
    places: Vec<Place>,
    /// Where the log says that it was erased.
    sequence: u64,
    /// Secrets that were found.
    secrets: usize,
    keys_destroyed: usize,
    /// They were destroyed before.
    keys_gone_before: usize,
    /// Sealed by these keys of the ring itself, before there were data keys:
    /// such a secret opens until its key is retired.
    still_open_under: BTreeSet<String>,
}

impl Command for Arguments {
    const STOPS_WITHIN: Duration = Duration::from_secs(5);

    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let Self { installation, source, app, place, why, by: By { by }, consent, format } = self;
        consent.can_be_given()?;
        let ring = context.key_ring()?;
        let backends = context.backends().await?;
        let which = Which { source: Some(source.into()), app_id: app, place };
        let order = ErasureOrder { installation, which, by, why };
        let shutdown = &context.shutdown;
        if !consent.yes {
            let plan = plan(&backends, &ring, &order, shutdown).await?;
            if consent.dry_run {
                return format.print(&plan, render_plan);
            }
            note(&render_plan(&plan));
            ensure!(consent::ask("erase it for good?", shutdown).await?, "nothing was erased");
        }
        let report = erase(&backends, &ring, &order, shutdown).await?;
        format.print(&report, render)?;
        if !report.still_open_under.is_empty() {
            bail!(Differs(still_open(&report.still_open_under)));
        }
        Ok(())
    }
}

fn render_plan(plan: &Plan) -> String {
    let Plan { source, installation_id, secrets, keys_to_destroy, keys_gone_before, .. } = plan;
    let places: Vec<&str> = plan.places.iter().map(Place::as_str).collect();
    let places = places.join(" and ");
    let mut text = format!(
        "would erase {installation_id} of {source}, in {places}\n\
         {secrets} sealed secrets found; {keys_to_destroy} keys would be destroyed, \
         {keys_gone_before} were before"
    );
    if !plan.still_open_under.is_empty() {
        text += &format!("\n{}", still_open(&plan.still_open_under));
    }
    text
}

fn render(report: &Report) -> String {
    let Report { source, installation_id, sequence, secrets, .. } = report;
    format!(
        "erased {installation_id} of {source}, at sequence {sequence} of the log\n\
         {secrets} sealed secrets found; {} keys destroyed, {} were before",
        report.keys_destroyed, report.keys_gone_before
    )
}

pub(super) fn still_open(keys: &BTreeSet<String>) -> String {
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let keys = keys.join(", ");
    format!("secrets that predate data keys still open until these keys are removed: {keys}")
}

/// What an erasure would find now.
async fn plan(
    backends: &Backends,
    ring: &KeyRing,
    order: &ErasureOrder,
    shutdown: &CancellationToken,
) -> anyhow::Result<Plan> {
    let Target { mut connection, end, chosen, known } = find(backends, order, shutdown).await?;
    let of = chosen.events();
    let found = found(backends, &mut connection, &[Sought { of: &of, end }], shutdown).await?;
    let secrets = found.secrets();
    let keys_to_destroy = found.keys_left(backends, ring).await?;
    let Found { still_open_under, .. } = found;
    Ok(Plan {
        source: of.source.clone(),
        installation_id: order.installation.clone(),
        places: known.into_iter().map(|known| known.identity.place).collect(),
        secrets,
        keys_to_destroy,
        keys_gone_before: secrets - keys_to_destroy,
        still_open_under,
    })
}

async fn erase(
    backends: &Backends,
    ring: &KeyRing,
    order: &ErasureOrder,
    shutdown: &CancellationToken,
) -> anyhow::Result<Report> {
    let Target { mut connection, chosen, known, .. } = find(backends, order, shutdown).await?;
    let of = chosen.events();
    let places: Vec<&Place> = known.iter().map(|known| &known.identity.place).collect();
    let erasure = erasures::begin(&mut connection, order, of.source, &places).await?;
    let sequence = append(backends, &known).await?;
    wait_for_workers(backends, sequence, shutdown).await?;

    // What came after that is new, and is not erased.
    let sought = [Sought { of: &of, end: sequence }];
    let found = found(backends, &mut connection, &sought, shutdown).await?;
    let secrets = found.secrets();
    let destroyed = found.destroy(backends, ring).await?;
    erasures::end(&mut connection, erasure, sequence, destroyed).await?;
    Ok(Report {
        source: of.source.clone(),
        installation_id: order.installation.clone(),
        places: places.into_iter().cloned().collect(),
        sequence,
        secrets,
        keys_destroyed: destroyed,
        keys_gone_before: secrets - destroyed,
        still_open_under: found.still_open_under,
    })
}

/// What is to be erased, as everything up to the end of the log tells.
struct Target {
    connection: PoolConnection<Postgres>,
    end: u64,
    chosen: Chosen,
    /// Each place that it is in, or was said to be in.
    known: Vec<Known>,
}

async fn find(
    backends: &Backends,
    order: &ErasureOrder,
    shutdown: &CancellationToken,
) -> anyhow::Result<Target> {
    let ErasureOrder { installation, which, .. } = order;
    // What is on its way may say where else it is installed.
    let end = status::log(&backends.connection).await?.last_sequence;
    wait_for_workers(backends, end, shutdown).await?;
    let mut connection =
        database::acquire(&backends.pool).await.context("connecting to Postgres")?;
    let chosen = match find::choose(&mut connection, &Reach::Everything, which, installation).await
    {
        Err(FindError::NotFound) => bail!(
            "the journal has no event of an installation {installation} of this source, app and \
             place; is it in `worker dead-letters list`?"
        ),
        chosen => chosen?,
    };
    let of = chosen.events();
    let of_source = Reach::Everything.within(Some(of.source.as_str()));
    let mut known = journal::known(&mut connection, &of_source, installation).await?;
    known.retain(|known| !of.is_elsewhere(known.identity.place.as_str()));
    Ok(Target { connection, end, chosen, known })
}

/// The sequence of the last event that says it.
async fn append(backends: &Backends, known: &[Known]) -> anyhow::Result<u64> {
    let writer = Writer::new(backends.connection.clone());
    let now = clock::now();
    let mut last = 0;
    for Known { source, platform, identity } in known {
        let number = fingerprint::random();
        let event =
            Event::erased(source.clone(), platform.clone(), identity.clone(), now, &number)?;
        let message = LogMessage::new(&event)?;
        let appended = writer.append(&message, APPEND_WITHIN).await;
        let appended = appended.context("appending that the installation was erased")?;
        last = appended.sequence.0;
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn what_is_destroyed_is_told_before_and_after() {
        let source = SourceName::parse("blnk").unwrap();
        let installation_id = InstallationId::parse("instapp_1").unwrap();
        let plan = Plan {
            source: source.clone(),
            installation_id: installation_id.clone(),
            places: vec![Place::from_stored("app_1/inst_1".to_owned())],
            secrets: 3,
            keys_to_destroy: 2,
            keys_gone_before: 1,
            still_open_under: BTreeSet::from(["k1".to_owned()]),
        };
        assert_view("erase-dry-run", &render_plan(&plan));
        let report = Report {
            source,
            installation_id,
            places: vec![Place::from_stored("app_1/inst_1".to_owned())],
            sequence: 41,
            secrets: 3,
            keys_destroyed: 2,
            keys_gone_before: 1,
            still_open_under: BTreeSet::new(),
        };
        assert_view("erase", &render(&report));
    }
}
