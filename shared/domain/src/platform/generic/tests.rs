use http::HeaderName;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::*;
use crate::platform::fields::Fields;
use crate::verify::{Delivery, Verification};

const MAPPING: &str = r#"{
    "event_type": ["header:X-Event", "/action"],
    "installed": ["installation.created"],
    "uninstalled": ["installation.deleted"],
    "updated": ["installation.changed"],
    "app_id": "/app/id",
    "installation_id": ["/id"],
    "place": ["/account"],
    "permissions": "/permissions",
    "occurred_at": "/at",
    "plan_id": "/plan",
    "secrets": ["/token", "/nested/refresh"]
}"#;

const TOKEN: &str = "token-that-is-secret";

fn install() -> Value {
    json!({
        "action": "created", "app": { "id": 12345 }, "id": 7, "account": "octo",
        "permissions": { "issues": "read", "contents": "write" }, "plan": "gold",
        "at": 1_800_000_000, "token": TOKEN, "note": format!("again: {TOKEN}")
    })
}

fn read(mapping: &Mapping, body: &Value) -> Result<Callback, Refusal> {
    let headers = HeaderMap::from_iter([(
        HeaderName::from_static("x-event"),
        "installation".parse().unwrap(),
    )]);
    let body = body.to_string();
    let delivery = Delivery {
        method: &Method::POST,
        path_token: None,
        query: Some("event=in%73tall"),
        headers: &headers,
        body: body.as_bytes(),
        received_at: Timestamp::UNIX_EPOCH,
    };
    mapping.parse(&Verification::Unverified.verify(delivery).unwrap())
}

fn mapping() -> Mapping {
    serde_json::from_str(MAPPING).unwrap()
}

#[test]
fn an_install_is_read_by_its_locators() {
    let callback = read(&mapping(), &install()).unwrap();
    let Fact::Installed { identity, granted_permissions, credential, details } = callback.fact
    else {
        panic!()
    };
    assert_eq!(identity.app_id.as_str(), "12345");
    assert_eq!(identity.installation_id.as_str(), "7");
    assert_eq!(identity.place.as_str(), "12345/octo");
    assert_eq!(granted_permissions, ["contents:write", "issues:read"]);
    assert_eq!(details.plan_id.as_deref(), Some("gold"));
    assert_eq!(callback.occurred_at.unwrap().as_second(), 1_800_000_000);
    let secrets: Value = serde_json::from_str(credential.unwrap().secret.expose_secret()).unwrap();
    assert_eq!(secrets, json!({ "/token": TOKEN }));
    let payload = |mapping: &Mapping, body: &Value| read(mapping, body).unwrap().payload;
    // One of the configured secrets is not there: it may stand elsewhere.
    assert!(matches!(payload(&mapping(), &install()), Payload::Sealed(_)));
    let mut only_token = mapping();
    only_token.secrets.truncate(1);
    let Payload::Clear(payload) = payload(&only_token, &install()) else { panic!() };
    assert!(!payload.to_string().contains(TOKEN), "{payload}");
}

#[test]
fn several_secrets_are_kept_as_one_object() {
    let mut body = install();
    body["nested"] = json!({ "refresh": "refresh-that-is-secret" });
    let Fact::Installed { credential, .. } = read(&mapping(), &body).unwrap().fact else {
        panic!()
    };
    let credential = credential.unwrap();
    assert_eq!(credential.field, "secrets");
    let secrets: Value = serde_json::from_str(credential.secret.expose_secret()).unwrap();
    assert_eq!(secrets, json!({ "/token": TOKEN, "/nested/refresh": "refresh-that-is-secret" }));
}

#[test]
fn another_kind_and_an_uninstall_keep_no_secret_in_plaintext() {
    for action in ["deleted", "changed", "paused"] {
        let mut body = install();
        body["action"] = json!(action);
        let callback = read(&mapping(), &body).unwrap();
        assert!(matches!(callback.payload, Payload::Sealed(_)), "{action}");
    }
}

#[test]
fn without_a_key_the_content_is_the_key() {
    let key = |body: &Value| read(&mapping(), body).unwrap().idempotency_key;
    let mut other = install();
    other["at"] = json!(1_800_000_001);
    assert_eq!(key(&install()), key(&install()));
    assert_ne!(key(&install()), key(&other));
}

#[test]
fn a_kind_that_is_not_known_is_recorded_whatever_it_lacks() {
    let ping = read(&mapping(), &json!({ "zen": "Design for failure." })).unwrap();
    let Fact::Unrecognized { kind, identity } = ping.fact else { panic!() };
    assert_eq!((kind.as_str(), identity), ("installation", None));
}

#[test]
fn without_id_and_time_every_delivery_is_an_event_where_a_reinstall_keeps_the_id() {
    let mut lasting = mapping();
    (lasting.reinstall, lasting.occurred_at) = (Reinstall::SameId, None);
    let key = read(&lasting, &install()).unwrap().idempotency_key;
    assert!(key.as_str().ends_with(":0"), "{key}: the time of receipt in the test");
}

#[test]
fn what_is_missing_or_wrong_is_named_by_its_locator() {
    let cases = [
        ("/app/id", json!({ "app": {} }), "the field '/app/id' is missing"),
        ("/id", json!({ "id": [1] }), "the field '/id' must be a string or a number"),
        (
            "/account",
            json!({ "account": "a\u{0}" }),
            "the field '/account' must not contain control characters",
        ),
        (
            "/token",
            json!({ "token": 7 }),
            "the field '/token' must be a string of at most 16384 bytes",
        ),
    ];
    for (locator, change, expected) in cases {
        let mut body = install();
        let changed = change.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(changed);
        assert_eq!(read(&mapping(), &body).unwrap_err().to_string(), expected, "{locator}");
    }
}

#[test]
fn a_part_may_stand_in_the_query_or_be_the_same_for_all() {
    let mut mapping = mapping();
    mapping.event_type = vec![Locator::try_from("query:event".to_owned()).unwrap()];
    mapping.app_id = Locator::try_from("value:my-app".to_owned()).unwrap();
    mapping.installed = vec!["install".to_owned()];
    let callback = read(&mapping, &install()).unwrap();
    assert_eq!(callback.app_id.unwrap().as_str(), "my-app");
    assert_eq!(callback.fact.kind(), "installed");
}

#[test]
fn what_is_no_locator_is_refused() {
    for text in ["", "id", "header:", "header:a b", "query:", "value:", "cookie:x"] {
        assert!(Locator::try_from(text.to_owned()).is_err(), "{text}");
    }
}

#[test]
fn a_mapping_that_cannot_work_says_why() {
    let without = |edit: fn(&mut Mapping)| {
        let mut mapping = mapping();
        edit(&mut mapping);
        mapping.problem()
    };
    assert_eq!(mapping().problem(), None);
    assert!(without(|mapping| mapping.installation_id.clear()).is_some());
    assert!(without(|mapping| mapping.installed.clear()).is_some());
    assert!(without(|mapping| mapping.secrets[0] = Locator::Query("token".into())).is_some());
    assert!(without(|mapping| mapping.plan_id = Some(mapping.secrets[0].clone())).is_some());
}

#[test]
fn tokens_meet_their_install() {
    let mapping = Mapping {
        token_installation_id: vec![Locator::Body("/installation".into())],
        token_place: vec![Locator::Body("/team/name".into())],
        ..mapping()
    };
    assert_eq!(mapping.problem(), None);
    let answer = serde_json::json!({ "installation": 7, "team": { "name": "octo" } });
    let app_id = AppId::parse("12345").unwrap();
    let owner = mapping.token_owner(&app_id, answer.as_object().unwrap(), "").unwrap();
    let callback = read(&mapping, &install()).unwrap();
    let installed = callback.fact.identity().unwrap();
    assert_eq!(owner.installation_id, installed.installation_id);
    assert_eq!(owner.place, installed.place);
    let refused = mapping.token_owner(&app_id, &Fields::new(), "").unwrap_err();
    assert_eq!(refused.to_string(), "the field '/installation' is missing");
    let without_place = Mapping { token_place: vec![], ..mapping };
    assert!(without_place.problem().unwrap().contains("token_place"));
}

#[test]
fn parts_with_the_separator_in_them_stay_apart() {
    let mut mapping = mapping();
    let locator = |pointer: &str| Locator::Body(pointer.to_owned());
    mapping.installation_id = vec![locator("/account"), locator("/id")];
    mapping.idempotency_key = mapping.installation_id.clone();
    let read = |account: &str, id: &str| {
        let mut body = install();
        (body["account"], body["id"]) = (json!(account), json!(id));
        let callback = read(&mapping, &body).unwrap();
        let id = callback.fact.identity().unwrap().installation_id.to_string();
        (id, callback.idempotency_key.to_string())
    };
    let (one, other) = (read("a:b", "c"), read("a", "b:c"));
    assert_ne!(one.0, other.0);
    assert_ne!(one.1, other.1);
    assert_ne!(read("a%3Ab", "c").0, one.0);
    assert_eq!(read("octo", "7"), ("octo:7".to_owned(), "octo:7".to_owned()));
}

#[test]
fn a_single_part_is_the_id_as_it_is() {
    let mut mapping = mapping();
    mapping.idempotency_key = vec![Locator::Body("/id".to_owned())];
    let mut body = install();
    body["id"] = json!("team:7%");
    let callback = read(&mapping, &body).unwrap();
    assert_eq!(callback.fact.identity().unwrap().installation_id.as_str(), "team:7%");
    assert_eq!(callback.idempotency_key.as_str(), "team:7%");
}

#[test]
fn a_time_is_read_in_the_forms_that_platforms_use() {
    let occurred_at = |at: Value| {
        let mut body = install();
        body["at"] = at;
        read(&mapping(), &body).unwrap().occurred_at.map(|at| at.to_string())
    };
    let (whole, part) = ("2027-01-15T08:00:00Z", "2027-01-15T08:00:00.25Z");
    let cases = [
        (json!(1_800_000_000), whole),
        (json!("1800000000"), whole),
        (json!(1_800_000_000.25), part),
        (json!("1800000000.25"), part),
        (json!(1_800_000_000_250_u64), part),
        (json!(1_800_000_000_250_000_u64), part),
        (json!("1800000000250000"), part),
        (json!("2027-01-15T08:00:00.25Z"), part),
        (json!("2027-01-15 08:00:00"), whole),
        (json!("Fri, 15 Jan 2027 08:00:00 GMT"), whole),
    ];
    for (value, expected) in cases {
        assert_eq!(occurred_at(value.clone()).as_deref(), Some(expected), "{value}");
    }
    for value in [json!("soon"), json!(-5), json!(1e300), json!([1]), json!("NaN"), json!("")] {
        assert_eq!(occurred_at(value.clone()), None, "{value}");
    }
}

#[test]
fn permissions_are_read_in_the_forms_that_platforms_use() {
    let granted = |permissions: Value| {
        let mut body = install();
        body["permissions"] = permissions;
        match read(&mapping(), &body).unwrap().fact {
            Fact::Installed { granted_permissions, .. } => granted_permissions,
            other => panic!("{other:?}"),
        }
    };
    for both in [json!(["a:b", "c"]), json!("a:b c"), json!("a:b,c"), json!(" a:b, c,\n")] {
        assert_eq!(granted(both.clone()), ["a:b", "c"], "{both}");
    }
    for none in [json!(""), json!(7), json!(["a", 1]), json!(vec!["a"; 257]), Value::Null] {
        assert!(granted(none.clone()).is_empty(), "{none}");
    }
}

#[test]
fn without_a_readable_time_a_reinstall_with_the_same_id_is_told_from_a_retry_as_far_as_it_can_be() {
    let mapping = Mapping { reinstall: Reinstall::SameId, ..mapping() };
    let key = |at: Value| {
        let mut body = install();
        body["at"] = at;
        read(&mapping, &body).unwrap().idempotency_key.to_string()
    };
    assert!(!key(json!("15.1.2027 08:00")).ends_with(":0"), "a retry repeats it");
    for nothing in [json!("0001-01-01T00:00:00Z"), json!(""), json!(0)] {
        assert!(key(nothing.clone()).ends_with(":0"), "{nothing}: the time of receipt in the test");
    }
}

/// As `method` brings it, with this body and query.
fn delivered(
    mapping: &Mapping,
    method: &Method,
    body: &str,
    query: &str,
) -> Result<Callback, Refusal> {
    let delivery = Delivery {
        method,
        path_token: None,
        query: Some(query),
        headers: &HeaderMap::new(),
        body: body.as_bytes(),
        received_at: Timestamp::UNIX_EPOCH,
    };
    mapping.parse(&Verification::Unverified.verify(delivery).unwrap())
}

fn small(more: &str) -> Mapping {
    let text = format!(
        r#"{{ "event_type": ["/type"], "installed": ["in"], "uninstalled": ["DELETE"],
              "app_id": "value:app", "installation_id": ["/id"]{more} }}"#
    );
    let mapping: Mapping = serde_json::from_str(&text).unwrap();
    assert_eq!(mapping.problem(), None);
    mapping
}

fn kind_and_id(callback: &Callback) -> (&'static str, &str) {
    (callback.fact.kind(), callback.fact.identity().unwrap().installation_id.as_str())
}

#[test]
fn a_form_is_read_by_its_fields() {
    let mapping = small(r#", "body": "form", "permissions": "/scope""#);
    let read = delivered(&mapping, &Method::POST, "type=in&id=a%20b&scope=x&scope=y", "").unwrap();
    assert_eq!(kind_and_id(&read), ("installed", "a b"));
    let Fact::Installed { granted_permissions, .. } = read.fact else { panic!() };
    assert_eq!(granted_permissions, ["x", "y"]);
}

#[test]
fn of_a_get_the_query_is_read_and_of_a_delete_the_method() {
    let read = delivered(&small(""), &Method::GET, "", "type=in&id=7").unwrap();
    assert_eq!(kind_and_id(&read), ("installed", "7"));
    let other = delivered(&small(""), &Method::GET, "", "type=in&id=8").unwrap();
    assert_ne!(read.idempotency_key, other.idempotency_key);
    let by_method = Mapping { event_type: vec![Locator::Method], ..small("") };
    let read = delivered(&by_method, &Method::DELETE, r#"{"id":7}"#, "").unwrap();
    assert_eq!(kind_and_id(&read), ("uninstalled", "7"));
    let empty = delivered(&by_method, &Method::DELETE, "", "id=7").unwrap_err();
    assert_eq!(empty, Refusal::missing("/id"));
    assert!(matches!(
        delivered(&small(""), &Method::POST, "", "type=in&id=7"),
        Err(Refusal::MalformedJson { .. })
    ));
}

#[test]
fn json_inside_of_strings_is_read_and_stays_within_the_depth() {
    let mapping = Mapping {
        event_type: vec![Locator::Body("/data/inner/type".to_owned())],
        installation_id: vec![Locator::Body("/data/inner/id".to_owned())],
        ..small(r#", "json_strings": ["/data", "/data/inner"]"#)
    };
    let inner = json!({ "type": "in", "id": 7 }).to_string();
    let body = json!({ "data": json!({ "inner": inner }).to_string() }).to_string();
    let read = delivered(&mapping, &Method::POST, &body, "").unwrap();
    assert_eq!(kind_and_id(&read), ("installed", "7"));
    let deep = json!({ "data": format!("{}1{}", "[".repeat(40), "]".repeat(40)) }).to_string();
    let refused = delivered(&mapping, &Method::POST, &deep, "").unwrap_err();
    assert!(matches!(refused, Refusal::TooDeep { .. }), "{refused}");
    // What is no JSON stays the text that it is.
    let odd = json!({ "data": "{" }).to_string();
    assert_eq!(
        delivered(&mapping, &Method::POST, &odd, "").unwrap_err(),
        Refusal::missing("/data/inner/type")
    );
}

#[test]
fn a_part_that_is_omitted_is_not_kept() {
    let mapping = small(r#", "omit": ["/list"]"#);
    let body = json!({ "type": "in", "id": 7, "list": vec![1; 500] }).to_string();
    let Payload::Clear(payload) = delivered(&mapping, &Method::POST, &body, "").unwrap().payload
    else {
        panic!()
    };
    assert_eq!(payload, json!({ "type": "in", "id": 7, "list": null }));
}

#[test]
fn permissions_that_cannot_be_read_are_not_taken_away() {
    let mapping = small(r#", "permissions_changed": ["changed"], "permissions": "/p""#);
    let read = |permissions: Value| {
        let body = json!({ "type": "changed", "id": 7, "p": permissions }).to_string();
        delivered(&mapping, &Method::POST, &body, "").unwrap()
    };
    let Fact::PermissionsChanged { granted_permissions, .. } = read(json!(["a"])).fact else {
        panic!()
    };
    assert_eq!(granted_permissions, ["a"]);
    assert_eq!(read(json!([])).fact.kind(), "permissions_changed");
    for odd in [json!(7), Value::Null, json!([1])] {
        let callback = read(odd.clone());
        assert_eq!(callback.fact.kind(), "unrecognized", "{odd}");
        assert!(matches!(callback.payload, Payload::Sealed(_)), "{odd}");
    }
}

#[test]
fn a_mapping_that_cannot_be_meant_is_refused() {
    let problem = |more: &str| {
        let text = format!(
            r#"{{ "event_type": ["/type"], "app_id": "value:app", "installation_id": ["/id"]{more} }}"#
        );
        serde_json::from_str::<Mapping>(&text).unwrap().problem().unwrap()
    };
    assert!(problem("").contains("grant_installs"));
    assert!(problem(r#", "grant_installs": true"#).contains("token_installation_id"));
    let changed = r#", "installed": ["a"], "permissions_changed": ["b"]"#;
    assert!(problem(changed).contains("permissions"));
    let twice = r#", "installed": ["a"], "suspended": ["a"]"#;
    assert!(problem(twice).contains("one list only"));
    let header = r#", "installed": ["a"], "omit": ["header:x"]"#;
    assert!(problem(header).contains("JSON Pointers"));
}
