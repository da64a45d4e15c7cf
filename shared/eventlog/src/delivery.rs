//! A message as it stands in the log.

use async_nats::header::{
    HeaderName, NATS_LAST_SEQUENCE, NATS_MESSAGE_ID, NATS_SEQUENCE, NATS_STREAM, NATS_SUBJECT,
    NATS_TIME_STAMP,
};
use async_nats::jetstream::message::StreamMessage;
use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use domain::id::{MessageId, StreamSequence};
use jiff::Timestamp;

use crate::message::{
    CE_ID, CE_SUBJECT, CE_TYPE, LogMessage, POSITION, PROOF, Restored, UNPROVEN, is_operators,
};

/// What the server adds when a message is asked for by its sequence.
const OF_ANSWER: [HeaderName; 5] =
    [NATS_STREAM, NATS_SUBJECT, NATS_SEQUENCE, NATS_TIME_STAMP, NATS_LAST_SEQUENCE];

/// A message of the log, as a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    pub sequence: StreamSequence,
    pub subject: String,
    pub headers: Headers,
    pub body: Bytes,
    pub published_at: Timestamp,
}

/// The headers of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

    /// All of them, sorted by name; a repeated one has a pair for each value.
    pub(crate) fn pairs(&self) -> Vec<(String, String)> {
        let all = self.0.iter().flat_map(|(name, values)| {
            let name: &str = name.as_ref();
            values.iter().map(move |value| (name.to_owned(), value.as_str().to_owned()))
        });
        let mut all: Vec<(String, String)> = all.collect();
        // Stable: the values of one name keep their order.
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// An error if a name or value cannot be one.
    pub(crate) fn from_pairs(pairs: &[(String, String)]) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let invalid = || format!("{name} is no header");
            let name: HeaderName = name.parse().map_err(|_| invalid())?;
            let value: async_nats::HeaderValue = value.parse().map_err(|_| invalid())?;
            headers.append(name, value);
        }
        Ok(Self(headers))
    }
}

impl Headers {
    /// What they say of the event, without what its way into the log put there.
    pub(crate) fn of_event(&self) -> HeaderMap {
        let of_event = |name: &str| name != POSITION && !name.starts_with("Nats-");
        self.iter().filter(|(name, _)| of_event(name)).collect::<Self>().0
    }
}

impl From<HeaderMap> for Headers {
    fn from(headers: HeaderMap) -> Self {
        Self(headers)
    }
}

/// From where they were stored. A name that cannot be one is left out.
impl<'a> FromIterator<(&'a str, &'a str)> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        let parsed = pairs.into_iter().filter_map(|(name, value)| {
            let name: HeaderName = name.parse().ok()?;
            Some((name, value.parse().ok()?))
        });
        Self(parsed.collect())
    }
}

impl Delivery {
    /// That of the event. The server has another one for a copy.
    pub fn message_id(&self) -> Option<&str> {
        let of_message = || self.headers.get(AsRef::<str>::as_ref(&NATS_MESSAGE_ID));
        self.headers.get(CE_ID).or_else(of_message)
    }

    /// Where the event stands in the order of the log: where it stands in the stream,
    /// or where a restored one stood at first.
    pub fn position(&self) -> StreamSequence {
        let stood = || self.headers.get(POSITION)?.parse().ok().map(StreamSequence);
        is_operators(&self.subject).then(stood).flatten().unwrap_or(self.sequence)
    }

    /// To be put back into the log. Where it goes an operator vouches for it, unless it is
    /// said to be unproven.
    pub fn again(&self, restored: Restored, is_proven: bool) -> LogMessage {
        let id = MessageId::from_stored(self.message_id().unwrap_or_default().to_owned());
        let (subject, body) = (self.subject.clone(), self.body.clone());
        let mut headers = self.headers.of_event();
        if !is_proven {
            headers.insert(UNPROVEN, "true");
        }
        LogMessage::stored(id, subject, body, headers, restored)
    }

    /// Whether only an operator can have published it.
    pub fn is_by_operator(&self) -> bool {
        is_operators(&self.subject)
    }

    /// What proves who wrote it.
    pub fn proof(&self) -> Option<&str> {
        self.headers.get(PROOF)
    }

    /// Whether an operator vouches for it.
    pub fn is_vouched_for(&self) -> bool {
        self.is_by_operator() && self.headers.get(UNPROVEN).is_none()
    }

    /// Whether it is in the log for the second time.
    pub fn is_restored(&self) -> bool {
        self.position() != self.sequence
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

    /// As a replica answers when it is asked for this sequence: beside the headers
    /// of the message stand those of the answer.
    pub(crate) fn of_answer(message: StreamMessage) -> Self {
        let StreamMessage { subject, sequence, headers, payload, time } = message;
        let of_message = headers.iter().filter(|(name, _)| !OF_ANSWER.contains(name));
        let mut headers = HeaderMap::new();
        for (name, values) in of_message {
            for value in values {
                headers.append(name.clone(), value.clone());
            }
        }
        let stored_at = Timestamp::from_nanosecond(time.unix_timestamp_nanos());
        Self {
            sequence: StreamSequence(sequence),
            subject: subject.into_string(),
            headers: Headers(headers),
            body: payload,
            published_at: stored_at.unwrap_or(Timestamp::UNIX_EPOCH),
        }
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

#[cfg(test)]
mod tests {
    use domain::event::Event;

    use super::*;
    use crate::message::partition_of;

    #[test]
    fn a_restored_event_says_where_it_stood_and_a_copy_is_no_duplicate() {
        let body = include_str!("../../domain/src/event/installed.v1.json");
        let event = Event::decode(body.as_bytes()).unwrap();
        let (position, copy_of) = (Some(StreamSequence(7)), Some(StreamSequence(9)));
        let lost = Restored { position, copy_of: None };
        let lost = LogMessage::restored(&event, Bytes::new(), None, lost).unwrap();
        assert_eq!(lost.subject, "installations.blnk.31.operator");
        assert_eq!(partition_of(&lost.subject), Some(31));
        let delivery = |message: &LogMessage| Delivery {
            sequence: StreamSequence(10),
            subject: message.subject.clone(),
            headers: message.headers().into(),
            body: message.body.clone(),
            published_at: Timestamp::UNIX_EPOCH,
        };
        let stored = delivery(&lost);
        assert_eq!((stored.position(), stored.is_restored()), (StreamSequence(7), true));
        assert_eq!(stored.message_id(), Some(event.message_id.as_str()));

        let copy = stored.again(Restored { position, copy_of }, true);
        let id = copy.headers().get(NATS_MESSAGE_ID).unwrap().to_string();
        assert_eq!(id, format!("{}!copy_of@9", event.message_id));
        let stored = delivery(&copy);
        assert_eq!(stored.message_id(), Some(event.message_id.as_str()));
        assert_eq!(stored.subject, lost.subject);

        let unproven = delivery(&stored.again(Restored { position, copy_of }, false));
        assert!(stored.is_vouched_for() && !unproven.is_vouched_for());

        // Who may not publish as an operator cannot choose a position.
        let forged = Delivery { subject: "installations.blnk.31".to_owned(), ..stored };
        assert_eq!((forged.position(), forged.is_restored()), (StreamSequence(10), false));
    }
}
