//! What a token endpoint issued.

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{TokenError, expiry};

/// The name of the sealed field.
pub(super) const FIELD: &str = "tokens";

/// Fields of an answer that are secrets, in both forms of names.
const SECRETS: [&str; 6] =
    ["access_token", "accessToken", "refresh_token", "refreshToken", "id_token", "idToken"];

#[derive(Debug, Clone)]
pub struct Tokens {
    pub access_token: SecretString,
    pub refresh_token: Option<SecretString>,
}

#[derive(Debug)]
pub struct Issued {
    pub tokens: Tokens,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) scopes: Vec<String>,
    /// The answer, without its secrets.
    pub response: Map<String, Value>,
}

/// Both forms of names, which HighLevel's versions 2 and 3 use.
#[derive(Deserialize)]
struct Answer {
    #[serde(alias = "accessToken")]
    access_token: SecretString,
    #[serde(alias = "refreshToken")]
    refresh_token: Option<SecretString>,
    #[serde(alias = "expiresIn")]
    expires_in: Option<u64>,
    scope: Option<String>,
}

impl Tokens {
    /// The credential that is sealed: a JSON object.
    pub(super) fn to_secret(&self) -> SecretString {
        let refresh_token = self.refresh_token.as_ref().map(|token| token.expose_secret());
        let access_token = self.access_token.expose_secret();
        json!({ "access_token": access_token, "refresh_token": refresh_token }).to_string().into()
    }

    /// `None` if the credential is none of ours.
    pub fn from_secret(credential: &SecretString) -> Option<Self> {
        let Answer { access_token, refresh_token, .. } =
            serde_json::from_str(credential.expose_secret()).ok()?;
        Some(Self { access_token, refresh_token })
    }
}

pub(super) fn parse(body: &[u8], now: Timestamp) -> Result<Issued, TokenError> {
    // serde's messages can repeat a value of the wrong type.
    let malformed = |why: &str| TokenError::Malformed { why: why.to_owned() };
    let mut response: Map<String, Value> =
        serde_json::from_slice(body).map_err(|_| malformed("it is no JSON object"))?;
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|_| malformed("it holds no access_token, or a field of another type"))?;
    if answer.access_token.expose_secret().is_empty() {
        return Err(malformed("its access_token is empty"));
    }
    for (_, secret) in response.iter_mut().filter(|(name, _)| SECRETS.contains(&name.as_str())) {
        *secret = json!({ "$sealed": FIELD });
    }
    Ok(Issued {
        expires_at: answer.expires_in.and_then(|seconds| expiry(seconds, now)),
        scopes: answer
            .scope
            .iter()
            .flat_map(|scope| scope.split_whitespace())
            .map(String::from)
            .collect(),
        tokens: Tokens { access_token: answer.access_token, refresh_token: answer.refresh_token },
        response,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn both_forms_of_names_are_read_and_no_secret_stays_in_the_answer() {
        let v2 = r#"{"access_token":"at-1","refresh_token":"rt-1","expires_in":86399,
            "scope":"contacts.readonly  users.readonly","userType":"Location","locationId":"l1"}"#;
        let v3 = v2
            .replace("access_token", "accessToken")
            .replace("refresh_token", "refreshToken")
            .replace("expires_in", "expiresIn");
        for answer in [v2, &v3] {
            let issued = parse(answer.as_bytes(), NOW).unwrap();
            assert_eq!(issued.tokens.access_token.expose_secret(), "at-1");
            assert_eq!(issued.expires_at.unwrap().as_second(), 86_399);
            assert_eq!(issued.scopes, ["contacts.readonly", "users.readonly"]);
            let kept = serde_json::to_string(&issued.response).unwrap();
            assert!(!kept.contains("at-1") && !kept.contains("rt-1"), "{kept}");
            assert!(kept.contains("l1"));
            let again = Tokens::from_secret(&issued.tokens.to_secret()).unwrap();
            assert_eq!(again.refresh_token.unwrap().expose_secret(), "rt-1");
            assert!(!format!("{:?}", issued.tokens).contains("at-1"));
        }
    }

    #[test]
    fn an_answer_that_is_none_is_refused_without_its_content() {
        for bad in ["", "[]", "{}", r#"{"access_token":7}"#, r#"{"access_token":""}"#] {
            let refused = parse(bad.as_bytes(), NOW).unwrap_err();
            assert!(matches!(refused, TokenError::Malformed { .. }), "{bad}");
        }
    }
}
