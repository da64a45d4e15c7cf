//! The domain: the words of Mooring as types, the fold, the platforms, and
//! sealing.
//!
//! Nothing here waits, opens a socket or a file, or reads a clock. Times,
//! nonces and configuration are arguments, so every rule is tested with values
//! alone. One library is the exception: `standardwebhooks` compares the time of a
//! callback with the clock itself.

pub mod data_key;
pub mod details;
pub mod event;
pub mod event_key;
pub mod fingerprint;
pub mod fold;
pub mod id;
pub mod jwt;
pub mod key_pair;
pub mod key_ring;
pub mod platform;
pub mod seal;
pub mod signature;
pub mod tokens;
pub mod verify;
pub mod webhook;
