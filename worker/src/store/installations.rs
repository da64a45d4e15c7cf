//! The projection: the state of every installation. All SQL on
//! `projection.installations`, and on the tables of that name that a rebuild
//! builds beside it.
//!
//! [`COLUMNS`] defines a row. The upsert of a batch, the COPY of a rebuild and the
//! list of columns that are read derive from it; the comparison of two projections
//! takes the columns from Postgres. A new column is a migration and an entry here,
//! and a field of [`InstallationView`] if the read API shows it.

pub(crate) mod compare;
mod read;
mod write;

use domain::fold::{Installation, Status};
use domain::id::{PlatformName, SourceName};
use jiff::Timestamp;
use serde_json::value::{RawValue, to_raw_value};

#[cfg(test)]
pub(crate) use read::example;
pub(crate) use read::{
    InstallationView, PageEnd, PageOf, Selection, State, by_id, can_be_read, counts, credential,
    digests, envelopes, expired_tokens, page, states,
};
pub(crate) use write::{copy_in, save};

/// A folded installation and the source it belongs to.
pub(crate) struct Row {
    pub(crate) source: SourceName,
    pub(crate) platform: PlatformName,
    pub(crate) installation: Installation,
}

struct Column {
    name: &'static str,
    value: Value,
}

/// How a column follows from a folded installation. The variant is its type in
/// Postgres.
enum Value {
    Text(fn(&Row) -> Option<&str>),
    Texts(fn(&Row) -> &[String]),
    Integer(fn(&Row) -> u32),
    BigInt(fn(&Row) -> u64),
    Time(fn(&Row) -> Option<Timestamp>),
    Json(fn(&Row) -> serde_json::Result<Box<RawValue>>),
}

use Value::{BigInt, Integer, Json, Text, Texts, Time};

/// What a row is found by.
const KEY: [&str; 3] = ["source", "place", "installation_id"];

/// The sealed secret and what it is bound to. Only [`credential`] reads them.
const SEALED: [&str; 3] = ["credential_sealed", "credential_event", "credential_field"];

static COLUMNS: &[Column] = &[
    column("source", Text(|row| Some(row.source.as_str()))),
    column("platform", Text(|row| Some(row.platform.as_str()))),
    column("place", Text(|row| Some(row.installation.identity.place.as_str()))),
    column("installation_id", Text(|row| Some(row.installation.identity.installation_id.as_str()))),
    column("app_id", Text(|row| Some(row.installation.identity.app_id.as_str()))),
    column("scope", Json(|row| to_raw_value(&row.installation.identity.scope))),
    column("generation", Integer(|row| row.installation.generation)),
    column("status", Text(|row| Some(row.installation.status.name()))),
    column("granted_permissions", Texts(|row| &row.installation.granted_permissions)),
    column("credential_prefix", Text(|row| row.installation.credential_prefix.as_deref())),
    column(
        "credential_sealed",
        Text(|row| Some(row.installation.credential.as_ref()?.sealed.sealed.as_str())),
    ),
    column(
        "credential_event",
        Text(|row| Some(row.installation.credential.as_ref()?.event.as_str())),
    ),
    column(
        "credential_field",
        Text(|row| Some(row.installation.credential.as_ref()?.sealed.field.as_str())),
    ),
    column("installed_at", Time(|row| row.installation.installed_at)),
    column("uninstalled_at", Time(uninstalled_at)),
    column("superseded_by", Text(superseded_by)),
    column("last_event_sequence", BigInt(|row| row.installation.last_event.sequence.0)),
    column("last_event_type", Text(|row| Some(row.installation.last_event.kind))),
    column("details", Json(|row| to_raw_value(&row.installation.details))),
    column("credential_expires_at", Time(|row| row.installation.credential_expires_at)),
];

const fn column(name: &'static str, value: Value) -> Column {
    Column { name, value }
}

fn uninstalled_at(row: &Row) -> Option<Timestamp> {
    match row.installation.status {
        Status::Inactive { uninstalled_at } => Some(uninstalled_at),
        Status::Pending
        | Status::Active
        | Status::Suspended
        | Status::Unconfirmed
        | Status::Unverified
        | Status::Superseded { .. } => None,
    }
}

fn superseded_by(row: &Row) -> Option<&str> {
    match &row.installation.status {
        Status::Superseded { by } => Some(by.as_str()),
        Status::Pending
        | Status::Active
        | Status::Suspended
        | Status::Unconfirmed
        | Status::Unverified
        | Status::Inactive { .. } => None,
    }
}

/// The names of the columns that `is_wanted`, as a list in SQL.
fn names(is_wanted: impl Fn(&str) -> bool) -> String {
    let names = COLUMNS.iter().map(|column| column.name).filter(|name| is_wanted(name));
    names.collect::<Vec<_>>().join(", ")
}
