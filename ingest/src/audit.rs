//! Tells what became of callbacks that are not in the log. No callback waits for
//! it.

use domain::id::SourceName;
use eventlog::audit::{Outcome, Record, Recorder};
use service::clock;
use service::telemetry;
use tracing::Span;

#[derive(Clone)]
pub(crate) struct Audit(pub(crate) Recorder);

impl Audit {
    pub(crate) fn record(&self, source: &SourceName, outcome: Outcome) {
        let trace_id = telemetry::trace_id(&Span::current());
        let received_at = clock::now();
        let source = source.clone();
        self.0.record(Record { source, received_at, trace_id, outcome, omitted: 0 });
    }
}
