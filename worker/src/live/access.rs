//! Who is let in to the read API: which caller a request comes from, whether it may
//! do what it asks for, and how often.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use service::config::{Resolver, Scope, TokenHash, watch};
use service::problem::Problem;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use crate::live::access::limit::Limiter;
use crate::settings::CallerSettings;
use crate::settings::callers::{Allowance, TokenSettings};
use crate::store::reach::Reach;

mod limit;

/// Someone who may call.
#[derive(Debug)]
pub(crate) struct Caller {
    /// In records of what it did.
    pub(crate) name: String,
    allowance: Allowance,
    limiter: Arc<Limiter>,
}

impl Caller {
    pub(crate) fn reach(&self) -> &Reach {
        &self.allowance.reach
    }

    pub(crate) fn may(&self, scope: Scope) -> bool {
        self.allowance.scopes.contains(&scope)
    }
}

/// Why a request is not answered.
#[derive(Debug, Clone)]
pub(crate) struct Denied {
    pub(crate) why: Why,
    /// Null if nobody knows who it is.
    pub(crate) caller: Option<Arc<Caller>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    NoToken,
    UnknownToken,
    Expired,
    Scope(Scope),
    TooMany { retry_after_s: u32 },
}

impl Why {
    /// In records and metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::NoToken => "no-token",
            Self::UnknownToken => "unknown-token",
            Self::Expired => "expired",
            Self::Scope(_) => "insufficient-scope",
            Self::TooMany { .. } => "rate-limited",
        }
    }
}

impl Denied {
    fn stranger(why: Why) -> Self {
        Self { why, caller: None }
    }

    /// The answer. A stranger learns nothing of what is known.
    pub(crate) fn problem(&self) -> Problem {
        let unauthorized = |detail| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
        let name = self.caller.as_ref().map_or("", |caller| caller.name.as_str());
        match self.why {
            Why::NoToken | Why::UnknownToken => unauthorized(
                "send 'Authorization: Bearer <token>' with a token of worker.api_tokens".to_owned(),
            ),
            Why::Expired => unauthorized(format!("the token '{name}' has expired")),
            Why::Scope(scope) => {
                let detail = format!("the token '{name}' does not have the scope {}", scope.name());
                Problem::new(StatusCode::FORBIDDEN, "insufficient-scope", detail)
            }
            Why::TooMany { retry_after_s } => {
                let detail = format!("'{name}' asks more often than requests_per_second allows");
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", detail)
                    .retry_after(retry_after_s)
            }
        }
    }
}

/// Everybody who may call now.
#[derive(Debug, Default)]
struct Register {
    settings: CallerSettings,
    /// A token is found by its hash. To find it takes longer the more of the hash is
    /// right, but nobody can choose a token by its hash.
    tokens: HashMap<TokenHash, Held>,
}

#[derive(Debug, Clone)]
struct Held {
    caller: Arc<Caller>,
    expires_at: Timestamp,
}

impl Register {
    /// What a caller has used up stays used up.
    fn new(settings: CallerSettings, last: &Self) -> Self {
        let held = |token: &TokenSettings| {
            let TokenSettings { name, allowance, expires_at, .. } = token;
            let before = last.tokens.values().find(|held| {
                let before = &held.caller;
                before.name == *name
                    && before.allowance.requests_per_second == allowance.requests_per_second
            });
            let limiter = before.map_or_else(
                || Arc::new(Limiter::new(allowance.requests_per_second)),
                |held| Arc::clone(&held.caller.limiter),
            );
            let (name, allowance) = (name.clone(), allowance.clone());
            let caller = Arc::new(Caller { name, allowance, limiter });
            (token.hash, Held { caller, expires_at: *expires_at })
        };
        Self { tokens: settings.tokens.iter().map(held).collect(), settings }
    }
}

/// Lets callers in. Whom it knows follows the configuration.
#[derive(Clone)]
pub(crate) struct Door(channel::Receiver<Arc<Register>>);

impl Door {
    /// Starts the task that reads the configuration again, until `shutdown`. Whoever
    /// cannot be read any more is not let in any more; if the file as a whole cannot
    /// be read, everybody stays.
    pub(crate) fn follow(
        settings: CallerSettings,
        path: PathBuf,
        shutdown: CancellationToken,
    ) -> Self {
        let register = Arc::new(Register::new(settings, &Register::default()));
        let (sender, receiver) = channel::channel(register);
        tokio::spawn(async move {
            let kept = "callers whose settings are wrong are not let in";
            watch::watch(&path, kept, &shutdown, |config| {
                let env = |name: &str| std::env::var(name).ok();
                let mut resolver = Resolver::new(&env);
                let settings = CallerSettings::resolve(config, &mut resolver);
                let last = Arc::clone(&sender.borrow());
                if settings != last.settings {
                    tracing::info!(tokens = settings.tokens.len(), "the callers have changed");
                    sender.send_replace(Arc::new(Register::new(settings, &last)));
                }
                resolver.into_problems()
            })
            .await;
        });
        Self(receiver)
    }

    /// The caller, if it may do this now.
    pub(crate) fn admit(
        &self,
        headers: &HeaderMap,
        scope: Scope,
        now: Timestamp,
    ) -> Result<Arc<Caller>, Denied> {
        let token = bearer(headers).ok_or(Denied::stranger(Why::NoToken))?;
        let caller = self.of_token(token, now)?;
        let denied = |why| Denied { why, caller: Some(Arc::clone(&caller)) };
        caller.limiter.take().map_err(|wait| denied(Why::TooMany { retry_after_s: wait }))?;
        if !caller.may(scope) {
            return Err(denied(Why::Scope(scope)));
        }
        Ok(caller)
    }

    fn of_token(&self, token: &str, now: Timestamp) -> Result<Arc<Caller>, Denied> {
        let hash = TokenHash::new(Sha256::digest(token).into());
        let register = Arc::clone(&self.0.borrow());
        let Some(Held { caller, expires_at }) = register.tokens.get(&hash) else {
            return Err(Denied::stranger(Why::UnknownToken));
        };
        if now >= *expires_at {
            return Err(Denied { why: Why::Expired, caller: Some(Arc::clone(caller)) });
        }
        Ok(Arc::clone(caller))
    }
}

/// RFC 6750, section 2.1.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let header = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
