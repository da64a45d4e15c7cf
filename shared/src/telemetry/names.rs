//! Names of spans, metrics and attributes: the one place that holds them.
//!
//! Semantic conventions 1.37 (<https://opentelemetry.io/docs/specs/semconv/>)
//! where they have a name, `mooring.*` otherwise. No attribute grows with the
//! number of installations.

/// Attributes of the semantic conventions.
pub mod attribute {
    pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
    pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
    pub const HTTP_ROUTE: &str = "http.route";

    /// Configured name of the source; bounded by the configuration.
    pub const SOURCE: &str = "mooring.source";
    /// How a callback, event or batch ended; each metric lists its values.
    pub const RESULT: &str = "mooring.result";
    /// Why a callback was refused, or an event became a dead letter.
    pub const REASON: &str = "mooring.reason";
    /// How events are committed: `group` or `single`.
    pub const COMMIT_MODE: &str = "mooring.commit.mode";
    /// How tokens were asked for: `authorization_code`, `refresh_token` or `location`.
    pub const GRANT: &str = "mooring.grant";
    /// `installed`, `uninstalled` or `unrecognized`.
    pub const EVENT_TYPE: &str = "mooring.event.type";
}

pub mod metric {
    pub const HTTP_SERVER_REQUEST_DURATION: &str = "http.server.request.duration";
    pub const CALLBACK_ACK_DURATION: &str = "mooring.callback.ack.duration";
    pub const CALLBACK_REFUSALS: &str = "mooring.callback.refusals";
    pub const CALLBACK_ACKS_MISSED: &str = "mooring.callback.acks.missed";
    pub const PUBLISH_RETRIES: &str = "mooring.publish.retries";
    pub const PUBLISH_BATCH_EVENTS: &str = "mooring.publish.batch.events";
    pub const OAUTH_REQUESTS: &str = "mooring.oauth.requests";
    pub const LOG_LAG_EVENTS: &str = "mooring.projection.lag.events";
    pub const LOG_LAG_AGE: &str = "mooring.projection.lag.age";
    pub const BATCH_EVENTS: &str = "mooring.projection.batch.events";
    pub const BATCH_DURATION: &str = "mooring.projection.batch.duration";
    pub const EVENTS_APPLIED: &str = "mooring.projection.events";
    pub const CONFLICTS: &str = "mooring.projection.conflicts";
    pub const CREDENTIALS_OPENED: &str = "mooring.credentials.opened";
}

/// Buckets for durations in seconds, as the conventions advise for HTTP.
pub const DURATION_BUCKETS_S: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Buckets for the number of events in a batch.
pub const BATCH_BUCKETS: [f64; 9] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0];
