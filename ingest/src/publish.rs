//! Appending to the log within the ack budget. Failures are tried again, with
//! the same message ID, until the log acknowledges or the budget is spent.

use std::time::Duration;

use domain::event_key::EventKey;
use domain::id::MessageId;
use eventlog::append::{Failure, Writer};
use eventlog::connect::Connection;
use eventlog::contract::Contract;
use eventlog::message::{LogMessage, STREAM};
use service::telemetry;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument as _, Span, field, info_span};

pub(crate) use crate::commit::Published;
use crate::commit::{Committer, Submission};

/// Callbacks that wait to be committed; each holds a few kilobytes.
const QUEUE_MAX: usize = 8_192;

/// Whether the event is in the log is unknown or known to be false. The
/// platform's retry is safe: its message ID is the same.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotAppended {
    #[error("the log did not acknowledge within the ack budget")]
    BudgetSpent,
    #[error("no data key could be stored within the ack budget")]
    NoDataKey,
    #[error("the log is full or overloaded")]
    Overloaded,
    #[error("too many callbacks wait for the log")]
    QueueFull,
    #[error("too many callbacks of this source wait for the log")]
    SourceBusy,
    #[error("the log's settings break the durability contract")]
    ContractBroken,
    #[error("the event exceeds the server's max_payload")]
    TooLarge,
}

impl From<Failure> for NotAppended {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unknown => Self::BudgetSpent,
            Failure::Overloaded => Self::Overloaded,
            Failure::TooLarge => Self::TooLarge,
            Failure::OtherStream => Self::ContractBroken,
        }
    }
}

pub(crate) struct Publisher {
    writer: Writer,
    contract: watch::Receiver<Contract>,
    queue: mpsc::Sender<Submission>,
}

impl Publisher {
    /// Starts the committing task, which ends when the publisher is dropped and
    /// nothing is on its way.
    pub(crate) fn new(
        connection: Connection,
        key: Option<EventKey>,
        contract: watch::Receiver<Contract>,
    ) -> Self {
        let writer = Writer::of_service(connection, key);
        let (queue, submissions) = mpsc::channel(QUEUE_MAX);
        let committer = Committer::new(writer.clone(), contract.clone(), submissions);
        tokio::spawn(committer.run());
        Self { writer, contract, queue }
    }

    pub(crate) fn contract(&self) -> Contract {
        self.contract.borrow().clone()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.writer.is_connected()
    }

    /// Returns once the server has stored the event, or `budget` is spent.
    pub(crate) async fn append(
        &self,
        message: LogMessage,
        budget: Duration,
    ) -> Result<Published, NotAppended> {
        let span = info_span!(
            "publish",
            otel.name = format!("send {STREAM}"),
            otel.kind = "producer",
            messaging.system = "nats",
            messaging.operation.name = "send",
            messaging.operation.r#type = "send",
            messaging.destination.name = STREAM,
            messaging.message.id = message.id.as_str(),
            mooring.sequence = field::Empty,
            mooring.duplicate = field::Empty,
        );
        let deadline = Instant::now() + budget;
        let appended = async {
            timeout_at(deadline, self.submit(message))
                .await
                .unwrap_or(Err(NotAppended::BudgetSpent))
        };
        let appended = appended.instrument(span.clone()).await?;
        span.record("mooring.sequence", appended.sequence.0);
        span.record("mooring.duplicate", appended.duplicate);
        Ok(appended)
    }

    /// Lets the next delivery of this event ask the server again.
    pub(crate) fn forget(&self, id: MessageId) {
        // A full queue is no harm: it is only remembered longer.
        self.queue.try_send(Submission::Forget(id)).ok();
    }

    /// Lets the server say of everything whether it has it.
    pub(crate) async fn forget_all(&self) {
        self.queue.send(Submission::ForgetAll).await.ok(); // or ingest has stopped
    }

    /// If this is cancelled before the event was sent, it is not sent any more.
    async fn submit(&self, mut message: LogMessage) -> Result<Published, NotAppended> {
        self.contract_is_met().await?;
        message.traceparent = telemetry::traceparent(&Span::current());
        let (reply, replied) = oneshot::channel();
        let submission = Submission::Append { message, reply };
        self.queue.try_send(submission).map_err(|_| NotAppended::QueueFull)?;
        // The committer ends without an answer only if it failed itself.
        replied.await.unwrap_or(Err(Failure::Unknown)).map_err(NotAppended::from)
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
}
