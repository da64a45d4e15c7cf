//! `worker tokens`: makes tokens for the read API, and lists those that are
//! configured. It needs neither NATS nor Postgres.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use clap::{Args, Subcommand, value_parser};
use domain::id::AppId;
use jiff::{SignedDuration, Timestamp, Unit};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use service::clock;
use service::config::{Scope, SourceChoice, TokenHash};
use service::secret_ref::SecretRef;
use sha2::{Digest as _, Sha256};

use crate::operate::context::{self, Context};
use crate::operate::exit::WrongArguments;
use crate::operate::output::Format;

/// So that a scanner recognises a token that was pasted somewhere.
const PREFIX: &str = "mooring_";
const RANDOM_BYTES: usize = 32;
/// Of a token that somebody else made: 256 random bits have as many characters in base64. What is
/// shorter may be guessed from its hash.
const TOKEN_BYTES_MIN: usize = 43;
const NAME_BYTES_MAX: usize = 64;

/// Make tokens for the read API, and list those of the configuration
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Create(Create),
    /// List the tokens of the configuration, without their hashes
    List {
        #[command(flatten)]
        format: Format,
    },
}

/// Make a token, and print it once, with what to write into the configuration
///
/// The configuration holds only the token's SHA-256. Workers read it again within five seconds: a
/// token that was added works, and one that was deleted does not, without a restart.
#[derive(Args)]
#[command(after_help = "\
Examples:
  worker tokens create my-app --source blnk --scope installations:read --scope credentials:open
  worker tokens create billing --source blnk --app app_1 --scope installations:read --days 30
  worker tokens create my-app --source '*' --scope installations:read --token-file old-token")]
struct Create {
    /// Its name in the configuration and in records
    #[arg(value_parser = name)]
    name: String,
    /// What its holder may do; may be given several times
    #[arg(long = "scope", value_name = "SCOPE", required = true, value_parser = scope)]
    scopes: Vec<Scope>,
    /// A source that its holder reaches, or '*' for every one; may be given several times
    #[arg(long = "source", value_name = "SOURCE", required = true, value_parser = |text: &str| SourceChoice::try_from(text.to_owned()))]
    sources: Vec<SourceChoice>,
    /// An app that its holder reaches, by the platform's id; may be given several times. Without it
    /// every app of the sources
    #[arg(long = "app", value_name = "APP_ID", value_parser = |text: &str| AppId::parse(text))]
    app_ids: Vec<AppId>,
    /// After so many days it ends
    #[arg(long, default_value_t = 90, value_parser = value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Hash the token in this file instead of making one
    #[arg(long, value_name = "PATH")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

fn name(text: &str) -> Result<String, &'static str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let is_name = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(is_plain);
    is_name.then(|| text.to_owned()).ok_or("use at most 64 letters, digits, '-' and '_'")
}

fn scope(text: &str) -> Result<Scope, String> {
    let known = Scope::ALL.into_iter().find(|scope| scope.name() == text);
    known.ok_or_else(|| format!("use one of {}", Scope::ALL.map(Scope::name).join(", ")))
}

/// A token that was made.
#[derive(Serialize)]
struct Created {
    /// Null if it was in a file.
    token: Option<String>,
    /// What to write.
    configuration: String,
}

/// A token of the configuration.
#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    scopes: Vec<&'static str>,
    sources: Vec<String>,
    app_ids: Vec<String>,
    expires_at: Option<Timestamp>,
    state: &'static str,
}

impl context::Command for Arguments {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self.command {
            Command::Create(create) => {
                let format = create.format;
                format.print(&create.create(context, clock::now())?, render_created)
            }
            Command::List { format } => {
                format.print(list(context, clock::now()).as_slice(), render_listed)
            }
        }
    }
}

impl Create {
    fn create(self, context: &Context, now: Timestamp) -> anyhow::Result<Created> {
        let known = context.config.worker.api_tokens.get(&self.name);
        if known.is_some_and(|known| known.token.is_none()) {
            bail!(WrongArguments(format!("there is a token '{}' already", self.name)));
        }
        let (token, hash) = match &self.token_file {
            Some(path) => (None, hash_of(&read(path, context)?)),
            None => {
                let random = BASE64_URL_SAFE_NO_PAD.encode(rand::random::<[u8; RANDOM_BYTES]>());
                let token = format!("{PREFIX}{random}");
                (Some(token.clone()), hash_of(&token.into()))
            }
        };
        let lasts = SignedDuration::from_hours(24 * i64::from(self.days));
        let expires_at = now.checked_add(lasts).context("that many days")?.round(Unit::Second)?;
        Ok(Created { token, configuration: self.configuration(hash, expires_at) })
    }

    fn configuration(&self, hash: TokenHash, expires_at: Timestamp) -> String {
        let list = |texts: Vec<&str>| {
            let quoted = texts.into_iter().map(|text| serde_json::Value::from(text).to_string());
            quoted.collect::<Vec<_>>().join(", ")
        };
        let scopes = list(self.scopes.iter().map(|scope| scope.name()).collect());
        let sources = list(self.sources.iter().map(source_text).collect());
        let mut lines = vec![
            format!("[worker.api_tokens.{}]", self.name),
            format!("sha256 = \"{hash}\""),
            format!("scopes = [{scopes}]"),
            format!("sources = [{sources}]"),
        ];
        if !self.app_ids.is_empty() {
            let app_ids = list(self.app_ids.iter().map(AppId::as_str).collect());
            lines.push(format!("app_ids = [{app_ids}]"));
        }
        lines.push(format!("expires_at = \"{expires_at}\""));
        lines.join("\n")
    }
}

fn source_text(choice: &SourceChoice) -> &str {
    match choice {
        SourceChoice::Every => "*",
        SourceChoice::Named(name) => name.as_str(),
    }
}

fn read(path: &std::path::Path, context: &Context) -> anyhow::Result<SecretString> {
    let token = SecretRef::File(path.to_owned()).read(&context.env)?;
    if token.expose_secret().len() < TOKEN_BYTES_MIN {
        bail!(
            "the token in {} has less than {TOKEN_BYTES_MIN} bytes, so it may be guessed from its \
             hash: make a new one, without --token-file",
            path.display()
        );
    }
    Ok(token)
}

fn hash_of(token: &SecretString) -> TokenHash {
    TokenHash::new(Sha256::digest(token.expose_secret()).into())
}

fn list(context: &Context, now: Timestamp) -> Vec<Listed> {
    let tokens = context.config.worker.api_tokens.iter();
    let listed = tokens.map(|(name, settings)| Listed {
        name: name.clone(),
        scopes: settings.scopes.iter().map(|scope| scope.name()).collect(),
        sources: settings.sources.iter().flatten().map(|it| source_text(it).to_owned()).collect(),
        app_ids: settings.app_ids.iter().map(ToString::to_string).collect(),
        expires_at: settings.expires_at,
        state: match settings.expires_at {
            _ if settings.token.is_some() => "not usable: see `worker run --check-config`",
            None => "not usable: see `worker run --check-config`",
            Some(end) if end <= now => "expired",
            Some(_) => "valid",
        },
    });
    listed.collect()
}

fn render_created(created: &Created) -> String {
    let Created { token, configuration } = created;
    let token = token.as_ref().map_or_else(String::new, |token| {
        format!("The token, which is shown this once:\n\n{token}\n\n")
    });
    format!("{token}Write this into the configuration:\n\n{configuration}")
}

fn render_listed(tokens: &[Listed]) -> String {
    if tokens.is_empty() {
        return "no tokens".to_owned();
    }
    let line = |token: &Listed| {
        let Listed { name, scopes, sources, app_ids, expires_at, state } = token;
        let apps = if app_ids.is_empty() {
            "every app".to_owned()
        } else {
            format!("apps {}", app_ids.join(", "))
        };
        let end = expires_at.map(|end| format!(", ends {end}")).unwrap_or_default();
        let (scopes, sources) = (scopes.join(" "), sources.join(", "));
        format!("{name:<20} {state}{end}; {scopes}; sources {sources}, {apps}")
    };
    tokens.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operate::tests::assert_view;

    #[test]
    fn what_to_write_is_printed_with_the_token_once() {
        let create = Create {
            name: "my-app".into(),
            scopes: vec![Scope::ReadInstallations, Scope::OpenCredentials],
            sources: vec![SourceChoice::try_from("blnk".to_owned()).unwrap()],
            app_ids: vec![AppId::parse("app_1").unwrap()],
            days: 90,
            token_file: None,
            format: Format::default(),
        };
        let token = "mooring_AAAA".to_owned();
        let hash = hash_of(&token.clone().into());
        let configuration = create.configuration(hash, Timestamp::UNIX_EPOCH);
        let created = Created { token: Some(token), configuration };
        assert_view("tokens-create", &render_created(&created));
    }

    #[test]
    fn tokens_are_listed_with_what_they_reach() {
        let listed = |name: &str, app_ids: &[&str], state| Listed {
            name: name.into(),
            scopes: vec!["installations:read"],
            sources: vec!["blnk".into()],
            app_ids: app_ids.iter().map(|it| (*it).to_owned()).collect(),
            expires_at: Some(Timestamp::UNIX_EPOCH),
            state,
        };
        let tokens = [listed("all", &[], "valid"), listed("one", &["app_1"], "expired")];
        assert_view("tokens-list", &render_listed(&tokens));
        assert_eq!(render_listed(&[]), "no tokens");
    }
}
