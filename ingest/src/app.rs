//! What every request of ingest works with.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::StatusCode;
use domain::fingerprint::FingerprintKeys;
use domain::id::SourceName;
use domain::key_ring::SealingKey;
use eventlog::keys::{Current, DataKeyPool};
use service::problem::Problem;
use tokio_util::task::TaskTracker;

use crate::audit::Audit;
use crate::publish::Publisher;
use crate::settings::{Http, Source};

pub(crate) struct App {
    pub(crate) sources: BTreeMap<SourceName, Source>,
    /// For metrics: what seals is the pool of data keys.
    pub(crate) sealing_key: Current<SealingKey>,
    pub(crate) fingerprints: FingerprintKeys,
    pub(crate) data_keys: Arc<DataKeyPool>,
    pub(crate) audit: Audit,
    pub(crate) http: Http,
    pub(crate) publisher: Arc<Publisher>,
    /// Notes that are on their way to the log; see `confirmation`.
    pub(crate) notes: TaskTracker,
}

impl App {
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
