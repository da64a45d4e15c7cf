//! The keys that pages of data keys are sealed under. Who seals has a
//! [`SealingKey`] and can open nothing; who opens has the [`KeyRing`].

use std::collections::BTreeMap;
use std::fmt;

use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret, SecretString};

use crate::id::KeyId;
use crate::key_pair::{PrivateKey, PublicKey};
use crate::seal::{
    AssociatedData, OpenError, SealError, Sealed, SealedUnder, SymmetricKey, encode, text_of,
};

/// The public half of the active pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealingKey {
    id: KeyId,
    public: PublicKey,
}

impl SealingKey {
    pub fn new(id: KeyId, public: PublicKey) -> Self {
        Self { id, public }
    }

    pub fn id(&self) -> &KeyId {
        &self.id
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub(crate) fn seal_parts(
        &self,
        secret: &SecretString,
        bound_to: &[&str],
    ) -> Result<Sealed, SealError> {
        let under = SealedUnder::KeyPair(self.id.clone());
        let secret = secret.expose_secret().as_bytes();
        let (encapsulated, ciphertext) = self.public.seal(secret, &encode(bound_to))?;
        Ok(Sealed::of(&under, &encapsulated, &ciphertext))
    }
}

enum OpeningKey {
    Pair(PrivateKey),
    Symmetric(Box<SymmetricKey>),
}

/// The active pair, the retired ones, and symmetric keys from before there were
/// pairs.
pub struct KeyRing {
    active: SealingKey,
    keys: BTreeMap<KeyId, OpeningKey>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    #[error("the active key '{0}' is not among the key pairs of the ring")]
    NoActivePair(KeyId),
    #[error("there are two keys '{0}'")]
    Twice(KeyId),
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRing(active {}, {} keys)", self.active.id, self.keys.len())
    }
}

impl KeyRing {
    pub fn new(
        active: KeyId,
        pairs: impl IntoIterator<Item = (KeyId, PrivateKey)>,
        symmetric: impl IntoIterator<Item = SymmetricKey>,
    ) -> Result<Self, RingError> {
        let pairs = pairs.into_iter().map(|(id, key)| (id, OpeningKey::Pair(key)));
        let symmetric = symmetric.into_iter();
        let symmetric =
            symmetric.map(|key| (key.id().clone(), OpeningKey::Symmetric(Box::new(key))));
        let mut keys = BTreeMap::new();
        for (id, key) in pairs.chain(symmetric) {
            if keys.insert(id.clone(), key).is_some() {
                return Err(RingError::Twice(id));
            }
        }
        let public = match keys.get(&active) {
            Some(OpeningKey::Pair(key)) => key.public(),
            Some(OpeningKey::Symmetric(_)) | None => return Err(RingError::NoActivePair(active)),
        };
        Ok(Self { active: SealingKey::new(active, public), keys })
    }

    pub fn active(&self) -> &KeyId {
        &self.active.id
    }

    pub fn sealing_key(&self) -> &SealingKey {
        &self.active
    }

    pub fn key_ids(&self) -> impl Iterator<Item = &KeyId> {
        self.keys.keys()
    }

    /// A secret from before there were data keys.
    pub fn open(
        &self,
        sealed: &Sealed,
        bound_to: AssociatedData<'_>,
    ) -> Result<SecretString, OpenError> {
        self.open_parts(sealed, &bound_to.parts(&sealed.under()?))
    }

    /// The key is chosen by its id, and must be of the envelope's kind.
    pub(crate) fn open_parts(
        &self,
        sealed: &Sealed,
        bound_to: &[&str],
    ) -> Result<SecretString, OpenError> {
        let under = sealed.under()?;
        let id = match &under {
            SealedUnder::SymmetricKey(id) | SealedUnder::KeyPair(id) => id,
            SealedUnder::DataKey(_) => return Err(OpenError::Authentication),
        };
        let key = self.keys.get(id).ok_or_else(|| OpenError::UnknownKey(id.clone()))?;
        match (key, under) {
            (OpeningKey::Symmetric(key), SealedUnder::SymmetricKey(_)) => {
                key.open_parts(sealed, bound_to)
            }
            (OpeningKey::Pair(key), SealedUnder::KeyPair(_)) => {
                let (encapsulated, ciphertext) = sealed.content()?;
                let opened: Zeroizing<Vec<u8>> =
                    key.open(&encapsulated, &ciphertext, &encode(bound_to))?;
                text_of(opened)
            }
            (OpeningKey::Symmetric(_) | OpeningKey::Pair(_), _) => Err(OpenError::Authentication),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key_pair::NewPair;
    use crate::seal::SealingNonce;

    #[test]
    fn an_envelope_of_one_kind_is_not_opened_with_a_key_of_the_other() {
        let id = |id| KeyId::parse(id).unwrap();
        let pair = PrivateKey::parse(&NewPair::generate().private).unwrap();
        let symmetric = SymmetricKey::new(id("k1"), &vec![7; 32].into()).unwrap();
        let secret = SecretString::from("secret");
        let before = symmetric.seal_parts(&secret, &["to"], &SealingNonce::random()).unwrap();
        let ring = KeyRing::new(id("k2"), [(id("k2"), pair)], [symmetric]).unwrap();
        let now = ring.sealing_key().seal_parts(&secret, &["to"]).unwrap();
        for sealed in [&before, &now] {
            assert_eq!(ring.open_parts(sealed, &["to"]).unwrap().expose_secret(), "secret");
            assert!(ring.open_parts(sealed, &["elsewhere"]).is_err());
        }
        for renamed in [
            before.as_str().replacen("v1.k1", "v3.k1", 1),
            before.as_str().replacen("v1.k1", "v1.k2", 1),
            before.as_str().replacen("v1.k1", "v3.k2", 1),
            now.as_str().replacen("v3.k2", "v1.k2", 1),
            now.as_str().replacen("v3.k2", "v3.k1", 1),
        ] {
            let refused = ring.open_parts(&Sealed::from_stored(renamed.clone()), &["to"]);
            assert!(refused.is_err(), "{renamed}");
        }
        assert_ne!(ring.sealing_key().seal_parts(&secret, &["to"]).unwrap(), now);
    }
}
