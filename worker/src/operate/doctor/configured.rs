//! What the configuration leaves open or lets run out.

use jiff::{SignedDuration, Timestamp};
use service::config::Config;

use super::Finding;

/// So long before a token ends it should be replaced.
const TOKEN_ENDS_SOON: SignedDuration = SignedDuration::from_hours(14 * 24);

pub(super) fn check(config: &Config, now: Timestamp) -> Vec<Finding> {
    vec![event_keys(config), api_tokens(config, now)]
}

fn event_keys(config: &Config) -> Finding {
    const CHECK: &str = "event keys";
    match &config.event_keys {
        Some(_) => Finding::ok(CHECK, "events prove who wrote them"),
        None => Finding::warning(
            CHECK,
            "whoever has a password of NATS can write events",
            "add [event_keys], ingest first: docs/operations.md, 'Event keys'",
        ),
    }
}

fn api_tokens(config: &Config, now: Timestamp) -> Finding {
    const CHECK: &str = "api tokens";
    let tokens = &config.worker.api_tokens;
    let ending: Vec<String> = tokens
        .iter()
        .filter_map(|(name, token)| Some((name, token.expires_at?)))
        .filter(|(_, ends)| ends.duration_since(now) < TOKEN_ENDS_SOON)
        .map(|(name, ends)| {
            let word = if ends <= now { "ended" } else { "ends" };
            format!("{name} {word} at {ends}")
        })
        .collect();
    if ending.is_empty() {
        return Finding::ok(CHECK, format!("{}, none ends within 14 days", tokens.len()));
    }
    let fix =
        "make another with `worker tokens create`, give it to its caller, then remove this one";
    Finding::warning(CHECK, ending.join(", "), fix)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    const SECTIONS: &str = r#"
        [nats]
        url = "nats://127.0.0.1"
        [sealing]
        active = "p1"
        fingerprint_key = { env = "F" }
        [sealing.keys]
        [worker.api_tokens.app]
        scopes = []
        expires_at = "2026-12-10T00:00:00Z"
    "#;

    #[test]
    fn what_is_missing_or_ends_soon_is_a_warning() {
        let config = Config::parse(SECTIONS).unwrap();
        let at = |day: &str| check(&config, format!("{day}T00:00:00Z").parse().unwrap());
        let [keys, tokens] = at("2026-11-01").try_into().unwrap();
        assert_eq!((keys.verdict, tokens.verdict), (Verdict::Warning, Verdict::Ok));
        assert_eq!(tokens.found, "1, none ends within 14 days");
        let [_, tokens] = at("2026-12-01").try_into().unwrap();
        assert_eq!(tokens.found, "app ends at 2026-12-10T00:00:00Z");
        let [_, tokens] = at("2026-12-11").try_into().unwrap();
        assert_eq!(tokens.found, "app ended at 2026-12-10T00:00:00Z");
        let keyed = "[event_keys.ingest]\nactive = \"i1\"\nkeys.i1 = { env = \"I\" }";
        let config = Config::parse(&format!("{SECTIONS}\n{keyed}")).unwrap();
        assert_eq!(event_keys(&config).verdict, Verdict::Ok);
    }
}
