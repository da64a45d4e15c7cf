//! What a rebuild did, as it is told.

use serde::Serialize;

use crate::store::installations::compare::Comparison;
use crate::store::rebuilds::Origin;

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) origin: Origin,
    pub(super) target_sequence: u64,
    pub(super) resumed: bool,
    pub(super) events: u64,
    /// Left out: they are dead letters, of which the projection knows nothing.
    pub(super) dead_letters: u64,
    pub(super) installations: u64,
    pub(super) load_seconds: f64,
    pub(super) events_per_second: u64,
    pub(super) caught_up_places: usize,
    pub(super) comparison: Comparison,
    pub(super) swapped: bool,
    /// How long the workers waited for the swap.
    pub(super) paused_ms: Option<u64>,
}

/// What `--abandon` did.
#[derive(Debug, Serialize)]
pub(super) struct Abandoned {
    /// Whether there was an unfinished rebuild.
    pub(super) abandoned: bool,
}

/// What `--rollback` did.
#[derive(Debug, Serialize)]
pub(super) struct RolledBack {
    /// How long the workers waited for the swap.
    pub(super) paused_ms: u64,
}

pub(super) fn render(report: &Report) -> String {
    let Report { origin, events, installations, load_seconds, .. } = report;
    let mut lines = Vec::new();
    if report.resumed && *events == 0 {
        lines.push(format!("loaded before, up to sequence {}", report.target_sequence));
    } else {
        lines.push(format!(
            "loaded {events} events from the {origin} in {load_seconds:.1} s, {} events/s",
            report.events_per_second
        ));
    }
    lines.extend(left_out(report.dead_letters));
    let places = report.caught_up_places;
    lines.push(format!("caught up with {places} places that changed in the meantime"));
    lines.push(format!("{installations} installations"));
    lines.push(render_comparison(&report.comparison));
    lines.push(match report.paused_ms {
        Some(paused) => format!("swapped in; the workers waited {paused} ms"),
        None => "not swapped in".to_owned(),
    });
    lines.join("\n")
}

pub(super) fn render_abandoned(report: &Abandoned) -> String {
    let text = if report.abandoned { "abandoned" } else { "there was no unfinished rebuild" };
    text.to_owned()
}

pub(super) fn render_rolled_back(report: &RolledBack) -> String {
    let paused = report.paused_ms;
    format!("the former projection is live again; the workers waited {paused} ms")
}

/// A line about dead letters, if there are any.
pub(crate) fn left_out(dead_letters: u64) -> Option<String> {
    let line = || format!("left out {dead_letters} dead letters: `worker dead-letters list`");
    (dead_letters > 0).then(line)
}

pub(crate) fn render_comparison(comparison: &Comparison) -> String {
    if comparison.different == 0 {
        return "equal to the live projection".to_owned();
    }
    let mut lines =
        vec![format!("{} installations differ from the live projection:", comparison.different)];
    for (columns, count) in &comparison.by_columns {
        lines.push(format!("  {count:>8} in {columns}"));
    }
    for found in &comparison.differences {
        let columns = found.columns.join(", ");
        let (source, id, place) = (&found.source, &found.installation_id, &found.place);
        lines.push(format!("  {source} {id} in {place}: {columns}"));
    }
    lines.join("\n")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::operate::tests::assert_view;
    use crate::store::installations::compare::Difference;

    /// Of which one installation differs in two columns.
    pub(crate) fn comparison() -> Comparison {
        Comparison {
            live_rows: 10,
            built_rows: 10,
            different: 1,
            by_columns: [("details,status".to_owned(), 1)].into(),
            differences: vec![Difference {
                source: "blnk".into(),
                place: "app_1:inst_1".into(),
                installation_id: "instapp_1".into(),
                columns: vec!["details".into(), "status".into()],
            }],
        }
    }

    fn report() -> Report {
        Report {
            origin: Origin::Log,
            target_sequence: 31,
            resumed: false,
            events: 31,
            dead_letters: 0,
            installations: 10,
            load_seconds: 0.25,
            events_per_second: 124,
            caught_up_places: 2,
            comparison: Comparison::default(),
            swapped: true,
            paused_ms: Some(1),
        }
    }

    #[test]
    fn a_rebuild_says_what_it_did() {
        assert_view("rebuild", &render(&report()));
        let resumed = Report {
            resumed: true,
            events: 0,
            dead_letters: 1,
            comparison: comparison(),
            swapped: false,
            paused_ms: None,
            ..report()
        };
        assert_view("rebuild-not-swapped", &render(&resumed));
    }

    #[test]
    fn abandoning_and_rolling_back_say_what_they_did() {
        let abandoned = |abandoned| render_abandoned(&Abandoned { abandoned });
        assert_view("rebuild-abandon", &abandoned(true));
        assert_view("rebuild-abandon-nothing", &abandoned(false));
        assert_view("rebuild-rollback", &render_rolled_back(&RolledBack { paused_ms: 2 }));
    }
}
