//! What every request of ingest works with.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use domain::fingerprint::FingerprintKeys;
use domain::id::SourceName;
use domain::key_ring::SealingKey;
use eventlog::audit::Outcome;
use eventlog::connect::Connection;
use eventlog::keys::{Current, DataKeyPool};
use opentelemetry::KeyValue;
use service::problem::Problem;
use service::telemetry::names::attribute;
use tokio_util::task::TaskTracker;

use crate::audit::Audit;
use crate::door::Doors;
use crate::metrics::METRICS;
use crate::publish::Publisher;
use crate::settings::{Http, Source};
use crate::ticket::UsedTickets;

pub(crate) struct App {
    pub(crate) sources: BTreeMap<SourceName, Source>,
    /// For metrics: what seals is the pool of data keys.
    pub(crate) sealing_key: Current<SealingKey>,
    pub(crate) fingerprints: FingerprintKeys,
    pub(crate) data_keys: Arc<DataKeyPool>,
    pub(crate) audit: Audit,
    pub(crate) http: Http,
    pub(crate) publisher: Arc<Publisher>,
    /// For what goes to the app itself.
    pub(crate) connection: Connection,
    /// Where whoever comes may write.
    pub(crate) doors: Doors,
    pub(crate) used_tickets: UsedTickets,
    /// Notes that are on their way to the log; see `confirmation`.
    pub(crate) notes: TaskTracker,
}

impl App {
    /// Counts what is refused to somebody who has proven nothing, and notes it beside refused
    /// callbacks.
    pub(crate) fn refused(&self, source: &Source, status: StatusCode, reason: &'static str) {
        let attributes = [source.attribute.clone(), KeyValue::new(attribute::REASON, reason)];
        METRICS.refusals.add(1, &attributes);
        let (status, reason) = (status.as_u16(), reason.to_owned());
        let refused = Outcome::Refused { status, reason, verified: false };
        self.audit.record(&source.name, refused);
    }

    pub(crate) fn source(&self, name: &str) -> Result<&Source, Problem> {
        let found = self.sources.iter().find(|(known, _)| known.as_str() == name);
        found.map(|(_, source)| source).ok_or_else(|| {
            let detail = "no source of this name is configured; see `sources` in the configuration";
            Problem::new(StatusCode::NOT_FOUND, "unknown-source", detail)
        })
    }
}

pub(crate) fn internal_error() -> Problem {
    let detail = "ingest failed; the callback was not acknowledged and may be sent again";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal-error", detail)
}
