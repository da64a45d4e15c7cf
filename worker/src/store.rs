//! Postgres, and all SQL of the worker: a file for each table.

pub(crate) mod access;
pub(crate) mod archived;
pub(crate) mod changes;
pub(crate) mod convert;
pub(crate) mod database;
pub(crate) mod dead_letters;
pub(crate) mod erasures;
pub(crate) mod feed;
pub(crate) mod find;
pub(crate) mod fold_unit;
pub(crate) mod gaps;
pub(crate) mod installations;
pub(crate) mod journal;
pub(crate) mod kept;
pub(crate) mod late_places;
pub(crate) mod log_identity;
pub(crate) mod log_index;
pub(crate) mod lost_events;
pub(crate) mod portal_sessions;
pub(crate) mod push;
pub(crate) mod reach;
pub(crate) mod rebuilds;
pub(crate) mod relatives;
pub(crate) mod schema;
pub(crate) mod sealing_keys;
pub(crate) mod token_renewals;
