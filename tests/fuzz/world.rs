//! What stands still while inputs change: keys, names, times.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use domain::data_key::{DataKey, Page};
use domain::id::{KeyId, PlatformName, SourceName};
use domain::seal::{KeyRing, SealingNonce};
use jiff::Timestamp;
use secrecy::SecretSlice;

pub(crate) static RING: LazyLock<KeyRing> = LazyLock::new(|| {
    let id = KeyId::parse("k1").unwrap();
    let keys = BTreeMap::from([(id.clone(), SecretSlice::from(vec![7; 32]))]);
    KeyRing::new(id, &keys, SecretSlice::from(vec![9; 32])).unwrap()
});

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
