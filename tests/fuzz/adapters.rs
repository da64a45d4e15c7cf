//! Callbacks, from their bytes to the event that stands in the log.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use domain::event::{Callback, Event, Fact, Identity, Payload, PlainCredential, SealedCredential};
use domain::fold::{Recorded, Retention, fold};
use domain::id::{AppId, SourceName, StreamSequence};
use domain::platform::{Adapter, Platform, Refusal};
use domain::seal::AssociatedData;
use domain::tokens::Issued;
use domain::verify::{Delivery, Verification};
use eventlog::message::LogMessage;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use secrecy::ExposeSecret as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use service::config::{Resolver, SourceSettings};

use crate::mutate::{CANARY, Input};
use crate::world::{FINGERPRINTS, data_key, nonce, now, platform, source};

/// The settings of one source.
type Settings = BTreeMap<SourceName, SourceSettings>;

/// Every platform by its name, as its example configures it, and the sources of
/// deploy/sources that are read by a mapping.
static ADAPTERS: LazyLock<BTreeMap<String, Box<dyn Adapter>>> = LazyLock::new(|| {
    let mut sources = Settings::new();
    for platform in Platform::ALL {
        let example = &example(platform)["source"];
        let toml =
            format!("[{platform}]\nplatform = \"{platform}\"\n{}", example.as_str().unwrap());
        sources.extend(settings::<Settings>(&toml));
    }
    for name in ["github", "outreach", "seismic", "standard-webhooks"] {
        let toml = read(&format!("deploy/sources/{name}.toml"));
        sources.extend(settings::<BTreeMap<String, Settings>>(&toml).remove("sources").unwrap());
    }
    let adapter = |(name, settings): (SourceName, _)| {
        (name.to_string(), Resolver::new(&|_| None).adapter(&name, &settings).unwrap())
    };
    sources.into_iter().map(adapter).collect()
});

fn settings<T: DeserializeOwned>(toml: &str) -> T {
    let toml = config::File::from_str(toml, config::FileFormat::Toml);
    config::Config::builder().add_source(toml).build().unwrap().try_deserialize().unwrap()
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn example(platform: Platform) -> Value {
    let example = read(&format!("shared/domain/src/platform/{platform}/example.json"));
    serde_json::from_str(&example).unwrap()
}

/// Query, headers and body.
pub(crate) fn callbacks() -> Vec<Input> {
    let mut seeds = by_mapping();
    for platform in Platform::ALL {
        let bodies = documented(platform).into_iter();
        let bodies = bodies.chain([example(platform)["install"].to_string()]);
        seeds.extend(bodies.map(|body| Input::new(platform.name(), &["", "", &body])));
    }
    seeds
}

/// The payloads beside a platform's code.
pub(crate) fn documented(platform: Platform) -> Vec<String> {
    let folder = root().join("shared/domain/src/platform").join(platform.name());
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    let is_payload = |file: &&PathBuf| {
        file.extension().is_some_and(|it| it == "json") && !file.ends_with("example.json")
    };
    let body =
        |file: &PathBuf| fs::read_to_string(file).unwrap().replace("blnk_abcdefghijklmnop", CANARY);
    files.iter().filter(is_payload).map(body).collect()
}

fn by_mapping() -> Vec<Input> {
    let github = r#"{"action":"created","installation":{"id":2,"app_id":12345,"account":{"login":"octo-org","id":1},"permissions":{"metadata":"read","issues":"write"},"created_at":"2026-07-08T16:18:44-04:00"},"sender":{"id":5}}"#;
    let outreach = r#"{"data":{"type":"install","id":"101","relationships":{"app":{"data":{"type":"app","id":"7"}}}},"meta":{"eventName":"install.created","deliveredAt":"2026-07-01T10:00:00.000Z"}}"#;
    let whop = r#"{"type":"app_installation.created","timestamp":"2026-07-01T10:00:00Z","data":{"id":"inst_1","access_token":"canary-0123456789abcdef-secret","refresh_token":"the-refresh-token"}}"#;
    vec![
        Input::new(
            "github",
            &["", "x-github-event: installation\nx-github-delivery: 72d3162e", github],
        ),
        Input::new("outreach", &["", "outreach-webhook-id: r1", outreach]),
        Input::new("seismic", &["event=install", "", r#"{"tenantId":"0f9c3f8e-tenant"}"#]),
        Input::new("whop", &["", "webhook-id: msg_1", whop]),
    ]
}

/// One `name: value` a line; what is no header is left out, as a server would.
pub(crate) fn headers(text: &str) -> HeaderMap {
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.parse::<HeaderName>().ok()?, value.trim().parse::<HeaderValue>().ok()?))
    };
    text.lines().filter_map(header).collect()
}

pub(crate) fn callback(input: &Input) {
    let (query, headers, body) = (input.text(0), headers(&input.text(1)), &input.parts[2]);
    match parse(input.of, &query, &headers, body) {
        Ok(callback) => becomes_an_event(callback, body.len() + query.len()),
        Err(refusal) => tells_no_secret(&format!("{refusal} {refusal:?}")),
    }
}

/// A callback of a source, or why it is refused.
pub(crate) fn parse(
    source: &str,
    query: &str,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Callback, Refusal> {
    let delivery = Delivery {
        method: &http::Method::POST,
        path_token: None,
        query: Some(query),
        headers,
        body,
        received_at: now(),
    };
    ADAPTERS[source].parse(&Verification::Unverified.verify(delivery).unwrap())
}

/// The installation that tokens of a platform belong to.
pub(crate) fn token_owner(platform: Platform, issued: &Issued) -> Result<Identity, Refusal> {
    ADAPTERS[platform.name()].token_owner(&AppId::parse("app").unwrap(), issued.response(), "")
}

/// Not even a part of one.
pub(crate) fn tells_no_secret(text: &str) {
    const RUN: usize = 8;
    let parts = CANARY.as_bytes().windows(RUN);
    let mut parts = parts.map(|part| std::str::from_utf8(part).unwrap());
    assert!(!parts.any(|part| text.contains(part)), "it repeats a secret: {text}");
}

/// What holds of every callback that is taken.
pub(crate) fn becomes_an_event(callback: Callback, bytes: usize) {
    let secrets = secrets(&callback.fact);
    let credential = plain(&callback.fact).map(|plain| plain.secret.expose_secret().to_owned());
    let key = data_key();
    let sealed = callback.seal(source(), platform(), now(), &FINGERPRINTS, Some(&key), nonce);
    let event = sealed.unwrap();

    let written = event.encode().unwrap();
    assert!(written.len() < 8 * bytes + 4_096, "{} bytes of {bytes}", written.len());
    assert_eq!(Event::decode(&written).unwrap(), event);
    let light = Event { payload: Payload::Clear(Value::Null), ..event.clone() };
    assert_eq!(Event::decode_without_payload(&written).unwrap(), light);

    if let Payload::Clear(payload) = &event.payload {
        let shows = secrets.iter().find(|secret| secret.len() >= 8 && repeats(payload, secret));
        assert!(shows.is_none(), "a secret is in clear in {payload}");
    }
    if let Some(SealedCredential { field, sealed, .. }) = sealed_credential(&event.fact) {
        let installation = event.fact.identity().map(|identity| &identity.installation_id);
        let event = &event.message_id;
        let bound_to = AssociatedData { source: &source(), installation, event, field };
        let opened = key.open(sealed, bound_to).unwrap();
        assert_eq!(Some(opened.expose_secret()), credential.as_deref());
    }
    LogMessage::new(&event).unwrap().headers();
    can_be_stored(&event);
}

fn plain(fact: &Fact<PlainCredential>) -> Option<&PlainCredential> {
    match fact {
        Fact::Installed { credential, .. } => credential.as_ref(),
        Fact::Authorized { credential, .. } => Some(credential),
        _ => None,
    }
}

fn sealed_credential(fact: &Fact<SealedCredential>) -> Option<&SealedCredential> {
    match fact {
        Fact::Installed { credential, .. } => credential.as_ref(),
        Fact::Authorized { credential, .. } => Some(credential),
        _ => None,
    }
}

/// Each secret of a callback; a credential may be an object of several.
fn secrets(fact: &Fact<PlainCredential>) -> Vec<String> {
    let Some(plain) = plain(fact) else { return Vec::new() };
    let text = plain.secret.expose_secret();
    match serde_json::from_str::<BTreeMap<String, String>>(text) {
        Ok(several) => several.into_values().collect(),
        Err(_) => vec![text.to_owned()],
    }
}

fn repeats(value: &Value, secret: &str) -> bool {
    match value {
        Value::Null | Value::Bool(_) => false,
        Value::Number(number) => number.to_string().contains(secret),
        Value::String(text) => text.contains(secret),
        Value::Array(items) => items.iter().any(|item| repeats(item, secret)),
        Value::Object(fields) => {
            fields.iter().any(|(name, field)| name.contains(secret) || repeats(field, secret))
        }
    }
}

/// Postgres takes no NUL in a text, and NATS no line break in a header.
pub(crate) fn can_be_stored(event: &Event) {
    let mut texts = vec![event.message_id.as_str(), event.idempotency_key.as_str()];
    if let Some(identity) = event.fact.identity() {
        texts.extend([identity.place.as_str(), identity.installation_id.as_str()]);
    }
    for text in texts {
        assert!(!text.chars().any(char::is_control), "{text:?} cannot be a key");
    }
    let recorded = Recorded { sequence: StreamSequence(1), event: event.clone() };
    for installation in fold([&recorded], Retention::Keep) {
        let scope = installation.identity.scope.iter().flat_map(|(name, value)| [name, value]);
        let details = serde_json::to_value(&installation.details).unwrap();
        let prefix = installation.credential_prefix.iter();
        let columns = scope.chain(&installation.granted_permissions).chain(prefix);
        assert!(!columns.into_iter().any(|text| text.contains('\0')), "{installation:?}");
        assert!(!repeats(&details, "\0"), "{details}");
        assert!(installation.identity.place.as_str().len() <= 2_000, "an index takes 2,704 bytes");
    }
}
