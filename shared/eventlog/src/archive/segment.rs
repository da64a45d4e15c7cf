//! Writing a segment, and reading what was written.
//!
//! It is a row of zstd frames, each of about a MiB of lines: together one valid
//! `.zst` file, and each readable by itself, so that one old event costs one frame.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use jiff::Timestamp;

use super::manifest::{Absent, Frame, LogIdentity, Manifest, sha256};
use super::record;
use crate::delivery::Delivery;

const FRAME_RAW_BYTES: usize = 1 << 20;
/// Of zstd: sealed secrets do not compress, the rest does well enough.
const LEVEL: i32 = 3;
/// So much of the hash stands in the name of the file.
const HASH_IN_NAME: usize = 16;

/// Takes the messages of the log in its order, until they are enough for a segment.
#[derive(Debug)]
pub struct SegmentWriter {
    first_sequence: u64,
    /// Everything before is in the segment, or absent.
    next_sequence: u64,
    absent: Vec<Absent>,
    by_type: BTreeMap<String, u64>,
    stored_at: Option<(Timestamp, Timestamp)>,
    events: u64,
    bytes: Vec<u8>,
    raw_bytes: u64,
    frames: Vec<Frame>,
    lines: Vec<u8>,
    /// First and last sequence and number of `lines`.
    open: Option<(u64, u64, u64)>,
}

/// A segment that is ready to be stored.
#[derive(Debug, Clone)]
pub struct Draft {
    pub bytes: Bytes,
    /// Without what only the chain knows: the manifest before it, and when it was stored.
    pub(super) manifest: Manifest,
}

impl Draft {
    /// As it will be, but for what only the chain knows.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl SegmentWriter {
    pub fn new(first_sequence: u64) -> Self {
        Self {
            first_sequence,
            next_sequence: first_sequence,
            absent: Vec::new(),
            by_type: BTreeMap::new(),
            stored_at: None,
            events: 0,
            bytes: Vec::new(),
            raw_bytes: 0,
            frames: Vec::new(),
            lines: Vec::new(),
            open: None,
        }
    }

    /// How much it holds, before compression.
    pub fn raw_bytes(&self) -> u64 {
        self.raw_bytes + self.lines.len() as u64
    }

    pub fn events(&self) -> u64 {
        self.events
    }

    /// Sequences between the last message and this one are taken to be absent.
    pub fn push(&mut self, delivery: &Delivery) -> io::Result<()> {
        let sequence = delivery.sequence.0;
        if sequence < self.next_sequence {
            return Err(io::Error::other(format!("sequence {sequence} comes out of order")));
        }
        if sequence > self.next_sequence {
            self.absent.push(Absent { first: self.next_sequence, last: sequence - 1 });
        }
        record::encode(delivery, &mut self.lines)?;
        let at = delivery.published_at;
        let (first, last) = self.stored_at.unwrap_or((at, at));
        self.stored_at = Some((first.min(at), last.max(at)));
        *self.by_type.entry(delivery.kind().unwrap_or_default().to_owned()).or_default() += 1;
        self.events += 1;
        self.next_sequence = sequence + 1;
        let (first, _, count) = self.open.unwrap_or((sequence, sequence, 0));
        self.open = Some((first, sequence, count + 1));
        if self.lines.len() >= FRAME_RAW_BYTES { self.close_frame() } else { Ok(()) }
    }

    fn close_frame(&mut self) -> io::Result<()> {
        let Some((first_sequence, last_sequence, events)) = self.open.take() else {
            return Ok(());
        };
        let compressed = zstd::bulk::compress(&self.lines, LEVEL)?;
        self.frames.push(Frame {
            first_sequence,
            last_sequence,
            events,
            offset: self.bytes.len() as u64,
            bytes: compressed.len() as u64,
            raw_bytes: self.lines.len() as u64,
            sha256: sha256(&compressed),
        });
        self.raw_bytes += self.lines.len() as u64;
        self.bytes.extend_from_slice(&compressed);
        self.lines.clear();
        Ok(())
    }

    /// `None` if nothing was pushed.
    pub fn finish(mut self, log: &LogIdentity) -> io::Result<Option<Draft>> {
        self.close_frame()?;
        let Some((first_stored_at, last_stored_at)) = self.stored_at else { return Ok(None) };
        let hash = sha256(&self.bytes);
        let name = hash.get(..HASH_IN_NAME).unwrap_or(&hash);
        let manifest = Manifest {
            format: Manifest::format(),
            log: log.clone(),
            first_sequence: self.first_sequence,
            last_sequence: self.next_sequence - 1,
            absent: self.absent,
            events: self.events,
            events_by_type: self.by_type,
            first_stored_at,
            last_stored_at,
            segment: format!("{:020}-{name}.jsonl.zst", self.first_sequence),
            bytes: self.bytes.len() as u64,
            raw_bytes: self.raw_bytes,
            sha256: hash,
            frames: self.frames,
            previous_manifest_sha256: None,
            archived_at: Timestamp::UNIX_EPOCH,
        };
        Ok(Some(Draft { bytes: self.bytes.into(), manifest }))
    }
}

/// The messages of a frame, if it is the one that the manifest means.
pub(super) fn read_frame(frame: &Frame, bytes: &[u8]) -> Result<Vec<Delivery>, String> {
    if bytes.len() as u64 != frame.bytes || sha256(bytes) != frame.sha256 {
        return Err("it has another hash than its manifest says".to_owned());
    }
    let too_large = |_| "a frame of more than this machine can address".to_owned();
    let raw_bytes = usize::try_from(frame.raw_bytes).map_err(too_large)?;
    // No more than was announced, whatever the frame itself says.
    let lines = zstd::bulk::decompress(bytes, raw_bytes).map_err(|error| error.to_string())?;
    let mut deliveries = Vec::new();
    let mut after = None;
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let delivery = record::decode(line)?;
        let sequence = delivery.sequence.0;
        if after.is_some_and(|after| after >= sequence) {
            return Err(format!("sequence {sequence} comes out of order"));
        }
        after = Some(sequence);
        deliveries.push(delivery);
    }
    let first = deliveries.first().map(|first| first.sequence.0);
    let ends = (first, after, deliveries.len() as u64);
    if ends != (Some(frame.first_sequence), Some(frame.last_sequence), frame.events) {
        return Err("it holds other events than its manifest says".to_owned());
    }
    Ok(deliveries)
}

/// The part of a segment's file that is this frame.
pub(super) fn slice<'a>(file: &'a [u8], frame: &Frame) -> Option<&'a [u8]> {
    let from = usize::try_from(frame.offset).ok()?;
    let to = usize::try_from(frame.offset.checked_add(frame.bytes)?).ok()?;
    file.get(from..to)
}

#[cfg(test)]
mod tests {
    use domain::id::StreamSequence;

    use super::*;
    use crate::delivery::Headers;

    fn delivery(sequence: u64, body: &[u8]) -> Delivery {
        let pairs = [("Nats-Msg-Id", format!("id-{sequence}")), ("ce-type", "a.installed".into())];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value));
        Delivery {
            sequence: StreamSequence(sequence),
            subject: "installations.blnk.7".to_owned(),
            headers: Headers::from_pairs(&pairs).unwrap(),
            body: body.to_vec().into(),
            published_at: Timestamp::new(1_700_000_000, 123_456_789).unwrap(),
        }
    }

    fn draft(deliveries: &[Delivery]) -> Draft {
        let mut writer = SegmentWriter::new(5);
        for delivery in deliveries {
            writer.push(delivery).unwrap();
        }
        writer.finish(&LogIdentity::new(Timestamp::UNIX_EPOCH)).unwrap().unwrap()
    }

    fn read(draft: &Draft) -> Vec<Delivery> {
        let frames = draft.manifest.frames.iter();
        frames.flat_map(|it| read_frame(it, slice(&draft.bytes, it).unwrap()).unwrap()).collect()
    }

    #[test]
    fn what_was_written_is_read_byte_by_byte() {
        let bodies: [&[u8]; 4] =
            [b"{\"a\": \"\\u0000\"}", b"", b"\xff\xfe\n", "{ \"k\u{e4}se\": 1 }\n".as_bytes()];
        let written: Vec<Delivery> =
            [6, 7, 9, 12].into_iter().zip(bodies).map(|(at, body)| delivery(at, body)).collect();
        let draft = draft(&written);
        let found = read(&draft);
        assert_eq!(found, written);
        let manifest = &draft.manifest;
        let absent = [(5, 5), (8, 8), (10, 11)].map(|(first, last)| Absent { first, last });
        assert_eq!(manifest.absent, absent);
        assert_eq!((manifest.first_sequence, manifest.last_sequence, manifest.events), (5, 12, 4));
        assert_eq!(manifest.events_by_type, BTreeMap::from([("installed".to_owned(), 4)]));
        let encoded = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&encoded).unwrap(), *manifest);
    }

    #[test]
    fn many_frames_are_one_file_and_each_is_found_by_its_sequences() {
        let body = vec![b'x'; 100_000];
        let written: Vec<Delivery> = (5..=60).map(|at| delivery(at, &body)).collect();
        let draft = draft(&written);
        assert!(draft.manifest.frames.len() > 3, "{:?}", draft.manifest.frames.len());
        assert_eq!(read(&draft).len(), 56);
        assert_eq!(draft.manifest.frame_of(4), None);
        assert!(draft.manifest.frame_of(33).unwrap().first_sequence <= 33);
        assert_eq!(draft.manifest.frame_of(61), None);
        let whole = zstd::stream::decode_all(&draft.bytes[..]).unwrap();
        assert_eq!(whole.len() as u64, draft.manifest.raw_bytes);
        assert_eq!(whole.iter().filter(|byte| **byte == b'\n').count(), 56);
    }

    #[test]
    fn a_bit_that_flipped_is_seen_and_a_frame_unpacks_to_no_more_than_was_announced() {
        let draft = draft(&[delivery(5, b"{}"), delivery(6, b"{}")]);
        let frame = &draft.manifest.frames[0];
        let mut bytes = draft.bytes.to_vec();
        bytes[20] ^= 1;
        assert!(read_frame(frame, &bytes).unwrap_err().contains("another hash"));
        let bomb = zstd::bulk::compress(&vec![b' '; 10_000_000], LEVEL).unwrap();
        let lying = Frame { bytes: bomb.len() as u64, sha256: sha256(&bomb), ..frame.clone() };
        assert!(read_frame(&lying, &bomb).is_err());
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        let manifest = draft(&[delivery(5, b"{}"), delivery(7, b"{}")]).manifest;
        let broken: [fn(&mut Manifest); 6] = [
            |it| it.absent.clear(),
            |it| it.last_sequence += 1,
            |it| it.frames.clear(),
            |it| it.bytes += 1,
            |it| it.format = 2,
            |it| it.segment = "../elsewhere".to_owned(),
        ];
        for change in broken {
            let mut changed = manifest.clone();
            change(&mut changed);
            assert!(Manifest::decode(&changed.encode().unwrap()).is_err(), "{changed:?}");
        }
    }
}
