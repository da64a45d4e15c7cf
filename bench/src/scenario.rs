//! What is measured, by name.

use std::time::Duration;

use crate::load::Shape;
use crate::stack::Subject;

#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) subject: Subject,
    pub(crate) shape: Shape,
    /// What changes are pushed to an endpoint, which waits for all of them.
    pub(crate) pushed: bool,
    /// With the worker running; the time from callback to row is measured.
    pub(crate) with_worker: bool,
    /// The worker starts afterwards and applies all at once.
    pub(crate) then_drain: bool,
}

pub(crate) fn all(duration: Duration, with_express: bool) -> Vec<Scenario> {
    use Subject::{
        Express, Log, Mooring, MooringOnDisk, NonDurablePublish, Nothing, PlainPublish,
        PostgresInsert,
    };
    let closed = |connections, duplicates_percent| Shape::Closed {
        connections,
        duration,
        duplicates_percent,
    };
    let mut scenarios = Vec::new();
    let mut add = |what: &str, subject: Subject, shape: Shape| {
        scenarios.push(Scenario {
            name: format!("{what}: {}", subject.name()),
            subject,
            shape,
            pushed: false,
            with_worker: false,
            then_drain: false,
        });
    };
    for events in [32, 100, 500] {
        add(&format!("atomic batches of {events}"), Log, Shape::Batches { events, duration });
    }
    let peers = [Mooring, MooringOnDisk, PlainPublish, PostgresInsert, NonDurablePublish, Nothing];
    for connections in [64, 256, 1000] {
        for subject in peers {
            add(&format!("{connections} connections"), subject, closed(connections, 0));
        }
    }
    for reachable in [true, false] {
        add("256 connections", Subject::MooringTelling { reachable }, closed(256, 0));
    }
    if with_express {
        for processes in [1, 2] {
            add("64 connections", Express { processes }, closed(64, 0));
        }
    }
    let burst = Shape::Burst { callbacks: 5_000, connections: 1_000 };
    for subject in [Mooring, NonDurablePublish] {
        add("burst of 5,000", subject, burst);
    }
    for percent in [5, 30] {
        add(&format!("{percent} % duplicates"), Mooring, closed(64, percent));
    }
    for per_second in [50, 500, 2_000] {
        add(&format!("{per_second}/s"), Mooring, Shape::Open { per_second, duration });
    }
    let mut mooring = |name: &str, shape, with_worker, then_drain, pushed| {
        let name = format!("{name}: {}", Mooring.name());
        let subject = Mooring;
        scenarios.push(Scenario { name, subject, shape, pushed, with_worker, then_drain });
    };
    // Long enough to start each server twice.
    let faults = Shape::Faults { connections: 64, duration: duration + Duration::from_secs(5) };
    mooring("64 connections, nats-server and ingest killed twice", faults, false, false, false);
    let open = Shape::Open { per_second: 500, duration };
    mooring("500/s with the worker", open, true, false, false);
    mooring("256 connections with the worker", closed(256, 0), true, false, false);
    mooring("projection", closed(256, 0), false, true, false);
    mooring("500/s, pushed", open, true, false, true);
    let at_once = Shape::Burst { callbacks: 10_000, connections: 1_000 };
    mooring("10,000 at once, pushed", at_once, true, false, true);
    scenarios
}
