//! The parts of one callback, found by their locators.

use http::{HeaderMap, Method};
use serde_json::Value;

use super::mapping::Locator;
use crate::platform::fields::Fields;
use crate::platform::hint::TimeHint;
use crate::platform::refusal::Refusal;
use crate::verify::Verified;

/// What the locators point into.
pub(super) struct Parts<'a> {
    pub(super) body: Value,
    pub(super) headers: &'a HeaderMap,
    pub(super) query: &'a str,
    pub(super) method: &'a Method,
    /// What a signed token says.
    pub(super) claims: Option<&'a Value>,
}

impl<'a> Parts<'a> {
    pub(super) fn of(verified: &'a Verified<'_>, body: Value) -> Self {
        Self {
            body,
            headers: verified.headers(),
            query: verified.query().unwrap_or_default(),
            method: verified.method(),
            claims: verified.claims(),
        }
    }
}

impl Parts<'_> {
    pub(super) fn find(&self, locator: &Locator) -> Option<Value> {
        let text = |text: &str| Value::String(text.to_owned());
        match locator {
            Locator::Body(pointer) => {
                self.body.pointer(pointer).filter(|value| !value.is_null()).cloned()
            }
            Locator::Header(name) => self.headers.get(name)?.to_str().ok().map(text),
            Locator::Query(name) => {
                let mut pairs = form_urlencoded::parse(self.query.as_bytes());
                pairs.find(|(key, _)| key == name).map(|(_, value)| text(&value))
            }
            Locator::Claim(pointer) => {
                self.claims?.pointer(pointer).filter(|value| !value.is_null()).cloned()
            }
            Locator::Method => Some(text(self.method.as_str())),
            Locator::Value(value) => Some(text(value)),
        }
    }

    /// A text, or a number as text.
    pub(super) fn text(&self, locator: &Locator) -> Result<String, Refusal> {
        match self.find(locator) {
            None => Err(Refusal::missing(locator.to_string())),
            Some(Value::String(text)) => Ok(text),
            Some(Value::Number(number)) => Ok(number.to_string()),
            Some(_) => Err(Refusal::invalid(locator.to_string(), "must be a string or a number")),
        }
    }

    pub(super) fn texts(&self, locators: &[Locator]) -> Result<Vec<String>, Refusal> {
        locators.iter().map(|locator| self.text(locator)).collect()
    }

    /// Of the parts of the event type those that are there: an event of a kind
    /// that we do not know may lack one.
    pub(super) fn event_type(&self, locators: &[Locator]) -> Result<String, Refusal> {
        let present: Vec<String> =
            locators.iter().filter_map(|locator| self.text(locator).ok()).collect();
        match (present.is_empty(), locators.first()) {
            (true, Some(locator)) => Err(Refusal::missing(locator.to_string())),
            _ => Ok(present.join(".")),
        }
    }

    pub(super) fn time(&self, locator: Option<&Locator>) -> TimeHint {
        TimeHint::of(locator.and_then(|locator| self.find(locator)).as_ref())
    }

    pub(super) fn into_fields(self) -> Fields {
        match self.body {
            Value::Object(fields) => fields,
            _ => Fields::new(),
        }
    }
}
