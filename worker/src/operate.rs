//! Operators' commands, a file each.

pub mod backends;
pub mod dead_letters;
pub mod doctor;
pub mod erase;
pub mod explain;
pub mod keys;
pub mod migrate;
pub(crate) mod progress;
pub mod rebuild;
pub mod replay;
pub mod verify;
