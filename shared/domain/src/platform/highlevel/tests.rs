use serde_json::json;

use super::*;

const LOCATION: &str = include_str!("install_location.json");
const AGENCY: &str = include_str!("install_agency.json");
const UNINSTALL: &str = include_str!("uninstall_location.json");
/// As HighLevel sends it for a company without a brand of its own and a free app.
const NO_WHITELABEL: &str = include_str!("install_without_whitelabel.json");

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
    let (trial, whitelabel) = (Trial::new(false, None, None), Whitelabel::NONE);
    assert_eq!((details.trial, details.whitelabel), (Some(trial), Some(whitelabel)));
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
    ];
    for (body, expected) in cases {
        assert_eq!(read(&body).unwrap_err().to_string(), expected);
    }
}

fn with(payload: &str, field: &str, value: Value) -> String {
    edited(payload, |fields| drop(fields.insert(field.into(), value)))
}

#[test]
fn a_company_without_whitelabel_has_none_and_empty_texts_are_absent() {
    let (_, details) = installed(NO_WHITELABEL);
    let state = Details::default().updated(&details);
    assert_eq!(state.whitelabel, None, "the flag is false and the texts are empty");
    assert_eq!((state.plan_id, state.company_name), (None, None));
}

#[test]
fn an_update_without_whitelabel_clears_it() {
    let before = Details::default().updated(&installed(LOCATION).1);
    assert!(before.whitelabel.is_some());
    let cleared = [
        with(LOCATION, "whitelabelDetails", json!({})),
        with(LOCATION, "whitelabelDetails", json!({ "domain": "", "logoUrl": "" })),
        with(LOCATION, "isWhitelabelCompany", json!(false)),
    ];
    for body in cleared {
        assert_eq!(before.clone().updated(&updated(&body)).whitelabel, None, "{body}");
    }
    let silent = updated(&without(LOCATION, &["isWhitelabelCompany", "whitelabelDetails"]));
    assert_eq!(before.clone().updated(&silent), before);
}

fn updated(install: &str) -> Details {
    match read(&install.replace("INSTALL", "UPDATE")).unwrap().fact {
        Fact::Updated { details, .. } => details,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_timestamp_that_cannot_be_used_costs_no_event() {
    let odd = [
        json!("0001-01-01T00:00:00Z"),
        json!("9999-12-31T23:59:59.999Z"),
        json!("9999-06-01T00:00:00Z"),
        json!("-005000-01-01T00:00:00Z"),
        json!("1970-01-01T00:00:00Z"),
        json!("last Tuesday"),
        json!(""),
        json!(0),
        json!(true),
        json!({ "at": 1 }),
    ];
    for value in odd {
        let callback = read(&with(LOCATION, "timestamp", value.clone())).unwrap();
        assert_eq!(callback.occurred_at, None, "{value}");
        let Payload::Clear(payload) = callback.payload else { panic!() };
        assert_eq!(payload["timestamp"], value, "it is kept");
    }
}

#[test]
fn a_timestamp_in_another_form_is_read() {
    let forms = [
        json!("2026-03-30T05:57:33.283Z"),
        json!("2026-03-30T07:57:33.283+02:00"),
        json!("2026-03-30 05:57:33.283"),
        json!(1_774_850_253_283_u64),
        json!("1774850253283"),
        json!(1_774_850_253.283),
    ];
    for value in forms {
        let callback = read(&with(LOCATION, "timestamp", value.clone())).unwrap();
        let read = callback.occurred_at.map(|at| at.to_string());
        assert_eq!(read.as_deref(), Some("2026-03-30T05:57:33.283Z"), "{value}");
    }
}

#[test]
fn a_retry_has_one_key_unless_the_payload_could_be_that_of_a_reinstall() {
    let without_id = without(LOCATION, &["webhookId"]);
    let keys = |value: Value| {
        let body = with(&without_id, "timestamp", value);
        let key = |second| parse(body.as_bytes(), at(second)).unwrap().idempotency_key;
        (key(1), key(2))
    };
    // No form of ours, but another event says something else there.
    for value in [json!("30.3.2026 05:57:33"), json!({ "seconds": 1_774_850_253 })] {
        let (first, again) = keys(value.clone());
        assert_eq!(first, again, "{value}");
    }
    // What a platform sends where it knows no time says the same in every event.
    for value in ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "", "Invalid Date"] {
        let (first, again) = keys(json!(value));
        assert_ne!(first, again, "{value}");
    }
    for odd in [json!(""), json!(7), json!("w\r\nx"), Value::Null] {
        let body = with(LOCATION, "webhookId", odd);
        let key = |second| parse(body.as_bytes(), at(second)).unwrap().idempotency_key;
        assert_eq!(key(1), key(2), "{body}");
    }
}

#[test]
fn an_empty_id_is_an_absent_one() {
    let agency = with(LOCATION, "locationId", json!(""));
    let id = "ve9EPM428h8vShlRW1KT:company:otg8dTQqGLh3Q6iQI55w";
    assert_eq!(installed(&agency).0.installation_id.as_str(), id);
    for odd in [json!(""), json!(7), json!("a\r\nb")] {
        let (identity, _) = installed(&with(LOCATION, "companyId", odd));
        assert!(!identity.scope.contains_key("company_id"), "{identity:?}");
    }
    let neither = with(&agency, "companyId", json!(""));
    assert_eq!(read(&neither).unwrap_err().to_string(), "the field 'companyId' is missing");
}

#[test]
fn a_trial_is_read_in_the_forms_that_it_may_have() {
    let ends_at =
        |trial: Value| installed(&with(LOCATION, "trial", trial)).1.trial.unwrap().ends_at;
    let trial = |start: Value, days: Value| json!({ "onTrial": true, "trialStartDate": start, "trialDuration": days });
    let start = json!("2024-07-23T23:54:51.264Z");
    for days in [json!(10), json!(10.0), json!("10"), json!("10.0")] {
        let ends = ends_at(trial(start.clone(), days.clone())).map(|at| at.to_string());
        assert_eq!(ends.as_deref(), Some("2024-08-02T23:54:51.264Z"), "{days}");
    }
    let half = ends_at(trial(start.clone(), json!(0.5))).unwrap();
    assert_eq!(half.to_string(), "2024-07-24T11:54:51.264Z");
    for days in [json!(-1), json!(1e300), json!("NaN"), json!("ten"), json!([])] {
        assert_eq!(ends_at(trial(start.clone(), days.clone())), None, "{days}");
    }
    for date in [json!("2024-07-23"), json!("2024-07-23T00:00:00"), json!(1_721_692_800_000_u64)] {
        let ends = ends_at(trial(date.clone(), json!(10))).map(|at| at.to_string());
        assert_eq!(ends.as_deref(), Some("2024-08-02T00:00:00Z"), "{date}");
    }
}

#[test]
fn a_location_is_a_part_of_the_company_that_its_install_named() {
    let parent = company_of(&installed(LOCATION).0).unwrap();
    assert_eq!(parent.installation_id, installed(AGENCY).0.installation_id);
    let expected = [("companyId", "otg8dTQqGLh3Q6iQI55w"), ("locationId", "otg8dTQqGLh3Q6iQI55w")];
    assert_eq!(parent.request, expected.map(|(name, id)| (name, id.to_owned())));
    let Fact::Uninstalled { identity } = read(UNINSTALL).unwrap().fact else { panic!() };
    assert_eq!(company_of(&identity), None, "it names no company");
    assert_eq!(company_of(&installed(AGENCY).0), None);
}
