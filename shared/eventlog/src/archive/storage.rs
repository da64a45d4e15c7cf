//! Where an archive is: a folder, or a bucket of an S3-compatible store.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    ClientOptions, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, RetryConfig,
};
use secrecy::{ExposeSecret as _, SecretString};

use super::ArchiveError;

/// A segment is some tens of MiB.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Whoever archives tries again later; whoever reads wants to be told.
const RETRIES_MAX: usize = 3;
const RETRY_WITHIN: Duration = Duration::from_secs(20);

/// Where an archive is.
#[derive(Debug, Clone)]
pub enum Location {
    /// A folder that exists.
    Folder(PathBuf),
    S3(S3),
}

/// A place in a bucket.
#[derive(Debug, Clone)]
pub struct S3 {
    pub bucket: String,
    pub prefix: String,
    /// `None` for AWS itself.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    /// Id and secret of an access key. Without, what the environment of AWS offers.
    pub access_key: Option<(SecretString, SecretString)>,
}

/// Files by name. A clone is the same storage.
#[derive(Debug, Clone)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
    at: String,
}

/// What became of a file that must be new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Put {
    Created,
    Existed,
}

impl Storage {
    pub fn open(location: &Location) -> Result<Self, ArchiveError> {
        match location {
            Location::Folder(folder) => {
                let at = folder.display().to_string();
                // Not made here: an empty folder where a disk is not mounted would be an archive.
                if !folder.is_dir() {
                    let why =
                        "there is no such folder: create it, or mount what it is on".to_owned();
                    return Err(ArchiveError::Unusable { at, why });
                }
                let store = LocalFileSystem::new_with_prefix(folder);
                let store = store.map_err(|error| unusable(&at, &error))?;
                // The log lets go of what is here: it must be on the disk, not in its cache.
                Ok(Self { store: Arc::new(store.with_fsync(true)), at })
            }
            Location::S3(s3) => s3.open(),
        }
    }

    /// As people read it.
    pub fn shown(&self) -> &str {
        &self.at
    }

    /// Stores a file that must be new. It is on disk, or what the store calls durable.
    pub(super) async fn put_new(&self, name: &str, bytes: Bytes) -> Result<Put, ArchiveError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.store.put_opts(&path(name), bytes.into(), options).await {
            Ok(_) => Ok(Put::Created),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(Put::Existed),
            Err(error) => Err(self.away(format!("storing {name}"), error)),
        }
    }

    pub(super) async fn get(&self, name: &str) -> Result<Bytes, ArchiveError> {
        let got = async { self.store.get(&path(name)).await?.bytes().await };
        got.await.map_err(|error| self.unread(name, error))
    }

    pub(super) async fn get_range(
        &self,
        name: &str,
        range: Range<u64>,
    ) -> Result<Bytes, ArchiveError> {
        let end = range.end;
        match self.store.get_range(&path(name), range).await {
            Ok(bytes) => Ok(bytes),
            // Stores have no common way to say that a file ends before.
            Err(error) => match self.store.head(&path(name)).await {
                Ok(found) if found.size < end => Err(self.damaged(name, "it is too short")),
                _ => Err(self.unread(name, error)),
            },
        }
    }

    /// The names of the files in a folder that sort after `after`, sorted.
    pub(super) async fn list(
        &self,
        folder: &str,
        after: Option<&str>,
    ) -> Result<Vec<String>, ArchiveError> {
        let prefix = path(folder);
        let found = match after {
            Some(after) => self.store.list_with_offset(Some(&prefix), &path(after)),
            None => self.store.list(Some(&prefix)),
        };
        let found: Vec<_> = found
            .try_collect()
            .await
            .map_err(|error| self.away(format!("listing {folder}"), error))?;
        let mut names: Vec<String> = found.into_iter().map(|it| it.location.to_string()).collect();
        names.sort();
        Ok(names)
    }

    /// The folders that are not in another one, sorted.
    pub(super) async fn folders(&self) -> Result<Vec<String>, ArchiveError> {
        let listed = self.store.list_with_delimiter(None).await;
        let listed = listed.map_err(|error| self.away("listing it".to_owned(), error))?;
        let mut names: Vec<String> =
            listed.common_prefixes.into_iter().map(|it| it.to_string()).collect();
        names.sort();
        Ok(names)
    }

    fn unread(&self, name: &str, error: object_store::Error) -> ArchiveError {
        match error {
            object_store::Error::NotFound { .. } => {
                ArchiveError::Missing { at: self.at.clone(), what: name.to_owned() }
            }
            error => self.away(format!("reading {name}"), error),
        }
    }

    fn away(&self, doing: String, error: object_store::Error) -> ArchiveError {
        ArchiveError::Away { at: self.at.clone(), doing, source: Box::new(error) }
    }

    pub(super) fn damaged(&self, what: &str, why: impl Into<String>) -> ArchiveError {
        ArchiveError::Damaged { at: self.at.clone(), what: what.to_owned(), why: why.into() }
    }
}

impl S3 {
    fn open(&self) -> Result<Storage, ArchiveError> {
        let Self { bucket, prefix, endpoint, region, access_key } = self;
        let at = format!("s3://{bucket}/{prefix}");
        // From the environment come the credentials of a machine's or a pod's own role.
        let mut builder = match access_key {
            None => AmazonS3Builder::from_env(),
            Some((id, secret)) => AmazonS3Builder::new()
                .with_access_key_id(id.expose_secret())
                .with_secret_access_key(secret.expose_secret()),
        };
        if let Some(endpoint) = endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = region {
            builder = builder.with_region(region);
        }
        let client = ClientOptions::new()
            .with_timeout(REQUEST_TIMEOUT)
            .with_connect_timeout(CONNECT_TIMEOUT)
            // Only what the configuration names: an endpoint on loopback, or inside a cluster.
            .with_allow_http(endpoint.as_ref().is_some_and(|it| it.starts_with("http://")));
        let retry = RetryConfig {
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_WITHIN,
            ..RetryConfig::default()
        };
        let store = builder
            .with_bucket_name(bucket)
            .with_client_options(client)
            .with_retry(retry)
            .build()
            .map_err(|error| unusable(&at, &error))?;
        let store: Arc<dyn ObjectStore> = if prefix.is_empty() {
            Arc::new(store)
        } else {
            Arc::new(PrefixStore::new(store, path(prefix)))
        };
        Ok(Storage { store, at })
    }
}

fn unusable(at: &str, error: &object_store::Error) -> ArchiveError {
    ArchiveError::Unusable { at: at.to_owned(), why: error.to_string() }
}

fn path(name: &str) -> Path {
    Path::from(name)
}
