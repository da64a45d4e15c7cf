//! A message as it stands in the log.

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use domain::id::StreamSequence;
use jiff::Timestamp;

use crate::message::{CE_SUBJECT, CE_TYPE};

/// A message of the log, as a value.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub sequence: StreamSequence,
    pub subject: String,
    pub headers: Headers,
    pub body: Bytes,
    pub published_at: Timestamp,
}

/// The headers of a message.
#[derive(Debug, Clone, Default)]
pub struct Headers(HeaderMap);

impl Headers {
    /// Of a header that is repeated the first value counts.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(async_nats::HeaderValue::as_str)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(name, values)| {
            let first = values.first()?;
            Some((AsRef::<str>::as_ref(name), first.as_str()))
        })
    }
}

/// From where they were stored. A name that cannot be one is left out.
impl<'a> FromIterator<(&'a str, &'a str)> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        let parsed = pairs.into_iter().filter_map(|(name, value)| {
            let name: async_nats::HeaderName = name.parse().ok()?;
            Some((name, value.parse().ok()?))
        });
        Self(parsed.collect())
    }
}

impl Delivery {
    pub fn message_id(&self) -> Option<&str> {
        self.headers.get(AsRef::<str>::as_ref(&NATS_MESSAGE_ID))
    }

    /// The kind of the event, by its header.
    pub fn kind(&self) -> Option<&str> {
        self.headers.get(CE_TYPE)?.rsplit('.').next()
    }

    /// The installation that it is about, as [`header_subject`] writes it.
    ///
    /// [`header_subject`]: crate::message::header_subject
    pub fn about(&self) -> Option<&str> {
        self.headers.get(CE_SUBJECT)
    }

    /// With how many messages come after it. `None` for a message that is not
    /// JetStream's, which no consumer delivers.
    pub(crate) fn of(message: jetstream::Message) -> Option<(Self, u64)> {
        let (sequence, published_at, pending) = {
            let info = message.info().ok()?;
            let nanoseconds = info.published.unix_timestamp_nanos();
            let published = Timestamp::from_nanosecond(nanoseconds);
            (info.stream_sequence, published.unwrap_or(Timestamp::UNIX_EPOCH), info.pending)
        };
        let async_nats::Message { subject, payload, headers, .. } = message.message;
        let delivery = Self {
            sequence: StreamSequence(sequence),
            subject: subject.into_string(),
            headers: Headers(headers.unwrap_or_default()),
            body: payload,
            published_at,
        };
        Some((delivery, pending))
    }
}
