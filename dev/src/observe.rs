//! Prometheus (with the rules of deploy/prometheus) and otelite (a page for traces and logs), which
//! show the services' telemetry. Each is started if it is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::ports::free_port;
use crate::services::Service;
use crate::tools::in_path;
use crate::workspace_root;

const READY_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// otelite listens there, and its port cannot be changed.
const OTLP_ENDPOINT: &str = "http://127.0.0.1:4317";

type Envs = Vec<(&'static str, String)>;

/// The running programs. They are stopped when this is dropped.
pub struct Observers {
    prometheus: Option<Service>,
    otelite: Option<Service>,
    /// The variables that make each service send its telemetry.
    pub ingest_envs: Envs,
    pub worker_envs: Envs,
    /// Lines that say where each kind of telemetry is shown, or what to install.
    pub guide: Vec<String>,
}

impl Observers {
    /// Starts those that are installed, with their data in `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        let (ingest_port, worker_port) = (free_port()?, free_port()?);
        let (prometheus_port, otelite_port) = (free_port()?, free_port()?);
        let mut guide = Vec::new();
        let prometheus = match in_path("prometheus") {
            Some(program) => {
                let url = format!("http://127.0.0.1:{prometheus_port}");
                let folder = folder.join("prometheus");
                let scraped = [ingest_port, worker_port];
                let started = start_prometheus(program, &folder, prometheus_port, scraped)?;
                guide.push(format!(
                    "metrics        {url}/graph (for example mooring_callback_ack_duration_seconds_count)"
                ));
                guide.push(format!("alerts         {url}/alerts"));
                Some(started)
            }
            None => {
                guide.push(
                    "metrics        no `prometheus` in PATH (Debian: apt install prometheus)"
                        .into(),
                );
                None
            }
        };
        let otelite = match in_path("otelite") {
            Some(program) => {
                let url = format!("http://127.0.0.1:{otelite_port}");
                guide.push(format!("traces, logs   {url}"));
                Some(start_otelite(program, &folder.join("otelite"), &url)?)
            }
            None => {
                guide.push(
                    "traces, logs   no `otelite` in PATH (cargo install --locked otelite)".into(),
                );
                None
            }
        };
        let has_otelite = otelite.is_some();
        let envs = |port: u16| envs(port, has_otelite);
        let (ingest_envs, worker_envs) = (envs(ingest_port), envs(worker_port));
        Ok(Self { prometheus, otelite, ingest_envs, worker_envs, guide })
    }

    pub fn stop(&mut self) -> Result<()> {
        for service in self.prometheus.iter_mut().chain(&mut self.otelite) {
            service.stop(STOP_DEADLINE)?;
        }
        Ok(())
    }
}

fn envs(metrics_port: u16, has_otelite: bool) -> Envs {
    let mut envs = vec![("OTEL_EXPORTER_PROMETHEUS_PORT", metrics_port.to_string())];
    if has_otelite {
        envs.push(("OTEL_METRICS_EXPORTER", "prometheus,otlp".to_owned()));
        envs.push(("OTEL_EXPORTER_OTLP_ENDPOINT", OTLP_ENDPOINT.to_owned()));
        envs.push(("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()));
    } else {
        envs.push(("OTEL_METRICS_EXPORTER", "prometheus".to_owned()));
    }
    envs
}

fn start_prometheus(
    program: PathBuf,
    folder: &Path,
    port: u16,
    [ingest, worker]: [u16; 2],
) -> Result<Service> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let job = |name: &str, port: u16| json!({ "job_name": name, "static_configs": [{ "targets": [format!("localhost:{port}")] }] });
    let config = json!({
        "global": { "scrape_interval": "5s", "evaluation_interval": "5s" },
        "rule_files": [workspace_root().join("deploy/prometheus/rules/mooring.yml")],
        "scrape_configs": [job("mooring-ingest", ingest), job("mooring-worker", worker)],
    });
    let file = folder.join("prometheus.yml"); // JSON is YAML
    fs::write(&file, config.to_string()).with_context(|| format!("writing {}", file.display()))?;
    let args = [
        format!("--config.file={}", file.display()),
        format!("--storage.tsdb.path={}", folder.join("data").display()),
        "--storage.tsdb.retention.time=35d".to_owned(),
        format!("--web.listen-address=127.0.0.1:{port}"),
    ];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let log = folder.join("prometheus.log");
    let mut service = Service::start_program("prometheus", program, &args, &[], &log)?;
    service.wait_ready(&format!("http://127.0.0.1:{port}/-/ready"), READY_DEADLINE)?;
    Ok(service)
}

fn start_otelite(program: PathBuf, folder: &Path, url: &str) -> Result<Service> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let data = folder.to_string_lossy();
    let addr = url.trim_start_matches("http://");
    let args = ["serve", "--addr", addr, "--storage-path", &*data];
    let log = folder.join("otelite.log");
    let mut service = Service::start_program("otelite", program, &args, &[], &log)?;
    service.wait_ready(url, READY_DEADLINE)?;
    Ok(service)
}
