//! A fuzzer that finds nothing may be dead. This one has something to find.

use std::panic::catch_unwind;
use std::time::Duration;

use serde_json::Value;

use crate::adapters::callbacks;
use crate::mutate::{CANARY, Input};
use crate::run::run_for;

const A_MINUTE: Duration = Duration::from_secs(60);

/// Fails for a payload that no seed has: one field holds what another one does.
fn planted(input: &Input) {
    let body = serde_json::from_slice(&input.parts[2]).unwrap_or(Value::Null);
    assert!(body["app_id"] != CANARY, "planted");
}

#[test]
fn a_planted_bug_is_found() {
    let found = catch_unwind(|| run_for(A_MINUTE, "canary", callbacks(), planted));
    assert!(found.is_err(), "the fuzzer finds nothing: is it dead?");
}
