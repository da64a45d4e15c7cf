//! `[event_keys]`: what events prove with who wrote them.

use std::collections::BTreeMap;

use domain::event_key::{Author, EventKey, EventKeys};
use domain::id::KeyId;
use domain::seal::parse_key;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Deserialize;

use super::Resolver;
use crate::secret_ref::SecretRef;

/// Without it nothing is checked.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventKeysSettings {
    /// Ingest's. The worker has them, too, to check.
    pub ingest: AuthorKeys,
    /// The worker's own, if it renews tokens.
    pub token_renewal: Option<AuthorKeys>,
    /// What the log stored before needs no code: for a log that is older than its keys. By
    /// the clock of NATS.
    #[schemars(with = "Option<String>")]
    pub required_since: Option<Timestamp>,
}

/// The keys of one author by id.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuthorKeys {
    /// The id of the key that new events carry a code of. It must be one of `keys`.
    pub active: KeyId,
    /// 32 bytes in base64 each (`openssl rand -base64 32`). Only the worker needs former ones.
    pub keys: BTreeMap<KeyId, SecretRef>,
    /// Until when a former key was good, by the clock of NATS. What the log stored later with it
    /// is refused.
    #[serde(default)]
    #[schemars(with = "BTreeMap<KeyId, String>")]
    pub accepted_until: BTreeMap<KeyId, Timestamp>,
}

impl Resolver<'_> {
    /// What a service writes with; `Some(None)` where there are no keys at all.
    pub fn event_key(
        &mut self,
        settings: Option<&EventKeysSettings>,
        author: Author,
    ) -> Option<Option<EventKey>> {
        let Some(settings) = settings else { return Some(None) };
        let at = at(author);
        let Some(of_author) = settings.of(author) else {
            self.problem(&at, "is missing: the worker would refuse what is written without a key");
            return None;
        };
        let id = &of_author.active;
        let Some(key) = of_author.keys.get(id) else {
            self.problem(&format!("{at}.active"), format!("there is no key '{id}' in {at}.keys"));
            return None;
        };
        self.one(author, of_author, id, key).map(Some)
    }

    /// What the worker checks with.
    pub fn event_keys(&mut self, settings: Option<&EventKeysSettings>) -> Option<EventKeys> {
        let Some(settings) = settings else { return Some(EventKeys::default()) };
        let mut keys = Vec::new();
        let before = self.problems.len();
        for author in [Author::Ingest, Author::TokenRenewal] {
            let Some(of_author) = settings.of(author) else { continue };
            if !of_author.keys.contains_key(&of_author.active) {
                let (at, id) = (at(author), &of_author.active);
                let why = format!("there is no key '{id}' in {at}.keys");
                self.problem(&format!("{at}.active"), why);
            }
            for id in of_author.accepted_until.keys() {
                if !of_author.keys.contains_key(id) {
                    let at = format!("{}.accepted_until.{id}", at(author));
                    self.problem(&at, "there is no such key");
                }
            }
            for (id, key) in &of_author.keys {
                keys.extend(self.one(author, of_author, id, key));
            }
        }
        (self.problems.len() == before).then(|| EventKeys::new(keys, settings.required_since))
    }

    fn one(
        &mut self,
        author: Author,
        of_author: &AuthorKeys,
        id: &KeyId,
        key: &SecretRef,
    ) -> Option<EventKey> {
        let at = format!("{}.keys.{id}", at(author));
        let text = self.secret(&at, key)?;
        let key = parse_key(&text).map_err(|why| self.problem(&at, why)).ok()?;
        let until = of_author.accepted_until.get(id).copied();
        Some(EventKey::new(author, id.clone(), key, until))
    }
}

impl EventKeysSettings {
    fn of(&self, author: Author) -> Option<&AuthorKeys> {
        match author {
            Author::Ingest => Some(&self.ingest),
            Author::TokenRenewal => self.token_renewal.as_ref(),
        }
    }
}

fn at(author: Author) -> String {
    format!("event_keys.{}", author.name())
}
