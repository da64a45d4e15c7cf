//! What a source's configuration makes of its platform.

use std::time::Duration;

use http::StatusCode;

use super::{AckSettings, Resolver, SourceSettings};
use domain::id::SourceName;
use domain::platform::{AckContract, Adapter, Problem};

/// No platform waits for an hour.
const DEADLINE_MS_MAX: u64 = 3_600_000;

impl Resolver<'_> {
    pub fn adapter(
        &mut self,
        source: &SourceName,
        settings: &SourceSettings,
    ) -> Option<Box<dyn Adapter>> {
        let adapter = settings.platform.adapter(&settings.app_ids, settings.mapping.as_ref());
        let note = |problems: Vec<Problem>| {
            for Problem { setting, what } in problems {
                self.problem(&format!("sources.{source}.{setting}"), what);
            }
        };
        adapter.map_err(note).ok()
    }

    pub fn ack_contract(
        &mut self,
        source: &SourceName,
        settings: &SourceSettings,
    ) -> Option<AckContract> {
        let at = format!("sources.{source}.ack");
        let platform = settings.platform.ack_contract();
        let AckSettings { deadline_ms, budget_ms, success_body, missed, .. } = settings.ack;
        let deadline = deadline_ms.map_or(platform.deadline, Duration::from_millis);
        // What is left of a shorter deadline shrinks with it.
        let budget = budget_ms
            .map_or_else(|| platform.budget.min(deadline.mul_f64(0.8)), Duration::from_millis);
        if budget >= deadline {
            let problem = format!(
                "budget_ms must be less than {} ms, after which the platform gives up",
                deadline.as_millis()
            );
            self.problem(&at, problem);
            return None;
        }
        let longest = Duration::from_millis(DEADLINE_MS_MAX);
        if deadline > longest {
            self.problem(&at, format!("deadline_ms must be at most {DEADLINE_MS_MAX}"));
        }
        let is_unavailable = |status: StatusCode| {
            status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
        };
        let success = settings.ack.success_status.unwrap_or(platform.success.as_u16());
        let success = self.status(&at, "success_status", success, "a 2xx", |it| it.is_success());
        let unavailable = settings.ack.unavailable_status.unwrap_or(platform.unavailable.as_u16());
        let unavailable =
            self.status(&at, "unavailable_status", unavailable, "429 or a 5xx", is_unavailable);
        Some(AckContract {
            deadline,
            budget,
            success: success?,
            body: success_body.unwrap_or(platform.body),
            unavailable: unavailable?,
            missed: missed.unwrap_or(platform.missed),
        })
    }

    fn status(
        &mut self,
        at: &str,
        field: &str,
        value: u16,
        expected: &str,
        is_right: impl Fn(StatusCode) -> bool,
    ) -> Option<StatusCode> {
        let status = StatusCode::from_u16(value).ok().filter(|&status| is_right(status));
        if status.is_none() {
            self.problem(at, format!("{field} must be {expected}, not {value}"));
        }
        status
    }
}
