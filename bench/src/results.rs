//! What a run found.

use std::collections::BTreeMap;

use serde::Serialize;

/// Figures of one scenario in one round, by name.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) scenarios: Vec<(String, Vec<Figures>)>,
    pub(crate) fsyncs_per_second: Vec<f64>,
}
