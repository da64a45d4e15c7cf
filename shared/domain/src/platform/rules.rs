//! What a platform has to say of itself. [`Rules`] is the platform, [`Adapter`]
//! is one source of it. Each platform implements both, and nothing outside its
//! folder knows more of it than this.

use std::fmt;
use std::time::Duration;

use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::generic::mapping::Mapping;
use super::refusal::Refusal;
use crate::event::{Callback, Identity};
use crate::fingerprint::FingerprintKeys;
use crate::id::{AppId, InstallationId, InvalidId};
use crate::verify::{Check, Verified};

/// What holds for every source of a platform. What a platform does not have is
/// left to the defaults.
pub(super) trait Rules {
    /// What the platform expects of an answer.
    fn ack_contract(&self) -> AckContract;

    /// How the callbacks of a source are read, or what is wrong with its
    /// configuration.
    fn adapter(
        &self,
        app_ids: &[AppId],
        mapping: Option<&Mapping>,
    ) -> Result<Box<dyn Adapter>, Vec<Problem>>;

    /// Whether the operator says how callbacks are read.
    fn needs_mapping(&self) -> bool {
        false
    }

    /// The proof that the platform's callbacks carry, where it is one for all
    /// apps: it need not be configured.
    fn default_check(&self) -> Option<Result<Check, String>> {
        None
    }

    /// How the platform grants tokens. `None` where its answer with tokens does
    /// not say which installation they belong to.
    fn oauth(&self, _mapping: Option<&Mapping>) -> Option<OAuthRules> {
        None
    }

    /// The page to which the platform sends users who install an app.
    fn install_page(&self) -> Option<InstallPageRules> {
        None
    }
}

/// How the callbacks of one source are read.
pub trait Adapter: fmt::Debug + Send + Sync {
    /// Reads a verified callback.
    fn parse(&self, verified: &Verified<'_>) -> Result<Callback, Refusal>;

    /// Whether what a user grants for `_owner` is an install, because the platform may tell of
    /// none.
    fn grant_installs(&self, _owner: &Identity) -> bool {
        false
    }

    /// Whether a body is a form, and not JSON.
    fn reads_form(&self) -> bool {
        false
    }

    /// Whether the platform sends one app what concerns others, or no app: what is not
    /// about an installation is then acknowledged and not kept.
    fn hears_of_others(&self) -> bool {
        false
    }

    /// The installation that tokens belong to, by the answer that brought them.
    /// Asked only where the platform has [`OAuthRules`]. `query` is that of the redirect.
    fn token_owner(
        &self,
        _app_id: &AppId,
        _answer: &Map<String, Value>,
        _query: &str,
    ) -> Result<Identity, Refusal> {
        Err(Refusal::ForeignApp)
    }
}

/// What is wrong with the configuration of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The setting, as it is named under the source.
    pub setting: &'static str,
    pub what: String,
}

impl Problem {
    pub(super) fn new(setting: &'static str, what: impl Into<String>) -> Self {
        Self { setting, what: what.into() }
    }
}

/// What a platform expects of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckContract {
    /// The platform stops waiting after this long.
    pub deadline: Duration,
    /// How long ingest keeps trying to publish.
    pub budget: Duration,
    /// The status that tells the platform: stored.
    pub success: StatusCode,
    pub body: SuccessBody,
    /// The status that tells the platform: not stored, send it again.
    pub unavailable: StatusCode,
    pub missed: MissedAck,
}

/// The body of a success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SuccessBody {
    /// `{"ok":true,"duplicate":false}`.
    Json,
    /// No body.
    Empty,
}

/// What the platform does when no success arrives in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MissedAck {
    /// It cancels what it told us of: the installation is unconfirmed.
    Cancels,
    /// What it told us of has happened all the same. It tells us again, or never.
    Stands,
}

/// Where a platform grants tokens, unless a source's configuration says otherwise.
#[derive(Debug, Clone, Copy, Default)]
pub struct OAuthRules {
    pub authorize_url: Option<&'static str>,
    pub token_url: Option<&'static str>,
    /// Where the tokens of a parent are exchanged for those of one of its parts.
    pub location_token_url: Option<&'static str>,
    pub headers: &'static [(&'static str, &'static str)],
    pub parentage: Option<Parentage>,
}

/// Where one installation may be a part of another one, whose tokens are
/// exchanged for its own: HighLevel's location is a part of a company.
#[derive(Debug, Clone, Copy)]
pub struct Parentage {
    /// In the scope of a parent and of its parts: which parent it is.
    pub parent_key: &'static str,
    /// In the scope of a part only.
    pub part_key: &'static str,
    /// The parent of an installation, if it is a part of one.
    pub parent_of: fn(&Identity) -> Option<Parent>,
}

/// The installation that another one is a part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    pub installation_id: InstallationId,
    /// What a request to exchange its tokens must name, for the part that asks.
    pub request: Vec<(&'static str, String)>,
}

/// A page where a user types the secrets of an app while installing it.
#[derive(Debug, Clone, Copy)]
pub struct InstallPageRules {
    /// Where the browser posts what was typed, to complete the installation.
    pub complete_url: &'static str,
    /// What the platform may call the installation in the page's URL.
    pub installation_parameters: &'static [&'static str],
    /// Hosts, as in a Content-Security-Policy, that it may send the browser on to from there.
    pub redirect_hosts: &'static [&'static str],
    pub identity: FormIdentity,
}

/// Which installation a form is about, by the platform's id in the page's URL.
pub type FormIdentity =
    fn(&AppId, &InstallationId, &FingerprintKeys) -> Result<Identity, InvalidId>;
