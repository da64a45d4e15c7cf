//! Tickets: what only the browser that they were given to can give back, for a
//! while. They are the `state` of OAuth and what forms have against forged
//! requests (the signed double-submit cookie of OWASP's cheat sheet,
//! <https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html>).
//!
//! Nothing is stored: a ticket is its number, its end, and a keyed digest of both,
//! of what it is for and of the browser's cookie. Any ingest with the same key can
//! check it.
//!
//! A ticket lets one event into the log. Its number is the key of that event, so
//! the log itself tells a second use from the first, whichever ingest it comes to.
//! That holds as long as the log remembers message IDs, so no ticket is valid for
//! longer.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use axum_extra::extract::CookieJar;
use axum_extra::extract::cookie::{Cookie, SameSite};
use domain::fingerprint::FingerprintKeys;
use domain::id::{Fingerprint, SourceName};
use domain::seal::random_token;
use jiff::SignedDuration;
use lru::LruCache;
use service::clock;
use subtle::ConstantTimeEq as _;

pub(crate) const VALID_FOR_MAX: SignedDuration = SignedDuration::from_mins(60);
/// Tickets whose use is remembered, at about 200 bytes each.
const USED_MAX: NonZeroUsize = NonZeroUsize::new(8_192).unwrap();
/// The prefix makes browsers refuse it from a subdomain or without TLS.
const COOKIE: &str = "__Host-mooring";
const COOKIE_BYTES: usize = 64;

/// What a ticket is for: the step, and whatever it must not be used beside.
#[derive(Clone, Copy)]
pub(crate) struct Purpose<'a> {
    pub(crate) step: &'static str,
    pub(crate) source: &'a SourceName,
    pub(crate) about: &'a str,
}

/// The number of a ticket that is valid.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Number(String);

impl Number {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A ticket, its number, and the cookies with the browser's own.
pub(crate) fn issue(
    keys: &FingerprintKeys,
    of: Purpose<'_>,
    valid_for: SignedDuration,
    cookies: CookieJar,
) -> (String, Number, CookieJar) {
    let known = browser(&cookies).map(str::to_owned);
    let browser = known.unwrap_or_else(random_token);
    let ends = clock::now().as_second().saturating_add(valid_for.as_secs());
    let number = random_token();
    let ticket = format!("{number}.{ends}.{}", digest(keys, of, &browser, &number, ends));
    let cookie = Cookie::build((COOKIE, browser)).path("/").secure(true).http_only(true);
    // The redirect back from a platform is a navigation from another site.
    let cookie = cookie.same_site(SameSite::Lax);
    (ticket, Number(number), cookies.add(cookie))
}

/// The number of `ticket`, if it was given to this browser, for this, and has not
/// ended. Whether it was used is for the log to say.
pub(crate) fn check(
    keys: &FingerprintKeys,
    of: Purpose<'_>,
    cookies: &CookieJar,
    ticket: &str,
) -> Option<Number> {
    let (number, rest) = ticket.split_once('.')?;
    let (ends, given) = rest.split_once('.')?;
    let ends: i64 = ends.parse().ok()?;
    let expected = digest(keys, of, browser(cookies)?, number, ends);
    let is_ours = bool::from(given.as_bytes().ct_eq(expected.as_bytes()));
    (is_ours && ends > clock::now().as_second()).then(|| Number(number.to_owned()))
}

/// What this process knows of used tickets: so that who presses a button twice is
/// told that all is well, and who sends something else is not. What is forgotten,
/// or known to another process, the log refuses all the same.
pub(crate) struct UsedTickets(Mutex<LruCache<Number, Fingerprint>>);

/// What is known of a ticket that comes with some content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    First,
    /// It came with the same content before.
    Again,
    /// It came with something else before.
    Other,
}

impl UsedTickets {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LruCache::new(USED_MAX)))
    }

    /// Notes the use.
    pub(crate) fn note(&self, number: &Number, content: &Fingerprint) -> Use {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match used.get(number) {
            None => {
                used.put(number.clone(), content.clone());
                Use::First
            }
            Some(before) if before == content => Use::Again,
            Some(_) => Use::Other,
        }
    }

    /// It was used elsewhere, with what nobody here knows.
    pub(crate) fn forget(&self, number: &Number) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop(number);
    }

    pub(crate) fn contains(&self, number: &Number) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(number)
    }
}

fn browser(cookies: &CookieJar) -> Option<&str> {
    cookies.get(COOKIE).map(Cookie::value).filter(|value| value.len() == COOKIE_BYTES)
}

fn digest(
    keys: &FingerprintKeys,
    of: Purpose<'_>,
    browser: &str,
    number: &str,
    ends: i64,
) -> String {
    let (source, ends) = (of.source.as_str(), ends.to_string());
    let parts = ["ticket", of.step, source, of.about, browser, number, &ends];
    keys.ticket(&parts).to_string()
}

#[cfg(test)]
mod tests {
    use domain::seal::{new_key, parse_key};

    use super::*;

    fn keys() -> FingerprintKeys {
        FingerprintKeys::of(parse_key(&new_key()).unwrap())
    }

    fn issue(keys: &FingerprintKeys, of: Purpose<'_>, cookies: CookieJar) -> (String, CookieJar) {
        let (ticket, _, cookies) = super::issue(keys, of, VALID_FOR_MAX, cookies);
        (ticket, cookies)
    }

    #[test]
    fn a_ticket_is_valid_for_its_browser_and_its_purpose_alone() {
        let (keys, source) = (keys(), SourceName::parse("hl").unwrap());
        let of = Purpose { step: "form", source: &source, about: "i1" };
        let (ticket, cookies) = issue(&keys, of, CookieJar::new());
        let number = check(&keys, of, &cookies, &ticket).unwrap();
        let (second, cookies) = issue(&keys, of, cookies);
        let other_page = check(&keys, of, &cookies, &second).unwrap();
        assert_ne!(number, other_page, "another page of the same browser has its own");
        assert_eq!(check(&keys, of, &cookies, &ticket), Some(number));

        let (_, other_browser) = issue(&keys, of, CookieJar::new());
        assert_eq!(check(&keys, of, &other_browser, &ticket), None);
        assert_eq!(check(&keys, of, &CookieJar::new(), &ticket), None);
        for other in [Purpose { step: "state", ..of }, Purpose { about: "i2", ..of }] {
            assert_eq!(check(&keys, other, &cookies, &second), None);
        }
        let parts: Vec<&str> = ticket.split('.').collect();
        let with = |number: &str, ends: &str| format!("{number}.{ends}.{}", parts[2]);
        let changed =
            [with(parts[0], "1700000000"), with(parts[0], "9700000000"), with("1", parts[1])];
        for bad in changed.iter().map(String::as_str).chain(["", ".", "..", "1.x", "x.1.y"]) {
            assert_eq!(check(&keys, of, &cookies, bad), None, "{bad}");
        }
    }

    #[test]
    fn a_ticket_that_has_ended_is_not_valid() {
        let (keys, source) = (keys(), SourceName::parse("hl").unwrap());
        let of = Purpose { step: "form", source: &source, about: "" };
        let (_, cookies) = issue(&keys, of, CookieJar::new());
        let ended = clock::now().as_second() - 1;
        let digest = digest(&keys, of, browser(&cookies).unwrap(), "n", ended);
        assert_eq!(check(&keys, of, &cookies, &format!("n.{ended}.{digest}")), None);
    }

    #[test]
    fn a_ticket_goes_with_one_content() {
        let (used, keys) = (UsedTickets::new(), keys());
        let (one, other) = (keys.fingerprint(&["one"]), keys.fingerprint(&["other"]));
        let number = Number("1".to_owned());
        assert_eq!(used.note(&number, &one), Use::First);
        assert_eq!(used.note(&number, &one), Use::Again);
        assert_eq!(used.note(&number, &other), Use::Other);
        used.forget(&number);
        assert_eq!(used.note(&number, &other), Use::First);
    }
}
