//! Tickets: what only the browser that they were given to can give back, for a
//! while. They are the `state` of OAuth and what forms have against forged
//! requests (the signed double-submit cookie of OWASP's cheat sheet,
//! <https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html>).
//!
//! Nothing is stored: a ticket is its end and a keyed digest of what it is for
//! and of the browser's cookie. Any ingest with the same key can check it.

use axum_extra::extract::CookieJar;
use axum_extra::extract::cookie::{Cookie, SameSite};
use domain::fingerprint::FingerprintKeys;
use domain::id::SourceName;
use domain::seal::random_token;
use jiff::SignedDuration;
use service::clock;
use subtle::ConstantTimeEq as _;

const VALID_FOR: SignedDuration = SignedDuration::from_mins(60);
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

/// A ticket, and the cookies with the browser's own.
pub(crate) fn issue(
    keys: &FingerprintKeys,
    of: Purpose<'_>,
    cookies: CookieJar,
) -> (String, CookieJar) {
    let known = browser(&cookies).map(str::to_owned);
    let browser = known.unwrap_or_else(random_token);
    let ends = clock::now().as_second().saturating_add(VALID_FOR.as_secs());
    let ticket = format!("{ends}.{}", digest(keys, of, &browser, ends));
    let cookie = Cookie::build((COOKIE, browser)).path("/").secure(true).http_only(true);
    // The redirect back from a platform is a navigation from another site.
    let cookie = cookie.same_site(SameSite::Lax);
    (ticket, cookies.add(cookie))
}

/// Whether `ticket` was given to this browser, for this, and has not ended.
pub(crate) fn is_valid(
    keys: &FingerprintKeys,
    of: Purpose<'_>,
    cookies: &CookieJar,
    ticket: &str,
) -> bool {
    let check = || {
        let (ends, given) = ticket.split_once('.')?;
        let ends: i64 = ends.parse().ok()?;
        let expected = digest(keys, of, browser(cookies)?, ends);
        Some(
            ends > clock::now().as_second()
                && bool::from(given.as_bytes().ct_eq(expected.as_bytes())),
        )
    };
    check().unwrap_or(false)
}

fn browser(cookies: &CookieJar) -> Option<&str> {
    cookies.get(COOKIE).map(Cookie::value).filter(|value| value.len() == COOKIE_BYTES)
}

fn digest(keys: &FingerprintKeys, of: Purpose<'_>, browser: &str, ends: i64) -> String {
    let parts = ["ticket", of.step, of.source.as_str(), of.about, browser, &ends.to_string()];
    keys.ticket(&parts).to_string()
}

#[cfg(test)]
mod tests {
    use domain::seal::{new_key, parse_key};

    use super::*;

    fn keys() -> FingerprintKeys {
        FingerprintKeys::of(parse_key(&new_key()).unwrap())
    }

    #[test]
    fn a_ticket_is_valid_for_its_browser_and_its_purpose_alone() {
        let (keys, source) = (keys(), SourceName::parse("hl").unwrap());
        let of = Purpose { step: "form", source: &source, about: "i1" };
        let (ticket, cookies) = issue(&keys, of, CookieJar::new());
        assert!(is_valid(&keys, of, &cookies, &ticket));
        let (second, cookies) = issue(&keys, of, cookies);
        assert!(is_valid(&keys, of, &cookies, &ticket), "another page of the same browser");

        let (_, other_browser) = issue(&keys, of, CookieJar::new());
        assert!(!is_valid(&keys, of, &other_browser, &ticket));
        assert!(!is_valid(&keys, of, &CookieJar::new(), &ticket));
        for other in [Purpose { step: "state", ..of }, Purpose { about: "i2", ..of }] {
            assert!(!is_valid(&keys, other, &cookies, &second));
        }
        let ended = ticket.replacen(&ticket[..10], "1700000000", 1);
        let prolonged = ticket.replacen(&ticket[..10], "9700000000", 1);
        for bad in [ended.as_str(), prolonged.as_str(), "", ".", "1.x", "x.1"] {
            assert!(!is_valid(&keys, of, &cookies, bad), "{bad}");
        }
    }

    #[test]
    fn a_ticket_that_has_ended_is_not_valid() {
        let (keys, source) = (keys(), SourceName::parse("hl").unwrap());
        let of = Purpose { step: "form", source: &source, about: "" };
        let (_, cookies) = issue(&keys, of, CookieJar::new());
        let ended = clock::now().as_second() - 1;
        let digest = digest(&keys, of, browser(&cookies).unwrap(), ended);
        assert!(!is_valid(&keys, of, &cookies, &format!("{ended}.{digest}")));
    }
}
