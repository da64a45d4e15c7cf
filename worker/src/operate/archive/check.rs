//! `worker archive verify`: everything is read back. It changes nothing.

use anyhow::{Context as _, bail};
use eventlog::archive::{Archive, ArchiveError, Manifest};
use serde::Serialize;

use super::{Which, archive};
use crate::live::archive::{Renewals, Unproven, prove, require_known};
use crate::operate::context::Context;
use crate::operate::exit::Interrupted;
use crate::operate::progress::Progress;
use crate::store::archived::{self, Archived};
use crate::store::database;

#[derive(Debug, Default, Serialize)]
pub(super) struct Verified {
    segments: u64,
    events: u64,
    last_sequence: u64,
    /// Whether the events were compared with the journal, too.
    compared_with_journal: bool,
    findings: Vec<String>,
}

impl Verified {
    pub(super) fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }
}

pub(super) async fn verify(context: &Context, which: &Which) -> anyhow::Result<Verified> {
    let (archive, is_of_journal) = archive(context, which).await?;
    let mut postgres = match is_of_journal {
        true => Some(database::connect_alone(&context.pool()?).await?),
        false => None,
    };
    let mut verified = Verified { compared_with_journal: is_of_journal, ..Verified::default() };
    let chain = match archive.chain().await {
        Ok(chain) => chain,
        Err(error) => {
            verified.finding(error.into())?;
            return Ok(verified);
        }
    };
    let mut known = Vec::new();
    if let Some(postgres) = &mut postgres {
        known = archived::all(postgres).await.context("reading what was proven")?;
        if let Err(lost) = require_known(&known, &chain) {
            verified.finding(lost.into())?;
        }
    }
    let total = chain.segments().iter().map(|it| it.manifest.events).sum();
    let mut progress = Progress::new("verifying events", total);
    for segment in chain.segments() {
        if context.shutdown.is_cancelled() {
            bail!(Interrupted);
        }
        let manifest = &segment.manifest;
        let read = match &mut postgres {
            Some(postgres) => {
                let is_it = |it: &&Archived| it.first_sequence == manifest.first_sequence;
                let let_go = known.iter().find(is_it).is_some_and(|known| known.trimmed);
                let renewals = if let_go { Renewals::Some } else { Renewals::All };
                prove(&archive, manifest, postgres, renewals).await
            }
            None => read(&archive, manifest).await,
        };
        if let Err(error) = read {
            verified.finding(error)?;
        }
        verified.segments += 1;
        verified.events += manifest.events;
        verified.last_sequence = manifest.last_sequence;
        progress.add(manifest.events);
    }
    progress.finish();
    Ok(verified)
}

async fn read(archive: &Archive, manifest: &Manifest) -> anyhow::Result<()> {
    let mut segment = archive.open(manifest).await?;
    while segment.next_frame()?.is_some() {}
    Ok(())
}

impl Verified {
    /// What is wrong with the archive is a finding; that it could not be asked is not.
    fn finding(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        let is_wrong = error.is::<Unproven>()
            || matches!(
                error.downcast_ref(),
                Some(ArchiveError::Missing { .. } | ArchiveError::Damaged { .. })
            );
        if !is_wrong {
            return Err(error);
        }
        self.findings.push(format!("{error:#}"));
        Ok(())
    }
}

pub(super) fn render(verified: &Verified) -> String {
    let Verified { segments, events, last_sequence, compared_with_journal, findings } = verified;
    let with = if *compared_with_journal { ", and compared with the journal" } else { "" };
    let mut lines = vec![format!(
        "read {events} events in {segments} segments up to sequence {last_sequence}{with}"
    )];
    lines.extend(findings.iter().cloned());
    if findings.is_empty() {
        lines.push("all is there, and as it was".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn what_was_verified_and_what_is_wrong_is_told() {
        let mut verified = Verified {
            segments: 2,
            events: 80_000,
            last_sequence: 80_000,
            compared_with_journal: true,
            findings: vec![],
        };
        assert_view("archive-verify", &render(&verified));
        verified.findings.push("b.jsonl.zst is missing in the archive /archive".to_owned());
        assert_view("archive-verify-findings", &render(&verified));
    }
}
