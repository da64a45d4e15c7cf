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

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use domain::event::Event;
use domain::fingerprint;
use domain::id::{DataKeyId, InstallationId, PageId, Place, SourceName};
use domain::key_ring::KeyRing;
use domain::seal::{Sealed, SealedUnder};
use eventlog::append::Writer;
use eventlog::archive::History;
use eventlog::keys::{self as data_keys, Replaced};
use eventlog::message::{LogMessage, header_subject, subjects_of};
use eventlog::read::{Selection, Start};
use eventlog::status;
use serde::Serialize;
use serde_json::Value;
use service::clock;
use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres};
use tokio_util::sync::CancellationToken;

use crate::operate::backends::{Backends, wait_for_workers};
use crate::operate::consent::{self, By, Consent};
use crate::operate::context::{Command, Context};
use crate::operate::exit::Differs;
use crate::operate::output::Format;
use crate::operate::progress::note;
use crate::store::archived;
use crate::store::database;
use crate::store::dead_letters;
use crate::store::erasures::{self, ErasureOrder};
use crate::store::find::{self, Chosen, FindError, Which};
use crate::store::journal::{self, EventsOf, Known};
use crate::store::reach::Reach;

const APPEND_WITHIN: Duration = Duration::from_secs(30);
/// Others may change the same page at the same time.
const REPLACE_ATTEMPTS: usize = 20;

/// Make every secret of an installation unreadable for good
#[derive(Args)]
#[command(after_long_help = "\
Afterwards no secret of the installation opens any more, from archive, log, journal or projection
or from a backup of any of them. What happened stays readable, and a rebuild equals the live
projection.
Names and e-mail addresses in payloads are not secrets, and stay.

Not covered: a backup of the streams DATA_KEYS and NEW_DATA_KEYS from before. Keep those no longer
than you may keep the secrets, and run the erasures of mooring.erasures again after you restored one. What the
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

fn still_open(keys: &BTreeSet<String>) -> String {
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
    let (keys, still_open_under) = keys_of(&envelopes(backends, &mut connection, &of, end).await?);
    let secrets = keys.values().map(BTreeSet::len).sum();
    let mut keys_to_destroy = 0;
    for (page, slots) in keys {
        let page = data_keys::page(&backends.connection, &page).await?.open(ring)?;
        keys_to_destroy += slots.iter().filter(|slot| page.key(**slot).is_some()).count();
    }
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
    let (keys, still_open_under) =
        keys_of(&envelopes(backends, &mut connection, &of, sequence).await?);
    let (mut destroyed, mut gone_before) = (0, 0);
    for (page, slots) in keys {
        let now = destroy(backends, ring, &page, &slots).await?;
        destroyed += now;
        gone_before += slots.len() - now;
    }
    erasures::end(&mut connection, erasure, sequence, destroyed).await?;
    Ok(Report {
        source: of.source.clone(),
        installation_id: order.installation.clone(),
        places: places.into_iter().cloned().collect(),
        sequence,
        secrets: destroyed + gone_before,
        keys_destroyed: destroyed,
        keys_gone_before: gone_before,
        still_open_under,
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

/// Every envelope of the installation up to `end`.
async fn envelopes(
    backends: &Backends,
    connection: &mut PgConnection,
    of: &EventsOf<'_>,
    end: u64,
) -> anyhow::Result<Vec<Sealed>> {
    let untrimmed = backends.history().await?;
    if archived::last_sequence(connection).await? > 0 {
        // What left the journal for the archive must be found there.
        untrimmed.history.require_whole()?;
    }
    let mut found = envelopes_in_history(backends, &untrimmed.history, of, end).await?;
    // The log may lack what was trimmed before there was an archive.
    for body in journal::bodies(connection, of, end).await? {
        collect(&body, &mut found);
    }
    for body in dead_letters::bodies(connection, of, end).await? {
        collect(&body, &mut found);
    }
    Ok(found)
}

async fn envelopes_in_history(
    backends: &Backends,
    history: &History,
    of: &EventsOf<'_>,
    end: u64,
) -> anyhow::Result<Vec<Sealed>> {
    let all = Selection::of_log(subjects_of(of.source), Start::Sequence(1), end);
    let mut reader = history.read(&backends.connection, all).await?;
    let wanted = header_subject(of.installation);
    let mut found = Vec::new();
    while let Some(delivery) = reader.next().await? {
        if delivery.about() == Some(wanted.as_str()) {
            // What is not JSON was not written by us and holds no envelope.
            let event = serde_json::from_slice(&delivery.body).unwrap_or_default();
            if of.includes(&event) {
                collect(&event, &mut found);
            }
        }
    }
    Ok(found)
}

/// The envelopes of an event, where we put them and nowhere else: a payload may
/// hold anything, what looks like an envelope of another event included.
fn collect(event: &Value, found: &mut Vec<Sealed>) {
    for place in ["/fact/credential/sealed", "/payload/sealed"] {
        if let Some(Value::String(text)) = event.pointer(place) {
            found.push(Sealed::from_stored(text.clone()));
        }
    }
}

/// Slots by page, and the keys of the ring that secrets are sealed under.
fn keys_of(envelopes: &[Sealed]) -> (BTreeMap<PageId, BTreeSet<u8>>, BTreeSet<String>) {
    let (mut pages, mut ring_keys) = (BTreeMap::new(), BTreeSet::new());
    for envelope in envelopes {
        match envelope.under() {
            Ok(SealedUnder::DataKey(DataKeyId { page, slot })) => {
                let slots: &mut BTreeSet<u8> = pages.entry(PageId::clone(&page)).or_default();
                slots.insert(slot);
            }
            Ok(SealedUnder::SymmetricKey(id) | SealedUnder::KeyPair(id)) => {
                ring_keys.insert(id.to_string());
            }
            Err(_) => {}
        }
    }
    (pages, ring_keys)
}

/// How many of the slots were not destroyed yet.
async fn destroy(
    backends: &Backends,
    ring: &KeyRing,
    id: &PageId,
    slots: &BTreeSet<u8>,
) -> anyhow::Result<usize> {
    let connection = &backends.connection;
    for _ in 0..REPLACE_ATTEMPTS {
        let stored = data_keys::page(connection, id).await?;
        let mut page = stored.open(ring)?;
        let destroyed = slots.iter().filter(|slot| page.destroy(**slot)).count();
        if destroyed == 0 {
            data_keys::destroy_former(connection, &stored, &page).await?;
            return Ok(0);
        }
        if data_keys::replace(connection, ring, &page, stored.version).await? == Replaced::Yes {
            let now = data_keys::page(connection, id).await?.open(ring)?;
            let is_gone = slots.iter().all(|slot| now.key(*slot).is_none());
            ensure!(is_gone, "page {id} was stored and holds a destroyed key still");
            return Ok(destroyed);
        }
    }
    bail!("page {id} of data keys is changed by others all the time")
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
