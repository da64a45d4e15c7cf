use serde_json::{Map, json};

use super::*;

const TODAY: &str = include_str!("install.json");
const WITH_ORGANIZATION: &str = include_str!("install_with_organization.json");
const UNINSTALL: &str = include_str!("uninstall.json");

const KEY: &str = "blnk_abcdefghijklmnop";

fn edited(payload: &str, edit: impl FnOnce(&mut Map<String, Value>)) -> Vec<u8> {
    let mut value: Value = serde_json::from_str(payload).unwrap();
    edit(value.as_object_mut().unwrap());
    value.to_string().into_bytes()
}

fn refusal(payload: &str, edit: impl FnOnce(&mut Map<String, Value>)) -> Refusal {
    parse(&edited(payload, edit)).unwrap_err()
}

#[test]
fn an_install_of_today_is_read_and_its_key_is_taken_out() {
    let callback = parse(TODAY.as_bytes()).unwrap();
    assert_eq!(callback.idempotency_key.as_str(), "install:instapp_1");
    assert_eq!(callback.occurred_at, None);
    let Fact::Installed { identity, granted_permissions, credential, .. } = &callback.fact else {
        panic!("{:?}", callback.fact);
    };
    assert_eq!(identity.installation_id.as_str(), "instapp_1");
    assert_eq!(identity.place.as_str(), "app_1/inst_1");
    assert_eq!(identity.scope, BTreeMap::from([("instance_id".into(), "inst_1".into())]));
    assert_eq!(granted_permissions, &["data:read", "data:write"]);
    let credential = credential.as_ref().unwrap();
    assert_eq!(credential.secret.expose_secret(), KEY);
    assert_eq!(credential.prefix.as_deref(), Some("blnk_abc"));
    let Payload::Clear(payload) = &callback.payload else { panic!() };
    assert_eq!(payload["api_key"], json!({ "$sealed": "api_key" }));
    assert!(!format!("{callback:?}").contains(KEY));
}

#[test]
fn the_older_form_with_an_organization_is_read() {
    let callback = parse(WITH_ORGANIZATION.as_bytes()).unwrap();
    let scope = &callback.fact.identity().unwrap().scope;
    assert_eq!(scope.get("organization_id").map(String::as_str), Some("org_1"));
}

#[test]
fn an_uninstall_is_read_with_its_time() {
    let callback = parse(UNINSTALL.as_bytes()).unwrap();
    assert_eq!(callback.fact.kind(), "uninstalled");
    assert_eq!(callback.occurred_at.unwrap().to_string(), "2026-04-21T12:00:00Z");
}

#[test]
fn unknown_fields_are_kept() {
    let body = edited(TODAY, |fields| {
        fields.insert("region".into(), json!({ "name": "eu", "zones": [1, 2] }));
    });
    let Payload::Clear(payload) = parse(&body).unwrap().payload else { panic!() };
    assert_eq!(payload["region"], json!({ "name": "eu", "zones": [1, 2] }));
}

#[test]
fn a_key_that_is_repeated_in_other_fields_is_replaced_there_too() {
    let body = edited(TODAY, |fields| {
        fields.insert("note".into(), json!({ "deep": [format!("Bearer {KEY}")], KEY: 1 }));
        fields.insert("api_key_prefix".into(), json!(KEY));
    });
    let Payload::Clear(payload) = parse(&body).unwrap().payload else { panic!() };
    assert!(!payload.to_string().contains(KEY), "{payload}");
    assert_eq!(payload["api_key_prefix"], "blnk_abcde");
}

#[test]
fn an_event_of_an_unknown_kind_is_recorded_with_its_payload_sealed() {
    let body = edited(TODAY, |fields| {
        fields.insert("idempotency_key".into(), json!("rotate:instapp_1"));
    });
    let callback = parse(&body).unwrap();
    let Fact::Unrecognized { kind, identity } = &callback.fact else { panic!() };
    assert_eq!(kind, "rotate");
    assert!(identity.is_some());
    assert!(matches!(callback.payload, Payload::Sealed(_)));
    assert!(!format!("{callback:?}").contains(KEY));
}

#[test]
fn a_missing_field_is_named() {
    let of_install = [
        "installed_app_id",
        "app_id",
        "instance_id",
        "api_key",
        "granted_permissions",
        "idempotency_key",
    ];
    let of_uninstall = ["installed_app_id", "app_id", "instance_id", "idempotency_key"];
    let cases = of_install.map(|field| (TODAY, field)).into_iter();
    for (payload, field) in cases.chain(of_uninstall.map(|field| (UNINSTALL, field))) {
        for absent in [None, Some(Value::Null)] {
            let refused = refusal(payload, |fields| {
                fields.remove(field);
                absent.map(|null| fields.insert(field.into(), null));
            });
            assert_eq!(refused, Refusal::missing(field));
        }
    }
}

#[test]
fn a_field_of_the_wrong_form_is_named_and_its_value_is_not_echoed() {
    let secret = "do-not-echo";
    let cases = [
        (TODAY, "installed_app_id", json!(7)),
        (TODAY, "installed_app_id", json!("do-not-echo\0")),
        (TODAY, "app_id", json!("do-not-echo\r\nx: y")),
        (TODAY, "instance_id", json!("")),
        (TODAY, "idempotency_key", json!(format!("install:{}", "x".repeat(300)))),
        (TODAY, "api_key", json!({ "value": secret })),
        (TODAY, "api_key", json!("")),
        (TODAY, "api_key", json!("do-not-echo\n")),
        (TODAY, "api_key", json!("x".repeat(API_KEY_BYTES_MAX + 1))),
        (TODAY, "granted_permissions", json!(secret)),
        (TODAY, "granted_permissions", json!([secret, 1])),
        (TODAY, "granted_permissions", json!(vec!["x"; 257])),
    ];
    for (payload, field, value) in cases {
        let refused = refusal(payload, |fields| {
            fields.insert(field.into(), value.clone());
        });
        assert!(
            matches!(&refused, Refusal::InvalidField { field: named, .. } if *named == field),
            "{field} = {value}: {refused:?}"
        );
        assert!(!refused.to_string().contains(secret), "{refused}");
    }
}

fn with(payload: &str, field: &str, value: Value) -> Callback {
    parse(&edited(payload, |fields| drop(fields.insert(field.into(), value)))).unwrap()
}

#[test]
fn an_uninstall_is_accepted_whatever_its_time_looks_like() {
    let without = edited(UNINSTALL, |fields| drop(fields.remove("uninstalled_at")));
    let callback = parse(&without).unwrap();
    assert_eq!((callback.fact.kind(), callback.occurred_at), ("uninstalled", None));
    let odd = [Value::Null, json!(""), json!("yesterday"), json!("0001-01-01T00:00:00Z"), json!(7)];
    for value in odd {
        let callback = with(UNINSTALL, "uninstalled_at", value.clone());
        assert_eq!((callback.fact.kind(), callback.occurred_at), ("uninstalled", None), "{value}");
        let Payload::Clear(payload) = callback.payload else { panic!() };
        assert_eq!(payload["uninstalled_at"], value, "it is kept");
    }
    let seconds = with(UNINSTALL, "uninstalled_at", json!(1_776_772_800));
    assert_eq!(seconds.occurred_at.unwrap().to_string(), "2026-04-21T12:00:00Z");
}

#[test]
fn a_hint_that_cannot_be_used_does_not_cancel_an_install() {
    for value in [json!(""), Value::Null, json!(7), json!(["org"]), json!("org\r\n")] {
        let callback = with(WITH_ORGANIZATION, "organization_id", value.clone());
        let scope = &callback.fact.identity().unwrap().scope;
        assert!(!scope.contains_key("organization_id"), "{value}");
    }
    for value in [json!(1), json!(""), json!([KEY]), json!({ "start": "blnk_abcdefghijklmno" })] {
        let callback = with(TODAY, "api_key_prefix", value.clone());
        let Fact::Installed { credential, .. } = callback.fact else { panic!() };
        assert_eq!(credential.unwrap().prefix, None, "{value}");
        let Payload::Clear(payload) = callback.payload else { panic!() };
        assert!(!payload.to_string().contains("blnk_abcdefghijkl"), "most of the key: {payload}");
    }
    let empty = with(TODAY, "uninstalled_at", json!(""));
    assert_eq!(empty.fact.kind(), "installed", "an empty field contradicts nothing");
}

#[test]
fn a_kind_that_the_fields_contradict_is_refused() {
    let refused = refusal(TODAY, |fields| {
        fields.insert("uninstalled_at".into(), json!("2026-04-21T12:00:00Z"));
    });
    assert_eq!(refused, Refusal::Contradiction { kind: "install", field: "uninstalled_at" });
    let refused = refusal(UNINSTALL, |fields| {
        fields.insert("api_key".into(), json!(KEY));
    });
    assert_eq!(refused, Refusal::Contradiction { kind: "uninstall", field: "api_key" });
}

#[test]
fn a_value_that_cannot_be_read_stays_as_it_came_and_costs_no_event() {
    let digits = "9".repeat(5_000);
    for odd in [r#""\ud800""#, "1e400", digits.as_str(), r#"{"a":[1e999]}"#] {
        let body = format!("{}, \"odd\": {odd}}}", TODAY.trim_end().strip_suffix('}').unwrap());
        let Payload::Clear(payload) = parse(body.as_bytes()).unwrap().payload else { panic!() };
        assert_eq!(payload["odd"], json!({ "$unreadable": odd }));
        assert!(!payload.to_string().contains(KEY), "the secret is taken out all the same");
        // What is asked for must be readable.
        let body = TODAY.replacen("\"instapp_1\"", odd, 1);
        assert_eq!(parse(body.as_bytes()).unwrap_err().name(), "invalid-field", "{odd:.20}");
    }
}

#[test]
fn of_a_field_that_comes_twice_the_last_counts_and_the_payload_says_so() {
    let body =
        TODAY.replacen('{', "{\"api_key\": \"blnk_another_key\", \"instance_id\": \"x\",", 1);
    let callback = parse(body.as_bytes()).unwrap();
    let Payload::Clear(payload) = &callback.payload else { panic!() };
    assert_eq!(payload["$repeated"], json!(["api_key", "instance_id"]));
    assert!(!payload.to_string().contains("blnk_another_key"));
    let Fact::Installed { credential: Some(credential), .. } = callback.fact else { panic!() };
    assert_eq!(credential.secret.expose_secret(), KEY);
    let Payload::Clear(payload) = parse(TODAY.as_bytes()).unwrap().payload else { panic!() };
    assert!(payload.get("$repeated").is_none());
}

#[test]
fn what_is_not_a_json_object_or_too_deep_is_refused() {
    let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let cases = [
        (String::new(), "malformed-json"),
        ("{\"a\":".to_owned(), "malformed-json"),
        ("{} {}".to_owned(), "malformed-json"),
        ("{\"\\ud800\":1}".to_owned(), "malformed-json"),
        ("[]".to_owned(), "not-an-object"),
        ("null".to_owned(), "not-an-object"),
        (nested(33), "json-too-deep"),
        (nested(100_000), "json-too-deep"),
    ];
    for (body, name) in cases {
        assert_eq!(parse(body.as_bytes()).unwrap_err().name(), name, "{:.40}", body);
    }
}

proptest::proptest! {
    #[test]
    fn no_body_makes_it_panic(body: Vec<u8>) {
        let _read = parse(&body);
    }
}
