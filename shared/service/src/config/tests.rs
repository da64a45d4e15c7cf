use super::*;

const MINIMAL: &str = r#"
    [nats]
    url = "nats://127.0.0.1:4222"

    [sealing]
    active = "p1"
    fingerprint_key = { env = "FINGERPRINT_KEY" }
    keys.k1 = { env = "KEY_1" }
    keys.p1.public = "x25519-public.QxDul9iMwfCIpVdsd6sM9cOseX89lROcbIS1QpxZZio"
    keys.p1.private = { env = "PRIVATE" }

    [sources.blnk]
    platform = "blnk"
    verification.path_tokens = [{ env = "TOKEN" }]
"#;

fn env(name: &str) -> Option<String> {
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    match name {
        "KEY_1" | "FINGERPRINT_KEY" => Some(key.to_owned()),
        "PRIVATE" => Some("x25519-private.gFeZHu-PHxrxj0qUkdFqHOMz9pXU24442nWXXER44Ps".to_owned()),
        "TOKEN" => Some("a-token-that-nobody-guesses".to_owned()),
        "SHORT" => Some("short".to_owned()),
        _ => None,
    }
}

#[test]
fn the_smallest_configuration_is_complete() {
    let config = Config::parse(MINIMAL).unwrap();
    assert_eq!(config.ingest.listen.port(), 8080);
    let mut resolver = Resolver::new(&env);
    assert!(resolver.key_ring(&config.sealing).is_some());
    for (name, source) in &config.sources {
        assert!(resolver.verification(name, source).is_some());
    }
    assert!(resolver.finish(Path::new("x"), Some(())).is_ok());
}

#[test]
fn a_secret_in_the_file_is_refused_and_not_echoed() {
    let pasted = [
        "\"the-secret-1234567890\"",
        "\"the-secret-1234567890",
        "the-secret-1234567890",
        "1234567890",
        "{ env = 1234567890 }",
        "{ value = \"the-secret-1234567890\" }",
        "[\"the-secret-1234567890\"]",
    ];
    for secret in pasted {
        let with_secret = MINIMAL.replace("{ env = \"KEY_1\" }", secret);
        let refused = Config::parse(&with_secret).unwrap_err();
        assert!(!refused.contains("1234567890"), "{refused}");
    }
    let quoted = MINIMAL.replace("{ env = \"KEY_1\" }", pasted[0]);
    let refused = Config::parse(&quoted).unwrap_err();
    assert!(refused.contains("must not stand in the configuration"), "{refused}");
    assert!(refused.contains("sealing.keys.k1"), "{refused}");
}

#[test]
fn what_cannot_be_read_is_found_by_its_line() {
    let refused = Config::parse(&MINIMAL.replace("active =", "active")).unwrap_err();
    assert!(refused.contains("line 6"), "{refused}");
}

#[test]
fn a_variable_overrides_the_setting_that_it_is_named_after() {
    let variables = [
        ("MOORING__INGEST__LISTEN", "0.0.0.0:9000"),
        ("MOORING__NATS__PASSWORD__FILE", "/run/secrets/nats"),
        ("MOORING__SEALING__KEYS__K2__ENV", "KEY_2"),
        ("MOORING__SOURCES__BLNK__CALLBACKS_MAX", "100"),
        ("MOORING__WORKER__KEEP_ENDED_CREDENTIALS", "true"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::read(MINIMAL, environment().source(Some(variables.into()))).unwrap();
    assert_eq!(config.ingest.listen.to_string(), "0.0.0.0:9000");
    assert_eq!(config.nats.password, Some(SecretRef::File("/run/secrets/nats".into())));
    assert_eq!(config.sealing.keys.len(), 3);
    assert_eq!(config.sources.values().next().unwrap().callbacks_max, 100);
    assert!(config.worker.keep_ended_credentials);
}

#[test]
fn a_misspelt_setting_is_named() {
    let refused =
        Config::parse(&MINIMAL.replace("verification.path_tokens", "verification.path_token"));
    assert!(refused.unwrap_err().contains("path_token"));
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let text = MINIMAL.replace("\"KEY_1\"", "\"MISSING\"").replace("\"TOKEN\"", "\"SHORT\"");
    let config = Config::parse(&text).unwrap();
    let mut resolver = Resolver::new(&env);
    let ring = resolver.key_ring(&config.sealing);
    for (name, source) in &config.sources {
        resolver.verification(name, source);
    }
    let said = resolver.finish(Path::new("x"), ring).unwrap_err().to_string();
    assert!(
        said.contains("sealing.keys.k1: the environment variable MISSING is not set"),
        "{said}"
    );
    assert!(said.contains("holds fewer than 20 bytes"), "{said}");
}

#[test]
fn ingest_needs_no_key_that_opens() {
    let config = Config::parse(MINIMAL).unwrap();
    let needed = |name: &str| match name {
        "KEY_1" | "PRIVATE" => panic!("{name} opens what was sealed"),
        _ => env(name),
    };
    let mut resolver = Resolver::new(&needed);
    assert!(resolver.sealing_key(&config.sealing).is_some());
    assert!(resolver.fingerprint_keys(&config.sealing).is_some());
    let without = MINIMAL.replace("    keys.p1.private = { env = \"PRIVATE\" }\n", "");
    let config = Config::parse(&without).unwrap();
    assert!(Resolver::new(&env).sealing_key(&config.sealing).is_some());
    assert!(Resolver::new(&env).key_ring(&config.sealing).is_none(), "the worker needs it");
}

#[test]
fn keys_that_cannot_be_used_are_refused_with_what_to_do() {
    let public = "\"x25519-public.QxDul9iMwfCIpVdsd6sM9cOseX89lROcbIS1QpxZZio\"";
    let other = "\"x25519-public.GvoI097AR6ZDiFFj8RgEdvp921TGqAKeoz-VeWvyrEo\"";
    let cases = [
        ("active = \"p1\"", "active = \"k1\"", "'k1' is a symmetric key, which would open what it"),
        ("active = \"p1\"", "active = \"k3\"", "there is no key 'k3' in sealing.keys"),
        (public, "\"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"", "a public key looks like"),
        (public, other, "sealing.keys.p1.private: it is not the other half"),
        ("env = \"PRIVATE\"", "env = \"KEY_1\"", "a private key looks like"),
    ];
    for (from, to, expected) in cases {
        let config = Config::parse(&MINIMAL.replace(from, to)).unwrap();
        let mut resolver = Resolver::new(&env);
        let ring = resolver.key_ring(&config.sealing);
        let said = resolver.finish(Path::new("x"), ring).unwrap_err().to_string();
        assert!(said.contains(expected), "{to}: {said}");
        assert!(!said.contains("AAECAwQF"), "{said}");
    }
    for (from, to) in [
        (public, "1234567890"),
        ("keys.p1.private =", "keys.p1.secret ="),
        ("keys.p1.private =", "keys.p1.public_file = \"p\"\n    keys.p1.private ="),
        ("{ env = \"PRIVATE\" }", "\"the-secret-1234567890\""),
    ] {
        let refused = Config::parse(&MINIMAL.replace(from, to)).unwrap_err();
        assert!(!refused.contains("1234567890"), "{refused}");
        assert!(refused.contains("sealing.keys.p1"), "{refused}");
    }
}

#[test]
fn a_source_without_verification_must_say_so() {
    let cases = [
        ("verification = {}", false),
        ("verification.unverified = true", true),
        ("verification = { unverified = true, path_tokens = [{ env = \"TOKEN\" }] }", false),
        ("verification.header = { name = \"x-token\", values = [{ env = \"TOKEN\" }] }", true),
        ("verification.header = { name = \"x-token\", values = [] }", false),
        ("verification.header = { name = \"not a name\", values = [{ env = \"TOKEN\" }] }", false),
        (
            "verification.path_tokens = [{ env = \"TOKEN\" }, { env = \"TOKEN\" }, { env = \"TOKEN\" }]",
            false,
        ),
    ];
    for (verification, accepted) in cases {
        let line = "verification.path_tokens = [{ env = \"TOKEN\" }]";
        let config = Config::parse(&MINIMAL.replace(line, verification)).unwrap();
        let mut resolver = Resolver::new(&env);
        let (name, source) = config.sources.iter().next().unwrap();
        let resolved = resolver.verification(name, source);
        let result = resolver.finish(Path::new("x"), resolved);
        assert_eq!(result.is_ok(), accepted, "{verification}");
    }
}

#[test]
fn what_a_platform_cannot_do_without_or_does_not_have_is_said() {
    let mapping = "mapping = { event_type = [\"/type\"], installed = [\"installed\"], \
                   app_id = \"/app\", installation_id = [\"/id\"] }";
    let oauth = "app_ids = [\"a\"]\noauth = { client_id = \"c\", client_secret = { env = \"TOKEN\" }, \
                 redirect_uri = \"https://x.example/cb\", token_url = \"https://x.example/token\" }";
    let page = "app_ids = [\"a\"]\ninstall_page.manifest = \"manifest.json\"";
    let no_owner = "sources.x.oauth: the token answer does not say which installation it belongs \
                    to; for 'generic', set mapping.token_installation_id";
    let cases = [
        ("generic", String::new(), "sources.x.mapping: the platform 'generic' needs a mapping"),
        ("blnk", mapping.into(), "sources.x.mapping: 'blnk' is not read by a mapping; remove it"),
        ("highlevel", String::new(), "sources.x.app_ids: list your apps: HighLevel signs"),
        ("highlevel", mapping.into(), "sources.x.app_ids: list your apps: HighLevel signs"),
        ("highlevel", mapping.into(), "sources.x.mapping: 'highlevel' is not read by a mapping"),
        ("securityscorecard", oauth.into(), no_owner),
        ("generic", format!("{oauth}\n{mapping}"), no_owner),
        ("blnk", page.into(), "sources.x.install_page: 'blnk' sends users to no such page"),
    ];
    for (platform, settings, expected) in cases {
        let section = format!("[sources.x]\nplatform = \"{platform}\"\n{settings}\n[sources.blnk]");
        let config = Config::parse(&MINIMAL.replace("[sources.blnk]", &section)).unwrap();
        let (name, source) = config.sources.iter().find(|(name, _)| name.as_str() == "x").unwrap();
        let mut resolver = Resolver::new(&env);
        resolver.adapter(name, source);
        resolver.oauth(name, source);
        resolver.install_page(Path::new("x"), name, source);
        let said = resolver.finish(Path::new("x"), Some(())).unwrap_err().to_string();
        assert!(said.contains(expected), "{platform} {settings}: {said}");
    }
}

#[test]
fn what_no_signature_covers_decides_nothing_unless_a_secret_is_asked_for() {
    let hmac = "verification.hmac = { headers = [\"x-sig\"], secrets = [{ env = \"TOKEN\" }] }";
    let timed = "verification.hmac = { headers = [\"x-sig\"], secrets = [{ env = \"TOKEN\" }], \
                 timestamp = { header = \"x-time\", signed = \"v0:{timestamp}:{body}\" } }";
    let token = "verification.path_tokens = [{ env = \"TOKEN\" }]";
    let key = "idempotency_key = [\"header:x-id\"]";
    let cases = [
        (vec![hmac], "event_type = [\"query:event\"]", Some("mapping.event_type: 'query:event'")),
        (vec![hmac], "event_type = [\"header:x-event\"]", Some("mapping.event_type")),
        (vec![hmac], key, Some("mapping.idempotency_key: 'header:x-id' is not covered")),
        (vec![hmac], "occurred_at = \"header:x-time\"", Some("mapping.occurred_at")),
        (vec![hmac], "plan_id = \"header:x-plan\"", None),
        (vec![timed], "occurred_at = \"header:x-time\"", None),
        (vec![timed], key, Some("mapping.idempotency_key")),
        (vec![hmac, token], "event_type = [\"query:event\"]", None),
        (vec![token], "event_type = [\"query:event\"]", None),
        (vec!["verification.unverified = true"], "event_type = [\"query:event\"]", None),
    ];
    for (verification, setting, expected) in cases {
        let event_type =
            if setting.starts_with("event_type") { "" } else { "event_type = [\"/type\"]" };
        let section = format!(
            "[sources.x]\nplatform = \"generic\"\n{}\n[sources.x.mapping]\n{event_type}\n\
             {setting}\ninstalled = [\"i\"]\napp_id = \"/app\"\ninstallation_id = [\"/id\"]\n\
             [sources.blnk]",
            verification.join("\n")
        );
        let config = Config::parse(&MINIMAL.replace("[sources.blnk]", &section)).unwrap();
        let (name, source) = config.sources.iter().find(|(name, _)| name.as_str() == "x").unwrap();
        let mut resolver = Resolver::new(&env);
        let resolved = resolver.verification(name, source);
        let result = resolver.finish(Path::new("x"), resolved).map(drop);
        match (result, expected) {
            (Ok(()), None) => {}
            (Err(error), Some(expected)) => {
                assert!(
                    error.to_string().contains(expected),
                    "{verification:?} {setting}: {error}"
                );
            }
            (result, _) => panic!("{verification:?} {setting}: {result:?}"),
        }
    }
}

#[test]
fn the_configuration_in_the_readme_is_one() {
    let readme = include_str!("../../../../README.md");
    let toml = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let config = Config::parse(toml.unwrap()).unwrap();
    assert_eq!(config.sources.len(), 1);
    assert_eq!(config.postgres.unwrap().connections_max, 8);
}
