use serde_json::json;

use super::*;

const LOCATION: &str = include_str!("install_location.json");
const AGENCY: &str = include_str!("install_agency.json");
const UNINSTALL: &str = include_str!("uninstall_location.json");

fn read(body: &str) -> Result<Callback, Refusal> {
    parse(body.as_bytes(), at(1))
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn edited(payload: &str, edit: impl FnOnce(&mut Fields)) -> String {
    let mut value: Value = serde_json::from_str(payload).unwrap();
    edit(value.as_object_mut().unwrap());
    value.to_string()
}

fn without(payload: &str, names: &[&str]) -> String {
    edited(payload, |fields| fields.retain(|name, _| !names.contains(&name.as_str())))
}

fn installed(body: &str) -> (Identity, Details) {
    match read(body).unwrap().fact {
        Fact::Installed { identity, details, .. } => (identity, details),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_install_of_a_location_is_read_whole() {
    let (identity, details) = installed(LOCATION);
    let id = "ve9EPM428h8vShlRW1KT:location:otg8dTQqGLh3Q6iQI55w";
    assert_eq!(identity.installation_id.as_str(), id);
    assert_eq!(identity.scope["company_id"], "otg8dTQqGLh3Q6iQI55w");
    let expected = json!({
        "plan_id": "66a0419a0dffa47fb5f8b22f",
        "trial": {
            "on_trial": true,
            "starts_at": "2024-07-23T23:54:51.264Z",
            "ends_at": "2024-08-02T23:54:51.264Z"
        },
        "whitelabel": { "domain": "example.com", "logo_url": "https://example.com/logo.png" },
        "company_name": "Example Company",
        "user_id": "otg8dTQqGLh3Q6iQI55w",
        "version_id": "ve9EPM428h8vShlRW1KT"
    });
    assert_eq!(serde_json::to_value(details).unwrap(), expected);
    let callback = read(LOCATION).unwrap();
    assert_eq!(callback.idempotency_key.as_str(), "0b1f7d5e-6a52-4a0e-9c7d-2a4f6f6b7c11");
    assert_eq!(callback.occurred_at.unwrap().to_string(), "2026-03-30T05:57:33.283Z");
}

#[test]
fn the_level_is_the_presence_of_a_location() {
    let (agency, _) = installed(AGENCY);
    let id = "ve9EPM428h8vShlRW1KT:company:otg8dTQqGLh3Q6iQI55w";
    assert_eq!(agency.installation_id.as_str(), id);
    // The documented sample has one id for location and company: they stay apart.
    assert_ne!(agency.place, installed(LOCATION).0.place);
}

#[test]
fn a_location_is_the_same_with_and_without_its_company() {
    let callback = read(UNINSTALL).unwrap();
    let Fact::Uninstalled { identity } = callback.fact else { panic!() };
    assert_eq!(identity.installation_id, installed(LOCATION).0.installation_id);
    assert_eq!(identity.place, installed(LOCATION).0.place);
}

#[test]
fn every_field_that_may_be_absent_may_be_absent() {
    let least = json!({ "type": "INSTALL", "appId": "a", "locationId": "l" }).to_string();
    assert!(installed(&least).1.is_empty());
    let empty = edited(LOCATION, |fields| {
        fields.insert("trial".into(), json!({}));
        fields.insert("whitelabelDetails".into(), json!({}));
    });
    let (_, details) = installed(&empty);
    assert_eq!((details.trial, details.whitelabel), (Some(Trial::new(false, None, None)), None));
    let nulls = edited(LOCATION, |fields| {
        for name in ["companyId", "userId", "planId", "trial", "whitelabelDetails", "companyName"] {
            fields.insert(name.into(), Value::Null);
        }
    });
    assert!(installed(&nulls).1.plan_id.is_none());
}

#[test]
fn a_detail_that_cannot_be_stored_is_left_out_and_the_install_is_not_refused() {
    let odd = [
        ("planId", json!(123)),
        ("planId", json!("x".repeat(1025))),
        ("companyName", json!("A\u{0}B")),
        ("trial", json!({ "onTrial": "true", "trialStartDate": "07/23/2024" })),
        ("trial", json!({ "onTrial": true, "trialStartDate": "-005000-01-01T00:00:00Z" })),
        ("whitelabelDetails", json!([])),
    ];
    for (field, value) in odd {
        let (_, details) = installed(&edited(LOCATION, |f| drop(f.insert(field.into(), value))));
        let text = serde_json::to_string(&details).unwrap();
        assert!(
            !text.contains("123") && !text.contains("\\u0000") && !text.contains("-005000"),
            "{text}"
        );
        assert!(details.plan_id.is_none_or(|plan| plan.len() < 1025));
    }
}

#[test]
fn an_update_and_a_change_of_plan_change_the_details() {
    let update = LOCATION.replace("INSTALL", "UPDATE");
    let Fact::Updated { details, .. } = read(&update).unwrap().fact else { panic!() };
    assert_eq!(details.plan_id.as_deref(), Some("66a0419a0dffa47fb5f8b22f"));
    let change = json!({
        "type": "PLAN_CHANGE", "appId": "a", "locationId": "l",
        "currentPlanId": "old", "newPlanId": "new"
    });
    let Fact::Updated { details, .. } = read(&change.to_string()).unwrap().fact else { panic!() };
    assert_eq!(details, Details { plan_id: Some("new".into()), ..Details::default() });
}

#[test]
fn another_type_is_recorded_sealed() {
    let other = read(&LOCATION.replace("INSTALL", "ExternalAuthConnected")).unwrap();
    assert_eq!(other.fact.kind(), "unrecognized");
    assert!(other.fact.identity().is_some());
    assert!(matches!(other.payload, Payload::Sealed(_)));
}

#[test]
fn without_a_webhook_id_the_content_is_the_key() {
    let body = without(LOCATION, &["webhookId"]);
    let key = |body: &str, second| parse(body.as_bytes(), at(second)).unwrap().idempotency_key;
    assert_eq!(key(&body, 1), key(&body, 2), "a retry repeats the timestamp");
    let older = without(LOCATION, &["webhookId", "timestamp"]);
    assert_ne!(key(&older, 1), key(&older, 2), "nothing tells a retry from a reinstall");
}

#[test]
fn what_is_missing_or_wrong_is_named_and_not_echoed() {
    let cases = [
        (without(LOCATION, &["type"]), "the field 'type' is missing"),
        (without(LOCATION, &["appId"]), "the field 'appId' is missing"),
        (without(LOCATION, &["locationId", "companyId"]), "the field 'companyId' is missing"),
        (
            edited(LOCATION, |f| drop(f.insert("locationId".into(), json!("do-not-echo\n")))),
            "the field 'locationId' must not contain control characters",
        ),
        (
            edited(LOCATION, |f| drop(f.insert("timestamp".into(), json!("do-not-echo")))),
            "the field 'timestamp' must be a time as in RFC 3339 since 1970, such as 2026-04-21T12:00:00Z",
        ),
        (
            edited(LOCATION, |f| {
                drop(f.insert("timestamp".into(), json!("-005000-01-01T00:00:00Z")))
            }),
            "the field 'timestamp' must be a time as in RFC 3339 since 1970, such as 2026-04-21T12:00:00Z",
        ),
    ];
    for (body, expected) in cases {
        assert_eq!(read(&body).unwrap_err().to_string(), expected);
    }
}
