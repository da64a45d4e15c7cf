//! How a command ended, as its exit code.

use std::io::{self, Write as _};
use std::process::ExitCode;

use service::config::ConfigError;

use crate::operate::output::Closed;

/// As of clap.
const WRONG_ARGUMENTS: u8 = 2;
/// As `diff` and `cmp` have 1 for it, which is taken.
const DIFFERS: u8 = 3;
/// `EX_CONFIG` of sysexits.h.
const CONFIG: u8 = 78;
/// 128 and the number of SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

/// Something is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Differs(pub(crate) String);

/// What clap cannot know of the arguments.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongArguments(pub(crate) String);

/// Ctrl-C or SIGTERM. Whatever the command was, it can be run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; run it again")]
pub(crate) struct Interrupted;

pub(crate) fn code(ended: anyhow::Result<()>) -> ExitCode {
    let Err(error) = ended else { return ExitCode::SUCCESS };
    if error.is::<Closed>() {
        return ExitCode::SUCCESS;
    }
    // Nobody may be left to read it.
    writeln!(io::stderr(), "worker: {error:#}").ok();
    if error.is::<WrongArguments>() {
        ExitCode::from(WRONG_ARGUMENTS)
    } else if error.is::<Differs>() {
        ExitCode::from(DIFFERS)
    } else if error.is::<ConfigError>() {
        ExitCode::from(CONFIG)
    } else if error.is::<Interrupted>() {
        ExitCode::from(INTERRUPTED)
    } else {
        ExitCode::FAILURE
    }
}
