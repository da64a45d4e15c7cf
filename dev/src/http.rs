//! Plain HTTP to our own services on loopback.

use std::time::Duration;

use anyhow::{Context as _, Result};
use ureq::Agent;

/// What came back, whatever its status.
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

/// GET, with a bearer token if one is given.
pub fn get(url: &str, bearer: Option<&str>, timeout: Duration) -> Result<Answer> {
    let mut request = agent(timeout).get(url);
    if let Some(token) = bearer {
        request = request.header("Authorization", format!("Bearer {token}"));
    }
    // No context with the URL here: a callback URL holds a token, and the caller knows what it asked.
    read(request.call().context("sending the request")?)
}

/// POST of a JSON text.
pub fn post_json(url: &str, body: &str, timeout: Duration) -> Result<Answer> {
    let request = agent(timeout).post(url).header("Content-Type", "application/json");
    read(request.send(body).context("sending the request")?)
}

fn agent(timeout: Duration) -> Agent {
    let config = Agent::config_builder()
        .timeout_global(Some(timeout))
        .http_status_as_error(false)
        .proxy(None) // HTTP_PROXY must not see what we say to ourselves
        .build();
    Agent::new_with_config(config)
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> Result<Answer> {
    Ok(Answer {
        status: response.status().as_u16(),
        body: response.body_mut().read_to_string().context("reading the answer")?,
    })
}
