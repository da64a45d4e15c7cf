//! The whole history of a log: what is archived from the archive, the rest from
//! the log, in one order and of one type.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use futures_util::stream::{BoxStream, StreamExt as _};
use jiff::Timestamp;

use super::ArchiveError;
use super::chain::{Archive, Chain, Segment};
use super::manifest::{Frame, LogIdentity, Manifest};
use super::storage::{Location, Storage};
use crate::connect::Connection;
use crate::delivery::Delivery;
use crate::read::{Reader, Selection, Start};
use crate::status::{self, StreamStatus};

/// Frames that are fetched and unpacked ahead.
const FRAMES_AHEAD: usize = 4;

/// Log and archive at one moment. A clone reads the same.
#[derive(Debug, Clone)]
pub struct History {
    archive: Option<(Archive, Chain)>,
    pub log: StreamStatus,
    /// The positions that a log had when it was restored: they begin before its sequences.
    restored: Option<RangeInclusive<u64>>,
}

impl History {
    /// What the archive has of the log that is there now, and the log. A log that lacks
    /// nothing is read alone, wherever the archive is.
    pub async fn find(connection: &Connection, at: Option<&Location>) -> anyhow::Result<Self> {
        let log = status::log(connection).await?;
        let archive = match at {
            // Or it lacks some in the middle: trimming was interrupted.
            Some(location) if log.messages < log.last_sequence => {
                let storage = Storage::open(location)?;
                let archive = Archive::new(storage, LogIdentity::new(log.created_at));
                let chain = archive.chain().await?;
                Some((archive, chain))
            }
            Some(_) | None => None,
        };
        // After the chain: what the log lacks by now is in a segment that is found, unless it
        // was archived this moment.
        let log = status::log(connection).await?;
        Ok(Self { archive, log, restored: None })
    }

    pub fn restored(self, restored: Option<RangeInclusive<u64>>) -> Self {
        Self { restored, ..self }
    }

    /// What the archive of a log has, whether that log is there or not.
    pub async fn of_archive(
        connection: &Connection,
        at: &Location,
        log: LogIdentity,
    ) -> anyhow::Result<Self> {
        let archive = Archive::new(Storage::open(at)?, log);
        let chain = archive.chain().await?;
        let log = status::log(connection).await?;
        Ok(Self { archive: Some((archive, chain)), log, restored: None })
    }

    /// The first position that can be read.
    pub fn first_sequence(&self) -> u64 {
        let archived = self.archive.as_ref().and_then(|(_, chain)| chain.first_sequence());
        let log = self.log_begins();
        archived.map_or(log, |first| first.min(log))
    }

    fn log_begins(&self) -> u64 {
        let first = self.log.first_sequence;
        let restored = self.restored.as_ref().filter(|restored| first <= *restored.end());
        restored.map_or(first, |restored| first.min(*restored.start()))
    }

    /// Up to here it is read from the archive; 0 if nothing is.
    pub fn archived_to(&self) -> u64 {
        self.archive.as_ref().map_or(0, |(_, chain)| chain.last_sequence())
    }

    /// An error if there are events that neither has.
    pub fn require_whole(&self) -> Result<(), ArchiveError> {
        let (log_first, archived) = (self.log_begins(), self.archived_to());
        let begins = self.first_sequence();
        if begins <= 1 && archived + 1 >= log_first {
            return Ok(());
        }
        let archive = match (&self.archive, archived) {
            (None, _) => "is not configured (worker.archive)".to_owned(),
            (Some((archive, _)), 0) => format!("{} has nothing of this log", archive.shown()),
            (Some((archive, chain)), last) => {
                let first = chain.first_sequence().unwrap_or_default();
                format!("{} has sequences {first} to {last}", archive.shown())
            }
        };
        Err(ArchiveError::Hole { log_first, archive })
    }

    /// The selected messages, in the order of the log.
    pub async fn read(
        &self,
        connection: &Connection,
        selection: Selection,
    ) -> anyhow::Result<HistoryReader> {
        let archived_to = self.archived_to();
        let (from, since) = match selection.start {
            Start::Sequence(from) => (from, None),
            Start::Time(since) => (1, Some(since)),
            Start::LastOfEachSubject => (archived_to + 1, None),
        };
        let end = selection.end.unwrap_or(u64::MAX);
        let (mut archived, mut archived_count) = (None, 0);
        if let Some((archive, chain)) = &self.archive
            && from <= archived_to
        {
            let subjects = selection.subjects.clone();
            let reader = ArchiveReader::open(archive, chain, Wanted { from, end, since, subjects });
            archived_count = reader.count;
            archived = Some(reader);
        }
        let in_log = from.max(archived_to + 1);
        let start = match selection.start {
            Start::Sequence(_) => Start::Sequence(in_log),
            other => other,
        };
        let after_archive = (end >= in_log).then_some(Selection { start, ..selection });
        let log = AfterArchive {
            connection: connection.clone(),
            selection: after_archive,
            reader: None,
            begins: in_log,
            // Before that nobody said that it would be there.
            known_first: self.log.first_sequence,
        };
        Ok(HistoryReader { archived, log, archived_count })
    }
}

/// Messages out of both, up to an end that is fixed at the start.
pub struct HistoryReader {
    archived: Option<ArchiveReader>,
    log: AfterArchive,
    /// How many there are to read in the archive, at the most.
    pub archived_count: u64,
}

impl HistoryReader {
    pub async fn next(&mut self) -> anyhow::Result<Option<Delivery>> {
        if let Some(archived) = &mut self.archived {
            if let Some(delivery) = archived.next().await? {
                return Ok(Some(delivery));
            }
            self.archived = None;
        }
        self.log.next().await
    }
}

/// Which archived messages are read.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// First and last sequence.
    pub from: u64,
    pub end: u64,
    /// Stored no earlier than this.
    pub since: Option<Timestamp>,
    /// As a consumer's filter: `all_subjects()`, or those of one source.
    pub subjects: String,
}

/// Archived messages in their order, of whatever log the archive is. It needs no NATS.
pub struct ArchiveReader {
    frames: BoxStream<'static, Result<Vec<Delivery>, ArchiveError>>,
    deliveries: VecDeque<Delivery>,
    wanted: Wanted,
    /// How many there are to read, at the most.
    pub count: u64,
}

impl ArchiveReader {
    pub fn open(archive: &Archive, chain: &Chain, wanted: Wanted) -> Self {
        let frames = frames(chain, &wanted);
        let count = frames.iter().map(|(_, frame)| frame.events).sum();
        let frames = archive.fetch(frames, FRAMES_AHEAD);
        Self { frames, deliveries: VecDeque::new(), wanted, count }
    }

    pub async fn next(&mut self) -> Result<Option<Delivery>, ArchiveError> {
        loop {
            while let Some(delivery) = self.deliveries.pop_front() {
                if self.wanted.takes(&delivery) {
                    return Ok(Some(delivery));
                }
            }
            match self.frames.next().await {
                Some(frame) => self.deliveries = frame?.into(),
                None => return Ok(None),
            }
        }
    }
}

impl Wanted {
    fn takes(&self, delivery: &Delivery) -> bool {
        (self.from..=self.end).contains(&delivery.sequence.0)
            && self.since.is_none_or(|since| delivery.published_at >= since)
            && matches(&self.subjects, &delivery.subject)
    }
}

/// The parts that can hold what is selected.
fn frames(chain: &Chain, wanted: &Wanted) -> Vec<(Manifest, Frame)> {
    let Wanted { from, end, since, .. } = *wanted;
    let is_late = |it: &&Segment| since.is_none_or(|since| it.manifest.last_stored_at >= since);
    let mut found = Vec::new();
    for Segment { manifest, .. } in chain.segments().iter().filter(is_late) {
        let is_in = |frame: &&Frame| frame.last_sequence >= from && frame.first_sequence <= end;
        let frames = manifest.frames.iter().filter(is_in).cloned();
        found.extend(frames.map(|frame| (manifest.without_frames(), frame)));
    }
    found
}

/// What is read of the log, once the archive is read.
struct AfterArchive {
    connection: Connection,
    /// `None` if nothing of it is selected, or all is read.
    selection: Option<Selection>,
    reader: Option<Reader>,
    begins: u64,
    known_first: u64,
}

impl AfterArchive {
    async fn next(&mut self) -> anyhow::Result<Option<Delivery>> {
        let Some(selection) = &self.selection else { return Ok(None) };
        let reader = match &mut self.reader {
            Some(reader) => reader,
            None => {
                let opened = Reader::open(&self.connection, selection.clone()).await?;
                self.reader.insert(opened)
            }
        };
        while let Some(delivery) = reader.next().await? {
            // From a time on the log may still have what the archive had.
            if delivery.sequence.0 >= self.begins {
                return Ok(Some(delivery));
            }
        }
        self.selection = None;
        // What is deleted while it is read would be left out without a word.
        let first = status::log(&self.connection).await?.first_sequence;
        if first > self.begins.max(self.known_first) {
            return Err(ArchiveError::TrimmedMeanwhile.into());
        }
        Ok(None)
    }
}

/// Whether a subject is one of `subjects`, of which the last token may be `>`.
fn matches(subjects: &str, subject: &str) -> bool {
    match subjects.strip_suffix('>') {
        Some(root) => subject.len() > root.len() && subject.starts_with(root),
        None => subject == subjects,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_matched_as_the_server_does() {
        for (subjects, subject, expected) in [
            ("installations.>", "installations.blnk.7", true),
            ("installations.blnk.>", "installations.blnk.7", true),
            ("installations.blnk.>", "installations.blnk2.7", false),
            ("installations.blnk.>", "installations.blnk.", false),
            ("installations.blnk.7", "installations.blnk.7", true),
            ("installations.blnk.7", "installations.blnk.71", false),
        ] {
            assert_eq!(matches(subjects, subject), expected, "{subjects} {subject}");
        }
    }
}
