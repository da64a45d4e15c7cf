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
    let shown = ["acks/s", "p99, ms", "row p99, ms", "events/s into Postgres"];
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
    let values = of(rounds, name);
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match values.len() {
        0 => String::new(),
        1 => format!("{:.digits$}", median(&values)),
        _ => format!("{:.digits$} [{least:.digits$}–{greatest:.digits$}]", median(&values)),
    }
}

const COLUMNS: [(&str, usize); 9] = [
    ("acks/s", 0),
    ("p50, ms", 1),
    ("p99, ms", 1),
    ("last ack, ms", 0),
    ("CPU s per 1,000", 3),
    ("CPU s per 1,000, load", 3),
    ("peak RSS, MiB", 0),
    ("row p99, ms", 1),
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

/// A goal: what is compared, and the bound.
struct Goal {
    what: String,
    value: f64,
    at_least: bool,
    bound: f64,
}

fn goals(results: &Results) -> String {
    let figure = |scenario: &str, name: &str| -> f64 {
        let found = results.scenarios.iter().find(|(found, _)| found == scenario);
        found.map_or(f64::NAN, |(_, rounds)| median(&of(rounds, name)))
    };
    let acks = |scenario: &str| figure(scenario, "acks/s");
    let at_least =
        |what: &str, value, bound| Goal { what: what.to_owned(), value, at_least: true, bound };
    let at_most = |what, value, bound| Goal { at_least: false, ..at_least(what, value, bound) };
    let (m64, m256) = (acks("64 connections: Mooring"), acks("256 connections: Mooring"));
    let plain = "256 connections: axum, a publish each";
    let over_postgres = |connections: u16, bound| Goal {
        what: format!("{connections} connections, over the Postgres insert"),
        value: acks(&format!("{connections} connections: Mooring"))
            / acks(&format!("{connections} connections: axum, a Postgres insert each")),
        at_least: true,
        bound,
    };
    let goals = [
        over_postgres(64, 1.5),
        over_postgres(256, 2.0),
        over_postgres(1000, 2.0),
        at_least("64 connections, over Express", m64 / acks("64 connections: Express, pg"), 6.0),
        at_least("256 connections, over plain publish", m256 / acks(plain), 5.5),
        at_most(
            "256 connections, p99 over that of plain publish",
            figure("256 connections: Mooring", "p99, ms") / figure(plain, "p99, ms"),
            0.3,
        ),
        at_least(
            "256 connections, telemetry on, over off",
            acks("256 connections: Mooring, telemetry on") / m256,
            0.9,
        ),
        at_least(
            "256 connections, exporter unreachable, over telemetry off",
            acks("256 connections: Mooring, exporter unreachable") / m256,
            0.9,
        ),
        at_most(
            "burst, last ack over that of the non-durable publish",
            figure("burst of 5,000: Mooring", "last ack, ms")
                / figure("burst of 5,000: axum, a publish each, not durable", "last ack, ms"),
            1.2,
        ),
        at_least("5 % duplicates, over none", acks("5 % duplicates: Mooring") / m64, 0.8),
        at_least("30 % duplicates, over none", acks("30 % duplicates: Mooring") / m64, 0.5),
        at_most(
            "burst, peak RSS of ingest in MB",
            figure("burst of 5,000: Mooring", "peak RSS, MiB") * 1.048_576,
            40.0,
        ),
        at_most(
            "500/s, callback to row p99 in ms",
            figure("500/s with the worker: Mooring", "row p99, ms"),
            25.0,
        ),
        at_least(
            "projection, events/s",
            figure("projection: Mooring", "events/s into Postgres"),
            30_000.0,
        ),
    ];
    table_of_goals(&goals)
}

fn table_of_goals(goals: &[Goal]) -> String {
    let mut text = String::from("| goal | measured | bound | |\n|---|---:|---:|---|\n");
    for Goal { what, value, at_least, bound } in goals {
        let sign = if *at_least { "≥" } else { "≤" };
        if value.is_nan() {
            text += &format!("| {what} | – | {sign} {bound} | not measured |\n");
            continue;
        }
        let met = if *at_least { value >= bound } else { value <= bound };
        let verdict = if met { "met" } else { "**not met**" };
        text += &format!("| {what} | {value:.2} | {sign} {bound} | {verdict} |\n");
    }
    text
}
