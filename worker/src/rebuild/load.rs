//! Fills an empty projection from the log, or from the journal.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use shared::event::Event;
use shared::fold::{Recorded, Retention};
use shared::log::{PARTITIONS, partition_of};
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::commit::fold_places;
use crate::journal::{self, FoldUnit};
use crate::log_reader::{self, LogReader, Start};
use crate::progress::Progress;
use crate::rebuild::schema::{self, Schema};
use crate::rebuild::spill::{Events, Spill};
use crate::rebuild::state::{self, Rebuild};
use crate::rebuild::{Backends, Interrupted, RebuildOptions};
use crate::{database, dead_letter, projection};
use shared::id::StreamSequence;

/// Rows of one statement.
const ROWS_MAX: usize = 2_000;
/// Places that are folded from the journal together.
const PLACES_MAX: usize = 1_000;
const JOURNAL_EVENTS_MAX: i64 = 20_000;

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Loaded {
    pub(crate) events: u64,
    pub(crate) dead_letters: u64,
}

/// From the log: read once, sorted by partition, then folded partition by
/// partition.
pub(crate) async fn from_log(
    backends: &Backends,
    schema: Schema,
    options: &RebuildOptions,
    rebuild: &Rebuild,
    shutdown: &CancellationToken,
) -> anyhow::Result<Loaded> {
    let mut connection = database::acquire(&backends.pool).await?;
    let dead = dead_letter::unresolved(&mut connection).await?;
    drop(connection);
    let (spill, loaded) = sort(backends, options, rebuild, &dead, shutdown).await?;
    fold(backends, schema, options, rebuild, spill, shutdown).await?;
    Ok(loaded)
}

async fn sort(
    backends: &Backends,
    options: &RebuildOptions,
    rebuild: &Rebuild,
    dead: &BTreeSet<u64>,
    shutdown: &CancellationToken,
) -> anyhow::Result<(Spill, Loaded)> {
    let folder = &options.temp_dir;
    let context = || format!("a temporary file in {} (--temp-dir)", folder.display());
    let mut spill = Spill::create(folder).with_context(context)?;
    let mut loaded = Loaded::default();
    if rebuild.target == 0 {
        return Ok((spill, loaded));
    }
    let mut progress = Progress::new("reading events", rebuild.target);
    let start = Start::Sequence(1);
    let mut reader = LogReader::open(&backends.client, start, rebuild.target, None).await?;
    let mut unreported = 0;
    while let Some(message) = reader.next().await? {
        unreported += 1;
        if unreported == 1_000 {
            progress.add(unreported);
            unreported = 0;
            if shutdown.is_cancelled() {
                bail!(Interrupted);
            }
        }
        let sequence = log_reader::sequence(&message)?;
        let Some(partition) = partition_of(&message.subject) else {
            bail!("a subject without a partition: {}", message.subject);
        };
        if dead.contains(&sequence) {
            loaded.dead_letters += 1;
        } else {
            loaded.events += 1;
            if !rebuild.partitions_done.contains(&partition) {
                let pushed = spill.push(partition, StreamSequence(sequence), &message.payload);
                pushed.with_context(context)?;
            }
        }
    }
    progress.add(unreported);
    progress.finish();
    Ok((spill, loaded))
}

/// What the tasks that fold partitions share.
struct Folding {
    pool: PgPool,
    schema: Schema,
    rebuild: Option<i64>,
    retention: Retention,
    spill: Spill,
    partitions: Mutex<VecDeque<u8>>,
    shutdown: CancellationToken,
}

async fn fold(
    backends: &Backends,
    schema: Schema,
    options: &RebuildOptions,
    rebuild: &Rebuild,
    spill: Spill,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let todo = (0..PARTITIONS).filter(|partition| !rebuild.partitions_done.contains(partition));
    let partitions: VecDeque<u8> = todo.collect();
    let events = partitions.iter().map(|partition| spill.events_of(*partition)).sum();
    let folding = Arc::new(Folding {
        pool: backends.pool.clone(),
        schema,
        rebuild: rebuild.id(),
        retention: backends.retention,
        spill,
        partitions: Mutex::new(partitions),
        shutdown: shutdown.clone(),
    });
    let (done, mut folded) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for _ in 0..options.parallel.max(1) {
        tasks.spawn(Arc::clone(&folding).run(done.clone()));
    }
    drop(done);
    let mut progress = Progress::new("folding events", events);
    while let Some(events) = folded.recv().await {
        progress.add(events);
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    progress.finish();
    Ok(())
}

impl Folding {
    fn next(&self) -> Option<u8> {
        self.partitions.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    async fn run(self: Arc<Self>, done: mpsc::UnboundedSender<u64>) -> anyhow::Result<()> {
        while let Some(partition) = self.next() {
            if self.shutdown.is_cancelled() {
                bail!(Interrupted);
            }
            self.partition(partition).await?;
            done.send(self.spill.events_of(partition)).ok();
        }
        Ok(())
    }

    async fn partition(&self, partition: u8) -> anyhow::Result<()> {
        let events = self.spill.read(partition).context("reading the temporary file back")?;
        let rows = fold_places(&decode(&events)?, self.retention);
        drop(events);
        let mut connection = database::acquire(&self.pool).await?;
        let mut transaction = connection.begin().await?;
        // Lost in a crash together with the record of it.
        sqlx::query("SET LOCAL synchronous_commit TO off").execute(&mut *transaction).await?;
        schema::write_to(&mut transaction, self.schema).await?;
        save(&mut transaction, rows).await?;
        if let Some(id) = self.rebuild {
            state::mark_partition(&mut transaction, id, partition).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

fn decode(events: &Events) -> anyhow::Result<Vec<Recorded>> {
    let decode = |(sequence, body): (StreamSequence, &[u8])| {
        let event = Event::decode_without_payload(body).with_context(|| {
            format!("the event at sequence {sequence} cannot be read, and is not a dead letter yet")
        })?;
        Ok(Recorded { sequence, event })
    };
    events.iter().map(decode).collect()
}

async fn save(
    transaction: &mut PgConnection,
    rows: Vec<projection::Row>,
) -> Result<(), sqlx::Error> {
    let mut rows = rows.into_iter();
    loop {
        let some: Vec<projection::Row> = rows.by_ref().take(ROWS_MAX).collect();
        if some.is_empty() {
            return Ok(());
        }
        projection::save(transaction, some).await?;
    }
}

/// Folds these places from the journal.
pub(crate) async fn save_places(
    transaction: &mut PgConnection,
    schema: Schema,
    units: &[FoldUnit],
    retention: Retention,
) -> anyhow::Result<()> {
    for units in units.chunks(PLACES_MAX) {
        let history = journal::of_places(transaction, units).await?;
        schema::write_to(transaction, schema).await?;
        save(transaction, fold_places(&history, retention)).await?;
    }
    Ok(())
}

/// From the journal: place by place, in the order of its index.
pub(crate) async fn from_journal(
    backends: &Backends,
    schema: Schema,
    rebuild: &mut Rebuild,
    shutdown: &CancellationToken,
) -> anyhow::Result<Loaded> {
    let mut connection = database::acquire(&backends.pool).await?;
    let total = journal::count(&mut connection).await?;
    let mut loaded = Loaded::default();
    let mut progress = Progress::new("folding events", total);
    loop {
        if shutdown.is_cancelled() {
            bail!(Interrupted);
        }
        let mut transaction = connection.begin().await?;
        let after = rebuild.last_place.as_ref();
        let events = journal::after_place(&mut transaction, after, JOURNAL_EVENTS_MAX).await?;
        let Some(last) = events.last().and_then(FoldUnit::of) else { break };
        let is_end = events.len() < usize::try_from(JOURNAL_EVENTS_MAX).unwrap_or(usize::MAX);
        let (whole, last) = if is_end { (events, last) } else { whole_places(events, last)? };
        schema::write_to(&mut transaction, schema).await?;
        save(&mut transaction, fold_places(&whole, backends.retention)).await?;
        if let Some(id) = rebuild.id() {
            state::mark_place(&mut transaction, id, &last).await?;
        }
        transaction.commit().await?;
        loaded.events += whole.len() as u64;
        progress.add(whole.len() as u64);
        rebuild.last_place = Some(last);
        if is_end {
            break;
        }
    }
    progress.finish();
    Ok(loaded)
}

/// The last place may go on behind the limit: it is left for the next time.
fn whole_places(
    events: Vec<Recorded>,
    last: FoldUnit,
) -> anyhow::Result<(Vec<Recorded>, FoldUnit)> {
    let mut by_place: BTreeMap<bool, Vec<Recorded>> = BTreeMap::new();
    for recorded in events {
        let is_last = FoldUnit::of(&recorded).as_ref() == Some(&last);
        by_place.entry(is_last).or_default().push(recorded);
    }
    let whole = by_place.remove(&false).unwrap_or_default();
    match whole.last().and_then(FoldUnit::of) {
        Some(last) => Ok((whole, last)),
        None => bail!("more than {JOURNAL_EVENTS_MAX} events in the place {}", last.place.as_str()),
    }
}
