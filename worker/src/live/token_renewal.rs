//! Renews OAuth tokens before they end, and exchanges the tokens of an
//! installation for those of its parts, where the platform has such. What is issued is sealed and appended to the log like
//! any other event; the projection follows from there.
//!
//! A refresh token may be used once, so one worker asks at a time: it claims the
//! installation in `mooring.token_renewals` before it asks, for longer than
//! asking can take, and for good once the new tokens are in the log. A worker
//! that dies in between has used up the token if the platform rotates it; the
//! next attempt shows whether it has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use backon::{ConstantBuilder, Retryable as _};
use domain::data_key::DataKey;
use domain::event::{Callback, Grant, Identity};
use domain::fingerprint::FingerprintKeys;
use domain::id::{InstallationId, PlatformName, SourceName};
use domain::key_ring::KeyRing;
use domain::platform::{Parent, Parentage};
use domain::seal::SealingNonce;
use domain::tokens::{Issued, Tokens};
use eventlog::append::Writer;
use eventlog::connect::Connection;
use eventlog::keys::{Current, DataKeyPool};
use eventlog::message::LogMessage;
use eventlog::status;
use jiff::SignedDuration;
use opentelemetry::KeyValue;
use service::clock;
use service::oauth::{OAuth, TokenError};
use service::telemetry::names::attribute;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::live::access::Who;
use crate::live::access::record::Recorder;
use crate::live::credential::{self, Part};
use crate::metrics::METRICS;
use crate::store::convert::from_sql;
use crate::store::database;
use crate::store::installations;
use crate::store::installations::{InstallationView, Selection};
use crate::store::journal::{self, Known};
use crate::store::reach::Reach;
use crate::store::token_renewals::{self, Again, Candidate, Claim};

/// As the record of opened credentials names it.
const CALLER: &str = "worker: token renewal";
const AFTER_INSTALL: SignedDuration = SignedDuration::from_millis(1);
const APPEND_FOR: Duration = Duration::from_secs(90);
const NOTE_EVERY: Duration = Duration::from_secs(1);
const NOTE_ATTEMPTS: usize = 30;
const DATA_KEY_WAIT: Duration = Duration::from_secs(5);
/// The log is not filled to the last byte with tokens.
const ROOM_BYTES: u64 = 1 << 20;
/// Tokens that could not be kept would be followed by others.
const PAUSE_AFTER_LOSS: Duration = Duration::from_secs(600);

pub(crate) struct TokenRenewal {
    pub(crate) pool: PgPool,
    /// To read data keys.
    pub(crate) connection: Connection,
    /// As a user that may append.
    pub(crate) appender: Connection,
    /// With it, and as that user.
    pub(crate) writer: Writer,
    /// To open the tokens that are renewed.
    pub(crate) ring: Current<KeyRing>,
    pub(crate) fingerprints: FingerprintKeys,
    pub(crate) recorder: Recorder,
    pub(crate) data_keys: Arc<DataKeyPool>,
    pub(crate) apps: BTreeMap<SourceName, OAuth>,
    pub(crate) before_expiry: Duration,
    pub(crate) every: Duration,
}

/// Why there are no new tokens.
#[derive(Debug, thiserror::Error)]
enum NotRenewed {
    #[error("{0}")]
    Asked(#[from] TokenError),
    /// Until the installation gets other tokens.
    #[error("{0}")]
    Never(&'static str),
    #[error("new tokens were issued and are lost: {0:#}")]
    Lost(anyhow::Error),
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// What came of asking for tokens, and whose they are.
struct Asked {
    grant: Grant,
    identity: Identity,
    issued: Result<Issued, TokenError>,
}

/// How a round ended.
enum Round {
    Done,
    /// There may be more.
    Full,
}

impl TokenRenewal {
    /// Until `shutdown`, and what has been begun then.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut last_problem = String::new();
        while !shutdown.is_cancelled() {
            let wait = match self.renew_due(&shutdown).await {
                Ok(Round::Full) => continue,
                Ok(Round::Done) => {
                    last_problem.clear();
                    self.every
                }
                Err(error) => {
                    let problem = format!("{error:#}");
                    if problem != last_problem {
                        tracing::warn!(problem, "tokens cannot be renewed now");
                        last_problem = problem;
                    }
                    let is_lost = error.downcast_ref().is_some_and(NotRenewed::is_lost);
                    if is_lost { PAUSE_AFTER_LOSS } else { self.every }
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    async fn renew_due(&self, shutdown: &CancellationToken) -> anyhow::Result<Round> {
        let sources: Vec<&str> = self.apps.keys().map(SourceName::as_str).collect();
        let mut connection = database::acquire(&self.pool).await?;
        let mut due =
            token_renewals::expiring(&mut connection, &sources, self.before_expiry).await?;
        for (source, app) in &self.apps {
            let Some(Parentage { parent_key, part_key, .. }) = app.parentage() else { continue };
            let parts = token_renewals::parts_without_tokens(
                &mut connection,
                source.as_str(),
                parent_key,
                part_key,
            );
            due.extend(parts.await?);
        }
        drop(connection);
        let is_full = due.len() >= usize::try_from(token_renewals::ROUND_MAX)?;
        let mut spare_key = None;
        for candidate in due {
            if shutdown.is_cancelled() {
                break;
            }
            // A refresh token may be spent by asking: not before what it brings can be kept.
            let key = self.ready_to_append(spare_key.take()).await?;
            let mut connection = database::acquire(&self.pool).await?;
            let Some(claim) = token_renewals::take(&mut connection, candidate).await? else {
                spare_key = Some(key);
                continue;
            };
            drop(connection);
            let renewed = self.renew(&claim.candidate, &key).await;
            self.note(&claim, &renewed).await?;
            if let Err(lost @ NotRenewed::Lost(_)) = renewed {
                return Err(lost.into());
            }
        }
        Ok(if is_full { Round::Full } else { Round::Done })
    }

    /// A data key, the unused one if there is one, once the log can be reached and
    /// has room.
    async fn ready_to_append(&self, spare: Option<DataKey>) -> anyhow::Result<DataKey> {
        ensure!(self.appender.is_connected(), "there is no connection to the log");
        let log = status::log(&self.connection).await?;
        let has_room = log.bytes_max.is_none_or(|max| log.bytes.saturating_add(ROOM_BYTES) < max);
        ensure!(has_room, "the log is full");
        let key = match spare {
            Some(key) => Some(key),
            None => self.data_keys.take(DATA_KEY_WAIT).await,
        };
        key.context("no data key could be stored")
    }

    /// What came of a claim, with a connection of its own: the work took long.
    async fn note(&self, claim: &Claim, renewed: &Result<(), NotRenewed>) -> anyhow::Result<()> {
        let note = || async {
            let mut connection = database::acquire(&self.pool).await?;
            match renewed {
                Ok(()) => claim.done(&mut connection).await,
                Err(error) => {
                    claim.failed(&mut connection, error.again(), &error.to_string()).await
                }
            }
        };
        if let Err(error) = renewed {
            let Candidate { source, installation_id, .. } = &claim.candidate;
            tracing::warn!(source, installation = installation_id, %error, "not renewed");
        }
        let again = ConstantBuilder::new().with_delay(NOTE_EVERY).with_max_times(NOTE_ATTEMPTS);
        note.retry(again).await.context("noting what came of a renewal")
    }

    async fn renew(&self, candidate: &Candidate, key: &DataKey) -> Result<(), NotRenewed> {
        let source = SourceName::parse(candidate.source.as_str()).context("the source")?;
        let app = self.apps.get(&source).context("the source has no [oauth] any more")?;
        let (platform, identity) = self.identity(&source, candidate).await?;
        let Asked { grant, identity, issued } = self.ask(app, candidate, identity).await?;
        let issued = issued.inspect_err(|error| count(&source, grant, error.result()))?;
        let callback = issued.callback(identity, grant, &self.fingerprints);
        let callback = callback.context("what was issued").map_err(NotRenewed::Lost)?;
        // The platform's clock may be ahead of ours: these are not tokens of the time before.
        // Postgres cuts off what is less than a microsecond.
        let after_install =
            candidate.installed_at.and_then(|at| from_sql(at).checked_add(AFTER_INSTALL).ok());
        let occurred_at = after_install.filter(|at| *at > clock::now());
        let callback = Callback { occurred_at, ..callback };
        let appended = self.append(source.clone(), platform, callback, key).await;
        count(&source, grant, if appended.is_ok() { "issued" } else { "failed" });
        appended.map_err(NotRenewed::Lost)
    }

    async fn ask(
        &self,
        app: &OAuth,
        candidate: &Candidate,
        identity: Identity,
    ) -> Result<Asked, NotRenewed> {
        let source = Some(candidate.source.as_str());
        let here = Selection { source, app_id: None, place: Some(&candidate.place) };
        let own = self.tokens(&candidate.installation_id, here).await?;
        let mut connection = database::acquire(&self.pool).await.context("Postgres")?;
        let is_current = token_renewals::is_current(&mut connection, candidate).await;
        drop(connection);
        if !is_current.context("reading the projection")? {
            return Err(NotRenewed::Never("the installation has other tokens by now"));
        }
        if let Some(refresh_token) = own.and_then(|tokens| tokens.refresh_token) {
            let tenant = app.tenant_of(&identity.scope);
            let issued = app.refresh(tenant.as_ref(), &refresh_token).await;
            return Ok(Asked { grant: Grant::RefreshToken, identity, issued });
        }
        self.ask_parents(app, source, &candidate.parents, identity).await
    }

    /// One after the other, until one is the parent.
    async fn ask_parents(
        &self,
        app: &OAuth,
        source: Option<&str>,
        parents: &[String],
        identity: Identity,
    ) -> Result<Asked, NotRenewed> {
        let why = "no refresh token was issued, and there is no parent to ask with";
        let parentage = app.parentage().ok_or(NotRenewed::Never(why))?;
        let named = identity.scope.get(parentage.parent_key).cloned();
        let possible = named.as_ref().map_or(parents, std::slice::from_ref);
        let mut last = None;
        for parent in possible {
            let mut identity = identity.clone();
            identity.scope.insert(parentage.parent_key.to_owned(), parent.clone());
            let Some(Parent { installation_id, request }) = (parentage.parent_of)(&identity) else {
                continue;
            };
            let of_app = Selection { source, app_id: Some(identity.app_id.as_str()), place: None };
            let tokens = self.tokens(installation_id.as_str(), of_app).await?;
            let tokens = tokens.context("the parent holds no tokens")?;
            let issued = app.for_part(&tokens, &request).await;
            let is_refused = matches!(issued, Err(TokenError::Refused { .. }));
            let asked = Asked { grant: Grant::Location, identity, issued };
            if !is_refused {
                return Ok(asked);
            }
            last = Some(asked);
        }
        last.ok_or(NotRenewed::Never(why))
    }

    /// `None` if the installation holds none.
    async fn tokens(
        &self,
        installation_id: &str,
        selection: Selection<'_>,
    ) -> anyhow::Result<Option<Tokens>> {
        let mut connection = database::acquire(&self.pool).await?;
        let id = InstallationId::parse(installation_id)?;
        let matching =
            installations::by_id(&mut connection, &Reach::Everything, &id, selection).await?;
        drop(connection);
        let Some(installation) = matching.iter().find(|it| it.has_credential) else {
            return Ok(None);
        };
        self.opened(installation).await.map(Some)
    }

    async fn opened(&self, installation: &InstallationView) -> anyhow::Result<Tokens> {
        let ring = self.ring.get();
        let who = Who { caller: CALLER.to_owned(), ..Who::default() };
        let secret = credential::open(
            &self.pool,
            &self.connection,
            &ring,
            installation,
            Part::Whole,
            &self.recorder,
            &who,
        );
        let secret = secret.await?;
        Tokens::from_secret(&secret).context("the credential holds no tokens")
    }

    /// As the events of the installation have it.
    async fn identity(
        &self,
        source: &SourceName,
        candidate: &Candidate,
    ) -> anyhow::Result<(PlatformName, Identity)> {
        let id = InstallationId::parse(candidate.installation_id.as_str())?;
        let mut connection = database::acquire(&self.pool).await?;
        let of_source = Reach::Everything.within(Some(source.as_str()));
        let mut known = journal::known(&mut connection, &of_source, &id).await?.into_iter();
        let here = known.find(|known| known.identity.place.as_str() == candidate.place);
        let Known { platform, identity, .. } =
            here.context("the journal does not know the installation")?;
        // What an install says of the scope counts before what an uninstall says.
        Ok((platform, Identity { scope: candidate.scope.0.clone(), ..identity }))
    }

    /// It is tried for a while: what was issued is nowhere else.
    async fn append(
        &self,
        source: SourceName,
        platform: PlatformName,
        callback: Callback,
        key: &DataKey,
    ) -> anyhow::Result<()> {
        let (keys, now) = (&self.fingerprints, clock::now());
        let event = callback.seal(source, platform, now, keys, Some(key), SealingNonce::random)?;
        let message = LogMessage::new(&event)?;
        let appended = self.writer.append(&message, APPEND_FOR).await;
        appended.context("appending new tokens to the log")?;
        Ok(())
    }
}

impl NotRenewed {
    fn is_lost(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    fn again(&self) -> Again {
        match self {
            Self::Never(_) => Again::Never,
            Self::Asked(TokenError::Refused { code, .. }) if code == "invalid_grant" => Again::Late,
            Self::Asked(_) | Self::Lost(_) | Self::Other(_) => Again::Soon,
        }
    }
}

fn count(source: &SourceName, grant: Grant, result: &'static str) {
    let of = [
        KeyValue::new(attribute::SOURCE, source.to_string()),
        KeyValue::new(attribute::GRANT, grant.name()),
        KeyValue::new(attribute::RESULT, result),
    ];
    METRICS.oauth_requests.add(1, &of);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_lasts_longer_than_what_is_done_under_it() {
        const THREE_ATTEMPTS: Duration = Duration::from_secs(3 * 15 + 5);
        assert!(THREE_ATTEMPTS + APPEND_FOR < token_renewals::CLAIMED_FOR);
    }
}
