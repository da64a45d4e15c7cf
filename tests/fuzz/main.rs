//! Fuzz targets for every parser of bytes from outside.
//!
//! A target takes one input and asserts what must hold of it: it never panics,
//! and something that can fail, such as "what is decoded encodes to the same".
//! Inputs are the platforms' documented payloads, changed a little (see
//! [`mutate`]). To add a target: one function beside its kin, and one line here.
//!
//! Each target runs for a few seconds as a test, and longer with `cargo dev
//! fuzz`. A failure shows the smallest input found and a seed that makes it
//! again (`cargo dev fuzz --only NAME --seed SEED`). Mend it with a test beside
//! the parser, or add the input to the seeds.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

mod adapters;
mod canary;
mod log;
mod mutate;
mod run;
mod sealing;
mod settings;
mod tokens;
mod verification;
mod world;

use run::targets;

targets! {
    callback: adapters::callbacks => adapters::callback;
    signature: verification::signed => verification::signature;
    envelope: sealing::envelopes => sealing::envelope;
    page_of_data_keys: sealing::pages => sealing::page;
    event: log::events => log::event;
    audit_record: log::records => log::record;
    token_answer: tokens::answers => tokens::answer;
    app_secrets_header: tokens::app_secrets_seeds => tokens::app_secrets;
    configuration: settings::files => settings::configuration;
    locator: settings::locators => settings::locator;
}
