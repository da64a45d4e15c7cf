//! Names of metrics, attributes and spans: the one place that holds them, and
//! what docs/telemetry.md is made of.
//!
//! Semantic conventions 1.37 (<https://opentelemetry.io/docs/specs/semconv/>)
//! where they have a name, `mooring.*` otherwise. No attribute grows with the
//! number of installations.

use opentelemetry::metrics::{AsyncInstrument, Counter, Gauge, Histogram, Meter, ObservableGauge};

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Instrument {
    pub name: &'static str,
    pub kind: Kind,
    /// UCUM (<https://ucum.org>); in braces what is counted.
    pub unit: &'static str,
    pub attributes: &'static [&'static str],
    pub description: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram(&'static [f64]),
}

impl Instrument {
    pub fn counter(&self, meter: &Meter) -> Counter<u64> {
        meter.u64_counter(self.name).with_unit(self.unit).with_description(self.description).build()
    }

    pub fn gauge(&self, meter: &Meter) -> Gauge<f64> {
        meter.f64_gauge(self.name).with_unit(self.unit).with_description(self.description).build()
    }

    /// Asked at each export: what is not known then is not told, rather than told
    /// as it was.
    pub fn observed(
        &self,
        meter: &Meter,
        observe: impl Fn(&dyn AsyncInstrument<f64>) + Send + Sync + 'static,
    ) -> ObservableGauge<f64> {
        meter
            .f64_observable_gauge(self.name)
            .with_unit(self.unit)
            .with_description(self.description)
            .with_callback(observe)
            .build()
    }

    pub fn histogram(&self, meter: &Meter) -> Histogram<f64> {
        let buckets = match self.kind {
            Kind::Histogram(buckets) => buckets.to_vec(),
            Kind::Counter | Kind::Gauge => Vec::new(),
        };
        meter
            .f64_histogram(self.name)
            .with_unit(self.unit)
            .with_description(self.description)
            .with_boundaries(buckets)
            .build()
    }
}

/// Attributes of metrics and spans.
pub mod attribute {
    pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
    pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
    pub const HTTP_ROUTE: &str = "http.route";
    pub const SERVICE_VERSION: &str = "service.version";
    pub const SOURCE: &str = "mooring.source";
    pub const RESULT: &str = "mooring.result";
    pub const REASON: &str = "mooring.reason";
    pub const COMMIT_MODE: &str = "mooring.commit.mode";
    pub const GRANT: &str = "mooring.grant";
    pub const EVENT_TYPE: &str = "mooring.event.type";
    pub const STATUS: &str = "mooring.status";
    pub const KEY_ID: &str = "mooring.key.id";
    pub const PHASE: &str = "mooring.phase";
    pub const CALLER: &str = "mooring.caller";
    pub const ENDPOINT: &str = "mooring.endpoint";

    /// Each with its values.
    pub const ALL: [(&str, &str); 15] = [
        (HTTP_REQUEST_METHOD, "of the semantic conventions; unknown methods are `_OTHER`"),
        (HTTP_RESPONSE_STATUS_CODE, "of the semantic conventions"),
        (HTTP_ROUTE, "the route, never the path, which may hold a token"),
        (SERVICE_VERSION, "the release, and behind a `+` the commit if whoever built it told"),
        (SOURCE, "the configured name of the source; empty where a callback names none"),
        (
            RESULT,
            "of a callback `appended`, `duplicate`, `refused` (the caller's fault) or `failed` (ours); \
             of an event `appended`, `duplicate` or `dead_letter`; of a request for tokens `issued`, \
             `refused` or `failed`; of a push `delivered` or `failed`",
        ),
        (
            REASON,
            "the end of the problem's type, why an event became a dead letter, or why a caller was not let in",
        ),
        (COMMIT_MODE, "`group` or `single`"),
        (GRANT, "`authorization_code`, `refresh_token` or `location`"),
        (
            EVENT_TYPE,
            "`installed`, `updated`, `uninstalled`, `suspended`, `resumed`, `permissions_changed`, `authorized`, \
             `ack_missed`, `ack_delivered`, `erased`, `unrecognized`; `forwarded` of a callback that went to the \
             app; `unknown` where nothing could be read",
        ),
        (
            STATUS,
            "`pending`, `active`, `suspended`, `superseded`, `inactive`, `unconfirmed` or `unverified`",
        ),
        (KEY_ID, "the id of a key of the ring"),
        (PHASE, "`reading` or `folding`"),
        (
            CALLER,
            "a name of `worker.api_tokens`, or provider and caller of `worker.identity_providers`; empty \
             where nobody knows who it is",
        ),
        (ENDPOINT, "a name of `worker.push`"),
    ];
}

/// Buckets for durations in seconds, as the conventions advise for HTTP.
const DURATION_S: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Buckets for the part of a deadline that was used.
const DEADLINE_USED: &[f64] = &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 2.0];
/// Buckets for the number of events in a batch.
const BATCH: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];

pub mod metric {
    use super::attribute::*;
    use super::{BATCH, DEADLINE_USED, DURATION_S, Instrument, Kind};

    macro_rules! metrics {
        ($($constant:ident: $name:literal, $kind:expr, $unit:literal, [$($attribute:ident),*], $description:literal;)*) => {
            $(pub const $constant: Instrument = Instrument {
                name: $name,
                kind: $kind,
                unit: $unit,
                attributes: &[$($attribute),*],
                description: $description,
            };)*
            pub const ALL: &[Instrument] = &[$($constant),*];
        };
    }

    metrics! {
        HTTP_SERVER_REQUEST_DURATION: "http.server.request.duration", Kind::Histogram(DURATION_S), "s",
            [HTTP_REQUEST_METHOD, HTTP_ROUTE, HTTP_RESPONSE_STATUS_CODE],
            "Duration of HTTP server requests.";
        HTTP_CLIENTS_REFUSED: "mooring.http.clients.refused", Kind::Counter, "{refusal}",
            [],
            "Connections that were closed, and requests that were answered 429, because their client had its share.";
        CALLBACK_ACK_DURATION: "mooring.callback.ack.duration", Kind::Histogram(DURATION_S), "s",
            [SOURCE, RESULT, EVENT_TYPE],
            "Time from the headers of a callback to its answer.";
        CALLBACK_ACK_DEADLINE_USED: "mooring.callback.ack.deadline.used.ratio", Kind::Histogram(DEADLINE_USED), "{deadline}",
            [SOURCE, RESULT, EVENT_TYPE],
            "Time to the answer, divided by how long the platform waits; above 1 it came too late.";
        CALLBACK_REFUSALS: "mooring.callback.refusals", Kind::Counter, "{callback}",
            [SOURCE, REASON],
            "Callbacks that were answered 4xx: a retry would be refused again.";
        CALLBACK_ACKS_MISSED: "mooring.callback.acks.missed", Kind::Counter, "{callback}",
            [SOURCE],
            "Callbacks whose success the platform may not have got.";
        CALLBACKS_IGNORED: "mooring.callback.ignored", Kind::Counter, "{callback}",
            [SOURCE],
            "Callbacks that were acknowledged and not kept, because the source is not there for them.";
        PUSH_ATTEMPTS: "mooring.push.attempts", Kind::Counter, "{attempt}",
            [ENDPOINT, RESULT],
            "Attempts to deliver a change to an endpoint.";
        PUSH_OLDEST_AGE: "mooring.push.oldest.age", Kind::Gauge, "s",
            [ENDPOINT],
            "How long the oldest change that is not delivered waits; 0 without one. Told by the worker that pushes.";
        PUSH_PAUSED: "mooring.push.paused", Kind::Gauge, "{endpoint}",
            [ENDPOINT],
            "1 while an endpoint is paused, else 0. Told by the worker that pushes.";
        PUBLISH_RETRIES: "mooring.publish.retries", Kind::Counter, "{attempt}",
            [],
            "Attempts to append to the log that were not acknowledged.";
        PUBLISH_BATCH_EVENTS: "mooring.publish.batch.events", Kind::Histogram(BATCH), "{event}",
            [COMMIT_MODE],
            "Events that were sent to the log together.";
        LOG_CONTRACT_MET: "mooring.log.contract.met", Kind::Gauge, "{contract}",
            [],
            "1 while the log keeps what it acknowledges, else 0; see /readyz of ingest.";
        SECRETS_SEALED: "mooring.secrets.sealed", Kind::Counter, "{secret}",
            [KEY_ID],
            "Secrets that were sealed under a data key, by the key of the ring that was active.";
        DATA_KEYS_READY: "mooring.data_keys.ready", Kind::Gauge, "{key}",
            [],
            "Data keys that are stored and not used yet.";
        OAUTH_REQUESTS: "mooring.oauth.requests", Kind::Counter, "{request}",
            [SOURCE, GRANT, RESULT],
            "Requests to platforms' token endpoints. One whose tokens could not be kept has failed.";
        BUILD_INFO: "mooring.build.info", Kind::Gauge, "{build}",
            [SERVICE_VERSION],
            "1, with the version that the process is built from.";
        NATS_CONNECTED: "mooring.nats.connected", Kind::Gauge, "{connection}",
            [],
            "1 while the process is connected to NATS, else 0.";
        POSTGRES_UP: "mooring.postgres.up", Kind::Gauge, "{database}",
            [],
            "1 while the worker can read Postgres, else 0.";
        LOG_EVENTS: "mooring.log.events", Kind::Gauge, "{event}",
            [],
            "Events in the log.";
        LOG_LAST_SEQUENCE: "mooring.log.last_sequence", Kind::Gauge, "{event}",
            [],
            "The last sequence of the log. Unless events were lost, it never falls.";
        LOG_LOSSES: "mooring.log.losses", Kind::Counter, "{loss}",
            [],
            "How often the log or the data keys had lost what they had acknowledged to this process.";
        LOG_SKIPPED: "mooring.log.skipped", Kind::Counter, "{event}",
            [],
            "Events that the consumer had passed over, and that were found in the log and applied.";
        LOG_SIZE: "mooring.log.size", Kind::Gauge, "By",
            [],
            "Size of the log.";
        LOG_SIZE_LIMIT: "mooring.log.size.limit", Kind::Gauge, "By",
            [],
            "Size from which on the log refuses events; 0 without a limit.";
        PROJECTION_LAG_EVENTS: "mooring.projection.lag.events", Kind::Gauge, "{event}",
            [],
            "Events in the log that are not applied and acknowledged yet.";
        PROJECTION_LAG_AGE: "mooring.projection.lag.age", Kind::Gauge, "s",
            [],
            "Age of the oldest event that is not applied yet; 0 without one.";
        PROJECTION_SOURCE_LAG_AGE: "mooring.projection.source.lag.age", Kind::Gauge, "s",
            [SOURCE],
            "Age of the oldest event of one source that may not be applied yet; 0 without one.";
        PROJECTION_BATCH_EVENTS: "mooring.projection.batch.events", Kind::Histogram(BATCH), "{event}",
            [],
            "Events in one committed batch.";
        PROJECTION_BATCH_DURATION: "mooring.projection.batch.duration", Kind::Histogram(DURATION_S), "s",
            [],
            "Time to commit one batch.";
        PROJECTION_EVENTS: "mooring.projection.events", Kind::Counter, "{event}",
            [SOURCE, EVENT_TYPE, RESULT],
            "Events that were taken from the log.";
        PROJECTION_CONFLICTS: "mooring.projection.conflicts", Kind::Counter, "{event}",
            [],
            "Events that an earlier one with the same idempotency key contradicts.";
        DEAD_LETTERS: "mooring.dead_letters", Kind::Gauge, "{event}",
            [REASON],
            "Dead letters that nobody has redriven or discarded, by reason.";
        DEAD_LETTERS_UNRESOLVED: "mooring.dead_letters.unresolved", Kind::Gauge, "{event}",
            [],
            "Dead letters that nobody has redriven or discarded.";
        INSTALLATIONS: "mooring.installations", Kind::Gauge, "{installation}",
            [SOURCE, STATUS],
            "Installations in the projection. Every worker tells the same number.";
        CREDENTIALS_OPENED: "mooring.credentials.opened", Kind::Counter, "{credential}",
            [CALLER],
            "Credentials that were opened for callers of the read API.";
        API_REFUSALS: "mooring.api.refusals", Kind::Counter, "{request}",
            [CALLER, REASON],
            "Requests to the read API that were answered 401, 403 or 429.";
        API_TOKEN_TIME_LEFT: "mooring.api_token.time_left", Kind::Gauge, "s",
            [CALLER],
            "How long a token of `worker.api_tokens` is good for; 0 if it has ended.";
        TOKENS_EXPIRED: "mooring.tokens.expired", Kind::Gauge, "{installation}",
            [SOURCE],
            "Active installations whose access token has ended.";
        ARCHIVE_FAILING: "mooring.archive.failing", Kind::Gauge, "{archiver}",
            [],
            "1 while a worker's last attempt to archive failed, else 0. Only where workers archive.";
        ARCHIVE_SEQUENCE: "mooring.archive.sequence", Kind::Gauge, "{event}",
            [],
            "The last sequence that is archived; 0 without one.";
        ARCHIVE_SEGMENTS: "mooring.archive.segments", Kind::Gauge, "{segment}",
            [],
            "Segments of the log in the archive.";
        LOG_AGE: "mooring.log.age", Kind::Gauge, "s",
            [],
            "Age of the oldest event in the log; 0 without one. It grows while nothing is archived.";
        ARCHIVE_EVENTS: "mooring.archive.events", Kind::Counter, "{event}",
            [],
            "Events that were archived.";
        REBUILD_PROGRESS: "mooring.rebuild.progress", Kind::Gauge, "1",
            [PHASE],
            "Part of a phase of `worker rebuild` that is done.";
        REBUILD_EVENTS: "mooring.rebuild.events", Kind::Counter, "{event}",
            [],
            "Events that `worker rebuild` has read.";
    }
}

/// Name, kind and meaning of every span.
pub const SPANS: [(&str, &str, &str); 6] = [
    (
        "{method} {route}",
        "server",
        "One request to ingest. The caller's own context is linked, never a parent.",
    ),
    ("send INSTALLATIONS", "producer", "Appending an event to the log, retries included."),
    (
        "process INSTALLATIONS",
        "consumer",
        "One batch of the worker, linked to the `send` of each of its events.",
    ),
    ("INSERT mooring.journal", "client", "The events, each once."),
    ("INSERT projection.installations", "client", "What was folded of their places."),
    ("COMMIT", "client", "The end of the batch's transaction."),
];
