//! The figures as a table, as JSON, and as goals that are met or not.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::Run;
use crate::chart::{self, Bar};
use crate::results::{Figures, Results};

pub(crate) fn short(figures: &Figures) -> String {
    let shown = [
        "acks/s",
        "p99, ms",
        "row p99, ms",
        "pushed p99, ms",
        "last push, ms",
        "events/s into Postgres",
    ];
    let parts = shown.iter().filter_map(|name| {
        let value = figures.get(name)?;
        Some(format!("{name} {value:.1}"))
    });
    parts.collect::<Vec<_>>().join("   ")
}

pub(crate) fn write(results: &Results, args: &Run, rounds: usize, seconds: u64) -> Result<()> {
    let settings = settings(results, rounds, seconds);
    let mut text = format!("{settings}\n\n{}", table(results));
    if args.only.is_none() {
        text += &format!("\n{}", goals(results));
    }
    println!("{text}");
    if args.quick || args.only.is_some() {
        return Ok(()); // not worth keeping
    }
    let folder = args.folder.join("results");
    fs::create_dir_all(&folder).context("creating the folder of results")?;
    let all = json!({ "settings": settings, "results": results });
    fs::write(folder.join("latest.json"), serde_json::to_string_pretty(&all)?)?;
    chart::write(&folder.join("acks.svg"), &bars(results))?;
    replace(&args.folder.join("README.md"), "acks", &text)
}

/// Puts `text` between the marks of a section.
pub(crate) fn replace(readme: &Path, section: &str, text: &str) -> Result<()> {
    let (begin, end) = (format!("<!-- {section}: begin -->"), format!("<!-- {section}: end -->"));
    let old =
        fs::read_to_string(readme).with_context(|| format!("reading {}", readme.display()))?;
    let marked = old.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) =
        marked.with_context(|| format!("{} has no {begin} or {end}", readme.display()))?;
    Ok(fs::write(readme, format!("{before}{begin}\n\n{text}\n{end}{after}"))?)
}

fn settings(results: &Results, rounds: usize, seconds: u64) -> String {
    let version = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output();
        output.map_or_else(
            |_| "none".to_owned(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    let nats = dev::tools::nats_server().map(|path| version(&path.to_string_lossy(), "--version"));
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{rounds} rounds of {seconds} s; medians, and the least and greatest in brackets. {}; node {}; Linux {}; \
         {cores} cores{}, shared by the servers and the load. One disk with {:.0} fsyncs a second \
         (512 bytes each). Mooring {} as released: one replica, `sync_interval: always`, every setting \
         at its default. Postgres commits synchronously.",
        nats.unwrap_or_default(),
        version("node", "--version"),
        version("uname", "-r"),
        model.replace("\t: ", " of "),
        median(&results.fsyncs_per_second),
        env!("CARGO_PKG_VERSION"),
    )
}

/// The closed loops: what a server takes when it is never let rest.
fn bars(results: &Results) -> Vec<Bar> {
    let closed = |(name, _): &&(String, Vec<Figures>)| {
        name.contains("connections:") && !name.ends_with("axum alone")
    };
    let bar = |(name, rounds): &(String, Vec<Figures>)| {
        let values = of(rounds, "acks/s");
        Bar {
            name: name.clone(),
            median: median(&values),
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            greatest: values.iter().copied().fold(0.0, f64::max),
        }
    };
    results.scenarios.iter().filter(closed).map(bar).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn of(rounds: &[Figures], name: &str) -> Vec<f64> {
    rounds.iter().filter_map(|figures| figures.get(name).copied()).collect()
}

fn cell(rounds: &[Figures], name: &str, digits: usize) -> String {
    spread(&of(rounds, name), digits)
}

/// The median, with the least and the greatest.
fn spread(values: &[f64], digits: usize) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match values.len() {
        0 => String::new(),
        1 => format!("{:.digits$}", median(values)),
        _ => format!("{:.digits$} [{least:.digits$}–{greatest:.digits$}]", median(values)),
    }
}

const COLUMNS: [(&str, usize); 11] = [
    ("acks/s", 0),
    ("p50, ms", 1),
    ("p99, ms", 1),
    ("last ack, ms", 0),
    ("CPU s per 1,000", 3),
    ("CPU s per 1,000, load", 3),
    ("peak RSS, MiB", 0),
    ("row p99, ms", 1),
    ("pushed p99, ms", 1),
    ("last push, ms", 0),
    ("events/s into Postgres", 0),
];

fn table(results: &Results) -> String {
    let mut text = String::from("| |");
    for (name, _) in COLUMNS {
        text += &format!(" {name} |");
    }
    text += "\n|---|";
    text += &"---:|".repeat(COLUMNS.len());
    text.push('\n');
    for (scenario, rounds) in &results.scenarios {
        text += &format!("| {scenario} |");
        for (name, digits) in COLUMNS {
            text += &format!(" {} |", cell(rounds, name, digits));
        }
        text.push('\n');
    }
    text
}

/// A goal: what is compared in each round, and the bound. Both sides of a round met the same
/// minute of the disk.
struct Goal {
    what: String,
    rounds: Vec<f64>,
    at_least: bool,
    bound: f64,
}

impl Goal {
    fn at_least(what: &str, rounds: Vec<f64>, bound: f64) -> Self {
        Self { what: what.to_owned(), rounds, at_least: true, bound }
    }

    fn at_most(what: &str, rounds: Vec<f64>, bound: f64) -> Self {
        Self { at_least: false, ..Self::at_least(what, rounds, bound) }
    }

    fn verdict(&self) -> String {
        let is_met = |value: &&f64| {
            if self.at_least { **value >= self.bound } else { **value <= self.bound }
        };
        let (met, all) = (self.rounds.iter().filter(is_met).count(), self.rounds.len());
        match met {
            _ if all == 0 => "not measured".to_owned(),
            met if met == all => "met".to_owned(),
            0 => "**not met**".to_owned(),
            met => format!("unsteady: met in {met} of {all} rounds"),
        }
    }
}

fn goals(results: &Results) -> String {
    let figure = |scenario: &str, name: &str| -> Vec<f64> {
        let found = results.scenarios.iter().find(|(found, _)| found == scenario);
        found.map_or_else(Vec::new, |(_, rounds)| of(rounds, name))
    };
    let over = |ours: &str, other: &str, name: &str| -> Vec<f64> {
        figure(ours, name)
            .iter()
            .zip(figure(other, name))
            .map(|(ours, other)| ours / other)
            .collect()
    };
    let at = |connections: u16, subject: &str| format!("{connections} connections: {subject}");
    let over_postgres = |connections, bound| {
        let what = format!("{connections} connections, over the Postgres insert");
        let other = at(connections, "axum, a Postgres insert each");
        Goal::at_least(&what, over(&at(connections, "Mooring"), &other, "acks/s"), bound)
    };
    let acks = |ours: &str, other: &str| over(ours, other, "acks/s");
    let (m64, m256) = (at(64, "Mooring"), at(256, "Mooring"));
    let plain = at(256, "axum, a publish each");
    let burst = ["burst of 5,000: Mooring", "burst of 5,000: axum, a publish each, not durable"];
    let rss = figure(burst[0], "peak RSS, MiB").into_iter().map(|mib| mib * 1.048_576).collect();
    let telling = acks(&at(256, "Mooring, telemetry on"), &m256);
    let unreachable = acks(&at(256, "Mooring, exporter unreachable"), &m256);
    let on_disk = acks(&m256, &at(256, "Mooring, staging on disk"));
    let last_ack = over(burst[0], burst[1], "last ack, ms");
    let row = figure("500/s with the worker: Mooring", "row p99, ms");
    let projection = figure("projection: Mooring", "events/s into Postgres");
    table_of_goals(&[
        over_postgres(64, 1.5),
        over_postgres(256, 2.0),
        over_postgres(1000, 2.0),
        Goal::at_least("64 connections, over Express", acks(&m64, &at(64, "Express, pg")), 6.0),
        Goal::at_least("256 connections, over plain publish", acks(&m256, &plain), 5.5),
        Goal::at_most(
            "256 connections, p99 over that of plain publish",
            over(&m256, &plain, "p99, ms"),
            0.3,
        ),
        Goal::at_least("256 connections, staging in memory, over on disk", on_disk, 1.0),
        Goal::at_least("256 connections, telemetry on, over off", telling, 0.95),
        Goal::at_least("256 connections, exporter unreachable, over off", unreachable, 0.95),
        Goal::at_most("burst, last ack over that of the non-durable publish", last_ack, 1.2),
        Goal::at_least("5 % duplicates, over none", acks("5 % duplicates: Mooring", &m64), 0.8),
        Goal::at_least("30 % duplicates, over none", acks("30 % duplicates: Mooring", &m64), 0.5),
        Goal::at_most("burst, peak RSS of ingest in MB", rss, 40.0),
        Goal::at_most("500/s, callback to row p99 in ms", row, 25.0),
        Goal::at_least("projection, events/s", projection, 30_000.0),
    ])
}

fn table_of_goals(goals: &[Goal]) -> String {
    let mut text = String::from(
        "| goal | median, least and greatest round | bound | |\n|---|---:|---:|---|\n",
    );
    for goal in goals {
        let Goal { what, rounds, at_least, bound } = goal;
        let sign = if *at_least { "≥" } else { "≤" };
        text +=
            &format!("| {what} | {} | {sign} {bound} | {} |\n", spread(rounds, 2), goal.verdict());
    }
    text
}
