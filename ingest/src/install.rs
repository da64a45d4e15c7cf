//! The install page: a user types the secrets that the app's manifest declares.
//! They are sealed and appended; then the browser posts the same form on to the
//! platform, which completes the installation (status 307 keeps method and body,
//! RFC 9110, section 15.4.8). No secret ever comes back from here.

use std::collections::BTreeMap;
use std::sync::Arc;

use askama::Template;
use axum::body::Bytes;
use axum::extract::{RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum_extra::extract::CookieJar;
use domain::event::{Callback, Fact, Grant, Payload, PlainCredential};
use domain::fingerprint::FingerprintKeys;
use domain::id::{IdempotencyKey, InstallationId, InvalidId};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};
use service::config::{DeclaredSecret, InstallPage};

use crate::app::App;
use crate::door::COUNT_BUDGET;
use crate::oauth::{self, Failed};
use crate::page::{self, InPath};
use crate::settings::Source;
use crate::ticket::{self, Purpose, Use};

const FORM: &str = "install";
const FIELD: &str = "secrets";
const VALUE_BYTES_MAX: usize = 8 * 1024;

#[derive(Template)]
#[template(path = "install.html")]
struct Form<'a> {
    app_name: &'a str,
    problem: Option<&'a str>,
    ticket: &'a str,
    installation_parameter: &'a str,
    installation: &'a str,
    fields: Vec<FormField<'a>>,
}

struct FormField<'a> {
    key: &'a str,
    label: &'a str,
    required: bool,
    visible: bool,
    /// What was typed before, of what may be seen.
    value: &'a str,
    problem: Option<String>,
}

/// What the platform calls the installation, and under which name.
struct Installation {
    parameter: String,
    id: InstallationId,
}

/// What was typed, by the keys of the manifest.
type Typed = BTreeMap<String, SecretString>;

pub(crate) async fn show(
    State(app): State<Arc<App>>,
    source: InPath,
    RawQuery(query): RawQuery,
    cookies: CookieJar,
) -> Response {
    let Some((source, page)) = find(&app, source) else { return nothing_here() };
    let query: Vec<_> =
        form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect();
    match installation(page, &query) {
        Some(found) => {
            let status = StatusCode::OK;
            form(&app, source, page, &found, cookies, status, None, &Typed::new())
        }
        None => no_installation(),
    }
}

pub(crate) async fn submit(
    State(app): State<Arc<App>>,
    source: InPath,
    RawQuery(query): RawQuery,
    cookies: CookieJar,
    request: Request,
) -> Response {
    let Some((source, page)) = find(&app, source) else { return nothing_here() };
    tracing::Span::current().record("mooring.source", source.name.as_str());
    let Ok(_visit) = source.visits.try_acquire() else { return oauth::BUSY.page() };
    let Some(body) = read(&app, request).await else {
        let text = "The form is too large, or it did not arrive whole.";
        return page::message(StatusCode::BAD_REQUEST, "Please try again", text);
    };
    let posted: Vec<_> = form_urlencoded::parse(&body).into_owned().collect();
    let Some(found) = installation(page, &posted) else { return no_installation() };
    let typed: Typed =
        posted.into_iter().filter(|(name, _)| *name != found.parameter).map(secret).collect();
    let again = |status, problem| {
        form(&app, source, page, &found, cookies.clone(), status, Some(problem), &typed)
    };
    let refused = |status, reason, problem| {
        app.refused(source, status, reason);
        again(status, problem)
    };

    let query = query.unwrap_or_default();
    let ticket = query.strip_prefix("ticket=").unwrap_or_default();
    let of = purpose(source, &found.id);
    let Some(ticket) = ticket::check(&app.fingerprints, of, &cookies, ticket) else {
        let problem = "The page was open for too long, or cookies are refused. Nothing was saved; \
                       please type the secrets again.";
        return refused(StatusCode::FORBIDDEN, "invalid-ticket", problem);
    };
    let is_declared = |key: &String| page.secrets.iter().any(|secret| secret.key == *key);
    if !typed.keys().all(is_declared) {
        let problem = "The form holds a field that this app does not ask for.";
        return again(StatusCode::UNPROCESSABLE_ENTITY, problem);
    }
    if page.secrets.iter().any(|secret| problem(secret, &typed).is_some()) {
        let problem = "Nothing was saved. Please correct what is marked below; what is secret must \
                       be typed again.";
        return again(StatusCode::UNPROCESSABLE_ENTITY, problem);
    }
    let (quota, bytes) = (&source.quota, body.len());
    if let Err(closed) = app.doors.enter(&source.name, quota, bytes, COUNT_BUDGET).await {
        let failed = Failed::closed(closed);
        oauth::note(&app, source, &failed);
        let closed_for = Some(closed.retry_after_s());
        return page::retry_after(again(failed.status(), failed.text()), closed_for);
    }
    match save(&app, source, page, &found.id, &typed, &ticket).await {
        // The browser posts what it posted here.
        Saved::Yes => {
            (page::private(), Redirect::temporary(page.complete_url.as_str())).into_response()
        }
        Saved::BeforeWithOther => {
            let problem = "This form was sent before, and what was sent first is saved. To change \
                           it, please type the secrets again.";
            refused(StatusCode::CONFLICT, "ticket-used", problem)
        }
        Saved::No => {
            let problem = "Your secrets could not be saved. Please try again in a moment.";
            again(StatusCode::SERVICE_UNAVAILABLE, problem)
        }
    }
}

enum Saved {
    Yes,
    No,
    /// With the same ticket came something else, or nobody knows what.
    BeforeWithOther,
}

async fn save(
    app: &App,
    source: &Source,
    page: &InstallPage,
    installation: &InstallationId,
    typed: &Typed,
    ticket: &ticket::Number,
) -> Saved {
    let keys = &app.fingerprints;
    let Ok(callback) = callback(page, installation, typed, keys, ticket) else { return Saved::No };
    let parts = typed.iter().flat_map(|(key, value)| [key.as_str(), value.expose_secret()]);
    let content = keys.fingerprint(&parts.collect::<Vec<_>>());
    let used = app.used_tickets.note(ticket, &content);
    if used == Use::Other {
        return Saved::BeforeWithOther;
    }
    match oauth::append(app, source, callback).await {
        Ok(appended) if appended.duplicate && used == Use::First => {
            app.used_tickets.forget(ticket);
            Saved::BeforeWithOther
        }
        Ok(_) => Saved::Yes,
        Err(_) => Saved::No,
    }
}

async fn read(app: &App, request: Request) -> Option<Bytes> {
    let body = axum::body::to_bytes(request.into_body(), app.http.body_bytes_max);
    tokio::time::timeout(app.http.read_timeout, body).await.ok()?.ok()
}

fn secret((name, value): (String, String)) -> (String, SecretString) {
    (name, value.into())
}

fn find(app: &App, name: InPath) -> Option<(&Source, &InstallPage)> {
    let source = app.source(&name.ok()?).ok()?;
    Some((source, source.install_page.as_ref()?))
}

fn nothing_here() -> Response {
    let text = "No app is installed at this address.";
    page::message(StatusCode::NOT_FOUND, "There is nothing here", text)
}

fn no_installation() -> Response {
    let text = "The address names no installation. Please start again in the marketplace.";
    page::message(StatusCode::BAD_REQUEST, "Something is missing", text)
}

fn installation(page: &InstallPage, pairs: &[(String, String)]) -> Option<Installation> {
    let (parameter, id) =
        pairs.iter().find(|(name, _)| page.installation_parameters.contains(name))?;
    let id = InstallationId::parse(id.as_str()).ok()?;
    Some(Installation { parameter: parameter.clone(), id })
}

fn purpose<'a>(source: &'a Source, installation: &'a InstallationId) -> Purpose<'a> {
    Purpose { step: FORM, source: &source.name, about: installation.as_str() }
}

/// What is wrong with what was typed for a secret.
fn problem(declared: &DeclaredSecret, typed: &Typed) -> Option<String> {
    let bytes = typed.get(&declared.key).map_or(0, |value| value.expose_secret().trim().len());
    match bytes {
        0 if declared.value_required => Some("This is needed.".to_owned()),
        bytes if bytes > VALUE_BYTES_MAX => {
            Some(format!("This is longer than {VALUE_BYTES_MAX} bytes."))
        }
        _ => None,
    }
}

#[expect(clippy::too_many_arguments, reason = "all that a page is made of")]
fn form(
    app: &App,
    source: &Source,
    page: &InstallPage,
    installation: &Installation,
    cookies: CookieJar,
    status: StatusCode,
    what_is_wrong: Option<&str>,
    typed: &Typed,
) -> Response {
    let of = purpose(source, &installation.id);
    let (ticket, _, cookies) =
        ticket::issue(&app.fingerprints, of, app.http.ticket_valid_for, cookies);
    let form = Form {
        app_name: &page.app_name,
        problem: what_is_wrong,
        ticket: &ticket,
        installation_parameter: &installation.parameter,
        installation: installation.id.as_str(),
        fields: page.secrets.iter().map(|it| field(it, typed, what_is_wrong.is_some())).collect(),
    };
    // Where the platform sends the browser on to, browsers hold against `form-action`, too.
    (cookies, page::html(status, &form, Some(&page.form_hosts))).into_response()
}

fn field<'a>(declared: &'a DeclaredSecret, typed: &'a Typed, checked: bool) -> FormField<'a> {
    let DeclaredSecret { key, description, value_required, visible } = declared;
    let before = typed.get(key).filter(|_| *visible);
    FormField {
        key,
        label: if description.is_empty() { key } else { description },
        required: *value_required,
        visible: *visible,
        value: before.map_or("", |value| value.expose_secret()),
        problem: problem(declared, typed).filter(|_| checked),
    }
}

fn callback(
    page: &InstallPage,
    installation: &InstallationId,
    typed: &Typed,
    keys: &FingerprintKeys,
    ticket: &ticket::Number,
) -> Result<Callback, InvalidId> {
    let identity = (page.identity)(&page.app_id, installation, keys)?;
    // What is typed into a page that was opened anew counts again, even if it is the same.
    let number = keys.fingerprint(&["form ticket", identity.place.as_str(), ticket.as_str()]);
    let given = typed.iter().filter(|(_, value)| !value.expose_secret().is_empty());
    let secrets: Map<String, Value> =
        given.clone().map(|(key, value)| (key.clone(), json!(value.expose_secret()))).collect();
    let markers: Map<String, Value> =
        given.map(|(key, _)| (key.clone(), json!({ "$sealed": FIELD }))).collect();
    Ok(Callback {
        app_id: Some(page.app_id.clone()),
        idempotency_key: IdempotencyKey::parse(format!("form:{number}"))?,
        occurred_at: None,
        fact: Fact::Authorized {
            is_install: false,
            identity,
            grant: Grant::Form,
            granted_permissions: Vec::new(),
            expires_at: None,
            credential: PlainCredential {
                field: FIELD.to_owned(),
                prefix: None,
                secret: Value::Object(secrets).to_string().into(),
            },
        },
        payload: Payload::Clear(json!({ "secrets": markers })),
    })
}
