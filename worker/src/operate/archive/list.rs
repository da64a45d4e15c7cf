//! `worker archive list`.

use eventlog::archive::{Archive, Chain, Manifest, Storage};
use jiff::Timestamp;
use serde::Serialize;

use super::{Which, archive, configured};
use crate::operate::context::Context;

#[derive(Debug, Serialize)]
pub(super) struct Listing {
    /// Where the archive is.
    at: String,
    log: String,
    segments: Vec<Line>,
    events: u64,
    bytes: u64,
    /// Files that do not count: an archiver was interrupted before they did.
    without_manifest: Vec<String>,
    /// Former logs that have segments here, too.
    other_logs: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Line {
    first_sequence: u64,
    last_sequence: u64,
    events: u64,
    bytes: u64,
    first_stored_at: Timestamp,
    last_stored_at: Timestamp,
    segment: String,
    sha256: String,
}

impl Line {
    fn of(manifest: &Manifest) -> Self {
        Self {
            first_sequence: manifest.first_sequence,
            last_sequence: manifest.last_sequence,
            events: manifest.events,
            bytes: manifest.bytes,
            first_stored_at: manifest.first_stored_at,
            last_stored_at: manifest.last_stored_at,
            segment: manifest.segment.clone(),
            sha256: manifest.sha256.clone(),
        }
    }
}

pub(super) async fn list(context: &Context, which: &Which) -> anyhow::Result<Listing> {
    let (archive, _) = archive(context, which).await?;
    let chain: Chain = archive.chain().await?;
    let location = configured(context.backend_settings()?.archive)?.location;
    let logs = Archive::logs(&Storage::open(&location)?).await?;
    let log = archive.log().folder();
    let other_logs = logs.iter().map(eventlog::archive::LogIdentity::folder);
    let segments: Vec<Line> = chain.segments().iter().map(|it| Line::of(&it.manifest)).collect();
    Ok(Listing {
        at: archive.shown().to_owned(),
        other_logs: other_logs.filter(|other| *other != log).collect(),
        log,
        events: segments.iter().map(|it| it.events).sum(),
        bytes: segments.iter().map(|it| it.bytes).sum(),
        segments,
        without_manifest: archive.without_manifest(&chain).await?,
    })
}

pub(super) fn render(listing: &Listing) -> String {
    let Listing { at, log, segments, events, bytes, without_manifest, other_logs } = listing;
    let mut lines = vec![format!("{log} in {at}")];
    lines.extend(segments.iter().map(|it| {
        let (first, last) = (it.first_sequence, it.last_sequence);
        let (from, to) = (it.first_stored_at.strftime("%F"), it.last_stored_at.strftime("%F"));
        let kib = it.bytes.div_ceil(1 << 10);
        format!("{first:>10} to {last:>10}  {:>8} events  {kib:>8} KiB  {from} to {to}", it.events)
    }));
    let count = segments.len();
    lines.push(format!("{count} segments, {events} events, {} MiB", bytes.div_ceil(1 << 20)));
    if !without_manifest.is_empty() {
        let names = without_manifest.join(", ");
        lines.push(format!("files that do not count, and may be deleted: {names}"));
    }
    if !other_logs.is_empty() {
        lines.push(format!("former logs here (--log): {}", other_logs.join(", ")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn segments_are_listed_with_what_does_not_count() {
        let line = |first_sequence, last_sequence| Line {
            first_sequence,
            last_sequence,
            events: 40_000,
            bytes: 20_000_000,
            first_stored_at: Timestamp::UNIX_EPOCH,
            last_stored_at: Timestamp::UNIX_EPOCH,
            segment: "a.jsonl.zst".to_owned(),
            sha256: "00".to_owned(),
        };
        let listing = Listing {
            at: "/var/lib/mooring/archive".to_owned(),
            log: "INSTALLATIONS-20261126T043334.123456".to_owned(),
            segments: vec![line(1, 40_000), line(40_001, 80_000)],
            events: 80_000,
            bytes: 40_000_000,
            without_manifest: vec!["b.jsonl.zst".to_owned()],
            other_logs: vec!["INSTALLATIONS-20250101T000000.000000".to_owned()],
        };
        assert_view("archive-list", &render(&listing));
    }
}
