//! Takes from the log what is proven elsewhere. The only place that deletes from it.
//!
//! Message by message, each named by its sequence: the stream denies purging, to
//! everybody and for ever, so that no slip and no single request can empty it. It
//! costs a request a message, and says how many are left when it is interrupted.

use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{DirectGetErrorKind, LastRawMessageErrorKind, Stream};
use domain::id::StreamSequence;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::connect::Connection;
use crate::delivery::Delivery;
use crate::message::STREAM;
use crate::status;

/// Requests on their way. Few: each is a write to the disk that acks wait for, too.
const DELETES_AT_ONCE: usize = 16;
const READS_AT_ONCE: usize = 128;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How the server says that there is no message at a sequence, or none any more.
const NOT_THERE: [&str; 2] = ["no message found", "not found"];

/// One of the log's sequences.
#[derive(Debug)]
pub enum Place {
    Message(Box<Delivery>),
    /// The stream itself has none there.
    Absent(StreamSequence),
}

/// Sequences of the log, read one by one: this needs no right to make consumers.
pub struct Places(BoxStream<'static, anyhow::Result<Place>>);

impl Places {
    /// Every sequence from `first` to `last`, in order.
    pub async fn open(connection: &Connection, first: u64, last: u64) -> anyhow::Result<Self> {
        let context = connection.with_timeout(REQUEST_TIMEOUT);
        let stream = context.get_stream_no_info(STREAM).await?;
        let get = move |sequence| {
            let stream = stream.clone();
            async move { place(&stream, sequence).await }
        };
        Ok(Self(stream::iter(first..=last).map(get).buffered(READS_AT_ONCE).boxed()))
    }

    pub async fn next(&mut self) -> anyhow::Result<Option<Place>> {
        self.0.next().await.transpose()
    }
}

async fn place(stream: &Stream<()>, sequence: u64) -> anyhow::Result<Place> {
    let reading = || format!("reading sequence {sequence} of the log");
    match stream.direct_get(sequence).await {
        Ok(message) => return Ok(Place::Message(Box::new(Delivery::of_answer(message)))),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(reading),
    }
    // A replica may be behind. Only the leader can say that there is nothing.
    match stream.get_raw_message(sequence).await {
        Ok(_) => bail!("a replica of the log is behind at sequence {sequence}; try again"),
        Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => {
            Ok(Place::Absent(StreamSequence(sequence)))
        }
        Err(error) => Err(error).with_context(reading),
    }
}

#[derive(Serialize)]
struct Delete {
    seq: u64,
    /// Secrets are sealed; overwriting would take a rewrite of the block.
    no_erase: bool,
}

#[derive(Deserialize)]
struct Deleted {
    #[expect(dead_code, reason = "an error says otherwise")]
    success: bool,
}

/// How far it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trimmed {
    Done,
    /// `shutdown` was cancelled. Run again, it goes on.
    Interrupted,
}

/// Deletes every message up to `last`. Whoever calls has proven that each is elsewhere.
///
/// The oldest go first, so that what is left of an interruption is the end.
pub async fn up_to(
    connection: &Connection,
    last: StreamSequence,
    shutdown: &CancellationToken,
) -> anyhow::Result<Trimmed> {
    let context = connection.with_timeout(REQUEST_TIMEOUT);
    let first = status::log(connection).await?.first_sequence;
    let subject = format!("STREAM.MSG.DELETE.{STREAM}");
    let api = format!("$JS.API.{subject}");
    let delete = |sequence| {
        let (context, subject, api) = (context.clone(), subject.clone(), api.clone());
        async move {
            let delete = Delete { seq: sequence, no_erase: true };
            let asked = context.request(subject, &delete);
            let answer: Response<Deleted> =
                connection.unless_refused("deleting from the log", &api, asked).await??;
            anyhow::Ok((sequence, answer))
        }
    };
    let mut deleting = stream::iter(first..=last.0).map(delete).buffer_unordered(DELETES_AT_ONCE);
    while let Some(done) = deleting.next().await {
        let (sequence, answer) = done.context("trimming the log")?;
        if let Response::Err { error } = answer
            && !NOT_THERE.iter().any(|said| error.to_string().contains(said))
        {
            bail!("trimming the log: at sequence {sequence} the server says: {error}");
        }
        if shutdown.is_cancelled() {
            return Ok(Trimmed::Interrupted);
        }
    }
    let now = status::log(connection).await?;
    if now.messages > 0 && now.first_sequence <= last.0 {
        let first = now.first_sequence;
        bail!("the log was trimmed up to {last} and begins at {first} still");
    }
    Ok(Trimmed::Done)
}
