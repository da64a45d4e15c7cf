//! The page where a user types an app's secrets while installing it.

use std::path::Path;

use reqwest::Url;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Resolver, SourceSettings};
use domain::id::{AppId, SourceName};
use domain::platform::FormIdentity;

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstallPageSettings {
    /// The app's manifest, whose `name` and `secrets` make the page. The path is relative to the
    /// configuration file.
    pub manifest: std::path::PathBuf,
    /// Where the browser posts what was typed, to complete the installation: an `https://` URL. The
    /// platform's own unless given.
    pub complete_url: Option<String>,
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
        Some(Some(InstallPage {
            app_id: app_id.clone(),
            app_name: name,
            secrets,
            complete_url,
            installation_parameters,
            identity: rules.identity,
        }))
    }
}
