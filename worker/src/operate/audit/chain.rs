//! The chain of access records, as it is checked: in Postgres, and in an export.

use std::io::BufRead;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::operate::exit::Differs;
use crate::store::access::Record;

/// A line of an export. It holds what it is checked by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// The digest of the record before, in hex; empty before the first.
    pub(super) previous: String,
    #[serde(flatten)]
    pub(super) record: Record,
}

/// A part of the chain that was found unbroken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Checked {
    pub(super) records: u64,
    /// Before the first of them.
    #[serde(skip)]
    pub(super) before: Link,
    pub(super) last: Link,
}

/// A place in the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Link {
    pub(super) number: i64,
    pub(super) digest: String,
}

impl Checked {
    pub(super) fn nothing_after(before: Link) -> Self {
        Self { records: 0, last: before.clone(), before }
    }

    /// Goes on with the next record, if it is that.
    pub(super) fn extend(&mut self, record: &Record) -> Result<(), Differs> {
        let Link { number, digest } = &self.last;
        if record.number != number + 1 {
            let found = record.number;
            return Err(Differs(format!("after record {number} comes {found}: some were deleted")));
        }
        let previous = hex::decode(digest).unwrap_or_default();
        if hex::encode(record.digest_after(&previous)) != record.digest {
            let number = record.number;
            let what = "the record or one before it is not what was recorded";
            return Err(Differs(format!("the chain is broken at record {number}: {what}")));
        }
        self.records += 1;
        self.last = Link { number: record.number, digest: record.digest.clone() };
        Ok(())
    }
}

/// Checks an export by itself. `None` if it holds nothing.
pub(super) fn check_export(export: impl BufRead) -> anyhow::Result<Option<Checked>> {
    let mut checked: Option<Checked> = None;
    for (index, line) in export.lines().enumerate() {
        let line = line?;
        let place = || format!("line {} of the export", index + 1);
        let Line { previous, record } = serde_json::from_str(&line).with_context(place)?;
        let before = || Link { number: record.number - 1, digest: previous.clone() };
        let chain = checked.get_or_insert_with(|| Checked::nothing_after(before()));
        chain.extend(&record)?;
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn record(number: i64, caller: &str, previous: &str) -> Record {
        let mut record = Record {
            number,
            recorded_at: Timestamp::from_microsecond(1_700_000_000_123_456).unwrap(),
            recorded_by: "mooring_worker".into(),
            outcome: "refused".into(),
            reason: "expired".into(),
            status: Some(401),
            requests: 3,
            caller: Some(caller.into()),
            subject: None,
            client_address: Some("::1".into()),
            trace_id: None,
            route: Some("/v1/installations".into()),
            source: None,
            place: None,
            installation_id: None,
            generation: None,
            key_id: None,
            digest: String::new(),
        };
        record.digest = hex::encode(record.digest_after(&hex::decode(previous).unwrap()));
        record
    }

    fn export() -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for number in 5..9 {
            let previous = lines.last().map_or("00ff".to_owned(), |it| it.record.digest.clone());
            let record = record(number, "käse, a", &previous);
            lines.push(Line { previous, record });
        }
        lines
    }

    fn check(lines: &[Line]) -> anyhow::Result<Option<Checked>> {
        let lines: Vec<String> =
            lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
        check_export(lines.join("\n").as_bytes())
    }

    #[test]
    fn an_export_proves_itself() {
        let checked = check(&export()).unwrap().unwrap();
        assert_eq!((checked.records, checked.before.number, checked.last.number), (4, 4, 8));
        assert_eq!(check(&[]).unwrap(), None);
    }

    #[test]
    fn whatever_is_changed_taken_out_or_put_in_breaks_the_chain() {
        let mut changed = export();
        changed[2].record.caller = Some("käse, b".into());
        let mut moved = export();
        moved[2].record.recorded_at = Timestamp::UNIX_EPOCH;
        let mut fields = export();
        (fields[2].record.caller, fields[2].record.subject) = (None, Some("käse, a".into()));
        let mut taken_out = export();
        taken_out.remove(1);
        let mut swapped = export();
        swapped.swap(1, 2);
        let mut forged = export();
        forged[1].record = record(6, "other", &forged[0].record.digest);
        for lines in [changed, moved, fields, taken_out, swapped, forged] {
            let error = check(&lines).unwrap_err();
            assert!(error.is::<Differs>(), "{error}");
        }
    }
}
