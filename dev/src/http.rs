//! Plain HTTP to our own services on loopback.

use std::time::Duration;

use anyhow::{Context as _, Result};
use minreq::Request;

/// A response, whatever its status.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// GET, with a bearer token if one is given. The timeout is in whole seconds, at least one.
pub fn get(url: &str, bearer: Option<&str>, timeout: Duration) -> Result<Answer> {
    let mut request = minreq::get(url);
    if let Some(token) = bearer {
        request = request.with_header("Authorization", format!("Bearer {token}"));
    }
    send(request, timeout)
}

/// POST of a JSON text. The timeout is as for [`get`].
pub fn post_json(url: &str, body: &str, timeout: Duration) -> Result<Answer> {
    let request = minreq::post(url).with_header("Content-Type", "application/json");
    send(request.with_body(body), timeout)
}

/// The error does not name the URL: a callback URL holds a token, and the caller knows what it asked.
fn send(request: Request, timeout: Duration) -> Result<Answer> {
    let request = request.with_timeout(timeout.as_secs().max(1)).with_follow_redirects(false);
    let response = request.send().map_err(cause).context("sending the request")?;
    let body = String::from_utf8_lossy(response.as_bytes()).into_owned();
    Ok(Answer { status: response.status_code, body })
}

/// minreq both prints an I/O error and names it as the source, so a chain would show it twice.
fn cause(error: minreq::Error) -> anyhow::Error {
    match error {
        minreq::Error::IoError(error) => error.into(),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::free_port;

    #[test]
    fn a_refused_connection_is_reported_once() {
        let url = format!("http://127.0.0.1:{}", free_port().unwrap());
        let error = format!("{:#}", get(&url, None, Duration::from_secs(1)).unwrap_err());
        assert_eq!(error.matches("refused").count(), 1, "{error}");
    }
}
