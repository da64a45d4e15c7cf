//! Times and numbers as Postgres takes them. Events have nanoseconds,
//! `timestamptz` has microseconds; the journal keeps the event as it was.

use jiff::Timestamp;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::{Decode, Postgres, Type};
use time::OffsetDateTime;

pub(crate) fn to_sql(timestamp: Timestamp) -> OffsetDateTime {
    let nanoseconds = timestamp.as_nanosecond();
    // Both types reach from year -9999 to 9999.
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

pub(crate) fn from_sql(time: OffsetDateTime) -> Timestamp {
    Timestamp::from_nanosecond(time.unix_timestamp_nanos()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A `timestamptz` that may be null, for structs that derive `FromRow`.
pub(crate) struct SqlTime(Option<OffsetDateTime>);

impl Type<Postgres> for SqlTime {
    fn type_info() -> PgTypeInfo {
        OffsetDateTime::type_info()
    }
}

impl<'r> Decode<'r, Postgres> for SqlTime {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        Option::decode(value).map(Self)
    }
}

impl From<SqlTime> for Option<Timestamp> {
    fn from(SqlTime(time): SqlTime) -> Self {
        time.map(from_sql)
    }
}

/// A sequence as Postgres takes it. JetStream would need 292,000 years at a
/// million events a second to leave the range.
pub(crate) fn sequence_to_sql(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

pub(crate) fn sequence_from_sql(sequence: i64) -> u64 {
    u64::try_from(sequence).unwrap_or_default()
}

/// A count that no history reaches the end of.
pub(crate) fn integer_to_sql(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
