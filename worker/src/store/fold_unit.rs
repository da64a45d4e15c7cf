//! The unit that is locked and folded.

use domain::fold::Recorded;
use domain::id::{Place, SourceName};

/// The unit that is locked and folded: one place of one source.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FoldUnit {
    pub(crate) source: SourceName,
    pub(crate) place: Place,
}

impl FoldUnit {
    /// `None` for an event that names no installation.
    pub(crate) fn of(recorded: &Recorded) -> Option<Self> {
        let event = &recorded.event;
        let place = event.fact.identity()?.place.clone();
        Some(Self { source: event.source.clone(), place })
    }
}
