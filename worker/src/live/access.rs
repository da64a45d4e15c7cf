//! Who is let in to the read API: which caller a request comes from, whether it may
//! do what it asks for, and how often.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use opentelemetry::{KeyValue, global};
use service::clock;
use service::config::{Resolver, Scope, TokenHash, watch};
use service::identity::{Issuer, NotAccepted, claimed_issuer};
use service::problem::Problem;
use service::telemetry::names::{attribute, metric};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use crate::live::access::denials::Denial;
use crate::live::access::limit::{Left, Limiter};
use crate::settings::CallerSettings;
use crate::settings::callers::{Allowance, ProviderSettings, TokenSettings};
use crate::store::reach::Reach;

mod denials;
pub(crate) mod limit;
pub(crate) mod record;

const RETRY_AFTER_S: u32 = 2;
/// Revoked tokens that are remembered.
const REVOKED_MAX: usize = 1_024;

/// Who did something, and where from, for the record.
#[derive(Debug, Clone, Default)]
pub(crate) struct Who {
    pub(crate) caller: String,
    /// Who it is to its issuer.
    pub(crate) subject: Option<String>,
    pub(crate) client_address: Option<String>,
    /// As the caller gave it.
    pub(crate) trace_id: Option<String>,
    pub(crate) route: Option<String>,
}

/// What the configuration knows a caller by.
#[derive(Debug)]
struct Entry {
    name: String,
    allowance: Allowance,
    limiter: Arc<Limiter>,
}

/// Someone who may call.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    entry: Arc<Entry>,
    /// Who it is to its issuer, if it came with an identity. One entry may be many.
    pub(crate) subject: Option<String>,
}

impl Caller {
    /// The name of the entry in the configuration: there are not many.
    pub(crate) fn name(&self) -> &str {
        &self.entry.name
    }

    pub(crate) fn reach(&self) -> &Reach {
        &self.entry.allowance.reach
    }

    pub(crate) fn may(&self, scope: Scope) -> bool {
        self.entry.allowance.scopes.contains(&scope)
    }
}

/// Why a request is not answered.
#[derive(Debug, Clone)]
pub(crate) struct Denied {
    pub(crate) why: Why,
    /// `None` if nobody knows who it is.
    pub(crate) caller: Option<Caller>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    NoToken,
    UnknownToken,
    Expired,
    /// It was in the configuration, and is no more.
    Revoked,
    NotAccepted(NotAccepted),
    /// The issuer knows it, and the configuration does not, or in several ways.
    UnknownIdentity,
    Scope(Scope),
    TooMany {
        retry_after_s: u32,
    },
}

impl Why {
    /// In records and metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::NoToken => "no-token",
            Self::UnknownToken => "unknown-token",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::NotAccepted(why) => why.reason(),
            Self::UnknownIdentity => "unknown-identity",
            Self::Scope(_) => "insufficient-scope",
            Self::TooMany { .. } => "rate-limited",
        }
    }
}

impl Denied {
    fn stranger(why: Why) -> Self {
        Self { why, caller: None }
    }

    pub(crate) fn record(&self, who: &Who, status: StatusCode) -> Denial {
        Denial {
            caller: self.caller.as_ref().map(|caller| caller.name().to_owned()),
            reason: self.why.reason(),
            status: status.as_u16(),
            subject: self.caller.as_ref().and_then(|caller| caller.subject.clone()),
            client_address: who.client_address.clone(),
            route: who.route.clone().unwrap_or_default(),
        }
    }

    /// What a caller that asks too often has left.
    pub(crate) fn left(&self) -> Option<Left> {
        match (self.why, &self.caller) {
            (Why::TooMany { retry_after_s }, Some(caller)) => Some(Left {
                quota: caller.entry.allowance.requests_per_second.get(),
                requests: 0,
                again_in_s: Some(retry_after_s),
            }),
            _ => None,
        }
    }

    /// The answer. A stranger learns nothing of what is known.
    pub(crate) fn problem(&self) -> Problem {
        let unauthorized = |detail| Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail);
        let name = self.caller.as_ref().map_or("", Caller::name);
        match self.why {
            Why::NotAccepted(NotAccepted::KeysUnavailable) => {
                let detail = "the keys of the token's issuer cannot be read; try again shortly";
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Problem::new(status, "issuer-unavailable", detail).retry_after(RETRY_AFTER_S)
            }
            Why::NotAccepted(why) => {
                unauthorized(format!("the token is not accepted: {}", why.reason()))
            }
            Why::UnknownIdentity => {
                unauthorized("worker.identity_providers knows no caller of these claims".to_owned())
            }
            Why::NoToken | Why::UnknownToken => unauthorized(
                "send 'Authorization: Bearer <token>' with a token of worker.api_tokens".to_owned(),
            ),
            Why::Expired => unauthorized(format!("the token '{name}' has expired")),
            Why::Revoked => unauthorized(format!("the token '{name}' was revoked")),
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
#[derive(Default)]
struct Register {
    settings: CallerSettings,
    /// A token is found by its hash. To find it takes longer the more of the hash is
    /// right, but nobody can choose a token by its hash.
    tokens: HashMap<TokenHash, Held>,
    /// Tokens that were here since the start, so that a record says who still uses one.
    revoked: HashMap<TokenHash, Arc<Entry>>,
    /// By issuer.
    providers: HashMap<String, Provider>,
}

struct Held {
    entry: Arc<Entry>,
    expires_at: Timestamp,
}

struct Provider {
    issuer: Arc<Issuer>,
    callers: Vec<(BTreeMap<String, String>, Arc<Entry>)>,
}

impl Register {
    /// What a caller has used up stays used up, and what is known of an issuer stays
    /// known.
    fn new(settings: CallerSettings, last: &Self) -> anyhow::Result<Self> {
        let before = last.entries();
        let entry = |name: &str, allowance: &Allowance| {
            let same = before.get(name).filter(|entry| {
                entry.allowance.requests_per_second == allowance.requests_per_second
            });
            let limiter = same.map_or_else(
                || Arc::new(Limiter::new(allowance.requests_per_second)),
                |entry| Arc::clone(&entry.limiter),
            );
            Arc::new(Entry { name: name.to_owned(), allowance: allowance.clone(), limiter })
        };
        let held = |token: &TokenSettings| {
            let entry = entry(&token.name, &token.allowance);
            (token.hash, Held { entry, expires_at: token.expires_at })
        };
        let tokens: HashMap<TokenHash, Held> = settings.tokens.iter().map(held).collect();
        let before = last.tokens.iter().map(|(hash, held)| (hash, &held.entry));
        let gone = before.chain(&last.revoked).filter(|(hash, _)| !tokens.contains_key(hash));
        let revoked = gone.map(|(hash, entry)| (*hash, Arc::clone(entry)));
        let revoked = revoked.take(REVOKED_MAX).collect();
        let mut providers = HashMap::new();
        for ProviderSettings { issuer: options, callers } in &settings.providers {
            let same = last.providers.get(&options.issuer);
            let issuer = match same.filter(|it| it.issuer.options() == options) {
                Some(same) => Arc::clone(&same.issuer),
                None => Arc::new(Issuer::new(options.clone())?),
            };
            let callers = callers.iter();
            let callers = callers.map(|it| (it.claims.clone(), entry(&it.name, &it.allowance)));
            let provider = Provider { issuer, callers: callers.collect() };
            providers.insert(options.issuer.clone(), provider);
        }
        Ok(Self { tokens, revoked, providers, settings })
    }

    fn entries(&self) -> HashMap<&str, &Arc<Entry>> {
        let of_tokens = self.tokens.values().map(|held| &held.entry);
        let callers = self.providers.values().flat_map(|provider| &provider.callers);
        let all = of_tokens.chain(callers.map(|(_, entry)| entry));
        all.map(|entry| (entry.name.as_str(), entry)).collect()
    }
}

impl Provider {
    async fn caller(&self, token: &str, now: Timestamp) -> Result<Caller, Denied> {
        let verified = self.issuer.verify(token, now).await;
        let identity = verified.map_err(|why| Denied::stranger(Why::NotAccepted(why)))?;
        let is_told = |(claims, _): &&(BTreeMap<String, String>, Arc<Entry>)| {
            claims.iter().all(|(claim, text)| identity.has(claim, text))
        };
        let mut told = self.callers.iter().filter(is_told);
        // Of two entries nobody could say which one counts.
        let (Some((_, entry)), None) = (told.next(), told.next()) else {
            return Err(Denied::stranger(Why::UnknownIdentity));
        };
        Ok(Caller { entry: Arc::clone(entry), subject: Some(identity.subject) })
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
    ) -> anyhow::Result<Self> {
        let register = Arc::new(Register::new(settings, &Register::default())?);
        let (sender, receiver) = channel::channel(register);
        tell_ends(receiver.clone());
        tokio::spawn(async move {
            let kept = "callers whose settings are wrong are not let in";
            watch::watch(&path, kept, &shutdown, |config| {
                let env = |name: &str| std::env::var(name).ok();
                let mut resolver = Resolver::new(&env);
                let settings = CallerSettings::resolve(config, &mut resolver);
                let last = Arc::clone(&sender.borrow());
                if settings != last.settings {
                    match Register::new(settings, &last) {
                        Ok(register) => {
                            tracing::info!("the callers of the read API have changed");
                            sender.send_replace(Arc::new(register));
                        }
                        Err(error) => resolver.problem("worker.identity_providers", error),
                    }
                }
                resolver.into_problems()
            })
            .await;
        });
        Ok(Self(receiver))
    }

    /// The caller, if it may do this now, and how often it may still ask.
    pub(crate) async fn admit(
        &self,
        headers: &HeaderMap,
        scope: Scope,
        now: Timestamp,
    ) -> Result<(Caller, Left), Denied> {
        let token = bearer(headers).ok_or(Denied::stranger(Why::NoToken))?;
        let caller = self.caller(token, now).await?;
        let denied = |why| Denied { why, caller: Some(caller.clone()) };
        let taken = caller.entry.limiter.take();
        let left = taken.map_err(|wait| denied(Why::TooMany { retry_after_s: wait }))?;
        if !caller.may(scope) {
            return Err(denied(Why::Scope(scope)));
        }
        Ok((caller, left))
    }

    async fn caller(&self, token: &str, now: Timestamp) -> Result<Caller, Denied> {
        let register = Arc::clone(&self.0.borrow());
        let hash = TokenHash::new(Sha256::digest(token).into());
        if let Some(Held { entry, expires_at }) = register.tokens.get(&hash) {
            let caller = Caller { entry: Arc::clone(entry), subject: None };
            if now < *expires_at {
                return Ok(caller);
            }
            return Err(Denied { why: Why::Expired, caller: Some(caller) });
        }
        if let Some(entry) = register.revoked.get(&hash) {
            let caller = Caller { entry: Arc::clone(entry), subject: None };
            return Err(Denied { why: Why::Revoked, caller: Some(caller) });
        }
        let issuer = claimed_issuer(token).filter(|_| !register.providers.is_empty());
        match issuer.map(|issuer| register.providers.get(&issuer)) {
            None => Err(Denied::stranger(Why::UnknownToken)),
            Some(None) => Err(Denied::stranger(Why::NotAccepted(NotAccepted::Issuer))),
            Some(Some(provider)) => provider.caller(token, now).await,
        }
    }
}

/// A token that ends unnoticed stops its app.
fn tell_ends(register: channel::Receiver<Arc<Register>>) {
    let meter = global::meter("mooring-worker");
    metric::API_TOKEN_TIME_LEFT.observed(&meter, move |gauge| {
        let now = clock::now();
        for Held { entry, expires_at } in register.borrow().tokens.values() {
            let left = expires_at.duration_since(now).as_secs_f64().max(0.0);
            gauge.observe(left, &[KeyValue::new(attribute::CALLER, entry.name.clone())]);
        }
    });
}

/// RFC 6750, section 2.1.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let header = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
