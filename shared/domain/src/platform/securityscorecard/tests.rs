use serde_json::json;

use super::*;

const INSTALL: &str = include_str!("app_installed.json");

fn read(body: &str) -> Result<Callback, Refusal> {
    parse(body.as_bytes(), Timestamp::UNIX_EPOCH)
}

/// As the published page was once copied, without its outer lines.
const BROKEN: &str = include_str!("broken_sample.txt");

#[test]
fn an_install_names_the_app_the_user_and_the_time() {
    let callback = read(INSTALL).unwrap();
    let Fact::Installed { identity, .. } = &callback.fact else { panic!("{callback:?}") };
    assert_eq!(identity.installation_id.as_str(), "app_1:user:ada@example.com");
    assert_eq!(identity.scope["organization_domain"], "example.com");
    assert_eq!(callback.occurred_at.unwrap().to_string(), "2021-05-12T12:50:43.743Z");
}

#[test]
fn a_later_installed_at_is_another_event_and_an_additional_property_is_none() {
    let key = |body: &str| read(body).unwrap().idempotency_key;
    assert_ne!(key(INSTALL), key(&INSTALL.replace("2021-05-12", "2021-05-13")));
    let more = INSTALL.replace("\"app\"", "\"region\": \"eu\", \"app\"");
    assert_eq!(key(INSTALL), key(&more));
    let Payload::Clear(payload) = read(&more).unwrap().payload else { panic!() };
    assert_eq!(payload["event"]["payload"]["region"], "eu");
}

#[test]
fn only_the_exact_type_is_an_install() {
    for other in ["app.uninstalled", "app.installed.v2", "APP.INSTALLED"] {
        let body = INSTALL.replace("app.installed", other);
        assert_eq!(read(&body).unwrap().fact.kind(), "unrecognized", "{other}");
    }
}

#[test]
fn what_is_missing_is_named_with_its_path() {
    let refused = |from: &str| {
        let body = INSTALL.replace(&format!("\"{from}\""), "\"other\"");
        read(&body).unwrap_err().to_string()
    };
    assert_eq!(refused("username"), "the field 'event.payload.user.username' is missing");
    assert_eq!(refused("id"), "the field 'event.payload.app.id' is missing");
    assert_eq!(refused("type"), "the field 'event.type' is missing");
}

#[test]
fn the_broken_sample_is_refused() {
    let refused = read(BROKEN).unwrap_err();
    assert!(matches!(refused, Refusal::MalformedJson { .. }), "{refused}");
}

#[test]
fn an_install_without_a_usable_time_is_accepted() {
    let with = |value: Value| INSTALL.replace("\"2021-05-12T12:50:43.743Z\"", &value.to_string());
    let later = Timestamp::from_second(1_800_000_000).unwrap();
    for (odd, is_repeated) in [
        (Value::Null, false),
        (json!(""), false),
        (json!("0001-01-01T00:00:00Z"), false),
        (json!("12.5.2021 12:50"), true),
    ] {
        let body = with(odd.clone());
        let first = read(&body).unwrap();
        assert_eq!((first.fact.kind(), first.occurred_at), ("installed", None), "{odd}");
        let again = parse(body.as_bytes(), later).unwrap();
        assert_eq!(first.idempotency_key == again.idempotency_key, is_repeated, "{odd}");
    }
}

#[test]
fn a_form_is_named_by_a_digest_of_the_id_in_its_url() {
    let keys = FingerprintKeys::of(vec![1; 32].into());
    let app_id = AppId::parse("app_1").unwrap();
    let of = |id: &str| form_identity(&app_id, &InstallationId::parse(id).unwrap(), &keys).unwrap();
    assert_eq!(of("cap-1"), of("cap-1"));
    assert_ne!(of("cap-1").place, of("cap-2").place);
    let id = of("cap-1").installation_id.to_string();
    assert!(id.starts_with("app_1:install_url:") && !id.contains("cap-1"), "{id}");
}
