//! The portal of an app: the page that a platform opens when a user launches the app.

use std::time::Duration;

use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Resolver, SourceSettings};
use domain::id::SourceName;
use domain::platform::Platform;

const LIFETIME_S: std::ops::RangeInclusive<u64> = 60..=3_600;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortalSettings {
    /// The page of your app that the platform opens, an `https://` URL. It gets the session's token as
    /// the query parameter `token`.
    pub url: String,
    /// For how many seconds a session can be looked up, 60 to 3,600. Blnk recommends 5 to 15 minutes.
    #[serde(default = "default_lifetime_s")]
    #[schemars(range(min = 60, max = 3_600))]
    pub lifetime_s: u64,
}

fn default_lifetime_s() -> u64 {
    900
}

/// Where users of a source open the app.
#[derive(Debug, Clone)]
pub struct Portal {
    pub url: Url,
    pub lifetime: Duration,
}

impl Resolver<'_> {
    /// `None` if there is none, or it is not usable; the problems are noted.
    pub fn portal(&mut self, source: &SourceName, of: &SourceSettings) -> Option<Portal> {
        let PortalSettings { url, lifetime_s } = of.portal.as_ref()?;
        let at = format!("sources.{source}.portal");
        if of.platform != Platform::Blnk {
            self.problem(&at, "of the platforms, only blnk opens a portal in this way");
            return None;
        }
        self.in_range(&format!("{at}.lifetime_s"), *lifetime_s, &LIFETIME_S);
        let url = self.https(&at, "url", url)?;
        Some(Portal { url, lifetime: Duration::from_secs(*lifetime_s) })
    }
}
