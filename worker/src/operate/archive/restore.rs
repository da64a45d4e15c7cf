//! `worker archive restore`: archived events, as they stood in the log.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, bail};
use eventlog::archive::{Archive, Manifest, encode_line};

use super::{Which, archive};
use crate::operate::context::Context;
use crate::operate::exit::Interrupted;
use crate::operate::output::unwritten;
use crate::operate::progress::note;

pub(super) async fn restore(
    context: &Context,
    which: &Which,
    (from, to): (u64, u64),
    into: Option<&Path>,
) -> anyhow::Result<()> {
    let (archive, _) = archive(context, which).await?;
    let chain = archive.chain().await?;
    for segment in chain.segments() {
        let manifest = &segment.manifest;
        if manifest.last_sequence < from || manifest.first_sequence > to {
            continue;
        }
        if context.shutdown.is_cancelled() {
            bail!(Interrupted);
        }
        match into {
            Some(folder) => {
                let file = unpack(&archive, manifest, (from, to), folder).await?;
                note(&format!("{file}: {} events of it", manifest.events));
            }
            None => {
                let output = BufWriter::new(io::stdout());
                write(&archive, manifest, (from, to), output).await?;
            }
        }
    }
    Ok(())
}

/// A file under its name is whole.
async fn unpack(
    archive: &Archive,
    manifest: &Manifest,
    range: (u64, u64),
    folder: &Path,
) -> anyhow::Result<String> {
    let name = manifest.segment.trim_end_matches(".zst");
    let (partial, path) = (folder.join(format!("{name}.partial")), folder.join(name));
    let writing = || format!("writing {}", partial.display());
    let file = File::create(&partial).with_context(writing)?;
    write(archive, manifest, range, BufWriter::new(file)).await?;
    fs::rename(&partial, &path).with_context(writing)?;
    Ok(path.display().to_string())
}

async fn write(
    archive: &Archive,
    manifest: &Manifest,
    (from, to): (u64, u64),
    mut output: impl Write + Send,
) -> anyhow::Result<()> {
    let mut line = Vec::new();
    let mut segment = archive.open(manifest).await?;
    while let Some(events) = segment.next_frame()? {
        for event in events.iter().filter(|event| (from..=to).contains(&event.sequence.0)) {
            line.clear();
            encode_line(event, &mut line)?;
            output.write_all(&line).or_else(unwritten)?;
        }
    }
    output.flush().or_else(unwritten)
}
