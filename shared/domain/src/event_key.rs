//! Who wrote an event: a message authentication code over its body (HMAC-SHA-256,
//! RFC 2104), under a key that only its author and the worker have. A password of
//! NATS alone writes nothing that counts.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretSlice};
use sha2::Sha256;

use crate::event::Fact;
use crate::id::KeyId;

const VERSION: &str = "v1";
/// No other purpose of a key has this in front.
const PURPOSE: &[u8] = b"mooring: event\0";

/// Who writes events without being an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Author {
    Ingest,
    TokenRenewal,
}

impl Author {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::TokenRenewal => "token_renewal",
        }
    }

    /// Only operators erase, and renewal brings tokens and nothing else.
    fn may_say<C>(self, fact: &Fact<C>) -> bool {
        match (self, fact) {
            (_, Fact::Erased { .. }) => false,
            (Self::Ingest, _) | (Self::TokenRenewal, Fact::Authorized { .. }) => true,
            (Self::TokenRenewal, _) => false,
        }
    }
}

/// A key of one author.
pub struct EventKey {
    author: Author,
    id: KeyId,
    key: SecretSlice<u8>,
    /// Of what is stored later it proves nothing.
    accepted_until: Option<Timestamp>,
}

impl fmt::Debug for EventKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventKey({} {})", self.author.name(), self.id)
    }
}

/// Why an event does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unproven {
    #[error("it carries no message authentication code (see [event_keys])")]
    Missing,
    #[error("its message authentication code is not of a key in [event_keys]")]
    UnknownKey,
    #[error("its message authentication code is of a key that was accepted until earlier")]
    Ended,
    #[error("its message authentication code is wrong")]
    Wrong,
    #[error("its author may not say this")]
    NotEntitled,
}

impl EventKey {
    pub fn new(
        author: Author,
        id: KeyId,
        key: SecretSlice<u8>,
        accepted_until: Option<Timestamp>,
    ) -> Self {
        Self { author, id, key, accepted_until }
    }

    /// What proves that the author wrote this: `v1.<author>.<key id>.<code>`.
    pub fn prove(&self, body: &[u8]) -> String {
        let code = self.code(body).finalize().into_bytes();
        format!("{}.{}", self.label(), BASE64_URL_SAFE_NO_PAD.encode(code))
    }

    fn label(&self) -> String {
        format!("{VERSION}.{}.{}", self.author.name(), self.id)
    }

    fn code(&self, body: &[u8]) -> Hmac<Sha256> {
        #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
        let code = Hmac::<Sha256>::new_from_slice(self.key.expose_secret())
            .expect("HMAC takes a key of any length");
        // Neither name contains a NUL.
        code.chain_update(PURPOSE).chain_update(self.label()).chain_update([0]).chain_update(body)
    }

    fn check(&self, code: &str, body: &[u8]) -> Result<(), Unproven> {
        let code = BASE64_URL_SAFE_NO_PAD.decode(code).map_err(|_| Unproven::Wrong)?;
        self.code(body).verify_slice(&code).map_err(|_| Unproven::Wrong)
    }
}

/// The keys of all authors, as the worker has them.
#[derive(Debug, Default)]
pub struct EventKeys {
    /// Without any, nothing is checked.
    keys: Vec<EventKey>,
    /// What was stored before needs no proof.
    required_since: Option<Timestamp>,
}

impl EventKeys {
    pub fn new(keys: Vec<EventKey>, required_since: Option<Timestamp>) -> Self {
        Self { keys, required_since }
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether an event counts that the log stored at `stored_at`. That time is the
    /// server's, and whoever publishes cannot choose it.
    pub fn check<C>(
        &self,
        proof: Option<&str>,
        body: &[u8],
        fact: &Fact<C>,
        stored_at: Timestamp,
    ) -> Result<(), Unproven> {
        if self.is_empty() || self.required_since.is_some_and(|since| stored_at < since) {
            return Ok(());
        }
        let (label, code) =
            proof.and_then(|proof| proof.rsplit_once('.')).ok_or(Unproven::Missing)?;
        let key = self.keys.iter().find(|key| key.label() == label).ok_or(Unproven::UnknownKey)?;
        key.check(code, body)?;
        if key.accepted_until.is_some_and(|until| stored_at > until) {
            return Err(Unproven::Ended);
        }
        if key.author.may_say(fact) { Ok(()) } else { Err(Unproven::NotEntitled) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, SealedCredential};

    const BODY: &[u8] = b"{}";

    fn key(author: Author, id: &str, byte: u8, accepted_until: Option<Timestamp>) -> EventKey {
        let id = KeyId::parse(id).unwrap();
        EventKey::new(author, id, vec![byte; 32].into(), accepted_until)
    }

    fn installed() -> Fact<SealedCredential> {
        Event::decode(include_bytes!("event/installed.v1.json")).unwrap().fact
    }

    fn erased() -> Fact<SealedCredential> {
        Fact::Erased { identity: installed().identity().unwrap().clone() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn only_what_an_author_with_a_key_may_say_counts() {
        let ingest = || key(Author::Ingest, "i1", 1, None);
        let renewal = || key(Author::TokenRenewal, "r1", 2, None);
        let keys = EventKeys::new(vec![ingest(), renewal()], None);
        let check = |proof: Option<&str>, body: &[u8], fact: &Fact<SealedCredential>| {
            keys.check(proof, body, fact, Timestamp::UNIX_EPOCH)
        };
        let proof = ingest().prove(BODY);
        assert_eq!(check(Some(&proof), BODY, &installed()), Ok(()));
        assert_eq!(check(None, BODY, &installed()), Err(Unproven::Missing));
        assert_eq!(check(Some(""), BODY, &installed()), Err(Unproven::Missing));
        assert_eq!(check(Some(&proof), b"{ }", &installed()), Err(Unproven::Wrong));
        assert_eq!(check(Some(&proof), BODY, &erased()), Err(Unproven::NotEntitled));
        let by_renewal = renewal().prove(BODY);
        assert_eq!(check(Some(&by_renewal), BODY, &installed()), Err(Unproven::NotEntitled));
        // A key is not another's, whatever it is called.
        let renamed = by_renewal.replace("token_renewal.r1", "ingest.i1");
        assert_eq!(check(Some(&renamed), BODY, &installed()), Err(Unproven::Wrong));
        let unknown = key(Author::Ingest, "i9", 1, None).prove(BODY);
        assert_eq!(check(Some(&unknown), BODY, &installed()), Err(Unproven::UnknownKey));
        assert_eq!(check(Some("v1.ingest.i1."), BODY, &installed()), Err(Unproven::Wrong));
    }

    #[test]
    fn the_servers_time_says_what_needs_a_proof_and_which_key_is_good() {
        let ended = || key(Author::Ingest, "i1", 1, Some(at(20)));
        let keys = EventKeys::new(vec![ended()], Some(at(10)));
        let proof = ended().prove(BODY);
        let check = |proof, second| keys.check(proof, BODY, &installed(), at(second));
        assert_eq!(check(None, 9), Ok(()));
        assert_eq!(check(None, 10), Err(Unproven::Missing));
        assert_eq!(check(Some(proof.as_str()), 20), Ok(()));
        assert_eq!(check(Some(proof.as_str()), 21), Err(Unproven::Ended));
        let none = EventKeys::default();
        assert_eq!(none.check(None, BODY, &erased(), at(99)), Ok(()), "nothing is checked");
    }

    /// What stands in a log must be found right by every later version.
    #[test]
    fn a_proof_is_what_it_always_was() {
        let key = key(Author::Ingest, "i1", 7, None);
        // As another implementation of HMAC computes it.
        assert_eq!(key.prove(BODY), "v1.ingest.i1.bShun4FLSdTRx_1GFP3dVNOsIxA1_z-L6-dIc6qnXgo");
        assert_eq!(format!("{key:?}"), "EventKey(ingest i1)");
    }
}
