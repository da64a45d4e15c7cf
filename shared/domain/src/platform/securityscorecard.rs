//! SecurityScorecard marketplace apps: the webhook to an app's `hook_url`.
//!
//! Everything is nested under `event`. It is not signed, has no id, and there is
//! no event for an uninstall. Properties are only ever added.
//! Source: <https://securityscorecard.readme.io/docs/app-installation-process>.
//!
//! An installation is an app of a user; a later `installed_at` is a reinstall.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::fields::{self, Fields, id, optional_id, text};
use super::{AckContract, MissedAck, Refusal, SuccessBody};
use crate::details::Details;
use crate::event::{Callback, Fact, Identity, Payload, Reinstall};
use crate::id::{AppId, IdempotencyKey, InstallationId, Place};

mod app_secrets;

pub use app_secrets::{APP_SECRETS_HEADER, AppSecrets, InvalidAppSecrets};

/// No deadline and no retries are documented.
pub(super) const ACK_CONTRACT: AckContract = AckContract {
    deadline: Duration::from_secs(10),
    budget: Duration::from_secs(5),
    success: StatusCode::OK,
    body: SuccessBody::Json,
    unavailable: StatusCode::SERVICE_UNAVAILABLE,
    missed: MissedAck::Stands,
};

const INSTALLED: &str = "app.installed";

/// Reads one callback.
pub(super) fn parse(body: &[u8]) -> Result<Callback, Refusal> {
    let fields = fields::object(body)?;
    let event = object(&fields, "event")?;
    let kind = text(event, "type").map_err(|why| why.under("event"))?.to_owned();
    if kind != INSTALLED {
        let key = key(&[&hex::encode(Sha256::digest(body))])?;
        return Ok(super::unrecognized(kind, None, key, None, fields));
    }
    let (identity, installed_at) = installed(event).map_err(|why| why.under("event"))?;
    let username = identity.scope.get("username").map_or("", String::as_str);
    let at = installed_at.to_string();
    let key = key(&[identity.app_id.as_str(), username, &at])?;
    let app_id = Some(identity.app_id.clone());
    let fact = Fact::Installed {
        identity,
        granted_permissions: Vec::new(),
        credential: None,
        details: Details::default(),
    };
    let payload = Payload::Clear(Value::Object(fields));
    Ok(Callback { app_id, idempotency_key: key, occurred_at: Some(installed_at), fact, payload })
}

fn installed(event: &Fields) -> Result<(Identity, Timestamp), Refusal> {
    let payload = object(event, "payload")?;
    let read = || {
        let app = object(payload, "app")?;
        let user = object(payload, "user")?;
        let app_id = id(app, "id", AppId::parse).map_err(|why| why.under("app"))?;
        let under_user = |why: Refusal| why.under("user");
        let username = id(user, "username", InstallationId::parse).map_err(under_user)?;
        let organization = optional_id(user, "organizationDomain").unwrap_or_default();
        let installed_at = text(payload, "installed_at")?;
        let installed_at = fields::time(installed_at)
            .ok_or_else(|| Refusal::invalid("installed_at", fields::EXPECTED_TIME))?;
        let parts = [app_id.as_str(), "user", username.as_str()];
        let installation_id =
            InstallationId::of(&parts).map_err(|why| Refusal::invalid("username", why))?;
        let place = Place::of(&parts);
        let names = [("username", Some(username.into())), ("organization_domain", organization)];
        let scope: BTreeMap<String, String> =
            names.into_iter().filter_map(|(name, id)| Some((name.to_owned(), id?))).collect();
        let reinstall = Reinstall::SameId;
        Ok((Identity { installation_id, place, app_id, scope, reinstall }, installed_at))
    };
    read().map_err(|why: Refusal| why.under("payload"))
}

fn key(parts: &[&str]) -> Result<IdempotencyKey, Refusal> {
    let digest = hex::encode(Sha256::digest(parts.join("\n").as_bytes()));
    IdempotencyKey::parse(format!("sha256:{digest}")).map_err(|why| Refusal::invalid("event", why))
}

fn object<'a>(fields: &'a Fields, field: &'static str) -> Result<&'a Fields, Refusal> {
    let object = fields::present(fields, field)?;
    object.as_object().ok_or_else(|| Refusal::invalid(field, "must be an object"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INSTALL: &str = include_str!("securityscorecard/app_installed.json");
    /// As the published page was once copied, without its outer lines.
    const BROKEN: &str = include_str!("securityscorecard/broken_sample.txt");

    #[test]
    fn an_install_names_the_app_the_user_and_the_time() {
        let callback = parse(INSTALL.as_bytes()).unwrap();
        let Fact::Installed { identity, .. } = &callback.fact else { panic!("{callback:?}") };
        assert_eq!(identity.installation_id.as_str(), "app_1:user:ada@example.com");
        assert_eq!(identity.scope["organization_domain"], "example.com");
        assert_eq!(callback.occurred_at.unwrap().to_string(), "2021-05-12T12:50:43.743Z");
    }

    #[test]
    fn a_later_installed_at_is_another_event_and_an_additional_property_is_none() {
        let key = |body: &str| parse(body.as_bytes()).unwrap().idempotency_key;
        assert_ne!(key(INSTALL), key(&INSTALL.replace("2021-05-12", "2021-05-13")));
        let more = INSTALL.replace("\"app\"", "\"region\": \"eu\", \"app\"");
        assert_eq!(key(INSTALL), key(&more));
        let Payload::Clear(payload) = parse(more.as_bytes()).unwrap().payload else { panic!() };
        assert_eq!(payload["event"]["payload"]["region"], "eu");
    }

    #[test]
    fn only_the_exact_type_is_an_install() {
        for other in ["app.uninstalled", "app.installed.v2", "APP.INSTALLED"] {
            let body = INSTALL.replace("app.installed", other);
            assert_eq!(parse(body.as_bytes()).unwrap().fact.kind(), "unrecognized", "{other}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_path() {
        let refused = |from: &str| {
            let body = INSTALL.replace(&format!("\"{from}\""), "\"other\"");
            parse(body.as_bytes()).unwrap_err().to_string()
        };
        assert_eq!(refused("username"), "the field 'event.payload.user.username' is missing");
        assert_eq!(refused("id"), "the field 'event.payload.app.id' is missing");
        assert_eq!(refused("installed_at"), "the field 'event.payload.installed_at' is missing");
        assert_eq!(refused("type"), "the field 'event.type' is missing");
    }

    #[test]
    fn the_broken_sample_is_refused() {
        let refused = parse(BROKEN.as_bytes()).unwrap_err();
        assert!(matches!(refused, Refusal::MalformedJson { .. }), "{refused}");
    }
}
