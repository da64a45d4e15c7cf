//! Pages for the browsers of users who install an app: plain HTML, without
//! scripts, never cached, framed or named to another site.

use askama::Template;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use crate::app::internal_error;

/// The part of a path that names a source. One that is not UTF-8 names none.
pub(crate) type InPath = Result<Path<String>, PathRejection>;

const STYLE: &str = include_str!("../templates/page.css");

#[derive(Template)]
#[template(path = "message.html")]
struct Message<'a> {
    title: &'a str,
    text: &'a str,
}

/// A page that only says something.
pub(crate) fn message(status: StatusCode, title: &str, text: &str) -> Response {
    html(status, &Message { title, text }, None)
}

/// `form_to` is where its form may lead, beside this site.
pub(crate) fn html(status: StatusCode, page: &impl Template, form_to: Option<&str>) -> Response {
    let Ok(html) = page.render() else { return internal_error().response() };
    let policy = format!(
        "default-src 'none'; style-src 'self'; form-action 'self' {}; base-uri 'none'; \
         frame-ancestors 'none'",
        form_to.unwrap_or_default()
    );
    let Ok(policy) = HeaderValue::try_from(policy) else { return internal_error().response() };
    let html_type = HeaderValue::from_static("text/html; charset=utf-8");
    let headers = [(header::CONTENT_TYPE, html_type), (header::CONTENT_SECURITY_POLICY, policy)];
    (status, headers, private(), html).into_response()
}

pub(crate) fn retry_after(mut page: Response, seconds: Option<u32>) -> Response {
    if let Some(seconds) = seconds {
        page.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    page
}

/// What every answer to such a browser carries.
pub(crate) fn private() -> [(HeaderName, HeaderValue); 3] {
    [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ]
}

pub(crate) async fn style() -> Response {
    let css = HeaderValue::from_static("text/css; charset=utf-8");
    let day = HeaderValue::from_static("max-age=86400");
    ([(header::CONTENT_TYPE, css), (header::CACHE_CONTROL, day)], STYLE).into_response()
}
