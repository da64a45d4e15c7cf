//! The segments of one log, each bound to the one before it.

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;

use super::ArchiveError;
use super::manifest::{Frame, LogIdentity, Manifest, sha256};
use super::segment::{Draft, read_frame, slice};
use super::storage::{Put, Storage};
use crate::delivery::Delivery;

/// Manifests that are fetched at a time.
const FETCHES: usize = 8;

/// The archive of one log. A clone is the same archive.
#[derive(Debug, Clone)]
pub struct Archive {
    storage: Storage,
    log: LogIdentity,
}

/// A segment, by its manifest.
#[derive(Debug, Clone)]
pub struct Segment {
    pub manifest: Manifest,
    /// Of the manifest's file.
    pub manifest_sha256: String,
}

/// Every segment, in the order of the log, without a hole between them.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    segments: Vec<Segment>,
}

impl Chain {
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub fn last(&self) -> Option<&Segment> {
        self.segments.last()
    }

    pub fn first_sequence(&self) -> Option<u64> {
        self.segments.first().map(|segment| segment.manifest.first_sequence)
    }

    /// Up to here everything is archived; 0 if nothing is.
    pub fn last_sequence(&self) -> u64 {
        self.last().map_or(0, |segment| segment.manifest.last_sequence)
    }

    /// The segment that covers a sequence.
    pub fn segment_of(&self, sequence: u64) -> Option<&Segment> {
        let before = self.segments.partition_point(|it| it.manifest.last_sequence < sequence);
        self.segments.get(before).filter(|it| it.manifest.first_sequence <= sequence)
    }
}

impl Archive {
    pub fn new(storage: Storage, log: LogIdentity) -> Self {
        Self { storage, log }
    }

    pub fn shown(&self) -> &str {
        self.storage.shown()
    }

    pub fn log(&self) -> &LogIdentity {
        &self.log
    }

    /// Every log that has segments in a storage, oldest first.
    pub async fn logs(storage: &Storage) -> Result<Vec<LogIdentity>, ArchiveError> {
        let folders = storage.folders().await?;
        Ok(folders.iter().filter_map(|folder| LogIdentity::of_folder(folder)).collect())
    }

    fn manifests(&self) -> String {
        format!("{}/manifests", self.log.folder())
    }

    fn segment_name(&self, manifest: &Manifest) -> String {
        format!("{}/segments/{}", self.log.folder(), manifest.segment)
    }

    /// What is there now.
    pub async fn chain(&self) -> Result<Chain, ArchiveError> {
        let mut chain = Chain::default();
        self.extend(&mut chain).await?;
        Ok(chain)
    }

    /// Adds what was archived since.
    pub async fn extend(&self, chain: &mut Chain) -> Result<(), ArchiveError> {
        let folder = self.manifests();
        let last = chain.last().map(|it| Manifest::file(it.manifest.first_sequence));
        let after = last.map(|file| format!("{folder}/{file}"));
        let names = self.storage.list(&folder, after.as_deref()).await?;
        let fetched = stream::iter(names)
            .map(|name| async move { self.storage.get(&name).await.map(|bytes| (name, bytes)) });
        let fetched: Vec<(String, Bytes)> = fetched.buffered(FETCHES).try_collect().await?;
        for (name, bytes) in fetched {
            let segment = self.linked(chain.last(), &name, &bytes)?;
            chain.segments.push(segment);
        }
        Ok(())
    }

    /// The manifest, if it is the one after the last.
    fn linked(
        &self,
        last: Option<&Segment>,
        name: &str,
        bytes: &[u8],
    ) -> Result<Segment, ArchiveError> {
        let damaged = |why: String| self.storage.damaged(&format!("manifest {name}"), why);
        let manifest = Manifest::decode(bytes).map_err(damaged)?;
        let file = Manifest::file(manifest.first_sequence);
        if !name.ends_with(&file) {
            return Err(damaged("it has the name of another one".to_owned()));
        }
        if manifest.log.folder() != self.log.folder() {
            return Err(damaged("it is of another log".to_owned()));
        }
        let (previous, first) = match last {
            Some(last) => (Some(&last.manifest_sha256), last.manifest.last_sequence + 1),
            None => (None, manifest.first_sequence),
        };
        if manifest.first_sequence != first {
            return Err(damaged(format!(
                "it begins at sequence {}, and {first} is next: a manifest before it is missing",
                manifest.first_sequence
            )));
        }
        if manifest.previous_manifest_sha256.as_ref() != previous {
            return Err(damaged(
                "it does not follow the manifest before it: one was changed, or is missing"
                    .to_owned(),
            ));
        }
        Ok(Segment { manifest_sha256: sha256(bytes), manifest })
    }

    /// Stores the file of a segment, and reads it back. It does not count yet.
    ///
    /// Its name holds its hash, so what is there under that name is the same, or damaged.
    pub async fn store(&self, draft: &Draft) -> Result<(), ArchiveError> {
        let name = self.segment_name(&draft.manifest);
        self.storage.put_new(&name, draft.bytes.clone()).await?;
        let stored = self.storage.get(&name).await?;
        if stored != draft.bytes {
            return Err(self.storage.damaged(&name, "it was stored, and reads differently"));
        }
        Ok(())
    }

    /// Whether the storage refuses to write a file that is there, which is all that keeps
    /// two archivers apart if their lock fails. Some that speak S3 ignore the condition.
    pub async fn require_exclusive(&self) -> Result<(), ArchiveError> {
        let name = format!("{}/put-if-absent", self.log.folder());
        let text = Bytes::from_static(b"Written twice: the second time must be refused.\n");
        self.storage.put_new(&name, text.clone()).await?;
        match self.storage.put_new(&name, text).await? {
            Put::Existed => Ok(()),
            Put::Created => Err(ArchiveError::Unusable {
                at: self.shown().to_owned(),
                why: "it writes over files that must be new: it ignores If-None-Match".to_owned(),
            }),
        }
    }

    /// Makes a stored segment count: from here on the log need not have its events. The
    /// caller has verified it. Of two archivers one gets here.
    pub async fn seal(
        &self,
        draft: Draft,
        chain: &mut Chain,
        archived_at: Timestamp,
    ) -> Result<(), ArchiveError> {
        let previous = chain.last().map(|last| last.manifest_sha256.clone());
        let manifest =
            Manifest { previous_manifest_sha256: previous, archived_at, ..draft.manifest };
        let name = format!("{}/{}", self.manifests(), Manifest::file(manifest.first_sequence));
        let unencodable = |error: serde_json::Error| self.storage.damaged(&name, error.to_string());
        let bytes = Bytes::from(manifest.encode().map_err(unencodable)?);
        let first_sequence = manifest.first_sequence;
        if self.storage.put_new(&name, bytes.clone()).await? == Put::Existed {
            return Err(ArchiveError::Overtaken { first_sequence });
        }
        let stored = self.storage.get(&name).await?;
        if stored != bytes {
            return Err(self.storage.damaged(&name, "it was stored, and reads differently"));
        }
        let segment = self.linked(chain.last(), &name, &stored)?;
        chain.segments.push(segment);
        Ok(())
    }

    /// A whole segment. The hash of the file is proven before the first event.
    pub async fn open(&self, manifest: &Manifest) -> Result<SegmentReader, ArchiveError> {
        let name = self.segment_name(manifest);
        let file = self.storage.get(&name).await?;
        if file.len() as u64 != manifest.bytes || sha256(&file) != manifest.sha256 {
            return Err(self.storage.damaged(&name, "it has another hash than its manifest says"));
        }
        let frames = manifest.frames.clone().into_iter();
        Ok(SegmentReader { storage: self.storage.clone(), name, file, frames })
    }

    /// The events of one frame.
    async fn frame(
        &self,
        manifest: &Manifest,
        frame: &Frame,
    ) -> Result<Vec<Delivery>, ArchiveError> {
        let name = self.segment_name(manifest);
        let range = frame.offset..frame.offset + frame.bytes;
        let bytes = self.storage.get_range(&name, range).await?;
        let of = frame.clone();
        // A MiB of JSON: long enough to be in the way of what else this thread does.
        let read = tokio::task::spawn_blocking(move || read_frame(&of, &bytes)).await;
        let read = read.unwrap_or_else(|ended| Err(ended.to_string()));
        read.map_err(|why| self.storage.damaged(&name, why))
    }

    /// The event at a sequence, if the archive has it. It costs one frame.
    pub async fn event(
        &self,
        chain: &Chain,
        sequence: u64,
    ) -> Result<Option<Delivery>, ArchiveError> {
        let Some(segment) = chain.segment_of(sequence) else { return Ok(None) };
        let Some(frame) = segment.manifest.frame_of(sequence) else { return Ok(None) };
        let events = self.frame(&segment.manifest, frame).await?;
        Ok(events.into_iter().find(|event| event.sequence.0 == sequence))
    }

    /// Those of these events that the archive has. `sequences` are sorted; each frame that
    /// they are in is read once.
    pub async fn events(
        &self,
        chain: &Chain,
        sequences: &[u64],
    ) -> Result<Vec<Delivery>, ArchiveError> {
        let mut frames: Vec<(Manifest, Frame)> = Vec::new();
        for sequence in sequences {
            if frames.last().is_some_and(|(_, last)| *sequence <= last.last_sequence) {
                continue;
            }
            let Some(segment) = chain.segment_of(*sequence) else { continue };
            let frame = segment.manifest.frame_of(*sequence).cloned();
            frames.extend(frame.map(|frame| (segment.manifest.without_frames(), frame)));
        }
        let mut fetched = self.fetch(frames, FETCHES);
        let mut found = Vec::with_capacity(sequences.len());
        while let Some(events) = fetched.next().await {
            let events = events?.into_iter();
            found.extend(events.filter(|it| sequences.binary_search(&it.sequence.0).is_ok()));
        }
        Ok(found)
    }

    /// The events of these frames, of which some are fetched and unpacked ahead.
    pub(super) fn fetch(
        &self,
        frames: Vec<(Manifest, Frame)>,
        ahead: usize,
    ) -> BoxStream<'static, Result<Vec<Delivery>, ArchiveError>> {
        let archive = self.clone();
        let fetch = move |(manifest, frame): (Manifest, Frame)| {
            let archive = archive.clone();
            async move { archive.frame(&manifest, &frame).await }
        };
        stream::iter(frames).map(fetch).buffered(ahead).boxed()
    }

    /// Files of segments that no manifest names: someone was interrupted before it
    /// counted, or another archiver was faster. They are no harm.
    pub async fn without_manifest(&self, chain: &Chain) -> Result<Vec<String>, ArchiveError> {
        let folder = format!("{}/segments", self.log.folder());
        let mut names = self.storage.list(&folder, None).await?;
        names.retain(|name| {
            let counts = |it: &Segment| name.ends_with(&it.manifest.segment);
            !chain.segments.iter().any(counts)
        });
        Ok(names)
    }
}

/// A segment that is read from its first event to its last.
pub struct SegmentReader {
    storage: Storage,
    name: String,
    file: Bytes,
    frames: std::vec::IntoIter<Frame>,
}

impl SegmentReader {
    /// The events of the next frame; `None` at the end.
    pub fn next_frame(&mut self) -> Result<Option<Vec<Delivery>>, ArchiveError> {
        let Some(frame) = self.frames.next() else { return Ok(None) };
        let damaged = |why: String| self.storage.damaged(&self.name, why);
        let bytes = slice(&self.file, &frame).ok_or_else(|| damaged("it is too short".into()))?;
        read_frame(&frame, bytes).map(Some).map_err(damaged)
    }
}
