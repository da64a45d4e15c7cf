//! Postgres, and all SQL of the worker: a file for each table.

pub(crate) mod access;
pub(crate) mod convert;
pub(crate) mod database;
pub mod dead_letters;
pub mod erasures;
pub mod find;
pub(crate) mod fold_unit;
pub mod installations;
pub(crate) mod journal;
pub(crate) mod late_places;
pub(crate) mod log_identity;
pub(crate) mod log_index;
pub mod rebuilds;
pub(crate) mod schema;
pub(crate) mod token_renewals;
