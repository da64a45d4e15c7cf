//! An issuer's keys, fetched when they are needed and kept for a while.
//!
//! Anybody can send a token that names a key nobody knows. So the keys are fetched
//! again for one at most every half minute, whatever is sent, and by one request at a
//! time.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use domain::jwt::{self, Fetched, PublishedKeys};
use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use reqwest::Url;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Algorithm, NotAccepted};
use crate::http_client;

const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Keys of an issuer that are kept.
const KEYS_MAX: usize = 64;
/// So long keys are used without a look for newer ones. One that the issuer has taken
/// back is good for hardly longer.
const FRESH_FOR: Duration = Duration::from_secs(300);
/// So long they are used while the issuer cannot be asked.
const USED_FOR: Duration = Duration::from_secs(24 * 3_600);
/// Between two fetches, whatever came of the first.
const FETCH_EVERY: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub struct KeyCache(Arc<Inner>);

struct Inner {
    issuer: String,
    jwks_url: Option<Url>,
    http: reqwest::Client,
    known: RwLock<Arc<Known>>,
    /// Held by who fetches: when the last fetch began.
    fetching: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Known {
    keys: Vec<Key>,
    fetched_at: Option<Instant>,
}

struct Key {
    id: Option<String>,
    /// The only one that it may be used with, if it says so.
    algorithm: Option<String>,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

impl KeyCache {
    /// Without `jwks_url` the issuer's OpenID configuration names it.
    pub fn new(issuer: String, jwks_url: Option<Url>) -> reqwest::Result<Self> {
        jwt::use_ring();
        let url = jwks_url.as_ref().map_or(issuer.as_str(), Url::as_str);
        let http = http_client::builder_for(url).timeout(FETCH_TIMEOUT).build()?;
        Ok(Self(Arc::new(Inner {
            issuer,
            jwks_url,
            http,
            known: RwLock::default(),
            fetching: Mutex::new(None),
        })))
    }

    /// The key of this name. A token without one is of the only key there is.
    pub(super) async fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<DecodingKey, NotAccepted> {
        let known = self.0.known();
        if known.is_younger_than(USED_FOR)
            && let Some(key) = known.find(id, algorithm)
        {
            if !known.is_younger_than(FRESH_FOR) {
                // An issuer that does not answer keeps no caller waiting whose key is known.
                let cache = self.clone();
                tokio::spawn(async move { cache.0.fetch_unless_recent(&known).await });
            }
            return Ok(key);
        }
        self.0.fetch_unless_recent(&known).await;
        let known = self.0.known();
        if !known.is_younger_than(USED_FOR) {
            return Err(NotAccepted::KeysUnavailable);
        }
        known.find(id, algorithm).ok_or(NotAccepted::UnknownKey)
    }
}

impl fmt::Debug for KeyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyCache").field("issuer", &self.0.issuer).finish_non_exhaustive()
    }
}

impl PublishedKeys for KeyCache {
    fn known(&self, id: Option<&str>, algorithm: jsonwebtoken::Algorithm) -> Option<DecodingKey> {
        let known = self.0.known();
        let algorithm = Algorithm::of(algorithm)?;
        known.is_younger_than(USED_FOR).then(|| known.find(id, algorithm)).flatten()
    }

    fn fetch<'a>(
        &'a self,
        id: Option<&'a str>,
        algorithm: jsonwebtoken::Algorithm,
    ) -> Pin<Box<dyn Future<Output = Fetched> + Send + 'a>> {
        Box::pin(async move {
            let Some(algorithm) = Algorithm::of(algorithm) else { return Fetched::Known };
            match self.find(id, algorithm).await {
                Err(NotAccepted::KeysUnavailable) => Fetched::Unavailable,
                Ok(_) | Err(_) => Fetched::Known,
            }
        })
    }
}

impl Inner {
    fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn fetch_unless_recent(&self, seen: &Arc<Known>) {
        let mut last = self.fetching.lock().await;
        // Who waited for another one's fetch has its keys.
        let is_recent = last.is_some_and(|at| at.elapsed() < FETCH_EVERY);
        if is_recent || !Arc::ptr_eq(seen, &self.known()) {
            return;
        }
        *last = Some(Instant::now());
        match self.fetch().await {
            Ok(keys) => {
                let known = Arc::new(Known { keys, fetched_at: Some(Instant::now()) });
                *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
            }
            Err(why) => {
                tracing::warn!(issuer = self.issuer, why, "the issuer's keys cannot be read");
            }
        }
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let url = match &self.jwks_url {
            Some(url) => url.clone(),
            None => self.discover().await?,
        };
        let set: KeySet = self.get(url).await?;
        let keys: Vec<Key> = set.keys.into_iter().filter_map(Key::read).take(KEYS_MAX).collect();
        if keys.is_empty() { Err("it has no key that can be used".to_owned()) } else { Ok(keys) }
    }

    /// OpenID Connect Discovery 1.0, section 4.
    async fn discover(&self) -> Result<Url, String> {
        let issuer = self.issuer.trim_end_matches('/');
        let url = format!("{issuer}/.well-known/openid-configuration");
        let url = Url::parse(&url).map_err(|why| why.to_string())?;
        let is_plain = url.scheme() == "http";
        let found: Discovered = self.get(url).await?;
        if found.issuer != self.issuer {
            return Err("its OpenID configuration is that of another issuer".to_owned());
        }
        let keys = Url::parse(&found.jwks_uri).map_err(|why| why.to_string())?;
        if keys.scheme() != "https" && !is_plain {
            return Err("its jwks_uri is not https".to_owned());
        }
        Ok(keys)
    }

    async fn get<T: serde::de::DeserializeOwned>(&self, url: Url) -> Result<T, String> {
        let asked = async {
            let mut answer = self.http.get(url).send().await?.error_for_status()?;
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await? {
                body.extend_from_slice(&chunk);
                if body.len() > ANSWER_BYTES_MAX {
                    break;
                }
            }
            Ok(body)
        };
        let body = asked.await.map_err(|error: reqwest::Error| error.without_url().to_string())?;
        if body.len() > ANSWER_BYTES_MAX {
            return Err(format!("its answer has more than {ANSWER_BYTES_MAX} bytes"));
        }
        serde_json::from_slice(&body).map_err(|why| format!("its answer is not understood: {why}"))
    }
}

impl Known {
    fn is_younger_than(&self, age: Duration) -> bool {
        self.fetched_at.is_some_and(|at| at.elapsed() < age)
    }

    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
        let may = |key: &&Key| {
            let is_allowed = key.algorithm.as_deref().is_none_or(|only| only == algorithm.name());
            is_allowed && key.key.family() == algorithm.family()
        };
        match (id, self.keys.as_slice()) {
            (None, [only]) => Some(only).filter(may).map(|key| key.key.clone()),
            (None, _) => None,
            (Some(id), keys) => {
                let named = keys.iter().filter(|key| key.id.as_deref() == Some(id));
                named.filter(may).map(|key| key.key.clone()).next()
            }
        }
    }
}

impl Key {
    /// `None` if it is of a kind that we do not use, or for another use.
    fn read(jwk: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(jwk).ok()?;
        let is_for_signatures =
            jwk.common.public_key_use.as_ref().is_none_or(|it| *it == PublicKeyUse::Signature);
        let algorithm = jwk.common.key_algorithm.map(|algorithm| algorithm.to_string());
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let is_public = key.family() != jsonwebtoken::AlgorithmFamily::Hmac;
        (is_for_signatures && is_public).then_some(Self { id: jwk.common.key_id, algorithm, key })
    }
}
