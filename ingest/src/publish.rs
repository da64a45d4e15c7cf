//! Appending to the log: keep trying with the same message ID until the server
//! acknowledges, or the ack budget is spent.

use std::error::Error as _;
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{self, ErrorCode};
use backon::{BackoffBuilder, ExponentialBuilder};
use shared::id::StreamSequence;
use shared::log::LogMessage;
use shared::stream::STREAM;
use shared::telemetry;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument as _, Span, field, info_span};

use crate::metrics::METRICS;
use crate::readiness::Contract;

/// One attempt. A server that lives answers in milliseconds; what is unknown
/// after this is tried again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(25);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Answers of the server that mean "full or overloaded": trying on would add to
/// the load. Codes: server/errors.json of nats-server.
const OVERLOADED: [u64; 5] = [10_002, 10_023, 10_047, 10_077, 10_167];

/// The acknowledgement: the event is in the log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Appended {
    pub(crate) sequence: StreamSequence,
    pub(crate) duplicate: bool,
}

/// Whether the event is in the log is unknown or known to be false. The
/// platform's retry is safe: its message ID is the same.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAppended {
    #[error("the log did not acknowledge within the ack budget")]
    BudgetSpent,
    #[error("the log is full or overloaded")]
    Overloaded,
    #[error("the log's settings break the durability contract")]
    ContractBroken,
    #[error("the event exceeds the server's max_payload")]
    TooLarge,
}

pub(crate) struct Publisher {
    client: Client,
    jetstream: jetstream::Context,
    contract: watch::Receiver<Contract>,
}

enum Attempt {
    TryAgain,
    GiveUp(NotAppended),
}

impl Publisher {
    pub(crate) fn new(client: Client, contract: watch::Receiver<Contract>) -> Self {
        let jetstream = jetstream::ContextBuilder::new()
            .ack_timeout(ATTEMPT_TIMEOUT)
            .max_ack_inflight(usize::from(u16::MAX))
            .build(client.clone());
        Self { client, jetstream, contract }
    }

    pub(crate) fn contract(&self) -> Contract {
        self.contract.borrow().clone()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Returns once the server has stored the event, or `budget` is spent.
    pub(crate) async fn append(
        &self,
        message: LogMessage,
        budget: Duration,
    ) -> Result<Appended, NotAppended> {
        let span = info_span!(
            "publish",
            otel.name = format!("send {STREAM}"),
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.operation.name = "send",
            messaging.operation.r#type = "send",
            messaging.destination.name = STREAM,
            messaging.message.id = message.headers.get("Nats-Msg-Id").map(|id| id.as_str()),
            mooring.sequence = field::Empty,
            mooring.duplicate = field::Empty,
        );
        let deadline = Instant::now() + budget;
        let appended = async {
            timeout_at(deadline, self.append_until_acknowledged(message))
                .await
                .unwrap_or(Err(NotAppended::BudgetSpent))
        };
        let appended = appended.instrument(span.clone()).await?;
        span.record("mooring.sequence", appended.sequence.0);
        span.record("mooring.duplicate", appended.duplicate);
        Ok(appended)
    }

    async fn append_until_acknowledged(
        &self,
        mut message: LogMessage,
    ) -> Result<Appended, NotAppended> {
        self.contract_is_met().await?;
        telemetry::inject(&Span::current(), &mut message.headers);
        let mut backoff = ExponentialBuilder::new()
            .with_jitter()
            .with_min_delay(BACKOFF_MIN)
            .with_max_delay(BACKOFF_MAX)
            .without_max_times()
            .build();
        loop {
            match self.attempt(message.clone()).await {
                Ok(appended) => return Ok(appended),
                Err(Attempt::GiveUp(why)) => return Err(why),
                Err(Attempt::TryAgain) => METRICS.publish_retries.add(1, &[]),
            }
            tokio::time::sleep(backoff.next().unwrap_or(BACKOFF_MAX)).await;
        }
    }

    /// Waits until it is known whether the stream keeps what it acknowledges.
    async fn contract_is_met(&self) -> Result<(), NotAppended> {
        let mut contract = self.contract.clone();
        let known =
            contract.wait_for(|contract| !matches!(contract, Contract::Unknown { .. })).await;
        match known.as_deref() {
            Ok(Contract::Met { .. }) => Ok(()),
            Ok(Contract::Broken { .. } | Contract::Unknown { .. }) => {
                Err(NotAppended::ContractBroken)
            }
            // The watching task has ended: ingest is shutting down.
            Err(_) => Err(NotAppended::BudgetSpent),
        }
    }

    async fn attempt(&self, message: LogMessage) -> Result<Appended, Attempt> {
        // The client would queue it until it has reconnected; then a callback
        // that was long answered with 503 would still be sent.
        if !self.is_connected() {
            return Err(Attempt::TryAgain);
        }
        let LogMessage { subject, headers, body } = message;
        let publish = PublishMessage::build().payload(body).headers(headers);
        let sent = self.jetstream.send_publish(subject, publish).await.map_err(|e| classify(&e))?;
        // The first await sends, only the second waits for the acknowledgement.
        let ack = sent.await.map_err(|error| classify(&error))?;
        if ack.stream != STREAM {
            tracing::error!(stream = ack.stream, "another stream has taken our subjects");
            return Err(Attempt::GiveUp(NotAppended::ContractBroken));
        }
        Ok(Appended { sequence: StreamSequence(ack.sequence), duplicate: ack.duplicate })
    }
}

fn classify(error: &PublishError) -> Attempt {
    tracing::warn!(error = %error, "publish was not acknowledged");
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => Attempt::GiveUp(NotAppended::TooLarge),
        PublishErrorKind::Other if is_overloaded(error) => Attempt::GiveUp(NotAppended::Overloaded),
        PublishErrorKind::StreamNotFound
        | PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::MaxAckPending
        | PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::Other => Attempt::TryAgain,
    }
}

fn is_overloaded(error: &PublishError) -> bool {
    let server = error.source().and_then(|source| source.downcast_ref::<jetstream::Error>());
    server
        .is_some_and(|server| OVERLOADED.iter().any(|code| server.error_code() == ErrorCode(*code)))
}
