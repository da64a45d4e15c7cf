//! How a source answers when its platform asks whether the URL is the app's.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Resolver, SourceSettings};
use crate::secret_ref::SecretRef;
use domain::id::SourceName;
use domain::platform::challenge::{Answer, Challenge, Part};
use domain::platform::generic::Locator;

/// A callback that asks. It must pass verification like any other.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChallengeSettings {
    /// Where it says that it asks, such as `/type`. Left out, whatever has the `value` asks.
    pub at: Option<Locator>,
    /// What it says there, such as `url_verification`.
    pub is: Option<String>,
    /// What is to be repeated.
    pub value: Locator,
    /// The fields of the answer in JSON: `{value}` is what is to be repeated, and `{hmac}` its
    /// HMAC-SHA256 in hexadecimal digits. Left out, the answer is the value itself, as plain text.
    #[serde(default)]
    pub answer: BTreeMap<String, String>,
    /// The secret of `{hmac}`.
    pub hmac_secret: Option<SecretRef>,
}

impl Resolver<'_> {
    /// `None` if one of them is not usable; the problems are noted.
    pub fn challenges(
        &mut self,
        source: &SourceName,
        settings: &SourceSettings,
    ) -> Option<Vec<Challenge>> {
        let numbered = settings.challenges.iter().enumerate();
        let challenges: Vec<Option<Challenge>> = numbered
            .map(|(index, it)| self.challenge(&format!("sources.{source}.challenges.{index}"), it))
            .collect();
        challenges.into_iter().collect()
    }

    fn challenge(&mut self, at: &str, settings: &ChallengeSettings) -> Option<Challenge> {
        let asks = match (&settings.at, &settings.is) {
            (Some(at), Some(is)) => Some((at.clone(), is.clone())),
            (None, None) => None,
            _ => {
                self.problem(at, "give both 'at' and 'is', or neither");
                return None;
            }
        };
        let secret = match &settings.hmac_secret {
            Some(secret) => Some(self.secret(&format!("{at}.hmac_secret"), secret)?),
            None => None,
        };
        let part = |text: &String| match (text.as_str(), &secret) {
            ("{value}", _) => Some(Part::Value),
            ("{hmac}", Some(secret)) => Some(Part::Hmac(secret.clone())),
            ("{hmac}", None) => None,
            _ => Some(Part::Text(text.clone())),
        };
        let fields = settings.answer.iter().map(|(name, text)| Some((name.clone(), part(text)?)));
        let Some(fields) = fields.collect::<Option<BTreeMap<_, _>>>() else {
            self.problem(at, "'{hmac}' needs hmac_secret");
            return None;
        };
        let answer = if fields.is_empty() { Answer::Text } else { Answer::Json(fields) };
        Some(Challenge { asks, value: settings.value.clone(), answer })
    }
}
