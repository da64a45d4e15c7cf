//! What a worker does all the time.

pub(crate) mod api;
pub mod commit;
pub(crate) mod consume;
pub(crate) mod credential;
pub(crate) mod measure;
pub(crate) mod token_renewal;
