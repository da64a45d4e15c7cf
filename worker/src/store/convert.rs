//! Times as Postgres takes them. Events have nanoseconds, `timestamptz` has
//! microseconds; the journal keeps the event as it was.

use jiff::Timestamp;
use time::OffsetDateTime;

pub(crate) fn to_sql(timestamp: Timestamp) -> OffsetDateTime {
    let nanoseconds = timestamp.as_nanosecond();
    // Both types reach from year -9999 to 9999.
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

pub(crate) fn from_sql(time: OffsetDateTime) -> Timestamp {
    Timestamp::from_nanosecond(time.unix_timestamp_nanos()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A sequence as Postgres takes it. JetStream would need 292,000 years at a
/// million events a second to leave the range.
pub(crate) fn sequence_to_sql(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

pub(crate) fn sequence_from_sql(sequence: i64) -> u64 {
    u64::try_from(sequence).unwrap_or_default()
}
