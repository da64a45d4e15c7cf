//! Old events outside the log: immutable segments in a folder or an object store,
//! each proven before the log lets go of what is in it.
//!
//! ```text
//! INSTALLATIONS-20261126T043334.123456/          one folder a log: another stream has other sequences
//!     segments/00000000000000000001-<hash>.jsonl.zst
//!     manifests/00000000000000000001.json        the hash of the segment, and of the manifest before
//! ```
//!
//! A segment is a file of JSON lines, one a message, exactly as it stood in the log: a
//! whole log can be appended again from them. `zstd -dc <segment> | jq` reads it without
//! Mooring. Its name holds its hash, so two archivers cannot overwrite each other's. The
//! manifest makes it count, and is written once: of two archivers one wins.
//!
//! Nothing here deletes from an archive.

mod chain;
mod history;
mod manifest;
mod record;
mod segment;
mod storage;

pub use chain::{Archive, Chain, Segment, SegmentReader};
pub use history::{ArchiveReader, History, HistoryReader, Wanted};
pub use manifest::{Absent, Frame, LogIdentity, Manifest};
pub use record::encode as encode_line;
pub use segment::{Draft, SegmentWriter};
pub use storage::{Location, S3, Storage};

/// Why an archive cannot be used as it is.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("the archive {at} does not answer: {doing}")]
    Away { at: String, doing: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{what} is missing in the archive {at}")]
    Missing { at: String, what: String },
    #[error("{what} in the archive {at} is damaged: {why}")]
    Damaged { at: String, what: String, why: String },
    #[error("the archive {at} cannot be opened: {why}")]
    Unusable { at: String, why: String },
    /// Nothing was lost: what the other one wrote counts.
    #[error(
        "another archiver has written the segment from sequence {first_sequence} on; run it again"
    )]
    Overtaken { first_sequence: u64 },
    #[error(
        "events are in neither log nor archive: the log begins at sequence {log_first}, and the \
         archive {archive}"
    )]
    Hole { log_first: u64, archive: String },
    #[error("the log was trimmed while it was read; run it again")]
    TrimmedMeanwhile,
}
