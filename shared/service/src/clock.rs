//! The one place where the product reads the clock. Everything else is told the
//! time, so that it can be tested with any.

use jiff::Timestamp;

/// The time by this machine's clock.
#[expect(clippy::disallowed_methods, reason = "this is where it is read")]
pub fn now() -> Timestamp {
    Timestamp::now()
}
