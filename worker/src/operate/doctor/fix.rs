//! What an operator can do about an error, where its kind tells.

use std::borrow::Cow;

use eventlog::connect::{ConnectError, ConnectErrorKind, Unanswered};

const MIGRATE: &str = "`worker migrate`";

pub(super) fn of(error: &anyhow::Error) -> Option<&'static str> {
    if let Some(unanswered) = error.downcast_ref::<Unanswered>() {
        return Some(of_unanswered(unanswered));
    }
    if let Some(error) = error.downcast_ref::<ConnectError>() {
        return Some(of_connect(error.kind()));
    }
    error.downcast_ref::<sqlx::Error>().and_then(of_postgres)
}

fn of_unanswered(unanswered: &Unanswered) -> &'static str {
    match unanswered {
        Unanswered::Refused { .. } => {
            "use the NATS user of `worker migrate` (MOORING__NATS__USER and its password)"
        }
        Unanswered::Missing { .. } => MIGRATE,
        Unanswered::Away { .. } => "is NATS up, with JetStream?",
    }
}

fn of_connect(kind: ConnectErrorKind) -> &'static str {
    match kind {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            "correct nats.user or nats.password"
        }
        _ => "is NATS up, and is nats.url right?",
    }
}

/// Codes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn of_postgres(error: &sqlx::Error) -> Option<&'static str> {
    let Some(answer) = error.as_database_error() else {
        return Some("is Postgres up, and is postgres.url right?");
    };
    match answer.code().as_ref().map(Cow::as_ref) {
        Some("28000" | "28P01") => Some("correct postgres.url or postgres.password"),
        Some("3D000") => Some("create the database, or correct postgres.url"),
        Some("42501") => {
            Some("use the role that owns the database (MOORING__POSTGRES__URL and its password)")
        }
        Some("3F000" | "42P01" | "42703") => Some(MIGRATE), // no such schema, table, column
        _ => None,
    }
}
