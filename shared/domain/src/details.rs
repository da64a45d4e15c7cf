//! What some platforms say of an installation besides that it exists: its plan,
//! its trial, who installed it. Every part is optional, and a later event that
//! lacks one leaves it as it was.

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Details {
    #[serde(skip_serializing_if = "Option::is_none")]
    /// The platform's id of it.
    pub plan_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whitelabel: Option<Whitelabel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub company_name: Option<String>,
    /// Who installed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// Of the app.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version_id: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Trial {
    pub on_trial: bool,
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub starts_at: Option<Timestamp>,
    /// Computed when it is read: the start and so many days of 24 hours.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub ends_at: Option<Timestamp>,
}

/// The brand under which an agency resells the platform. In an event,
/// [`Whitelabel::NONE`] says that there is none; a state leaves it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Whitelabel {
    pub domain: Option<String>,
    pub logo_url: Option<String>,
}

impl Whitelabel {
    pub const NONE: Self = Self { domain: None, logo_url: None };
}

impl Trial {
    /// A platform may count parts of days.
    pub fn new(on_trial: bool, starts_at: Option<Timestamp>, days: Option<f64>) -> Self {
        const DAYS_MAX: f64 = 65_535.0;
        const SECONDS_A_DAY: f64 = 86_400.0;
        let days = days.filter(|days| (0.0..=DAYS_MAX).contains(days));
        let length = days.and_then(|days| {
            SignedDuration::try_from_secs_f64((days * SECONDS_A_DAY).round()).ok()
        });
        let ends_at = starts_at.zip(length).and_then(|(at, length)| at.checked_add(length).ok());
        Self { on_trial, starts_at, ends_at }
    }
}

impl Details {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As a state: these details where `newer` says nothing.
    #[must_use]
    pub fn updated(self, newer: &Self) -> Self {
        let merged = self.merged(newer);
        let whitelabel = merged.whitelabel.filter(|it| *it != Whitelabel::NONE);
        Self { whitelabel, ..merged }
    }

    /// What both say, as if one event said it: these details where `newer` says nothing.
    #[must_use]
    pub(crate) fn merged(self, newer: &Self) -> Self {
        let newer = newer.clone();
        Self {
            plan_id: newer.plan_id.or(self.plan_id),
            trial: newer.trial.or(self.trial),
            whitelabel: newer.whitelabel.or(self.whitelabel),
            company_name: newer.company_name.or(self.company_name),
            user_id: newer.user_id.or(self.user_id),
            version_id: newer.version_id.or(self.version_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_ends_so_many_days_after_it_starts() {
        let starts_at = "2024-07-23T23:54:51.264Z".parse().ok();
        let trial = Trial::new(true, starts_at, Some(10.0));
        assert_eq!(trial.ends_at.unwrap().to_string(), "2024-08-02T23:54:51.264Z");
        assert_eq!(Trial::new(true, None, Some(10.0)).ends_at, None);
        assert_eq!(Trial::new(true, starts_at, None).ends_at, None);
        let half = Trial::new(true, starts_at, Some(0.5));
        assert_eq!(half.ends_at.unwrap().to_string(), "2024-07-24T11:54:51.264Z");
    }

    #[test]
    fn a_whitelabel_that_ended_is_told_from_one_that_nothing_is_said_of() {
        let brand = Whitelabel { domain: Some("example.com".into()), logo_url: None };
        let says = |whitelabel| Details { whitelabel, ..Details::default() };
        let before = Details::default().updated(&says(Some(brand.clone())));
        assert_eq!(before.clone().updated(&says(None)).whitelabel, Some(brand));
        assert_eq!(before.updated(&says(Some(Whitelabel::NONE))), Details::default());
    }

    /// What is in a log must be read as it was written.
    #[test]
    fn an_event_from_before_is_read_as_it_was() {
        let written = r#"{"whitelabel":{"domain":"","logo_url":""}}"#;
        let details: Details = serde_json::from_str(written).unwrap();
        let state = Details::default().updated(&details);
        assert_eq!(serde_json::to_string(&state).unwrap(), written);
    }

    #[test]
    fn an_update_changes_only_what_it_names() {
        let plan = |id: &str| Details { plan_id: Some(id.into()), ..Details::default() };
        let before = Details { company_name: Some("Example".into()), ..plan("old") };
        let after = before.updated(&plan("new"));
        assert_eq!(after, Details { company_name: Some("Example".into()), ..plan("new") });
    }
}
