//! What a segment holds, and what proves it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::fmt::strtime::BrokenDownTime;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::message::STREAM;

/// In the name of a folder.
const CREATED_AT: &str = "%Y%m%dT%H%M%S%.6f";
/// Of the form of segments and manifests.
const FORMAT: u32 = 1;

/// Which log it is: a stream that was made again has other events at the same
/// sequences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogIdentity {
    pub stream: String,
    pub created_at: Timestamp,
}

impl LogIdentity {
    pub fn new(created_at: Timestamp) -> Self {
        Self { stream: STREAM.to_owned(), created_at }
    }

    /// The folder of its segments. Microseconds, as Postgres has them.
    pub fn folder(&self) -> String {
        format!("{}-{}", self.stream, self.created_at.strftime(CREATED_AT))
    }

    /// The log whose folder this is. To the microsecond, so it has that folder again.
    pub fn of_folder(folder: &str) -> Option<Self> {
        let (stream, created) = folder.rsplit_once('-')?;
        let created_at = BrokenDownTime::parse(CREATED_AT, created).ok()?.to_datetime().ok()?;
        let created_at = created_at.to_zoned(TimeZone::UTC).ok()?.timestamp();
        let identity = Self { stream: stream.to_owned(), created_at };
        (identity.folder() == folder).then_some(identity)
    }
}

/// Sequences that the log itself did not have: nothing was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Absent {
    pub first: u64,
    pub last: u64,
}

/// A part of a segment that can be read by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    pub first_sequence: u64,
    pub last_sequence: u64,
    pub events: u64,
    pub offset: u64,
    pub bytes: u64,
    pub raw_bytes: u64,
    pub sha256: String,
}

/// Written once, after its segment was read back and verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub log: LogIdentity,
    /// Every event from here to `last_sequence` is in the segment, but for `absent`.
    pub first_sequence: u64,
    pub last_sequence: u64,
    pub absent: Vec<Absent>,
    pub events: u64,
    /// By the type that the header of an event names; empty without one.
    pub events_by_type: BTreeMap<String, u64>,
    pub first_stored_at: Timestamp,
    pub last_stored_at: Timestamp,
    /// The file's name, size and hash.
    pub segment: String,
    pub bytes: u64,
    pub raw_bytes: u64,
    pub sha256: String,
    pub frames: Vec<Frame>,
    /// Of the manifest before this one; null in the first.
    pub previous_manifest_sha256: Option<String>,
    pub archived_at: Timestamp,
}

impl Manifest {
    pub(super) fn format() -> u32 {
        FORMAT
    }

    /// Its file. They sort as their sequences do.
    pub fn file(first_sequence: u64) -> String {
        format!("{first_sequence:020}.json")
    }

    pub(super) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct FormatOnly {
            format: u32,
        }
        let FormatOnly { format } =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if format != FORMAT {
            return Err(format!("it has format {format}, this version reads {FORMAT}"));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether it agrees with itself. Whoever holds the hash of it can trust the rest.
    fn check(&self) -> Result<(), String> {
        let absent: u64 =
            self.absent.iter().map(|gap| gap.last.saturating_sub(gap.first) + 1).sum();
        let span = self.last_sequence.checked_sub(self.first_sequence).map(|span| span + 1);
        if span != Some(self.events + absent) {
            return Err("its sequences and its number of events do not agree".to_owned());
        }
        let (mut offset, mut events, mut after) = (0, 0, None);
        for frame in &self.frames {
            let in_order = after.is_none_or(|after| after < frame.first_sequence);
            if frame.offset != offset || frame.last_sequence < frame.first_sequence || !in_order {
                return Err("its frames do not follow one another".to_owned());
            }
            (offset, events) = (offset + frame.bytes, events + frame.events);
            after = Some(frame.last_sequence);
        }
        if (offset, events, after) != (self.bytes, self.events, Some(self.last_sequence)) {
            return Err("its frames do not make up the segment".to_owned());
        }
        if self.segment.contains('/') {
            return Err("its segment is elsewhere".to_owned());
        }
        Ok(())
    }

    /// For whoever reads one of its frames, which goes its own way to a task.
    pub(super) fn without_frames(&self) -> Self {
        Self { frames: Vec::new(), absent: Vec::new(), ..self.clone() }
    }

    /// The part that holds this sequence, if any does.
    pub fn frame_of(&self, sequence: u64) -> Option<&Frame> {
        let before = self.frames.partition_point(|frame| frame.last_sequence < sequence);
        self.frames.get(before).filter(|frame| frame.first_sequence <= sequence)
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_a_folder_and_a_folder_its_log() {
        let created = Timestamp::new(1_700_000_000, 123_456_789).unwrap();
        let folder = LogIdentity::new(created).folder();
        assert_eq!(folder, "INSTALLATIONS-20231114T221320.123456");
        assert_eq!(LogIdentity::of_folder(&folder).unwrap().folder(), folder);
        for other in ["", "lost+found", "INSTALLATIONS-", "INSTALLATIONS-20231114"] {
            assert_eq!(LogIdentity::of_folder(other), None, "{other}");
        }
    }
}
