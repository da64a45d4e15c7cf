//! A platform's token endpoint, as strict as a real one: a code and a refresh
//! token can be used once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use axum::extract::{Form, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// What codes stand for: where the app is installed.
pub(crate) type Codes = BTreeMap<&'static str, Value>;

#[derive(Default)]
pub(crate) struct Seen {
    codes: Codes,
    /// Refresh tokens that may be used, with what they are for.
    live: BTreeMap<String, Value>,
    used: BTreeSet<String>,
    issued: u64,
    /// Refresh tokens that were used again.
    pub(crate) reused: Vec<String>,
    pub(crate) refreshed: u64,
    pub(crate) locations: u64,
    /// Whose locations are not those of every company.
    pub(crate) company_of: BTreeMap<&'static str, &'static str>,
    /// Whether a refreshed access token is the one that it was before.
    pub(crate) repeats: bool,
    /// The next requests that fail with 503.
    pub(crate) failing: u64,
    /// Before every token: a recognisable secret.
    prefix: &'static str,
    expires_in: u64,
    /// What codes are bound to, if the app is to prove itself by a header.
    pub(crate) challenge: Option<String>,
    /// Whom it says a token belongs to, if it is asked.
    pub(crate) owner: Value,
}

pub(crate) struct TokenServer {
    pub(crate) url: String,
    seen: Arc<Mutex<Seen>>,
}

type Answer = (StatusCode, Json<Value>);

impl TokenServer {
    pub(crate) async fn start(codes: Codes, prefix: &'static str, expires_in: u64) -> Self {
        let seen = Seen { codes, prefix, expires_in, ..Seen::default() };
        let seen = Arc::new(Mutex::new(seen));
        let router = Router::new()
            .route("/oauth/token", post(token))
            .route("/oauth/locationToken", post(location_token))
            .route("/me", get(owner))
            .with_state(Arc::clone(&seen));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, seen }
    }

    pub(crate) fn seen<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap())
    }
}

async fn token(
    State(seen): State<Arc<Mutex<Seen>>>,
    headers: HeaderMap,
    Form(asked): Form<BTreeMap<String, String>>,
) -> Answer {
    let mut seen = seen.lock().unwrap();
    if seen.failing > 0 {
        seen.failing -= 1;
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({})));
    }
    if let Some(challenge) = &seen.challenge {
        let basic = "Basic Y2xpZW50LTE6Y2xpZW50LXNlY3JldC0wMTIzNDU2Nzg5";
        if headers["authorization"] != basic || asked.contains_key("client_secret") {
            return refused("invalid_client");
        }
        let digest = ring::digest::digest(&ring::digest::SHA256, asked["code_verifier"].as_bytes());
        if BASE64_URL_SAFE_NO_PAD.encode(digest) != *challenge {
            return refused("invalid_grant");
        }
    } else if asked["client_id"] != "client-1"
        || asked["client_secret"] != "client-secret-0123456789"
    {
        return refused("invalid_client");
    }
    let whose = match asked["grant_type"].as_str() {
        "authorization_code" => {
            let name = seen.codes.keys().find(|code| **code == asked["code"]).copied();
            name.and_then(|name| seen.codes.remove(name))
        }
        "refresh_token" => {
            let token = &asked["refresh_token"];
            if seen.used.contains(token) {
                seen.reused.push(token.clone());
            }
            seen.used.insert(token.clone());
            seen.refreshed += 1;
            seen.live.remove(token)
        }
        _ => return refused("unsupported_grant_type"),
    };
    match whose {
        Some(whose) => seen.issue(whose, true),
        None => refused("invalid_grant"),
    }
}

/// Whose a token is, to who has it.
async fn owner(State(seen): State<Arc<Mutex<Seen>>>, headers: HeaderMap) -> Answer {
    let seen = seen.lock().unwrap();
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok());
    match bearer.and_then(|bearer| bearer.strip_prefix("Bearer ")) {
        Some(token) if token.contains("access") => (StatusCode::OK, Json(seen.owner.clone())),
        _ => (StatusCode::UNAUTHORIZED, Json(json!({ "error": "unauthorized" }))),
    }
}

async fn location_token(
    State(seen): State<Arc<Mutex<Seen>>>,
    headers: HeaderMap,
    Form(asked): Form<BTreeMap<String, String>>,
) -> Answer {
    let mut seen = seen.lock().unwrap();
    seen.locations += 1;
    let bearer = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let is_ours =
        bearer.is_some_and(|bearer| bearer.starts_with("Bearer ") && bearer.contains("access"));
    if !is_ours || !headers.contains_key("version") {
        return (StatusCode::UNAUTHORIZED, Json(json!({ "error": "unauthorized" })));
    }
    let location = asked["locationId"].as_str();
    if seen.company_of.get(location).is_some_and(|company| *company != asked["companyId"]) {
        return refused("location_not_found");
    }
    let whose = json!({ "userType": "Location", "locationId": location });
    seen.issue(whose, false)
}

impl Seen {
    fn issue(&mut self, whose: Value, refreshable: bool) -> Answer {
        self.issued += 1;
        let (number, prefix) = (self.issued, self.prefix);
        let access = if self.repeats { 0 } else { number };
        let mut answer = json!({
            "access_token": format!("{prefix}access-{access}"),
            "nested": { "access_token": format!("{prefix}nested-{number}") },
            "token_type": "Bearer",
            "expires_in": self.expires_in,
            "scope": "contacts.readonly contacts.write",
        });
        let answered = answer.as_object_mut().unwrap();
        answered.extend(whose.as_object().unwrap().clone());
        if refreshable {
            let refresh_token = format!("{prefix}refresh-{number}");
            self.live.insert(refresh_token.clone(), whose);
            answered.insert("refresh_token".to_owned(), refresh_token.into());
        }
        (StatusCode::OK, Json(answer))
    }
}

fn refused(error: &str) -> Answer {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": error, "error_description": "no" })))
}

/// `[sources.highlevel.oauth]` for this server.
pub(crate) fn oauth_section(server: &TokenServer, client_secret: &str, more: &str) -> String {
    let url = &server.url;
    format!(
        "[sources.highlevel.oauth]\nclient_id = \"client-1\"\n\
         client_secret = {{ file = \"{client_secret}\" }}\n\
         redirect_uri = \"https://app.example.com/oauth/highlevel/callback\"\n\
         scopes = [\"contacts.readonly\"]\n\
         authorize_url = \"{url}/authorize\"\ntoken_url = \"{url}/oauth/token\"\n\
         location_token_url = \"{url}/oauth/locationToken\"\n{more}\n"
    )
}
