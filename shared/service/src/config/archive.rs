//! Where old events go.

use std::path::PathBuf;

use eventlog::archive::{Location, S3};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Resolver;
use crate::secret_ref::SecretRef;

const AT: &str = "worker.archive";

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ArchiveSettings {
    /// A folder that exists, as `file:///var/lib/mooring/archive`, or a bucket, as
    /// `s3://bucket/prefix`.
    pub url: String,
    /// The URL of an S3-compatible store. Without it AWS.
    pub endpoint: Option<String>,
    /// The region of the bucket.
    pub region: Option<String>,
    /// The id of an access key. Without it what the environment of AWS offers: a role, or
    /// `AWS_…` variables.
    pub access_key_id: Option<SecretRef>,
    /// The secret of the access key.
    pub secret_access_key: Option<SecretRef>,
    /// A NATS user that may delete from the log, which no other may: `archiver` in nats.conf. If
    /// it is given, running workers archive, one at a time. Without it only
    /// `worker archive run` does.
    pub nats_user: Option<String>,
    /// The password of `nats_user`.
    pub nats_password: Option<SecretRef>,
    /// How old an event must be to be archived.
    #[serde(default = "default_retention_days")]
    pub retention_days: u32,
    /// How full the log may be. Fuller, newer events are archived, too.
    #[serde(default = "default_log_full_percent")]
    #[schemars(range(min = 1, max = 99))]
    pub log_full_percent: u8,
    /// The size of a segment before compression; an archiver needs about as much memory. A
    /// segment is written when so much is due, or once a day.
    #[serde(default = "default_segment_bytes")]
    #[schemars(range(min = 1))]
    pub segment_bytes: u64,
    /// How often a running worker looks for what is due.
    #[serde(default = "default_every_ms")]
    #[schemars(range(min = 1))]
    pub every_ms: u64,
}

fn default_retention_days() -> u32 {
    90
}

fn default_log_full_percent() -> u8 {
    60
}

fn default_segment_bytes() -> u64 {
    32 << 20
}

fn default_every_ms() -> u64 {
    60_000
}

impl Resolver<'_> {
    /// Where the archive is; `None` if something is wrong with it.
    pub fn archive(&mut self, settings: &ArchiveSettings) -> Option<Location> {
        if !(1..=99).contains(&settings.log_full_percent) {
            self.problem(&format!("{AT}.log_full_percent"), "must be 1 to 99");
            return None;
        }
        if settings.segment_bytes == 0 {
            self.problem(&format!("{AT}.segment_bytes"), "must be at least 1");
            return None;
        }
        if let Some(folder) = settings.url.strip_prefix("file://") {
            return self.folder(settings, folder);
        }
        let Some(place) = settings.url.strip_prefix("s3://") else {
            return self.wrong_url();
        };
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if bucket.is_empty() || bucket.contains(['@', '?', '#']) {
            return self.wrong_url();
        }
        let (id, secret) = (&settings.access_key_id, &settings.secret_access_key);
        if id.is_some() != secret.is_some() {
            self.problem(AT, "access_key_id and secret_access_key go together");
            return None;
        }
        let id = self.optional_secret(&format!("{AT}.access_key_id"), id.as_ref())?;
        let secret = self.optional_secret(&format!("{AT}.secret_access_key"), secret.as_ref())?;
        Some(Location::S3(S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            endpoint: settings.endpoint.clone(),
            region: settings.region.clone(),
            access_key: id.zip(secret),
        }))
    }

    fn folder(&mut self, settings: &ArchiveSettings, folder: &str) -> Option<Location> {
        let ArchiveSettings { endpoint, region, access_key_id, secret_access_key, .. } = settings;
        let of_s3 = endpoint.is_some()
            || region.is_some()
            || access_key_id.is_some()
            || secret_access_key.is_some();
        if of_s3 {
            self.problem(AT, "endpoint, region and access keys are of s3:// only");
            return None;
        }
        if !folder.starts_with('/') {
            return self.wrong_url();
        }
        Some(Location::Folder(PathBuf::from(folder)))
    }

    fn wrong_url<T>(&mut self) -> Option<T> {
        self.problem(
            &format!("{AT}.url"),
            "must look like file:///absolute/folder or s3://bucket/prefix",
        );
        None
    }
}
