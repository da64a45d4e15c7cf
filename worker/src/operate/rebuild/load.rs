//! Fills an empty projection from the log, or from the journal.

use std::collections::{BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use domain::event::Event;
use domain::fold::{Recorded, Retention};
use eventlog::archive::History;
use eventlog::connect::Connection;
use eventlog::message::{PARTITIONS, all_subjects, partition_of};
use eventlog::read::{Selection, Start};
use sqlx::{Connection as _, PgConnection, PgPool};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::live::commit::fold_places;
use crate::metrics::METRICS;
use crate::operate::backends::Backends;
use crate::operate::exit::Interrupted;
use crate::operate::progress::Progress;
use crate::operate::rebuild::Options;
use crate::operate::rebuild::pace::Pace;
use crate::operate::rebuild::spill::{Events, Spill};
use crate::store::database;
use crate::store::dead_letters;
use crate::store::fold_unit::FoldUnit;
use crate::store::installations;
use crate::store::journal;
use crate::store::rebuilds::{self, Rebuild};
use crate::store::schema::{self, Schema};

/// Events whose rows are saved together, or more if a partition holds more.
const TOGETHER_EVENTS: u64 = 30_000;
/// Places that are folded from the journal together.
const PLACES_MAX: usize = 1_000;
const JOURNAL_EVENTS_MAX: i64 = 20_000;
/// Events read between two looks at Ctrl-C.
const REPORT_EVERY: u64 = 1_000;

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Loaded {
    pub(crate) events: u64,
    pub(crate) dead_letters: u64,
}

/// From archive and log: read once, in parallel ranges, sorted by partition, then folded
/// partition by partition.
pub(crate) async fn from_log(
    backends: &Backends,
    schema: Schema,
    options: &Options,
    rebuild: &Rebuild,
    shutdown: &CancellationToken,
) -> anyhow::Result<Loaded> {
    let mut connection = database::acquire(&backends.pool).await?;
    let dead = dead_letters::left_out(&mut connection).await?;
    drop(connection);
    let untrimmed = backends.history().await?;
    untrimmed.history.require_whole()?;
    let (spills, loaded) =
        sort(backends, &untrimmed.history, options, rebuild, dead, shutdown).await?;
    drop(untrimmed);
    fold(backends, schema, options, rebuild, spills, shutdown).await?;
    Ok(loaded)
}

async fn sort(
    backends: &Backends,
    history: &History,
    options: &Options,
    rebuild: &Rebuild,
    dead: BTreeSet<u64>,
    shutdown: &CancellationToken,
) -> anyhow::Result<(Vec<Spill>, Loaded)> {
    let sorting = Arc::new(Sorting {
        history: history.clone(),
        temp_dir: options.effort.temp_dir.clone(),
        partitions_done: rebuild.partitions_done.clone(),
        dead,
        pace: Pace::new(options.effort.max_rate),
        shutdown: shutdown.clone(),
    });
    let (done, mut read) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    for (from, to) in ranges(rebuild.target.sequence, options.effort.parallel) {
        let connection = Connection::open(&backends.endpoint, "rebuild").await?;
        tasks.spawn(Arc::clone(&sorting).run(connection, from, to, done.clone()));
    }
    drop(done);
    let mut progress = Progress::of_rebuild("reading events", "reading", rebuild.target.sequence);
    while let Some(events) = read.recv().await {
        METRICS.rebuild_events.add(events, &[]);
        progress.add(events);
    }
    let (mut spills, mut loaded) = (Vec::new(), Loaded::default());
    while let Some(ended) = tasks.join_next().await {
        let (spill, range) = ended??;
        spills.push(spill);
        loaded.events += range.events;
        loaded.dead_letters += range.dead_letters;
    }
    progress.finish();
    Ok((spills, loaded))
}

/// Sequences 1 to `target` in `count` parts, as first and last of each.
fn ranges(target: u64, count: usize) -> Vec<(u64, u64)> {
    let length = target.div_ceil(count.max(1) as u64).max(1);
    let from = (0..).map(|index| index * length + 1).take_while(|from| *from <= target);
    from.map(|from| (from, (from + length - 1).min(target))).collect()
}

/// What the tasks that read ranges share.
struct Sorting {
    history: History,
    temp_dir: PathBuf,
    partitions_done: BTreeSet<u8>,
    dead: BTreeSet<u64>,
    pace: Pace,
    shutdown: CancellationToken,
}

impl Sorting {
    async fn run(
        self: Arc<Self>,
        connection: Connection,
        from: u64,
        to: u64,
        done: mpsc::UnboundedSender<u64>,
    ) -> anyhow::Result<(Spill, Loaded)> {
        let context = || format!("a temporary file in {} (--temp-dir)", self.temp_dir.display());
        let mut spill = Spill::create(&self.temp_dir).with_context(context)?;
        let mut loaded = Loaded::default();
        let range = Selection::of_log(all_subjects(), Start::Sequence(from), to);
        let mut reader = self.history.read(&connection, range).await?;
        let mut unreported = 0;
        while let Some(delivery) = reader.next().await? {
            unreported += 1;
            if unreported == REPORT_EVERY {
                done.send(std::mem::take(&mut unreported)).ok();
                tokio::select! {
                    () = self.pace.keep(REPORT_EVERY) => {}
                    () = self.shutdown.cancelled() => {}
                }
                if self.shutdown.is_cancelled() {
                    bail!(Interrupted);
                }
            }
            let Some(partition) = partition_of(&delivery.subject) else {
                bail!("a subject without a partition: {}", delivery.subject);
            };
            if self.dead.contains(&delivery.position().0) {
                loaded.dead_letters += 1;
                continue;
            }
            loaded.events += 1;
            if !self.partitions_done.contains(&partition) {
                let pushed = spill.push(partition, delivery.position(), &delivery.body);
                pushed.with_context(context)?;
            }
        }
        done.send(unreported).ok();
        Ok((spill, loaded))
    }
}

/// What the tasks that fold partitions share.
struct Folding {
    pool: PgPool,
    schema: Schema,
    rebuild: Option<i64>,
    retention: Retention,
    spills: Vec<Spill>,
    partitions: Mutex<VecDeque<u8>>,
    pace: Pace,
    shutdown: CancellationToken,
}

async fn fold(
    backends: &Backends,
    schema: Schema,
    options: &Options,
    rebuild: &Rebuild,
    spills: Vec<Spill>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let todo = (0..PARTITIONS).filter(|partition| !rebuild.partitions_done.contains(partition));
    let partitions: VecDeque<u8> = todo.collect();
    let folding = Arc::new(Folding {
        pool: backends.pool.clone(),
        schema,
        rebuild: rebuild.id(),
        retention: backends.retention,
        spills,
        partitions: Mutex::new(partitions.clone()),
        pace: Pace::new(options.effort.max_rate),
        shutdown: shutdown.clone(),
    });
    let events = partitions.iter().map(|partition| folding.events_of(*partition)).sum();
    let (done, mut folded) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    // The rebuild itself holds connections, too.
    let connections = backends.pool.options().get_max_connections().saturating_sub(3);
    let tasks_max = usize::try_from(connections).unwrap_or(1).max(1);
    for _ in 0..options.effort.parallel.clamp(1, tasks_max) {
        tasks.spawn(Arc::clone(&folding).run(done.clone()));
    }
    drop(done);
    let mut progress = Progress::of_rebuild("folding events", "folding", events);
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
    /// Partitions that are saved together: each COPY waits once for the network.
    fn next(&self) -> Vec<u8> {
        let mut partitions = self.partitions.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut some, mut events) = (Vec::new(), 0);
        while events < TOGETHER_EVENTS
            && let Some(partition) = partitions.pop_front()
        {
            events += self.events_of(partition);
            some.push(partition);
        }
        some
    }

    async fn run(self: Arc<Self>, done: mpsc::UnboundedSender<u64>) -> anyhow::Result<()> {
        loop {
            let partitions = self.next();
            if partitions.is_empty() {
                return Ok(());
            }
            if self.shutdown.is_cancelled() {
                bail!(Interrupted);
            }
            self.save(&partitions).await?;
            let events = partitions.iter().map(|partition| self.events_of(*partition)).sum();
            done.send(events).ok();
            tokio::select! {
                () = self.pace.keep(events) => {}
                () = self.shutdown.cancelled() => {}
            }
        }
    }

    fn events_of(&self, partition: u8) -> u64 {
        self.spills.iter().map(|spill| spill.events_of(partition)).sum()
    }

    async fn save(&self, partitions: &[u8]) -> anyhow::Result<()> {
        let mut rows = Vec::new();
        for partition in partitions {
            rows.extend(self.fold(*partition)?);
        }
        let mut connection = database::acquire(&self.pool).await?;
        let mut transaction = connection.begin().await?;
        // Lost in a crash together with the record of it.
        database::commit_without_waiting(&mut transaction).await?;
        if !rows.is_empty() {
            installations::copy_in(&mut transaction, self.schema, &rows).await?;
        }
        if let Some(id) = self.rebuild {
            rebuilds::mark_partitions(&mut transaction, id, partitions).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    fn fold(&self, partition: u8) -> anyhow::Result<Vec<installations::Row>> {
        let mut events = Vec::new();
        for spill in &self.spills {
            let read = spill.read(partition).context("reading the temporary file back")?;
            decode(&read, &mut events)?;
        }
        Ok(fold_places(&events, self.retention))
    }
}

fn decode(events: &Events, into: &mut Vec<Recorded>) -> anyhow::Result<()> {
    for (sequence, body) in events.iter() {
        let event = Event::decode_without_payload(body).with_context(|| {
            format!("the event at sequence {sequence} cannot be read, and is not a dead letter yet")
        })?;
        into.push(Recorded { sequence, event });
    }
    Ok(())
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
        installations::save(transaction, fold_places(&history, retention)).await?;
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
    let mut progress = Progress::of_rebuild("folding events", "folding", total);
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
        installations::copy_in(&mut transaction, schema, &fold_places(&whole, backends.retention))
            .await?;
        if let Some(id) = rebuild.id() {
            rebuilds::mark_place(&mut transaction, id, &last).await?;
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
    let mut whole = events;
    whole.retain(|recorded| FoldUnit::of(recorded).as_ref() != Some(&last));
    match whole.last().and_then(FoldUnit::of) {
        Some(last) => Ok((whole, last)),
        None => bail!("more than {JOURNAL_EVENTS_MAX} events in the place {}", last.place.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_every_sequence_once() {
        for (target, count) in [(0, 2), (1, 2), (2, 2), (10, 3), (1_000_000, 7), (5, 0)] {
            let ranges = ranges(target, count);
            assert!(ranges.len() <= count.max(1), "{ranges:?}");
            let sequences: Vec<u64> = ranges.iter().flat_map(|(from, to)| *from..=*to).collect();
            assert_eq!(sequences, (1..=target).collect::<Vec<u64>>());
        }
    }
}
