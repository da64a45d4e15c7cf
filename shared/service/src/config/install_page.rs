//! The page where a user types an app's secrets while installing it.

use std::path::Path;

use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Resolver, SourceSettings};
use domain::id::{AppId, SourceName};
use domain::platform::FormIdentity;

/// A scheme, a host of which the first part may be `*`, and perhaps a port: it can
/// end neither the list nor the policy that it stands in.
fn is_host_source(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let name = host.strip_prefix("*.").unwrap_or(host);
    let name = name.strip_suffix(":*").unwrap_or(name);
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:".contains(&byte);
    let is_local = name.starts_with("127.0.0.1") || name.starts_with("localhost");
    (scheme == "https" || (scheme == "http" && is_local))
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(is_host)
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstallPageSettings {
    /// The app's manifest, whose `name` and `secrets` make the page. The path is relative to the
    /// configuration file.
    pub manifest: std::path::PathBuf,
    /// Where the browser posts what was typed, to complete the installation: an `https://` URL. The
    /// platform's own unless given.
    pub complete_url: Option<String>,
    /// The hosts that the platform may send the browser on to from there, such as
    /// `https://*.example.com`. Browsers hold them against the form. The platform's own unless given.
    pub redirect_hosts: Option<Vec<String>>,
    /// The names that the installation id may have in the query of the page's URL. The platform's
    /// own unless given.
    pub installation_parameters: Option<Vec<String>>,
    /// Keys of the manifest's `secrets` that may be seen while they are typed, such as the name
    /// of an account. They are sealed like the others.
    #[serde(default)]
    pub visible: Vec<String>,
}

/// What the page needs of a manifest.
#[derive(Debug, Deserialize)]
struct Manifest {
    name: String,
    #[serde(default)]
    secrets: Vec<DeclaredSecret>,
}

/// A secret as the app's manifest declares it.
#[derive(Debug, Clone, Deserialize)]
pub struct DeclaredSecret {
    pub key: String,
    #[serde(default)]
    pub description: String,
    #[serde(default)]
    pub value_required: bool,
    #[serde(skip)]
    pub visible: bool,
}

/// A source's install page.
#[derive(Debug, Clone)]
pub struct InstallPage {
    pub app_id: AppId,
    pub app_name: String,
    pub secrets: Vec<DeclaredSecret>,
    pub complete_url: Url,
    pub installation_parameters: Vec<String>,
    /// Where its form may lead, as in a Content-Security-Policy.
    pub form_hosts: String,
    pub identity: FormIdentity,
}

impl Resolver<'_> {
    /// `None` if it is not usable; the problems are noted.
    pub fn install_page(
        &mut self,
        path: &Path,
        source: &SourceName,
        of: &SourceSettings,
    ) -> Option<Option<InstallPage>> {
        let Some(settings) = &of.install_page else { return Some(None) };
        let at = format!("sources.{source}.install_page");
        let rules = of.platform.install_page();
        let rules = rules.map_err(|what| self.problem(&at, what)).ok()?;
        let [app_id] = &of.app_ids[..] else {
            self.problem(&at, "app_ids must name the one app whose manifest this is");
            return None;
        };
        let file = path.parent().unwrap_or(Path::new("")).join(&settings.manifest);
        let manifest = std::fs::read(&file).map_err(|error| error.to_string());
        let manifest = manifest.and_then(|text| {
            serde_json::from_slice::<Manifest>(&text).map_err(|error| error.to_string())
        });
        let Manifest { name, mut secrets } = manifest
            .map_err(|why| self.problem(&at, format!("the manifest {}: {why}", file.display())))
            .ok()?;
        let is_declared = |key: &String| secrets.iter().any(|secret| secret.key == *key);
        if let Some(unknown) = settings.visible.iter().find(|key| !is_declared(key)) {
            self.problem(&at, format!("visible names '{unknown}', which the manifest does not"));
            return None;
        }
        let installation_parameters = settings.installation_parameters.clone();
        let installation_parameters = installation_parameters.unwrap_or_else(|| {
            rules.installation_parameters.iter().copied().map(str::to_owned).collect()
        });
        let reserved = |secret: &DeclaredSecret| {
            secret.key.is_empty() || installation_parameters.contains(&secret.key)
        };
        if secrets.iter().any(reserved) || installation_parameters.is_empty() {
            self.problem(&at, "a secret needs a key that is not one of installation_parameters");
            return None;
        }
        for secret in &mut secrets {
            secret.visible = settings.visible.contains(&secret.key);
        }
        let complete_url = settings.complete_url.as_deref().unwrap_or(rules.complete_url);
        let complete_url = self.https(&at, "complete_url", complete_url)?;
        let form_hosts = self.form_hosts(&at, settings, &complete_url, rules.redirect_hosts)?;
        Some(Some(InstallPage {
            form_hosts,
            app_id: app_id.clone(),
            app_name: name,
            secrets,
            complete_url,
            installation_parameters,
            identity: rules.identity,
        }))
    }

    fn form_hosts(
        &mut self,
        at: &str,
        settings: &InstallPageSettings,
        complete_url: &Url,
        defaults: &[&str],
    ) -> Option<String> {
        let given = settings.redirect_hosts.clone();
        let given = given.unwrap_or_else(|| defaults.iter().copied().map(str::to_owned).collect());
        if let Some(bad) = given.iter().find(|source| !is_host_source(source)) {
            self.problem(
                at,
                format!("redirect_hosts: '{bad}' must look like https://*.example.com"),
            );
            return None;
        }
        let origin = complete_url.origin().ascii_serialization();
        let all = std::iter::once(origin).chain(given);
        Some(all.collect::<Vec<_>>().join(" "))
    }
}
