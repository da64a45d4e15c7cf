//! Hints: what a payload says besides what happened, and to which installation.
//!
//! A hint that cannot be read is as good as absent. It stays in the payload and
//! never costs an event: a refusal would cancel an installation, or be repeated
//! for ever.

use std::ops::Range;

use jiff::civil::Time;
use jiff::fmt::rfc2822;
use jiff::fmt::temporal::Pieces;
use jiff::tz::Offset;
use jiff::{SignedDuration, Timestamp, Unit};
use serde_json::Value;

use super::fields::Fields;
use crate::id::InstallationId;

/// The years 2000 to 2199. No event happened outside them: such a time is what a
/// program writes that knows none, such as 0001-01-01.
const PLAUSIBLE_SECONDS: Range<i64> = 946_684_800..7_258_118_400;

/// What a payload says of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimeHint {
    Absent,
    At(Timestamp),
    /// There is something, in a form that we do not know.
    Unreadable,
}

impl TimeHint {
    /// A time as in RFC 3339, also without its offset (then UTC) or its time of
    /// day; as in RFC 2822; or since 1970 in seconds, milliseconds or microseconds.
    pub(super) fn of(value: Option<&Value>) -> Self {
        let text = match value {
            None | Some(Value::Null | Value::Bool(_)) => return Self::Absent,
            Some(Value::String(text)) => text.trim().to_owned(),
            Some(other) => other.to_string(),
        };
        let forms = [since_1970, rfc_3339, rfc_2822];
        let unknown = || {
            let may_be_time = text.bytes().any(|byte| byte.is_ascii_digit());
            if may_be_time { Self::Unreadable } else { Self::Absent }
        };
        forms.iter().find_map(|read| read(&text)).unwrap_or_else(unknown)
    }

    pub(super) fn at(self) -> Option<Timestamp> {
        match self {
            Self::At(time) => Some(time),
            Self::Absent | Self::Unreadable => None,
        }
    }

    /// Whether two events with otherwise the same payload differ here, while a
    /// retry repeats it. That does not take a form that we can read.
    pub(super) fn tells_events_apart(self) -> bool {
        self != Self::Absent
    }

    /// Of a text that has one of the forms.
    fn plausible(time: Option<Timestamp>) -> Self {
        let is_plausible = |time: &Timestamp| PLAUSIBLE_SECONDS.contains(&time.as_second());
        time.filter(is_plausible).map_or(Self::Absent, Self::At)
    }
}

/// Too many for seconds are milliseconds, and too many for these microseconds.
fn since_1970(text: &str) -> Option<TimeHint> {
    const SECONDS_BELOW: f64 = 1e11;
    const MILLISECONDS_BELOW: f64 = 1e14;
    let number: f64 = text.parse().ok()?;
    let seconds = match number {
        _ if number < SECONDS_BELOW => number,
        _ if number < MILLISECONDS_BELOW => number / 1e3,
        _ => number / 1e6,
    };
    let time = SignedDuration::try_from_secs_f64(seconds).and_then(Timestamp::from_duration);
    // A float is not exact beyond that.
    Some(TimeHint::plausible(time.and_then(|time| time.round(Unit::Microsecond)).ok()))
}

fn rfc_3339(text: &str) -> Option<TimeHint> {
    let pieces = Pieces::parse(text).ok()?;
    let local = pieces.date().to_datetime(pieces.time().unwrap_or(Time::midnight()));
    let offset = pieces.to_numeric_offset().unwrap_or(Offset::UTC);
    Some(TimeHint::plausible(offset.to_timestamp(local).ok()))
}

fn rfc_2822(text: &str) -> Option<TimeHint> {
    let time = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(TimeHint::plausible(Some(time)))
}

/// An id that says more of the installation and does not identify it.
pub(super) fn id(fields: &Fields, field: &str) -> Option<String> {
    let text = fields.get(field).and_then(Value::as_str)?;
    InstallationId::parse(text).ok().map(String::from)
}

/// A text for people, such as a company's name.
pub(super) fn text(value: Option<&Value>) -> Option<String> {
    const BYTES_MAX: usize = 1024;
    let text = value?.as_str()?;
    let is_fit = !text.is_empty() && text.len() <= BYTES_MAX && !text.chars().any(char::is_control);
    is_fit.then(|| text.to_owned())
}

/// A number, or a text that is one.
pub(super) fn number(value: Option<&Value>) -> Option<f64> {
    match value? {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}
