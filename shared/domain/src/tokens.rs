//! OAuth 2.0 tokens as a platform issued them (RFC 6749, section 5.1), and the
//! callback that they become.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};

use crate::event::{Callback, Fact, Grant, Identity, Payload, PlainCredential};
use crate::fingerprint::FingerprintKeys;
use crate::id::{AppId, Fingerprint, IdempotencyKey, InvalidId};

/// The name of the sealed field.
const FIELD: &str = "tokens";
const ACCESS_TOKEN: (&str, &str) = ("access_token", "accessToken");
const REFRESH_TOKEN: (&str, &str) = ("refresh_token", "refreshToken");

#[derive(Debug, Clone)]
pub struct Tokens {
    pub access_token: SecretString,
    pub refresh_token: Option<SecretString>,
}

#[derive(Debug)]
pub struct Issued {
    pub tokens: Tokens,
    expires_at: Option<Timestamp>,
    scopes: Vec<String>,
    issued_at: Timestamp,
    is_install: bool,
    /// Where in the answer the tokens are, if not at its top.
    tokens_at: Option<String>,
    /// The whole answer. Which of its fields are secrets only the platform knows.
    response: Response,
}

struct Response(Map<String, Value>);

/// How a platform answers with tokens, where it differs from RFC 6749, section 5.1.
#[derive(Debug, Clone, Default)]
pub struct AnswerForm {
    /// A JSON Pointer to the object that holds them.
    pub tokens_at: Option<String>,
    /// Scopes are separated by commas, and not by spaces.
    pub scopes_by_comma: bool,
}

/// An answer that brings no tokens. It repeats nothing of what was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoTokens {
    #[error("it is not a JSON object")]
    NotAnObject,
    #[error("it holds no access_token")]
    NoAccessToken,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[answer]")
    }
}

impl Tokens {
    /// The credential that is sealed: a JSON object.
    fn to_secret(&self) -> SecretString {
        let refresh_token = self.refresh_token.as_ref().map(|token| token.expose_secret());
        let access_token = self.access_token.expose_secret();
        json!({ "access_token": access_token, "refresh_token": refresh_token }).to_string().into()
    }

    /// `None` if the credential holds no tokens.
    pub fn from_secret(credential: &SecretString) -> Option<Self> {
        Self::in_(&serde_json::from_str(credential.expose_secret()).ok()?)
    }

    fn in_(fields: &Map<String, Value>) -> Option<Self> {
        let secret = |names| {
            let text = either(fields, names)?.as_str()?;
            (!text.is_empty()).then(|| SecretString::from(text))
        };
        Some(Self { access_token: secret(ACCESS_TOKEN)?, refresh_token: secret(REFRESH_TOKEN) })
    }
}

/// A credential without what makes new tokens. Any other than that of tokens stays as
/// it is.
pub fn without_refresh_token(credential: SecretString) -> SecretString {
    let fields = serde_json::from_str(credential.expose_secret());
    let Ok(mut fields) = fields.map(|fields: Map<String, Value>| fields) else { return credential };
    let names = [REFRESH_TOKEN.0, REFRESH_TOKEN.1];
    if !names.iter().any(|name| fields.contains_key(*name)) {
        return credential;
    }
    fields.retain(|name, _| !names.contains(&name.as_str()));
    Value::Object(fields).to_string().into()
}

impl Issued {
    /// What cannot be read beside the tokens is as if it were not there: they were
    /// issued, and are nowhere else.
    pub fn parse(body: &[u8], now: Timestamp, form: &AnswerForm) -> Result<Self, NoTokens> {
        let response: Map<String, Value> =
            serde_json::from_slice(body).map_err(|_| NoTokens::NotAnObject)?;
        let nested;
        let said = match &form.tokens_at {
            None => &response,
            Some(pointer) => {
                nested = Value::Object(response.clone());
                let found = nested.pointer(pointer).and_then(Value::as_object);
                found.ok_or(NoTokens::NoAccessToken)?
            }
        };
        let tokens = Tokens::in_(said).ok_or(NoTokens::NoAccessToken)?;
        let lasts = either(said, ("expires_in", "expiresIn")).and_then(|value| match value {
            Value::String(text) => text.parse().ok(),
            other => other.as_u64(),
        });
        let scopes: Vec<&str> = match said.get("scope") {
            Some(Value::String(text)) if form.scopes_by_comma => {
                text.split(',').map(str::trim).collect()
            }
            Some(Value::String(text)) => text.split_whitespace().collect(),
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        // What cannot be an id cannot be stored: it is left to the sealed answer.
        let scopes = scopes.into_iter().filter(|scope| AppId::parse(*scope).is_ok());
        Ok(Self {
            tokens,
            expires_at: lasts.and_then(|seconds| expiry(seconds, now)),
            scopes: scopes.map(str::to_owned).collect(),
            issued_at: now,
            is_install: false,
            tokens_at: form.tokens_at.clone(),
            response: Response(response),
        })
    }

    /// The platform tells of no install: these tokens show it.
    pub fn as_install(self) -> Self {
        Self { is_install: true, ..self }
    }

    /// Adds what the platform says of whose tokens they are, as `owner`.
    pub fn with_owner(mut self, owner: Map<String, Value>) -> Self {
        self.response.0.insert("owner".to_owned(), Value::Object(owner));
        self
    }

    /// What a platform answered, to read in it whose tokens they are.
    pub fn response(&self) -> &Map<String, Value> {
        &self.response.0
    }

    /// As it is sealed and appended.
    pub fn callback(
        self,
        identity: Identity,
        grant: Grant,
        keys: &FingerprintKeys,
    ) -> Result<Callback, InvalidId> {
        // Tokens that are issued again are a new event: they may last longer, or come after an
        // erasure.
        let at = self.issued_at.as_nanosecond().to_string();
        let number = keys.fingerprint(&["oauth", self.tokens.access_token.expose_secret(), &at]);
        self.callback_of(identity, grant, &number)
    }

    /// What a user brought with a ticket, which lets one event into the log.
    pub fn callback_with_ticket(
        self,
        identity: Identity,
        grant: Grant,
        keys: &FingerprintKeys,
        ticket: &str,
    ) -> Result<Callback, InvalidId> {
        self.callback_of(identity, grant, &keys.fingerprint(&["oauth ticket", ticket]))
    }

    fn callback_of(
        self,
        identity: Identity,
        grant: Grant,
        number: &Fingerprint,
    ) -> Result<Callback, InvalidId> {
        let payload = self.payload(grant);
        Ok(Callback {
            app_id: Some(identity.app_id.clone()),
            idempotency_key: IdempotencyKey::parse(format!("oauth:{number}"))?,
            occurred_at: None,
            fact: Fact::Authorized {
                identity,
                grant,
                granted_permissions: self.scopes,
                expires_at: self.expires_at,
                credential: PlainCredential {
                    field: FIELD.to_owned(),
                    prefix: None,
                    secret: self.tokens.to_secret(),
                },
                is_install: self.is_install,
            },
            payload,
        })
    }

    /// What the platform answered besides the tokens. A renewal says nothing that
    /// is worth its room, once an hour.
    fn payload(&self, grant: Grant) -> Payload<SecretString> {
        match grant.is_by_user() {
            true => Payload::Sealed(self.response.without_tokens(self.tokens_at.as_deref())),
            false => Payload::Clear(Value::Null),
        }
    }
}

impl Response {
    /// The tokens are sealed as the credential, and once is enough.
    fn without_tokens(&self, tokens_at: Option<&str>) -> SecretString {
        let mut answer = Value::Object(self.0.clone());
        let held = answer.pointer_mut(tokens_at.unwrap_or_default()).and_then(Value::as_object_mut);
        if let Some(fields) = held {
            for (snake_case, camel_case) in [ACCESS_TOKEN, REFRESH_TOKEN] {
                fields.remove(snake_case);
                fields.remove(camel_case);
            }
        }
        answer.to_string().into()
    }
}

/// HighLevel's versions 2 and 3 name the same fields differently.
fn either<'a>(
    fields: &'a Map<String, Value>,
    (snake_case, camel_case): (&str, &str),
) -> Option<&'a Value> {
    fields.get(snake_case).or_else(|| fields.get(camel_case))
}

/// When tokens that last `seconds` end.
fn expiry(seconds: u64, now: Timestamp) -> Option<Timestamp> {
    let lasts = SignedDuration::from_secs(i64::try_from(seconds).ok()?);
    now.checked_add(lasts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn both_forms_of_names_are_read_and_no_secret_is_shown() {
        let v2 = r#"{"access_token":"at-1","refresh_token":"rt-1","expires_in":86399,
            "scope":"contacts.readonly  users.readonly","userType":"Location","locationId":"l1"}"#;
        let v3 = v2
            .replace("access_token", "accessToken")
            .replace("refresh_token", "refreshToken")
            .replace("expires_in", "expiresIn");
        for answer in [v2, &v3] {
            let issued = Issued::parse(answer.as_bytes(), NOW, &AnswerForm::default()).unwrap();
            assert_eq!(issued.tokens.access_token.expose_secret(), "at-1");
            assert_eq!(issued.expires_at.unwrap().as_second(), 86_399);
            assert_eq!(issued.scopes, ["contacts.readonly", "users.readonly"]);
            assert_eq!(issued.response()["locationId"], "l1");
            let shown = format!("{issued:?}");
            assert!(!shown.contains("at-1") && !shown.contains("rt-1"), "{shown}");
            let again = Tokens::from_secret(&issued.tokens.to_secret()).unwrap();
            assert_eq!(again.refresh_token.unwrap().expose_secret(), "rt-1");
        }
    }

    #[test]
    fn tokens_are_sealed_once_and_a_renewal_holds_nothing_else() {
        let answer = br#"{"accessToken":"at-1","refresh_token":"rt-1","scope":"a","userId":"u1"}"#;
        let issued = Issued::parse(answer, NOW, &AnswerForm::default()).unwrap();
        let Payload::Sealed(granted) = issued.payload(Grant::AuthorizationCode) else { panic!() };
        let granted: Value = serde_json::from_str(granted.expose_secret()).unwrap();
        assert_eq!(granted, json!({ "scope": "a", "userId": "u1" }));
        for grant in [Grant::RefreshToken, Grant::Location] {
            assert!(matches!(issued.payload(grant), Payload::Clear(Value::Null)));
        }
    }

    #[test]
    fn a_refresh_token_is_taken_out_and_nothing_else() {
        let without =
            |text: &str| without_refresh_token(SecretString::from(text)).expose_secret().to_owned();
        let tokens = r#"{"access_token":"at","refresh_token":"rt","other":1}"#;
        assert_eq!(without(tokens), r#"{"access_token":"at","other":1}"#);
        assert_eq!(without(r#"{"refresh_token":null,"refreshToken":"rt"}"#), "{}");
        for other in ["blnk_abc", "", "[1]", "\"refresh_token\"", r#"{ "/a/refresh_token":"b" }"#] {
            assert_eq!(without(other), other);
        }
    }

    #[test]
    fn what_is_odd_beside_the_tokens_does_not_lose_them() {
        let odd = r#"{"access_token":"at","expires_in":"3599","scope":["a"],"refresh_token":7}"#;
        let issued = Issued::parse(odd.as_bytes(), NOW, &AnswerForm::default()).unwrap();
        assert_eq!(issued.expires_at.unwrap().as_second(), 3_599);
        assert_eq!(issued.scopes, ["a"]);
        assert!(issued.tokens.refresh_token.is_none());
        let none = Issued::parse(
            br#"{"access_token":"at","expires_in":{},"scope":1}"#,
            NOW,
            &AnswerForm::default(),
        )
        .unwrap();
        assert!(none.expires_at.is_none() && none.scopes.is_empty());
    }

    #[test]
    fn a_scope_that_cannot_be_stored_is_left_out() {
        let odd = r#"{"access_token":"at","scope":["a","","b\u0000","\u0000","c"]}"#;
        assert_eq!(
            Issued::parse(odd.as_bytes(), NOW, &AnswerForm::default()).unwrap().scopes,
            ["a", "c"]
        );
        let text = format!(r#"{{"access_token":"at","scope":"a b\u0000 {}"}}"#, "x".repeat(256));
        assert_eq!(
            Issued::parse(text.as_bytes(), NOW, &AnswerForm::default()).unwrap().scopes,
            ["a"]
        );
    }

    #[test]
    fn an_answer_that_is_none_is_refused_without_its_content() {
        for bad in ["", "[]", "{}", r#"{"access_token":7}"#, r#"{"access_token":""}"#] {
            assert!(Issued::parse(bad.as_bytes(), NOW, &AnswerForm::default()).is_err(), "{bad}");
        }
    }
}
