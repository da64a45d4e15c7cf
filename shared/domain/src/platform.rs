//! The platforms: a folder for each, and the list.
//!
//! Adding one: a module with its folder beside `blnk.rs`, its `mod`, and its
//! line in the list below. Nothing else in the repository changes. A platform
//! that differs only in names and signatures needs no code: see [`generic`].

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::{Callback, Fact};
use crate::id::{AppId, PlatformName};
use crate::verify::Check;

mod blnk;
pub mod challenge;
mod fields;
pub mod generic;
pub mod highlevel;
mod hint;
mod payload;
mod refusal;
mod rules;
pub mod securityscorecard;

use generic::Mapping;
use rules::Rules;

pub use refusal::Refusal;
pub use rules::{
    AckContract, Adapter, FormIdentity, InstallPageRules, MissedAck, OAuthRules, Parent, Parentage,
    Problem, SuccessBody,
};

/// Each line names a type that implements [`Rules`] and the module that has it.
/// The name of the module is the platform's name in configurations and events.
macro_rules! platforms {
    ($($(#[$doc:meta])* $platform:ident in $module:ident,)+) => {
        /// A marketplace whose callbacks we read.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "lowercase")]
        pub enum Platform {
            $($(#[$doc])* $platform),+
        }

        impl Platform {
            pub const ALL: [Self; [$(stringify!($platform)),+].len()] = [$(Self::$platform),+];

            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$platform => stringify!($module)),+
                }
            }

            fn rules(self) -> &'static dyn Rules {
                match self {
                    $(Self::$platform => &$module::$platform),+
                }
            }
        }
    };
}

platforms! {
    /// Blnk Cloud.
    Blnk in blnk,
    /// HighLevel (GoHighLevel).
    HighLevel in highlevel,
    /// SecurityScorecard.
    SecurityScorecard in securityscorecard,
    /// Any other platform, read as the source's `mapping` says.
    Generic in generic,
}

impl Platform {
    /// As events carry it.
    pub fn to_name(self) -> PlatformName {
        PlatformName::of_known(self.name())
    }

    /// A source's configuration may change parts of it.
    pub fn ack_contract(self) -> AckContract {
        self.rules().ack_contract()
    }

    /// How the callbacks of a source are read, or all that is wrong with its
    /// configuration.
    pub fn adapter(
        self,
        app_ids: &[AppId],
        mapping: Option<&Mapping>,
    ) -> Result<Box<dyn Adapter>, Vec<Problem>> {
        let rules = self.rules();
        let adapter = rules.adapter(app_ids, mapping);
        if mapping.is_none() || rules.needs_mapping() {
            return adapter;
        }
        let mut problems = adapter.err().unwrap_or_default();
        problems
            .push(Problem::new("mapping", format!("'{self}' is not read by a mapping; remove it")));
        Err(problems)
    }

    /// The proof that callbacks carry unless a source's configuration says
    /// otherwise.
    pub fn default_check(self) -> Option<Result<Check, String>> {
        self.rules().default_check()
    }

    /// How tokens are granted, or why they cannot be.
    pub fn oauth(self, mapping: Option<&Mapping>) -> Result<OAuthRules, &'static str> {
        self.rules().oauth(mapping).ok_or(
            "the token answer does not say which installation it belongs to; for 'generic', set \
             mapping.token_installation_id",
        )
    }

    /// Whether an installation of the platform with this name may be a part of another one.
    pub fn parentage(name: &str) -> Option<Parentage> {
        let platform = Self::ALL.into_iter().find(|platform| platform.name() == name)?;
        platform.rules().oauth(None)?.parentage
    }

    pub fn install_page(self) -> Result<InstallPageRules, String> {
        let page = self.rules().install_page();
        page.ok_or_else(|| format!("'{self}' sends users to no such page; remove it"))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a callback goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination<'a> {
    Log,
    /// The app itself takes it, as it came.
    App {
        kind: &'a str,
    },
    /// It is none of the source's business: it is acknowledged, counted and not kept.
    Nowhere,
}

/// What installs or uninstalls goes to the log, always. `forwarded` may have `*`. What
/// names an app that is not `accepted` goes nowhere else.
pub fn destination<'a>(
    callback: &'a Callback,
    adapter: &dyn Adapter,
    accepted: &[AppId],
    ignored: &[String],
    forwarded: &[String],
) -> Destination<'a> {
    let Fact::Unrecognized { kind, .. } = &callback.fact else { return Destination::Log };
    let is_named = |types: &[String]| types.iter().any(|it| it == kind);
    let app = callback.app_id.as_ref();
    let is_ours = app.is_some_and(|app_id| accepted.contains(app_id));
    let is_foreign = app.is_some() && !is_ours && !accepted.is_empty();
    if is_named(ignored) {
        Destination::Nowhere
    } else if !is_foreign && (is_named(forwarded) || forwarded.iter().any(|it| it == "*")) {
        Destination::App { kind }
    } else if adapter.hears_of_others() && !is_ours {
        Destination::Nowhere
    } else {
        Destination::Log
    }
}

/// Refuses a callback for an app that the source does not list. An empty list
/// accepts every app.
pub fn accept_app(callback: &Callback, accepted: &[AppId]) -> Result<(), Refusal> {
    match &callback.app_id {
        Some(app_id) if !accepted.is_empty() && !accepted.contains(app_id) => {
            Err(Refusal::ForeignApp)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
