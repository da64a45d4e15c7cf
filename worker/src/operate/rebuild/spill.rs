//! The log sorted by partition, in a temporary file: a rebuild reads the log
//! once, and holds only the partitions in memory that it folds right now.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use domain::id::StreamSequence;
use eventlog::message::PARTITIONS;

/// Written together. All partitions hold one of these in memory.
const CHUNK_BYTES: usize = 256 * 1024;
const HEADER_BYTES: usize = 12;

pub(crate) struct Spill {
    file: File,
    end: u64,
    partitions: Vec<Partition>,
}

#[derive(Default)]
struct Partition {
    events: u64,
    buffer: Vec<u8>,
    chunks: Vec<Chunk>,
}

struct Chunk {
    offset: u64,
    bytes: usize,
}

/// The events of one partition, in log order.
pub(crate) struct Events(Vec<u8>);

impl Spill {
    /// The file has no name: it goes with the process, however that ends.
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        let partitions = (0..PARTITIONS).map(|_| Partition::default()).collect();
        Ok(Self { file: tempfile::tempfile_in(folder)?, end: 0, partitions })
    }

    pub(crate) fn push(
        &mut self,
        partition: u8,
        sequence: StreamSequence,
        body: &[u8],
    ) -> io::Result<()> {
        let too_large = || io::Error::other("an event of more than 4 GiB");
        let Some(target) = self.partitions.get_mut(usize::from(partition)) else {
            return Err(io::Error::other(format!("there is no partition {partition}")));
        };
        let length = u32::try_from(body.len()).map_err(|_| too_large())?;
        target.events += 1;
        target.buffer.extend_from_slice(&sequence.0.to_le_bytes());
        target.buffer.extend_from_slice(&length.to_le_bytes());
        target.buffer.extend_from_slice(body);
        if target.buffer.len() >= CHUNK_BYTES {
            let compressed = lz4_flex::compress_prepend_size(&target.buffer);
            self.file.write_all_at(&compressed, self.end)?;
            target.chunks.push(Chunk { offset: self.end, bytes: compressed.len() });
            self.end += compressed.len() as u64;
            target.buffer.clear();
        }
        Ok(())
    }

    pub(crate) fn events_of(&self, partition: u8) -> u64 {
        self.partitions.get(usize::from(partition)).map_or(0, |found| found.events)
    }

    pub(crate) fn read(&self, partition: u8) -> io::Result<Events> {
        let mut events = Vec::new();
        let Some(partition) = self.partitions.get(usize::from(partition)) else {
            return Ok(Events(events));
        };
        for chunk in &partition.chunks {
            let mut compressed = vec![0; chunk.bytes];
            self.file.read_exact_at(&mut compressed, chunk.offset)?;
            let chunk =
                lz4_flex::decompress_size_prepended(&compressed).map_err(io::Error::other)?;
            events.extend_from_slice(&chunk);
        }
        events.extend_from_slice(&partition.buffer);
        Ok(Events(events))
    }
}

impl Events {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (StreamSequence, &[u8])> {
        let mut rest = self.0.as_slice();
        std::iter::from_fn(move || {
            let (header, behind) = rest.split_at_checked(HEADER_BYTES)?;
            let (sequence, length) = header.split_at_checked(8)?;
            let sequence = u64::from_le_bytes(sequence.try_into().ok()?);
            let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
            let (body, behind) = behind.split_at_checked(length)?;
            rest = behind;
            Some((StreamSequence(sequence), body))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_comes_back_by_partition_and_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::create(folder.path()).unwrap();
        let body = |sequence: u64| vec![b'x'; usize::try_from(sequence % 5_000).unwrap()];
        for sequence in 0..2_000 {
            let partition = u8::try_from(sequence % 3).unwrap();
            spill.push(partition, StreamSequence(sequence), &body(sequence)).unwrap();
        }
        for partition in 0..3_u8 {
            let events = spill.read(partition).unwrap();
            let expected: Vec<(StreamSequence, Vec<u8>)> = (0..2_000)
                .filter(|sequence| sequence % 3 == u64::from(partition))
                .map(|sequence| (StreamSequence(sequence), body(sequence)))
                .collect();
            let found: Vec<_> = events.iter().map(|(at, body)| (at, body.to_vec())).collect();
            assert_eq!(found, expected);
            assert_eq!(spill.events_of(partition), expected.len() as u64);
        }
        assert_eq!(spill.read(63).unwrap().iter().count(), 0);
    }

    #[test]
    fn a_partition_that_does_not_exist_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut spill = Spill::create(folder.path()).unwrap();
        assert!(spill.push(PARTITIONS, StreamSequence(1), b"{}").is_err());
    }
}
