//! Renews OAuth tokens before they end, and exchanges a company's token for
//! those of its locations. What is issued is sealed and appended to the log like
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

use anyhow::{Context as _, bail};
use async_nats::Client;
use async_nats::jetstream;
use backon::{ConstantBuilder, Retryable as _};
use jiff::{SignedDuration, Timestamp};
use opentelemetry::KeyValue;
use shared::config::CurrentRing;
use shared::data_key_pool::DataKeyPool;
use shared::event::{Callback, Grant, Identity};
use shared::id::{InstallationId, SourceName};
use shared::log::LogMessage;
use shared::oauth::{Issued, OAuth, TokenError, Tokens};
use shared::platform::Platform;
use shared::seal::SealingNonce;
use shared::telemetry::names::attribute;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use crate::metrics::METRICS;
use crate::projection::InstallationView;
use crate::timestamp::from_sql;
use crate::{credential, database, journal, projection};

mod claim;

use claim::Candidate;

/// As the audit of opened credentials names it.
const CALLER: &str = "worker: token renewal";
const AFTER_INSTALL: SignedDuration = SignedDuration::from_millis(1);
const APPEND_EVERY: Duration = Duration::from_secs(1);
const APPEND_ATTEMPTS: usize = 60;

pub(crate) struct TokenRenewal {
    pub(crate) pool: PgPool,
    /// To read data keys.
    pub(crate) client: Client,
    /// As a user that may append.
    pub(crate) appender: Client,
    pub(crate) ring: CurrentRing,
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
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl TokenRenewal {
    /// Until `shutdown`, and what has been begun then.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let mut last_problem = String::new();
        while !shutdown.is_cancelled() {
            match self.renew_due(&shutdown).await {
                Ok(()) => last_problem.clear(),
                Err(error) => {
                    let problem = format!("{error:#}");
                    if problem != last_problem {
                        tracing::warn!(problem, "tokens cannot be renewed now");
                        last_problem = problem;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(self.every) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    async fn renew_due(&self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let sources: Vec<&str> = self.apps.keys().map(SourceName::as_str).collect();
        let with_locations: Vec<&str> = self
            .apps
            .iter()
            .filter(|(_, app)| app.has_location_tokens())
            .map(|(source, _)| source.as_str())
            .collect();
        let mut connection = database::acquire(&self.pool).await?;
        let mut due = claim::expiring(&mut connection, &sources, self.before_expiry).await?;
        due.extend(claim::locations_without_tokens(&mut connection, &with_locations).await?);
        for candidate in due {
            if shutdown.is_cancelled() {
                break;
            }
            let Some(claim) = claim::take(&mut connection, candidate).await? else { continue };
            match self.renew(&claim.candidate).await {
                Ok(()) => claim.done(&mut connection).await?,
                Err(error) => {
                    let Candidate { source, installation_id, .. } = &claim.candidate;
                    tracing::warn!(source, installation = installation_id, %error, "not renewed");
                    let is_refused = matches!(error, NotRenewed::Asked(TokenError::Refused { .. }));
                    claim.failed(&mut connection, is_refused, &error.to_string()).await?;
                }
            }
        }
        Ok(())
    }

    async fn renew(&self, candidate: &Candidate) -> Result<(), NotRenewed> {
        let source = SourceName::parse(candidate.source.as_str()).context("the source")?;
        let app = self.apps.get(&source).context("the source has no [oauth] any more")?;
        let (platform, identity) = self.identity(&source, candidate).await?;
        let (grant, asked) = self.ask(app, candidate, &identity).await?;
        self.count(&source, grant, &asked);
        let ring = self.ring.get();
        let callback = asked?.callback(identity, grant, &ring).context("what was issued")?;
        // The platform's clock may be ahead of ours: these are not tokens of the time before.
        // Postgres cuts off what is less than a microsecond.
        let after_install = candidate.installed_at.map(|at| from_sql(at) + AFTER_INSTALL);
        let occurred_at = after_install.filter(|at| *at > Timestamp::now());
        let callback = Callback { occurred_at, ..callback };
        self.append(source, platform, callback).await?;
        Ok(())
    }

    async fn ask(
        &self,
        app: &OAuth,
        candidate: &Candidate,
        identity: &Identity,
    ) -> anyhow::Result<(Grant, Result<Issued, TokenError>)> {
        let own = self.tokens(candidate, &candidate.installation_id).await?;
        if let Some(refresh_token) = own.and_then(|tokens| tokens.refresh_token) {
            return Ok((Grant::RefreshToken, app.refresh(&refresh_token).await));
        }
        let scope = |name: &str| identity.scope.get(name).map(String::as_str);
        let (Some(company_id), Some(location_id)) = (scope("company_id"), scope("location_id"))
        else {
            bail!("no refresh token was issued, and there is no company to ask with");
        };
        let company = InstallationId::of(&[identity.app_id.as_str(), "company", company_id])?;
        let company = self.tokens(candidate, company.as_str()).await?;
        let company = company.context("the company holds no tokens")?;
        Ok((Grant::Location, app.for_location(&company, company_id, location_id).await))
    }

    /// `None` if the installation holds none.
    async fn tokens(
        &self,
        candidate: &Candidate,
        installation_id: &str,
    ) -> anyhow::Result<Option<Tokens>> {
        let mut connection = database::acquire(&self.pool).await?;
        let (source, id) =
            (Some(candidate.source.as_str()), InstallationId::parse(installation_id)?);
        let found = projection::by_id(&mut connection, source, &id).await?;
        drop(connection);
        let Some(installation) = found.iter().find(|found| found.has_credential) else {
            return Ok(None);
        };
        self.opened(installation).await.map(Some)
    }

    async fn opened(&self, installation: &InstallationView) -> anyhow::Result<Tokens> {
        let ring = self.ring.get();
        let secret =
            credential::open(&self.pool, &self.client, &ring, installation, CALLER).await?;
        Tokens::from_secret(&secret).context("the credential holds no tokens")
    }

    /// As the events of the installation have it.
    async fn identity(
        &self,
        source: &SourceName,
        candidate: &Candidate,
    ) -> anyhow::Result<(Platform, Identity)> {
        let id = InstallationId::parse(candidate.installation_id.as_str())?;
        let mut connection = database::acquire(&self.pool).await?;
        let known = journal::identities(&mut connection, source, &id).await?;
        let found = known.into_iter().find(|(_, known)| known.place.as_str() == candidate.place);
        found.context("the journal does not know the installation")
    }

    /// It is tried for a while: what was issued is nowhere else.
    async fn append(
        &self,
        source: SourceName,
        platform: Platform,
        callback: Callback,
    ) -> anyhow::Result<()> {
        let wait = APPEND_EVERY.saturating_mul(u32::try_from(APPEND_ATTEMPTS)?);
        let key = self.data_keys.take(wait).await.context("no data key could be stored")?;
        let (ring, now) = (self.ring.get(), Timestamp::now());
        let event =
            callback.seal(source, platform, now, &ring, Some(&key), SealingNonce::random)?;
        let message = LogMessage::new(&event)?;
        let jetstream = jetstream::new(self.appender.clone());
        let send = || async {
            let (subject, headers) = (message.subject.clone(), message.headers());
            let body = message.body.clone();
            let sent = jetstream.publish_with_headers(subject, headers, body).await?;
            sent.await.map(|_| ())
        };
        let again = ConstantBuilder::new().with_delay(APPEND_EVERY).with_max_times(APPEND_ATTEMPTS);
        send.retry(again).await.context("appending new tokens to the log")
    }

    fn count(&self, source: &SourceName, grant: Grant, asked: &Result<Issued, TokenError>) {
        let result = asked.as_ref().map_or_else(TokenError::result, |_| "issued");
        METRICS.oauth_requests.add(
            1,
            &[
                KeyValue::new(attribute::SOURCE, source.to_string()),
                KeyValue::new(attribute::GRANT, grant.name()),
                KeyValue::new(attribute::RESULT, result),
            ],
        );
    }
}

/// One claimed installation is worked on for less than this.
const CLAIMED_FOR: Duration = Duration::from_secs(180);
/// After the n-th failure; what was refused is hardly accepted a minute later.
fn wait_after(attempts: i32, is_refused: bool) -> Duration {
    let first = if is_refused { 3_600 } else { 30 };
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(0).min(5);
    Duration::from_secs(first << doublings).min(Duration::from_secs(24 * 3_600))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_wait_longer_each_time_but_no_longer_than_a_day() {
        assert_eq!(wait_after(1, false).as_secs(), 30);
        assert_eq!(wait_after(3, false).as_secs(), 120);
        assert_eq!(wait_after(1, true).as_secs(), 3_600);
        assert_eq!(wait_after(i32::MAX, true).as_secs(), 24 * 3_600);
    }
}
