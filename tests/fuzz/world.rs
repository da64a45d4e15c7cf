//! What stands still while inputs change: keys, names, times.

use std::sync::LazyLock;

use domain::data_key::{DataKey, Page};
use domain::fingerprint::FingerprintKeys;
use domain::id::{KeyId, PlatformName, SourceName};
use domain::key_pair::{NewPair, PrivateKey};
use domain::key_ring::KeyRing;
use domain::seal::{SealingNonce, SymmetricKey};
use jiff::Timestamp;

pub(crate) static RING: LazyLock<KeyRing> = LazyLock::new(|| {
    let id = KeyId::parse("k2").unwrap();
    let pair = PrivateKey::parse(&NewPair::generate().private).unwrap();
    KeyRing::new(id.clone(), [(id, pair)], [symmetric_key()]).unwrap()
});

/// From before there were key pairs.
pub(crate) fn symmetric_key() -> SymmetricKey {
    SymmetricKey::new(KeyId::parse("k1").unwrap(), &vec![7; 32].into()).unwrap()
}

pub(crate) static FINGERPRINTS: LazyLock<FingerprintKeys> =
    LazyLock::new(|| FingerprintKeys::of(vec![9; 32].into()));

pub(crate) static PAGE: LazyLock<Page> = LazyLock::new(|| Page::generate().unwrap());

pub(crate) fn data_key() -> DataKey {
    PAGE.key(5).unwrap()
}

pub(crate) fn nonce() -> SealingNonce {
    SealingNonce::from_bytes([3; 12])
}

pub(crate) fn source() -> SourceName {
    SourceName::parse("fuzzed").unwrap()
}

pub(crate) fn platform() -> PlatformName {
    PlatformName::parse("fuzzed").unwrap()
}

/// 2026-07-01T10:00:00Z
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_782_900_000).unwrap()
}
