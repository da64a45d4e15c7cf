//! The configuration.

use std::path::Path;

use domain::platform::generic::Locator;
use service::config::{Config, Resolver};

use crate::mutate::Input;

/// Someone wrote it into the file, where a reference to it belongs.
const PASTED: &str = "pasted-9f8e7d6c5b4a";
/// What the variables hold that are no keys.
const IN_VARIABLE: &str = "variable-1a2b3c4d5e6f";

pub(crate) fn files() -> Vec<Input> {
    let readme = include_str!("../../README.md").split("```toml\n").nth(1).unwrap();
    let readme = readme.split("```").next().unwrap().replace("\n   ", "\n");
    let reference = "{ file = \"/run/secrets/nats-ingest\" }";
    let pasted = readme.replacen(reference, &format!("\"{PASTED}\""), 1);
    let sources = [
        include_str!("../../deploy/sources/github.toml"),
        include_str!("../../deploy/sources/standard-webhooks.toml"),
        include_str!("../../deploy/sources/securityscorecard.toml"),
    ];
    let whole = sources.map(|source| format!("{readme}\n{source}"));
    let files = whole.into_iter().chain([readme.clone(), pasted]);
    files.map(|text| Input::new("mooring.toml", &[&in_variables(&text)])).collect()
}

/// The secrets of an example, without its files.
fn in_variables(text: &str) -> String {
    text.replace("{ file = \"/run/secrets/", "{ env = \"")
}

fn variable(name: &str) -> Option<String> {
    let is_key = name.contains("key") || name.contains("KEY");
    let key = || "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=".to_owned();
    Some(if is_key { key() } else { IN_VARIABLE.to_owned() })
}

pub(crate) fn configuration(input: &Input) {
    let text = input.text(0);
    let refused = match Config::parse(&text) {
        Ok(config) => match resolve(&config) {
            Ok(()) => return,
            Err(refused) => refused,
        },
        Err(refused) => refused,
    };
    assert!(!refused.contains(IN_VARIABLE), "{refused}");
    let is_pasted =
        text.lines().any(|line| line.starts_with("password =") && line.contains(PASTED));
    assert!(!(is_pasted && refused.contains(&PASTED[7..])), "it repeats a secret: {refused}");
}

/// All but OAuth, which makes an HTTP client for each source.
fn resolve(config: &Config) -> Result<(), String> {
    let mut resolver = Resolver::new(&variable);
    resolver.optional_secret("nats.password", config.nats.password.as_ref());
    resolver.key_ring(&config.sealing);
    resolver.fingerprint_keys(&config.sealing);
    for (name, source) in &config.sources {
        resolver.adapter(name, source);
        resolver.verification(name, source);
        if let Some(ack) = resolver.ack_contract(name, source) {
            assert!(ack.budget < ack.deadline && ack.success.is_success());
        }
        resolver.install_page(Path::new("mooring.toml"), name, source);
    }
    resolver.finish(Path::new("mooring.toml"), Some(())).map_err(|why| why.to_string())
}

pub(crate) fn locators() -> Vec<Input> {
    ["/data/id", "/a~1b/0", "header:X-GitHub-Event", "query:event", "value:my-app"]
        .map(|locator| Input::new("locator", &[locator]))
        .into()
}

/// Written, it is read as the same.
pub(crate) fn locator(input: &Input) {
    let Ok(locator) = Locator::try_from(input.text(0)) else { return };
    assert_eq!(Locator::try_from(locator.to_string()).unwrap(), locator);
}
