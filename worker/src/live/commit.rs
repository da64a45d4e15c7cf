//! The commit path: one transaction for a batch of deliveries.
//!
//! Lock the places it touches, append to the journal, fold each place, save,
//! commit. The lock comes first and in a fixed order: two workers that fold one
//! place at a time would each miss the other's event. Whoever acknowledges does
//! it after this returns.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

use domain::event::{Event, Fact};
use domain::event_key::EventKeys;
use domain::fold::{Recorded, Retention, conflicts, fold};
use domain::id::{MessageId, Place, SourceName, StreamSequence};
use eventlog::delivery::Delivery;
use eventlog::message::source_of;
use serde::Serialize;
use sqlx::{Connection as _, PgConnection, PgPool};
use tracing::{Instrument as _, Span, info_span};

use crate::error_chain::chain;
use crate::live::admission::admit;
use crate::live::changes;
use crate::store;
use crate::store::changes::Cause;
use crate::store::database::{self, ClosedIfCancelled};
use crate::store::dead_letters::{self, DeadLetter, Reason};
use crate::store::fold_unit::{self, FoldUnit};
use crate::store::installations::{self, Row};
use crate::store::journal::{self, Appended, Entry};
use crate::store::kept;
use crate::store::late_places;

/// What a committed batch did.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Committed {
    pub(crate) appended: usize,
    pub(crate) duplicates: usize,
    pub(crate) dead_letters: usize,
    /// Of those appended: another event with the same key says otherwise.
    pub(crate) conflicts: usize,
    /// The same for metrics: how many of each source, type and result.
    #[serde(skip)]
    pub(crate) by_kind: ByKind,
}

type ByKind = BTreeMap<(String, &'static str, &'static str), u64>;

impl AddAssign for Committed {
    fn add_assign(&mut self, other: Self) {
        for (kind, count) in other.by_kind {
            *self.by_kind.entry(kind).or_default() += count;
        }
        self.appended += other.appended;
        self.duplicates += other.duplicates;
        self.dead_letters += other.dead_letters;
        self.conflicts += other.conflicts;
    }
}

/// What a failure means for the batch.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    /// Postgres is away or busy: the same batch will do later.
    #[error("committing a batch")]
    Retry(#[source] sqlx::Error),
    /// An event of the batch will never be accepted.
    #[error("an event of the batch cannot be applied")]
    Unappliable(#[source] sqlx::Error),
    /// These cannot be applied, and the others of the batch can.
    #[error("some events of the batch cannot be applied: {}", .why.1)]
    SetAside { events: BTreeSet<MessageId>, why: Why },
    /// Going on would mix two histories.
    #[error(
        "the log holds another event at a sequence that the journal knows: the stream \
         INSTALLATIONS was recreated or restored from an older backup"
    )]
    OtherLog(#[source] sqlx::Error),
}

/// Why an event is set aside, as a dead letter says it.
type Why = (Reason, &'static str);

const NOT_ENTITLED: Why = (Reason::NotEntitled, "an erasure that no operator has published");
const PLACE_FULL: Why =
    (Reason::PlaceFull, "its place has more events that matter than worker.place_events_max");

impl From<sqlx::Error> for CommitError {
    fn from(error: sqlx::Error) -> Self {
        let Some(database) = error.as_database_error() else {
            return match error {
                // A journal row that cannot be read back.
                sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
                    Self::Unappliable(error)
                }
                _ => Self::Retry(error),
            };
        };
        if database.constraint() == Some("journal_stream_sequence_key") {
            return Self::OtherLog(error);
        }
        // SQLSTATE classes: 22 data exception, 23 integrity constraint, 54
        // program limit. Anything else may be mended without touching the event.
        let class = database.code().and_then(|code| code.get(..2).map(str::to_owned));
        match class.as_deref() {
            Some("22" | "23" | "54") => Self::Unappliable(error),
            _ => Self::Retry(error),
        }
    }
}

/// What every event is applied by.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) retention: Retention,
    pub(crate) event_keys: EventKeys,
}

/// How a batch came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// From the consumer: everything up to its ack floor has been committed, and
    /// everything above may still come. Of a place no more than `place_events_max`
    /// events may matter: each that comes costs as much as all of them.
    Consumed { ack_floor: StreamSequence, place_events_max: usize },
    /// By an operator, who may append what is far below it.
    Late,
}

impl Arrival {
    /// Up to where nothing is missing that could still come.
    fn complete_to(self) -> StreamSequence {
        match self {
            Self::Consumed { ack_floor, .. } => ack_floor,
            Self::Late => StreamSequence(0),
        }
    }

    /// As the change feed tells it.
    fn cause(self) -> Cause {
        match self {
            Self::Consumed { .. } => Cause::Event,
            Self::Late => Cause::Replay,
        }
    }

    fn place_events_max(self) -> usize {
        match self {
            Self::Consumed { place_events_max, .. } => place_events_max,
            // It cannot be known yet what of it matters.
            Self::Late => usize::MAX,
        }
    }
}

/// Applies a batch. If one event in it cannot be applied, each is applied by
/// itself and that one becomes a dead letter.
pub(crate) async fn apply(
    pool: &PgPool,
    batch: &[Delivery],
    terms: &Terms,
    arrival: Arrival,
) -> Result<Committed, CommitError> {
    let cause = match commit(pool, batch, terms, arrival).await {
        Err(CommitError::Unappliable(cause)) => cause,
        Err(CommitError::SetAside { events, why }) => {
            return without(pool, batch, (&events, why), terms, arrival).await;
        }
        done => return done,
    };
    if let [only] = batch {
        let letter =
            DeadLetter { delivery: only, reason: Reason::Unappliable, detail: chain(&cause) };
        keep(pool, &letter).await?;
        return Ok(Committed {
            dead_letters: 1,
            by_kind: ByKind::from([(undecoded(only), 1)]),
            ..Committed::default()
        });
    }
    let mut total = Committed::default();
    for delivery in batch {
        total += Box::pin(apply(pool, std::slice::from_ref(delivery), terms, arrival)).await?;
    }
    Ok(total)
}

/// Keeps these events of a batch as dead letters, and applies the others.
async fn without(
    pool: &PgPool,
    batch: &[Delivery],
    (events, (reason, detail)): (&BTreeSet<MessageId>, Why),
    terms: &Terms,
    arrival: Arrival,
) -> Result<Committed, CommitError> {
    // Not by its header, which may say something else.
    let is_left_out = |delivery: &&Delivery| {
        Event::decode_without_payload(&delivery.body)
            .is_ok_and(|event| events.contains(&event.message_id))
    };
    let (left_out, others): (Vec<&Delivery>, Vec<&Delivery>) = batch.iter().partition(is_left_out);
    let mut total = Committed::default();
    for delivery in left_out {
        keep(pool, &DeadLetter { delivery, reason, detail: detail.to_owned() }).await?;
        total.dead_letters += 1;
        *total.by_kind.entry(undecoded(delivery)).or_default() += 1;
    }
    let others: Vec<Delivery> = others.into_iter().cloned().collect();
    if !others.is_empty() {
        total += Box::pin(apply(pool, &others, terms, arrival)).await?;
    }
    Ok(total)
}

async fn keep(pool: &PgPool, letter: &DeadLetter<'_>) -> Result<(), CommitError> {
    tracing::error!(
        sequence = letter.delivery.sequence.0,
        reason = letter.reason.name(),
        detail = letter.detail,
        "dead letter"
    );
    let mut connection = database::acquire(pool).await?;
    dead_letters::keep(&mut connection, letter).await?;
    Ok(())
}

async fn commit(
    pool: &PgPool,
    batch: &[Delivery],
    terms: &Terms,
    arrival: Arrival,
) -> Result<Committed, CommitError> {
    let mut connection = ClosedIfCancelled::acquire(pool).await?;
    let committed = commit_on(&mut connection, batch, terms, arrival).await;
    connection.done();
    committed
}

async fn commit_on(
    connection: &mut PgConnection,
    batch: &[Delivery],
    terms: &Terms,
    arrival: Arrival,
) -> Result<Committed, CommitError> {
    let mut transaction = connection.begin().await?;
    let committed = write(&mut transaction, batch, terms, arrival).await?;
    transaction.commit().instrument(statement("COMMIT", "")).await?;
    Ok(committed)
}

/// What [`apply`] would do. Of the places that the batch touches it takes the
/// locks for a moment; nothing is written.
pub(crate) async fn preview(
    pool: &PgPool,
    batch: &[Delivery],
    terms: &Terms,
) -> Result<Preview, CommitError> {
    let mut connection = database::acquire(pool).await?;
    let mut transaction = connection.begin().await?;
    let (entries, _) = admit(&mut transaction, batch, &terms.event_keys).await?;
    let units: Vec<FoldUnit> =
        entries.iter().filter_map(|entry| FoldUnit::of(&entry.recorded)).collect();
    let before = installations::digests(&mut transaction, &units).await?;
    let committed = write(&mut transaction, batch, terms, Arrival::Late).await?;
    let after = installations::digests(&mut transaction, &units).await?;
    transaction.rollback().await?;
    let changed = after.difference(&before).map(|found| found.installation_id.clone()).collect();
    Ok(Preview { committed, changed })
}

/// What a batch would do.
pub(crate) struct Preview {
    pub(crate) committed: Committed,
    /// The installations that would change or be new.
    pub(crate) changed: Vec<String>,
}

async fn write(
    transaction: &mut PgConnection,
    batch: &[Delivery],
    terms: &Terms,
    arrival: Arrival,
) -> Result<Committed, CommitError> {
    let (decoded, dead_letters) = admit(&mut *transaction, batch, &terms.event_keys).await?;
    let entries = distinct(&decoded);
    let units: Vec<FoldUnit> = {
        let units: BTreeSet<FoldUnit> =
            entries.iter().filter_map(|entry| FoldUnit::of(&entry.recorded)).collect();
        units.into_iter().collect()
    };
    fold_unit::lock(transaction, &units)
        .instrument(statement("SELECT", "pg_advisory_xact_lock"))
        .await?;
    let appended = journal::append(transaction, &entries)
        .instrument(statement("INSERT", "mooring.journal"))
        .await?;
    let Appended { new: appended, moved } = appended;
    let is_late = |entry: &&&Entry| {
        let id = &entry.recorded.event.message_id;
        let is_old = arrival == Arrival::Late || entry.restored;
        is_old && (appended.contains(id) || moved.contains(id))
    };
    let forged = forged(&entries, &appended, arrival);
    if !forged.is_empty() {
        return Err(CommitError::SetAside { events: forged, why: NOT_ENTITLED });
    }
    let late = entries.iter().filter(is_late).filter_map(|entry| FoldUnit::of(&entry.recorded));
    let late: BTreeSet<FoldUnit> = late.collect();
    if !late.is_empty() {
        kept::keep_all(transaction, &late).await?;
        late_places::add(transaction, &late).await?;
    }
    let incoming: Vec<&Recorded> = entries.iter().map(|entry| &entry.recorded).collect();
    let needed = kept::read(transaction, &units, &incoming)
        .instrument(statement("SELECT", "mooring.journal"))
        .await?;
    let before = installations::states(transaction, None, &known(&needed.history, &appended))
        .instrument(statement("SELECT", "projection.installations"))
        .await?;
    let rows = fold_places(&needed.history, terms.retention);
    let changes = changes::between(before, &rows, &incoming);
    installations::save(transaction, rows)
        .instrument(statement("INSERT", "projection.installations"))
        .await?;
    let full = kept::mark(transaction, &needed, arrival.complete_to(), arrival.place_events_max())
        .instrument(statement("UPDATE", "mooring.journal"))
        .await?;
    let too_many = too_many(&entries, &appended, &full);
    if !too_many.is_empty() {
        return Err(CommitError::SetAside { events: too_many, why: PLACE_FULL });
    }
    for letter in &dead_letters {
        dead_letters::keep(transaction, letter)
            .instrument(statement("INSERT", "mooring.dead_letters"))
            .await?;
    }
    store::changes::append(transaction, arrival.cause(), &changes)
        .instrument(statement("INSERT", "mooring.changes"))
        .await?;
    let conflicts = new_conflicts(&needed.history, &appended);
    let by_kind = by_kind(&decoded, &entries, &appended, &dead_letters);
    let (appended, dead_letters) = (appended.len(), dead_letters.len());
    let duplicates = batch.len() - dead_letters - appended;
    Ok(Committed { appended, duplicates, dead_letters, conflicts, by_kind })
}

/// The places that were known before the batch. The others have no state yet, and in a burst of
/// installs those are all.
fn known(history: &[Recorded], new: &BTreeSet<MessageId>) -> Vec<FoldUnit> {
    let before = history.iter().filter(|recorded| !new.contains(&recorded.event.message_id));
    let units: BTreeSet<FoldUnit> = before.filter_map(FoldUnit::of).collect();
    units.into_iter().collect()
}

/// Erasures that a service has published. Only operators erase. Those of earlier
/// versions are in the journal; an operator who replays the log brings them in again.
fn forged(entries: &[&Entry], new: &BTreeSet<MessageId>, arrival: Arrival) -> BTreeSet<MessageId> {
    if arrival == Arrival::Late {
        return BTreeSet::new();
    }
    let is_forged = |entry: &&&Entry| {
        matches!(entry.recorded.event.fact, Fact::Erased { .. }) && !entry.by_operator
    };
    let forged = entries.iter().filter(is_forged).map(|entry| &entry.recorded.event.message_id);
    forged.filter(|id| new.contains(*id)).cloned().collect()
}

/// What has come to a full place just now. An erasure must always be possible.
fn too_many(
    entries: &[&Entry],
    new: &BTreeSet<MessageId>,
    full: &BTreeSet<FoldUnit>,
) -> BTreeSet<MessageId> {
    let is_in_full = |recorded: &&Recorded| {
        let is_erasure = matches!(recorded.event.fact, Fact::Erased { .. });
        !is_erasure && FoldUnit::of(recorded).is_some_and(|unit| full.contains(&unit))
    };
    let recorded = entries.iter().map(|entry| &entry.recorded).filter(is_in_full);
    let ids = recorded.map(|recorded| recorded.event.message_id.clone());
    ids.filter(|id| new.contains(id)).collect()
}

fn by_kind(
    decoded: &[Entry],
    distinct: &[&Entry],
    appended: &BTreeSet<MessageId>,
    dead_letters: &[DeadLetter<'_>],
) -> ByKind {
    let mut counts = ByKind::new();
    let kind = |entry: &Entry, result| {
        let event = &entry.recorded.event;
        (event.source.to_string(), event.fact.kind(), result)
    };
    for entry in decoded {
        *counts.entry(kind(entry, "duplicate")).or_default() += 1;
    }
    let is_new = |entry: &&&Entry| appended.contains(&entry.recorded.event.message_id);
    for entry in distinct.iter().filter(is_new) {
        *counts.entry(kind(entry, "duplicate")).or_default() -= 1;
        *counts.entry(kind(entry, "appended")).or_default() += 1;
    }
    for letter in dead_letters {
        *counts.entry(undecoded(letter.delivery)).or_default() += 1;
    }
    counts.retain(|_, count| *count > 0);
    counts
}

/// What is known of a dead letter: the source in its subject.
fn undecoded(delivery: &Delivery) -> (String, &'static str, &'static str) {
    let source = source_of(&delivery.subject).unwrap_or_default();
    (source.to_owned(), "unknown", "dead_letter")
}

fn statement(operation: &'static str, collection: &'static str) -> Span {
    info_span!(
        "postgres",
        otel.name = format!("{operation} {collection}").trim_end(),
        otel.kind = "client",
        db.system.name = "postgresql",
        db.operation.name = operation,
        db.collection.name = collection,
    )
}

/// One statement may not touch a row twice, so of copies in one batch only the
/// first in the log is taken.
fn distinct(entries: &[Entry]) -> Vec<&Entry> {
    let mut first: BTreeMap<&MessageId, &Entry> = BTreeMap::new();
    for entry in entries {
        let kept = first.entry(&entry.recorded.event.message_id).or_insert(entry);
        if entry.recorded.sequence < kept.recorded.sequence {
            *kept = entry;
        }
    }
    first.into_values().collect()
}

fn new_conflicts(history: &[Recorded], appended: &BTreeSet<MessageId>) -> usize {
    let found = conflicts(history).into_iter().filter(|id| appended.contains(*id));
    found.inspect(|id| tracing::warn!(message_id = id.as_str(), "conflict")).count()
}

/// Folds events of any places, each place by itself.
pub(crate) fn fold_places(history: &[Recorded], retention: Retention) -> Vec<Row> {
    let mut by_place: BTreeMap<(&SourceName, &Place), Vec<&Recorded>> = BTreeMap::new();
    for recorded in history {
        let Some(identity) = recorded.event.fact.identity() else { continue };
        by_place.entry((&recorded.event.source, &identity.place)).or_default().push(recorded);
    }
    let mut rows = Vec::with_capacity(by_place.len());
    for ((source, _), events) in by_place {
        let Some(platform) = events.first().map(|first| first.event.platform.clone()) else {
            continue;
        };
        for installation in fold(events, retention) {
            rows.push(Row { source: source.clone(), platform: platform.clone(), installation });
        }
    }
    rows
}
