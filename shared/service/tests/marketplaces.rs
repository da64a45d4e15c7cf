//! Real marketplaces by configuration: each file in deploy/sources reads what the platform's
//! official SDK has signed or accepts, and nothing that was changed on its way.
//!
//! `marketplaces/vectors.mjs` makes the callbacks. Those of one run are kept; with npm at hand, they
//! are made anew.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use domain::id::SourceName;
use domain::platform::challenge::{Answered, Challenge};
use domain::platform::{Adapter, accept_app};
use domain::verify::{Delivery, Verification};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use service::config::{Resolver, SourceSettings};

const SECRET: &str = "a-signing-secret-of-the-test";
const STANDARD_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// One callback, and what is to be read of it.
#[derive(Debug, Clone, Deserialize)]
struct Vector {
    source: String,
    by: String,
    at: i64,
    method: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: String,
    expect: Expected,
    /// The platform's key, where it is not a shared secret.
    public_key: Option<String>,
    jwks: Option<Value>,
    /// It can be checked only when it was made.
    #[serde(default)]
    fresh: bool,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum Expected {
    Event { kind: String, installation_id: String },
    Challenge { challenge: String },
}

#[derive(Deserialize)]
struct File {
    sources: BTreeMap<SourceName, SourceSettings>,
}

struct Source {
    settings: SourceSettings,
    adapter: Box<dyn Adapter>,
    verification: Verification,
    challenges: Vec<Challenge>,
}

/// As ingest takes the file, but for the platform's key.
fn source(vector: &Vector) -> Source {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/sources");
    let path = folder.join(format!("{}.toml", vector.source));
    let file = config::File::from(path.clone()).format(config::FileFormat::Toml);
    let file = config::Config::builder().add_source(file).build().unwrap();
    let File { sources } = file.try_deserialize().unwrap();
    let (name, mut settings) = sources.into_iter().next().unwrap();
    if let Some(key) = &vector.public_key {
        settings.verification.jwt.as_mut().unwrap().public_keys = vec![key.clone()];
    }
    if let Some(jwks) = &vector.jwks {
        settings.verification.jwt.as_mut().unwrap().jwks_url = Some(publish(jwks.to_string()));
    }
    let env = |variable: &str| match variable {
        "WHOP_WEBHOOK_SECRET" => Some(STANDARD_SECRET.to_owned()),
        _ => Some(SECRET.to_owned()),
    };
    let mut resolver = Resolver::new(&env);
    let adapter = resolver.adapter(&name, &settings);
    let verification = resolver.verification(&name, &settings);
    let challenges = resolver.challenges(&name, &settings);
    resolver.ack_contract(&name, &settings);
    resolver.oauth(&name, &settings);
    let all = adapter.zip(verification).zip(challenges);
    let ((adapter, verification), challenges) = resolver.finish(&path, all).unwrap();
    Source { settings, adapter, verification, challenges }
}

/// Answers two requests with this JSON.
fn publish(json: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming().take(2) {
            let mut connection = connection.unwrap();
            assert!(connection.read(&mut [0; 4_096]).unwrap() > 0);
            let length = json.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{json}");
            connection.write_all(answer.as_bytes()).unwrap();
        }
    });
    url
}

impl Vector {
    fn received_at(&self) -> Timestamp {
        Timestamp::from_second(self.at).unwrap()
    }

    /// What is read; `None` if it is not verified.
    async fn read(&self, source: &Source) -> Option<Expected> {
        let pair = |(name, value): (&String, &String)| {
            (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
        };
        let headers: HeaderMap = self.headers.iter().map(pair).collect();
        let method: Method = self.method.parse().unwrap();
        let by_path = !source.settings.verification.path_tokens.is_empty();
        let delivery = Delivery {
            method: &method,
            path_token: by_path.then_some(SECRET),
            query: Some(&self.query),
            headers: &headers,
            body: self.body.as_bytes(),
            received_at: self.received_at(),
        };
        source.verification.fetch_key(delivery).await;
        let verified = source.verification.verify(delivery).ok()?;
        if let Some(answered) = source.challenges.iter().find_map(|it| it.answer(&verified)) {
            let (Answered::Text(challenge) | Answered::Json(challenge)) = answered;
            return Some(Expected::Challenge { challenge });
        }
        let callback = source.adapter.parse(&verified).unwrap();
        if !matches!(&*self.source, "outreach" | "seismic" | "standard-webhooks") {
            accept_app(&callback, &source.settings.app_ids).unwrap();
        }
        let kind = callback.fact.kind().to_owned();
        let identity = callback.fact.identity().unwrap();
        Some(Expected::Event { kind, installation_id: identity.installation_id.to_string() })
    }

    fn name(&self) -> String {
        format!("{} ({}): {:?}", self.source, self.by, self.expect)
    }
}

async fn check(vectors: &[Vector]) {
    for vector in vectors {
        let source = source(vector);
        let methods: Vec<Method> =
            source.settings.methods.iter().map(|method| (*method).into()).collect();
        assert!(methods.contains(&vector.method.parse().unwrap()), "{}", vector.name());
        let read = vector.read(&source).await;
        assert_eq!(read.as_ref(), Some(&vector.expect), "{}", vector.name());
        refuses_what_was_changed(vector, &source).await;
    }
}

async fn refuses_what_was_changed(vector: &Vector, source: &Source) {
    let verification = &source.settings.verification;
    let is_token = verification.jwt.is_some();
    let in_body = verification.jwt.as_ref().is_some_and(|jwt| jwt.header.is_none());
    if in_body || verification.hmac.is_some() || verification.standard_webhooks.is_some() {
        let changed = Vector { body: format!("{}x", vector.body), ..vector.clone() };
        assert!(changed.read(source).await.is_none(), "another body: {}", vector.name());
    }
    let bare = Vector { headers: BTreeMap::new(), ..vector.clone() };
    if !in_body {
        assert!(bare.read(source).await.is_none(), "without proof: {}", vector.name());
    }
    for name in vector.headers.keys() {
        let is_proof = ["signature", "hmac", "authorization"].iter().any(|it| name.contains(it));
        if is_proof && !name.ends_with("-old") {
            let mut forged = vector.clone();
            let value = forged.headers.get_mut(name).unwrap();
            *value = value.chars().rev().collect();
            assert!(forged.read(source).await.is_none(), "a forged {name}: {}", vector.name());
        }
    }
    let is_timed = is_token
        || verification.standard_webhooks.is_some()
        || verification.hmac.as_ref().is_some_and(|hmac| hmac.timestamp.is_some());
    if is_timed && !vector.fresh {
        let hours = SignedDuration::from_hours(2).as_secs();
        let late = Vector { at: vector.at + hours, ..vector.clone() };
        assert!(late.read(source).await.is_none(), "two hours late: {}", vector.name());
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/marketplaces")
}

#[tokio::test]
async fn every_marketplace_reads_what_its_sdk_signs_or_accepts() {
    let kept = std::fs::read(folder().join("vectors.json")).unwrap();
    let mut vectors: Vec<Vector> = serde_json::from_slice(&kept).unwrap();
    let read: std::collections::BTreeSet<_> = vectors.iter().map(|it| it.source.clone()).collect();
    assert!(read.len() >= 13, "{read:?}");
    vectors.retain(|vector| !vector.fresh);
    check(&vectors).await;
}

/// The SDKs are installed for it, beside the build.
#[tokio::test]
async fn every_marketplace_reads_what_its_sdk_signs_now() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("marketplace-sdks");
    std::fs::create_dir_all(&target).unwrap();
    for file in ["package.json", "package-lock.json", "vectors.mjs"] {
        std::fs::copy(folder().join(file), target.join(file)).unwrap();
    }
    let mut install = Command::new("npm");
    install.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&target);
    let installed = install.output().is_ok_and(|output| output.status.success());
    let required = std::env::var_os("MOORING_TEST_SDKS").is_some();
    if !installed {
        assert!(!required, "MOORING_TEST_SDKS is set, and npm cannot install the SDKs");
        eprintln!("not tested with the SDKs of today: npm is not here, or cannot install them");
        return;
    }
    let made = Command::new("node").arg("vectors.mjs").current_dir(&target).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    check(&serde_json::from_slice::<Vec<Vector>>(&made.stdout).unwrap()).await;
}
