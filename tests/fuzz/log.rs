//! What is read from the log again.

use domain::event::{Event, Payload};
use domain::platform::Platform;
use eventlog::audit::Record;
use eventlog::message::LogMessage;
use http::HeaderMap;
use serde_json::Value;

use crate::adapters::{documented, parse};
use crate::mutate::Input;
use crate::world::{FINGERPRINTS, data_key, nonce, now, source};

/// One of schema version 1 as it must be readable for ever, and one of each kind.
pub(crate) fn events() -> Vec<Input> {
    let golden = include_str!("../../shared/domain/src/event/installed.v1.json");
    let mut seeds = vec![Input::new("event", &[golden])];
    for platform in [Platform::Blnk, Platform::HighLevel] {
        for body in documented(platform) {
            let callback = parse(platform.name(), "", &HeaderMap::new(), body.as_bytes()).unwrap();
            let key = data_key();
            let event = callback.seal(
                source(),
                platform.to_name(),
                now(),
                &FINGERPRINTS,
                Some(&key),
                nonce,
            );
            let event = event.unwrap();
            let about = [event.ack_missed(now()), event.ack_delivered(now())];
            let all = about.into_iter().flatten().chain([event]);
            let written = all.map(|it| String::from_utf8(it.encode().unwrap()).unwrap());
            seeds.extend(written.map(|it| Input::new("event", &[&it])));
        }
    }
    seeds
}

pub(crate) fn event(input: &Input) {
    let light = Event::decode_without_payload(&input.parts[0]);
    let event = match Event::decode(&input.parts[0]) {
        Ok(event) => event,
        Err(refused) => return can_be_a_dead_letter(&refused),
    };
    let written = event.encode().unwrap();
    assert_eq!(Event::decode(&written).unwrap(), event);
    assert_eq!(light.unwrap(), Event { payload: Payload::Clear(Value::Null), ..event.clone() });
    LogMessage::new(&event).unwrap().headers();
    event.ack_missed(now());
}

/// Its reason is stored as text.
fn can_be_a_dead_letter(refused: &dyn std::error::Error) {
    let causes = std::iter::successors(Some(refused), |cause| cause.source());
    let detail: Vec<String> = causes.map(ToString::to_string).collect();
    assert!(!detail.iter().any(|text| text.contains('\0')), "{detail:?}");
}

pub(crate) fn records() -> Vec<Input> {
    [
        r#"{"source":"blnk","received_at":"2026-07-01T10:00:00Z","trace_id":"00f","outcome":"refused","status":401,"reason":"unauthentic"}"#,
        r#"{"source":"blnk","received_at":"2026-07-01T10:00:00Z","trace_id":null,"outcome":"duplicate","installation_id":"a","type":"installed","sequence":7}"#,
    ]
    .map(|record| Input::new("record", &[record]))
    .into()
}

pub(crate) fn record(input: &Input) {
    let Ok(record) = serde_json::from_slice::<Record>(&input.parts[0]) else { return };
    let written = serde_json::to_vec(&record).unwrap();
    assert_eq!(serde_json::from_slice::<Record>(&written).unwrap(), record);
    let subject = record.subject();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    assert!(subject.split('.').count() == 3 && subject.chars().all(is_plain), "{subject}");
}
