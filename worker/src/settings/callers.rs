//! Who may call the read API, as the configuration has it.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use domain::id::{AppId, SourceName};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use service::config::{
    ApiTokenSettings, Config, IdentityCallerSettings, Resolver, Scope, SourceChoice, TokenHash,
};
use service::identity::IssuerOptions;
use service::secret_ref::SecretRef;

use crate::store::reach::Reach;

/// Everybody who may call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CallerSettings {
    pub(crate) tokens: Vec<TokenSettings>,
    pub(crate) providers: Vec<ProviderSettings>,
}

/// An issuer, and whom of those that it knows we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ProviderSettings {
    pub(crate) issuer: IssuerOptions,
    pub(crate) callers: Vec<IdentitySettings>,
}

/// A caller that its claims tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdentitySettings {
    /// `<provider>.<caller>`
    pub(crate) name: String,
    pub(crate) claims: BTreeMap<String, String>,
    pub(crate) allowance: Allowance,
}

/// A token and its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenSettings {
    pub(crate) name: String,
    pub(crate) hash: TokenHash,
    pub(crate) expires_at: Timestamp,
    pub(crate) allowance: Allowance,
}

/// What a caller may do, to which installations, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allowance {
    pub(crate) scopes: Vec<Scope>,
    pub(crate) reach: Reach,
    pub(crate) requests_per_second: NonZeroU32,
}

impl CallerSettings {
    /// Those that are usable. What is wrong with the others is noted: such a caller is
    /// not let in.
    pub(crate) fn resolve(config: &Config, resolver: &mut Resolver<'_>) -> Self {
        let mut tokens: Vec<TokenSettings> = Vec::new();
        let mut by_hash: BTreeMap<String, String> = BTreeMap::new();
        for (name, settings) in &config.worker.api_tokens {
            let Some(token) = token(config, name, settings, resolver) else { continue };
            if let Some(other) = by_hash.insert(token.hash.to_string(), name.clone()) {
                let at = format!("worker.api_tokens.{name}.sha256");
                resolver.problem(&at, format!("is that of '{other}', too: whose token is it?"));
                continue;
            }
            tokens.push(token);
        }
        Self { tokens, providers: providers(config, resolver) }
    }
}

fn providers(config: &Config, resolver: &mut Resolver<'_>) -> Vec<ProviderSettings> {
    let mut providers: Vec<ProviderSettings> = Vec::new();
    for (name, settings) in &config.worker.identity_providers {
        let at = format!("worker.identity_providers.{name}");
        let Some(issuer) = resolver.issuer(&at, settings) else { continue };
        if providers.iter().any(|other| other.issuer.issuer == issuer.issuer) {
            resolver.problem(&format!("{at}.issuer"), "is that of another provider, too");
            continue;
        }
        let callers = settings.callers.iter();
        let callers = callers.filter_map(|(caller, settings)| {
            let at = format!("{at}.callers.{caller}");
            identity(config, &at, format!("{name}.{caller}"), settings, resolver)
        });
        let callers = callers.collect();
        providers.push(ProviderSettings { issuer, callers });
    }
    providers
}

fn identity(
    config: &Config,
    at: &str,
    name: String,
    settings: &IdentityCallerSettings,
    resolver: &mut Resolver<'_>,
) -> Option<IdentitySettings> {
    if settings.claims.is_empty() {
        let what = "must name the claims that tell the caller: everybody has a token of the issuer";
        resolver.problem(&format!("{at}.claims"), what);
        return None;
    }
    let IdentityCallerSettings { scopes, sources, app_ids, .. } = settings;
    let choice = Choice { at, scopes, sources, app_ids };
    let reach = choice.reach(config, resolver);
    let scopes = choice.scopes(resolver)?;
    let requests_per_second = settings.requests_per_second;
    let allowance = Allowance { scopes, reach: reach?, requests_per_second };
    Some(IdentitySettings { name, claims: settings.claims.clone(), allowance })
}

fn token(
    config: &Config,
    name: &str,
    settings: &ApiTokenSettings,
    resolver: &mut Resolver<'_>,
) -> Option<TokenSettings> {
    let at = format!("worker.api_tokens.{name}");
    if let Some(reference) = &settings.token {
        let create = format!(
            "is the token itself: this version takes its SHA-256, with an end and with the sources \
             that it reaches. `worker tokens create {name}` makes a new token and prints what to \
             write here; `--token-file` keeps the token in {reference}"
        );
        resolver.problem(&format!("{at}.token"), create);
        return None;
    }
    let hash = hash(&at, settings, resolver);
    let expires_at = settings.expires_at;
    if expires_at.is_none() {
        let what = "must say when the token ends, such as \"2027-01-31T00:00:00Z\"";
        resolver.problem(&format!("{at}.expires_at"), what);
    }
    let choice = Choice {
        at: &at,
        scopes: &settings.scopes,
        sources: settings.sources.as_deref().unwrap_or_default(),
        app_ids: &settings.app_ids,
    };
    let reach = choice.reach(config, resolver);
    let scopes = choice.scopes(resolver)?;
    let requests_per_second = settings.requests_per_second;
    let allowance = Allowance { scopes, reach: reach?, requests_per_second };
    Some(TokenSettings { name: name.to_owned(), hash: hash?, expires_at: expires_at?, allowance })
}

fn hash(at: &str, settings: &ApiTokenSettings, resolver: &mut Resolver<'_>) -> Option<TokenHash> {
    match (&settings.sha256, &settings.sha256_file) {
        (Some(hash), None) => Some(*hash),
        (None, Some(file)) => {
            let at = format!("{at}.sha256_file");
            let text: SecretString = resolver.secret(&at, &SecretRef::File(file.clone()))?;
            TokenHash::parse(text.expose_secret()).map_err(|why| resolver.problem(&at, why)).ok()
        }
        (None, None) | (Some(_), Some(_)) => {
            resolver.problem(at, "give either sha256 or sha256_file: see `worker tokens create`");
            None
        }
    }
}

/// What the configuration says of a caller's allowance.
pub(crate) struct Choice<'a> {
    pub(crate) at: &'a str,
    pub(crate) scopes: &'a [Scope],
    pub(crate) sources: &'a [SourceChoice],
    pub(crate) app_ids: &'a [AppId],
}

impl Choice<'_> {
    fn scopes(&self, resolver: &mut Resolver<'_>) -> Option<Vec<Scope>> {
        let has = |scope| self.scopes.contains(&scope);
        let what = if self.scopes.is_empty() {
            "must name at least one scope"
        } else if has(Scope::OpenRefreshTokens) && !has(Scope::OpenCredentials) {
            "refresh_tokens:open needs credentials:open beside it"
        } else {
            return Some(self.scopes.to_vec());
        };
        resolver.problem(&format!("{}.scopes", self.at), what);
        None
    }

    fn reach(&self, config: &Config, resolver: &mut Resolver<'_>) -> Option<Reach> {
        let at = format!("{}.sources", self.at);
        if self.sources.is_empty() {
            let what = "must name the sources that it reaches; [\"*\"] is every source";
            resolver.problem(&at, what);
            return None;
        }
        let app_ids: BTreeSet<&str> = self.app_ids.iter().map(AppId::as_str).collect();
        if self.sources.contains(&SourceChoice::Every) {
            if app_ids.is_empty() && self.sources.len() == 1 {
                return Some(Reach::Everything);
            }
            let what = "\"*\" stands alone, without other sources and without app_ids, which mean \
                        something at their platform only";
            resolver.problem(&at, what);
            return None;
        }
        let mut sources = BTreeSet::new();
        for choice in self.sources {
            let SourceChoice::Named(name) = choice else { continue };
            if !config.sources.contains_key(name) {
                let known: Vec<&str> = config.sources.keys().map(SourceName::as_str).collect();
                let known = known.join(", ");
                resolver.problem(&at, format!("there is no source '{name}', only {known}"));
                return None;
            }
            sources.insert(name.as_str());
        }
        let owned = |texts: BTreeSet<&str>| texts.into_iter().map(str::to_owned).collect();
        let sources: Vec<String> = owned(sources);
        Some(if app_ids.is_empty() {
            Reach::Sources(sources)
        } else {
            Reach::Apps { sources, app_ids: owned(app_ids) }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn resolved(token: &str) -> Result<CallerSettings, String> {
        let text = format!(
            "nats.url = \"nats://127.0.0.1\"\n[sealing]\nactive = \"k1\"\n\
             fingerprint_key = {{ env = \"A\" }}\nkeys.k1 = {{ env = \"A\" }}\n\
             [sources.blnk]\nplatform = \"blnk\"\n[sources.shop]\nplatform = \"blnk\"\n\
             [worker.api_tokens.app]\n{token}\n"
        );
        let config = Config::parse(&text)?;
        let env = |_: &str| None;
        let mut resolver = Resolver::new(&env);
        let found = CallerSettings::resolve(&config, &mut resolver);
        resolver.finish(Path::new("x"), Some(found)).map_err(|error| error.to_string())
    }

    fn with(lines: &str) -> Result<CallerSettings, String> {
        resolved(&format!("sha256 = \"{HASH}\"\nexpires_at = \"2030-01-01T00:00:00Z\"\n{lines}"))
    }

    #[test]
    fn a_token_reaches_what_is_written_and_no_more() {
        let reach = |lines: &str| {
            let found = with(&format!("scopes = [\"installations:read\"]\n{lines}")).unwrap();
            found.tokens[0].allowance.reach.clone()
        };
        assert_eq!(reach("sources = [\"*\"]"), Reach::Everything);
        assert_eq!(reach("sources = [\"blnk\", \"blnk\"]"), Reach::Sources(vec!["blnk".into()]));
        assert_eq!(
            reach("sources = [\"blnk\"]\napp_ids = [\"b\", \"a\", \"b\"]"),
            Reach::Apps { sources: vec!["blnk".into()], app_ids: vec!["a".into(), "b".into()] }
        );
    }

    #[test]
    fn what_a_token_lacks_is_said_with_what_to_write() {
        let read = "scopes = [\"installations:read\"]";
        let refused = [
            (resolved(&format!("{read}\ntoken = {{ env = \"A\" }}")), "worker tokens create app"),
            (resolved(&format!("{read}\nsources = [\"*\"]")), "expires_at: must say when"),
            (resolved(&format!("{read}\nsources = [\"*\"]")), "sha256 or sha256_file"),
            (with(read), "must name the sources that it reaches"),
            (with(&format!("{read}\nsources = [\"bink\"]")), "no source 'bink', only blnk, shop"),
            (with(&format!("{read}\nsources = [\"*\", \"blnk\"]")), "stands alone"),
            (with(&format!("{read}\nsources = [\"*\"]\napp_ids = [\"a\"]")), "at their platform"),
            (with("scopes = []\nsources = [\"*\"]"), "at least one scope"),
            (with("scopes = [\"refresh_tokens:open\"]\nsources = [\"*\"]"), "credentials:open"),
        ];
        for (result, expected) in refused {
            let error = result.unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn two_names_for_one_token_are_refused() {
        let read = "scopes = [\"installations:read\"]\nsources = [\"*\"]";
        let one = format!("sha256 = \"{HASH}\"\nexpires_at = \"2030-01-01T00:00:00Z\"\n{read}");
        let error = resolved(&format!("{one}\n[worker.api_tokens.other]\n{one}")).unwrap_err();
        assert!(error.contains("whose token is it?"), "{error}");
    }
}
