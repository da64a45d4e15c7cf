//! What each platform sends, and how it is verified. The payloads are those of
//! the platforms' documentation; deploy/sources has the sources that read them.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use clap::ValueEnum;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::exposed;
use crate::plan::{Event, Kind};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Platform {
    /// Path token
    Blnk,
    /// Ed25519 signature
    Highlevel,
    /// Path token; tells of installs only
    Securityscorecard,
    /// A GitHub App: HMAC-SHA256
    Github,
    /// Standard Webhooks
    Whop,
    /// HMAC-SHA256
    Outreach,
    /// Path token, and a JWT that does not sign the body
    Monday,
    /// Connect: HMAC-SHA256 with a time
    Stripe,
}

/// A callback, ready to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Callback {
    pub(crate) path_token: Option<SecretString>,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
}

/// One app's callbacks at one platform.
pub(crate) struct Sender {
    platform: Platform,
    app: String,
    proof: Proof,
}

/// How a platform shows that a callback is its own.
enum Proof {
    PathToken(SecretString),
    Ed25519(Ed25519KeyPair),
    Hmac(SecretString),
    Jwt(SecretString),
    StandardWebhooks(standardwebhooks::Webhook),
}

impl Platform {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Blnk => "blnk",
            Self::Highlevel => "highlevel",
            Self::Securityscorecard => "securityscorecard",
            Self::Github => "github",
            Self::Whop => "whop",
            Self::Outreach => "outreach",
            Self::Monday => "monday",
            Self::Stripe => "stripe",
        }
    }

    pub(crate) fn tells_of_uninstalls(self) -> bool {
        self != Self::Securityscorecard
    }
}

impl Sender {
    pub(crate) fn new(platform: Platform, secret: SecretString, app: String) -> Result<Self> {
        let proof = match platform {
            Platform::Blnk | Platform::Securityscorecard => Proof::PathToken(secret),
            Platform::Github | Platform::Outreach | Platform::Stripe => Proof::Hmac(secret),
            Platform::Monday => Proof::Jwt(secret),
            Platform::Highlevel => {
                let seed = BASE64_STANDARD.decode(exposed(&secret)).ok();
                let key = seed.and_then(|seed| Ed25519KeyPair::from_seed_unchecked(&seed).ok());
                Proof::Ed25519(key.context("the secret must be 32 bytes in base64")?)
            }
            Platform::Whop => {
                let key = standardwebhooks::Webhook::new(secret.expose_secret());
                let why = "the secret must be `whsec_` and base64";
                Proof::StandardWebhooks(key.ok().context(why)?)
            }
        };
        Ok(Self { platform, app, proof })
    }

    pub(crate) fn ed25519(&self) -> Option<&Ed25519KeyPair> {
        match &self.proof {
            Proof::Ed25519(key) => Some(key),
            _ => None,
        }
    }

    /// A retry of an event has the same body. A forged one was made by somebody
    /// who does not know the secret.
    pub(crate) fn callback(&self, event: Event, forged: bool) -> Result<Callback> {
        let (mut headers, body) = match self.platform {
            Platform::Blnk => (vec![], self.blnk(event)),
            Platform::Highlevel => (vec![], self.highlevel(event)),
            Platform::Securityscorecard => (vec![], self.securityscorecard(event)),
            Platform::Github => (github_headers(event), self.github(event)),
            Platform::Whop => (vec![], self.whop(event)),
            Platform::Outreach => (vec![], self.outreach(event)),
            Platform::Monday => (vec![], self.monday(event)),
            Platform::Stripe => (vec![], self.stripe(event)),
        };
        let body = body.to_string();
        // What the attacker signs, or knows of the token.
        let signed = if forged { format!("{body} ") } else { body.clone() };
        let mut path_token = None;
        match &self.proof {
            Proof::PathToken(token) => {
                path_token = Some(if forged { guessed(token) } else { token.clone() })
            }
            Proof::Ed25519(key) => {
                let signature = BASE64_STANDARD.encode(key.sign(signed.as_bytes()));
                headers.push(("x-ghl-signature", signature));
            }
            Proof::Hmac(secret) => {
                // GitHub's headers are not signed, so the source asks for a token in the URL, too.
                path_token = (self.platform == Platform::Github).then(|| secret.clone());
                headers.push(self.signature(secret, &signed)?);
            }
            Proof::Jwt(secret) => {
                let secret = if forged { guessed(secret) } else { secret.clone() };
                headers.push(("authorization", jwt(&secret)?));
                path_token = Some(secret);
            }
            Proof::StandardWebhooks(key) => {
                let (id, now) = (number("msg", event), Timestamp::now().as_second());
                let signature = key.sign(&id, now, signed.as_bytes())?;
                headers.push(("webhook-id", id));
                headers.push(("webhook-timestamp", now.to_string()));
                headers.push(("webhook-signature", signature));
            }
        }
        Ok(Callback { path_token, headers, body })
    }

    fn signature(&self, secret: &SecretString, signed: &str) -> Result<(&'static str, String)> {
        let now = Timestamp::now().as_second();
        Ok(match self.platform {
            Platform::Stripe => {
                let signature = hex::encode(mac(secret, &format!("{now}.{signed}"))?);
                ("stripe-signature", format!("t={now},v1={signature}"))
            }
            Platform::Outreach => ("outreach-webhook-signature", hex::encode(mac(secret, signed)?)),
            _ => {
                let signature = hex::encode(mac(secret, signed)?);
                ("x-hub-signature-256", format!("sha256={signature}"))
            }
        })
    }

    /// <https://docs.blnkfinance.com/cloud/apps/installation>
    fn blnk(&self, event: Event) -> Value {
        let Event { kind, installation, generation, at } = event;
        let id = format!("instapp_{installation:016x}_{generation}");
        let mut fields = json!({
            "installed_app_id": id,
            "app_id": self.app,
            "instance_id": format!("inst_{installation:016x}"),
        });
        let more = match kind {
            Kind::Install => json!({
                "api_key": format!("blnk_{installation:032x}{generation:02x}"),
                "api_key_prefix": "blnk_000",
                "granted_permissions": ["data:read", "data:write"],
                "idempotency_key": format!("install:{id}"),
            }),
            Kind::Uninstall => json!({
                "uninstalled_at": at.to_string(),
                "idempotency_key": format!("uninstall:{id}"),
            }),
        };
        merge(&mut fields, more);
        fields
    }

    /// <https://marketplace.gohighlevel.com/docs/webhook/AppInstall>
    fn highlevel(&self, event: Event) -> Value {
        let Event { kind, installation, at, .. } = event;
        let mut fields = json!({
            "appId": self.app,
            "locationId": format!("loc_{installation:016x}"),
            "webhookId": number("wh", event),
            "timestamp": at.to_string(),
        });
        let more = match kind {
            Kind::Install => json!({
                "type": "INSTALL",
                "installType": "Location",
                "companyId": format!("co_{:08x}", installation >> 48),
                "planId": if installation % 2 == 0 { "plan_basic" } else { "plan_pro" },
                "trial": { "onTrial": true, "trialDuration": 14, "trialStartDate": at.to_string() },
            }),
            // A location's uninstall names no company.
            Kind::Uninstall => json!({ "type": "UNINSTALL" }),
        };
        merge(&mut fields, more);
        fields
    }

    /// <https://securityscorecard.readme.io/docs/app-installation-process>
    fn securityscorecard(&self, Event { installation, at, .. }: Event) -> Value {
        let user = format!("user-{installation:016x}@example.com");
        json!({ "event": {
            "type": "app.installed",
            "payload": {
                "app": { "id": self.app },
                "user": { "username": user, "email": user, "organizationDomain": "example.com" },
                "installed_at": at.to_string(),
            },
        }})
    }

    /// <https://docs.github.com/webhooks/webhook-events-and-payloads#installation>
    fn github(&self, event: Event) -> Value {
        let Event { kind, installation, generation, at } = event;
        let action = if kind == Kind::Install { "created" } else { "deleted" };
        // JSON numbers are exact up to 2^53.
        let account = installation >> 20;
        json!({
            "action": action,
            "installation": {
                "id": account * 16 + u64::from(generation),
                "app_id": self.app,
                "account": { "login": format!("octo-{account}"), "id": account, "type": "Organization" },
                "permissions": { "contents": "read", "issues": "write" },
                "created_at": at.to_string(),
            },
        })
    }

    /// <https://developers.outreach.io/client-extensions/app-lifecycle-webhooks>
    fn outreach(&self, event: Event) -> Value {
        let Event { kind, installation, generation, at } = event;
        let kind = if kind == Kind::Install { "created" } else { "deleted" };
        json!({
            "data": {
                "type": "install",
                "id": format!("{installation:016x}-{generation}"),
                "relationships": { "app": { "data": { "type": "app", "id": self.app } } },
            },
            "meta": { "deliveredAt": at.to_string(), "eventName": format!("install.{kind}") },
        })
    }

    /// <https://developer.monday.com/apps/docs/webhooks>
    fn monday(&self, Event { kind, installation, at, .. }: Event) -> Value {
        let kind = if kind == Kind::Install { "install" } else { "uninstall" };
        json!({
            "type": kind,
            "data": {
                "app_id": self.app,
                // JSON numbers are exact up to 2^53.
                "account_id": installation >> 12,
                "user_id": 3,
                "timestamp": at.to_string(),
                "subscription": { "plan_id": "basic", "is_trial": false },
            },
        })
    }

    /// <https://docs.stripe.com/api/events/types#event_types-account.application.authorized>
    fn stripe(&self, event: Event) -> Value {
        let Event { kind, installation, at, .. } = event;
        let kind = if kind == Kind::Install { "authorized" } else { "deauthorized" };
        json!({
            "id": number("evt", event),
            "object": "event",
            "account": format!("acct_{installation:016x}"),
            "created": at.as_second(),
            "type": format!("account.application.{kind}"),
            "data": { "object": { "id": self.app, "object": "application", "name": "Demo" } },
        })
    }

    /// <https://docs.whop.com/developer/guides/webhooks>
    fn whop(&self, event: Event) -> Value {
        let Event { kind, installation, generation, at } = event;
        let kind = if kind == Kind::Install { "created" } else { "deleted" };
        json!({
            "type": format!("app_installation.{kind}"),
            "timestamp": at.to_string(),
            "data": {
                "id": format!("appi_{installation:016x}_{generation}"),
                "access_token": format!("whop_{installation:032x}{generation:02x}"),
            },
        })
    }
}

fn guessed(secret: &SecretString) -> SecretString {
    SecretString::from("0".repeat(exposed(secret).len()))
}

fn mac(secret: &SecretString, signed: &str) -> Result<Vec<u8>> {
    let mac = Hmac::<Sha256>::new_from_slice(exposed(secret))?;
    Ok(mac.chain_update(signed).finalize().into_bytes().to_vec())
}

/// HS256 (RFC 7515), good for five minutes.
fn jwt(secret: &SecretString) -> Result<String> {
    let now = Timestamp::now().as_second();
    let header = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    let claims = json!({ "iat": now, "exp": now + 300 }).to_string();
    let signed = format!("{header}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims));
    let signature = BASE64_URL_SAFE_NO_PAD.encode(mac(secret, &signed)?);
    Ok(format!("{signed}.{signature}"))
}

fn github_headers(event: Event) -> Vec<(&'static str, String)> {
    let delivery = number("delivery", event);
    vec![("x-github-event", "installation".to_owned()), ("x-github-delivery", delivery)]
}

/// The same for every delivery of an event, and for no other event.
fn number(prefix: &str, Event { kind, installation, generation, .. }: Event) -> String {
    let kind = if kind == Kind::Install { 'i' } else { 'u' };
    format!("{prefix}_{installation:016x}{generation}{kind}")
}

fn merge(into: &mut Value, more: Value) {
    if let (Value::Object(into), Value::Object(more)) = (into, more) {
        into.extend(more);
    }
}

/// SubjectPublicKeyInfo of an Ed25519 key: RFC 8410, section 4.
pub(crate) fn public_key_pem(key: &Ed25519KeyPair) -> String {
    const PREFIX: [u8; 12] =
        [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
    let der = [&PREFIX, key.public_key().as_ref()].concat();
    let base64 = BASE64_STANDARD.encode(der);
    format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n")
}
