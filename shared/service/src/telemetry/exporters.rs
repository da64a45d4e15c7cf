//! What the standard variables say of exporters.

use opentelemetry_sdk::resource::{
    EnvResourceDetector, ResourceDetector, TelemetryResourceDetector,
};

use super::{Env, TelemetryError};

#[derive(Debug, Clone, Copy)]
pub(super) enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Logs => "LOGS",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Grpc,
    HttpProtobuf,
}

/// `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME` and the SDK's own.
pub(super) fn resource_detectors() -> [Box<dyn ResourceDetector>; 2] {
    [Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())]
}

pub(super) fn is_disabled(env: Env<'_>) -> bool {
    env("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

/// The exporters of a signal, by their standard names.
pub(super) fn exporters(signal: Signal, env: Env<'_>) -> Vec<String> {
    let listed = env(&format!("OTEL_{}_EXPORTER", signal.name())).filter(|text| !text.is_empty());
    let listed = listed.unwrap_or_else(|| "otlp".to_owned());
    listed.split(',').map(|name| name.trim().to_owned()).collect()
}

/// Whether a signal is exported over OTLP.
pub(super) fn is_on(signal: Signal, env: Env<'_>) -> bool {
    let is_set = |variable: &str| env(variable).is_some_and(|found| !found.is_empty());
    let endpoint = is_set("OTEL_EXPORTER_OTLP_ENDPOINT")
        || is_set(&format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.name()));
    let is_listed = exporters(signal, env).iter().any(|name| name == "otlp");
    endpoint && is_listed && !is_disabled(env)
}

/// The one of the signal, or of all.
pub(super) fn protocol(signal: Signal, env: Env<'_>) -> Result<Protocol, TelemetryError> {
    let of_signal = format!("OTEL_EXPORTER_OTLP_{}_PROTOCOL", signal.name());
    for variable in [of_signal, "OTEL_EXPORTER_OTLP_PROTOCOL".to_owned()] {
        match env(&variable).as_deref() {
            None | Some("") => {}
            Some("grpc") => return Ok(Protocol::Grpc),
            Some("http/protobuf") => return Ok(Protocol::HttpProtobuf),
            Some(found) => {
                let (expected, found) = ("'grpc' or 'http/protobuf'", found.to_owned());
                return Err(TelemetryError::Variable { variable, expected, found });
            }
        }
    }
    Ok(Protocol::HttpProtobuf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(variables: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        move |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn nothing_is_exported_without_an_endpoint_or_when_it_is_said_so() {
        assert!(!is_on(Signal::Traces, &env(&[])));
        assert!(is_on(Signal::Traces, &env(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x")])));
        assert!(!is_on(Signal::Logs, &env(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://x")])));
        let none =
            env(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x"), ("OTEL_LOGS_EXPORTER", "none")]);
        assert!(!is_on(Signal::Logs, &none) && is_on(Signal::Metrics, &none));
        let both = env(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x"),
            ("OTEL_METRICS_EXPORTER", "otlp, prometheus"),
        ]);
        assert!(is_on(Signal::Metrics, &both));
        assert_eq!(exporters(Signal::Metrics, &both), ["otlp", "prometheus"]);
        let disabled =
            env(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x"), ("OTEL_SDK_DISABLED", "true")]);
        assert!(!is_on(Signal::Traces, &disabled));
    }

    #[test]
    fn the_protocol_of_a_signal_counts_before_that_of_all() {
        let found = env(&[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "http/protobuf"),
        ]);
        assert_eq!(protocol(Signal::Logs, &found).unwrap(), Protocol::HttpProtobuf);
        assert_eq!(protocol(Signal::Traces, &found).unwrap(), Protocol::Grpc);
        assert_eq!(protocol(Signal::Traces, &env(&[])).unwrap(), Protocol::HttpProtobuf);
        let unknown = env(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]);
        let refused = protocol(Signal::Traces, &unknown).unwrap_err().to_string();
        assert!(refused.contains("not 'http/json'"), "{refused}");
    }
}
