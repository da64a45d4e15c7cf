//! Data keys: each event's secrets are sealed under a key of their own, and to
//! destroy that key is to erase them wherever their ciphertext was copied to.
//!
//! Keys are made ahead of their use, in pages, so that a callback waits for
//! none: a page is stored, sealed to the active key pair, before the
//! first of its keys is used. What a page holds is its keys and nothing about
//! who uses them; the envelope of a secret names its page and slot.

use std::fmt;
use std::sync::Arc;

use aes_gcm_siv::aead::{Generate, Key};
use aes_gcm_siv::{Aes256GcmSiv, KeyInit};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use secrecy::zeroize::{Zeroize as _, Zeroizing};
use secrecy::{ExposeSecret, SecretSlice, SecretString};

use crate::id::{DataKeyId, InvalidId, KEYS_IN_PAGE, PageId};
use crate::key_ring::{KeyRing, SealingKey};
use crate::seal::{
    AssociatedData, OpenError, SealError, Sealed, SealedUnder, SealingNonce, SymmetricKey,
};
use crate::seal::{open_under, seal_under};

const DESTROYED: &str = "-";

/// A key that seals the secrets of one event.
pub struct DataKey {
    pub id: DataKeyId,
    key: SecretSlice<u8>,
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataKey({})", self.id)
    }
}

impl DataKey {
    fn cipher(&self) -> Option<Aes256GcmSiv> {
        Aes256GcmSiv::new_from_slice(self.key.expose_secret()).ok()
    }

    pub fn seal(
        &self,
        secret: &SecretString,
        bound_to: AssociatedData<'_>,
        nonce: &SealingNonce,
    ) -> Result<Sealed, SealError> {
        let cipher = self.cipher().ok_or(SealError)?;
        let under = SealedUnder::DataKey(self.id.clone());
        seal_under(&cipher, &under, secret, &bound_to.parts(&under), nonce)
    }

    pub fn open(
        &self,
        sealed: &Sealed,
        bound_to: AssociatedData<'_>,
    ) -> Result<SecretString, OpenError> {
        let under = SealedUnder::DataKey(self.id.clone());
        if sealed.under()? != under {
            return Err(OpenError::Authentication);
        }
        let cipher = self.cipher().ok_or(OpenError::Authentication)?;
        open_under(&cipher, sealed, &bound_to.parts(&under))
    }
}

/// Keys that are stored together.
pub struct Page {
    id: Arc<PageId>,
    /// `None` where a key was destroyed.
    keys: Vec<Option<SecretSlice<u8>>>,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Page({})", self.id)
    }
}

impl Page {
    pub fn generate() -> Result<Self, InvalidId> {
        let key = |_| {
            let mut key = Key::<Aes256GcmSiv>::generate();
            let kept = SecretSlice::from(key.to_vec());
            key.as_mut_slice().zeroize();
            Some(kept)
        };
        let id = Arc::new(PageId::parse(SealingNonce::random().to_hex())?);
        Ok(Self { id, keys: (0..KEYS_IN_PAGE).map(key).collect() })
    }

    pub fn id(&self) -> &PageId {
        &self.id
    }

    /// As it is stored. It is bound to the page's id.
    pub fn seal(&self, key: &SealingKey) -> Result<Sealed, SealError> {
        key.seal_parts(&self.text(), &Self::bound_to(&self.id))
    }

    /// As versions from before key pairs did. None does any more, but tests of
    /// what those stored.
    pub fn seal_symmetric(
        &self,
        key: &SymmetricKey,
        nonce: &SealingNonce,
    ) -> Result<Sealed, SealError> {
        key.seal_parts(&self.text(), &Self::bound_to(&self.id), nonce)
    }

    fn text(&self) -> SecretString {
        let text = |key: &Option<SecretSlice<u8>>| match key {
            Some(key) => Zeroizing::new(BASE64_STANDARD_NO_PAD.encode(key.expose_secret())),
            None => Zeroizing::new(DESTROYED.to_owned()),
        };
        let keys: Vec<Zeroizing<String>> = self.keys.iter().map(text).collect();
        let keys: Vec<&str> = keys.iter().map(|key| key.as_str()).collect();
        SecretString::from(keys.join(" "))
    }

    pub fn open(ring: &KeyRing, id: PageId, sealed: &Sealed) -> Result<Self, OpenError> {
        let text = ring.open_parts(sealed, &Self::bound_to(&id))?;
        let key = |text: &str| match text {
            DESTROYED => Ok(None),
            key => {
                let key = BASE64_STANDARD_NO_PAD.decode(key).map_err(|_| OpenError::Envelope)?;
                Ok(Some(SecretSlice::from(key)))
            }
        };
        let keys: Result<Vec<_>, OpenError> = text.expose_secret().split(' ').map(key).collect();
        Ok(Self { id: Arc::new(id), keys: keys? })
    }

    fn bound_to(id: &PageId) -> [&str; 2] {
        ["data keys", id.as_str()]
    }

    /// `None` if it was destroyed.
    pub fn key(&self, slot: u8) -> Option<DataKey> {
        let key = self.keys.get(usize::from(slot))?.clone()?;
        Some(DataKey { id: DataKeyId { page: Arc::clone(&self.id), slot }, key })
    }

    /// The slots whose keys are left.
    pub fn slots(&self) -> impl Iterator<Item = u8> {
        (0..KEYS_IN_PAGE)
            .filter(|slot| self.keys.get(usize::from(*slot)).is_some_and(Option::is_some))
    }

    /// Every key that is left.
    pub fn keys(&self) -> impl Iterator<Item = DataKey> {
        (0..KEYS_IN_PAGE).filter_map(|slot| self.key(slot))
    }

    /// Whether each slot of both holds the same key, or none.
    pub fn has_keys_of(&self, other: &Self) -> bool {
        let bytes =
            |key: &Option<SecretSlice<u8>>| key.as_ref().map(|it| it.expose_secret().to_vec());
        self.keys.iter().map(bytes).eq(other.keys.iter().map(bytes))
    }

    /// Whether it was there. Nothing is erased before the page is stored again
    /// and what it was before is gone.
    pub fn destroy(&mut self, slot: u8) -> bool {
        self.keys.get_mut(usize::from(slot)).is_some_and(|key| key.take().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{KeyId, MessageId, SourceName, data_keys_in};
    use crate::key_pair::{NewPair, PrivateKey};

    fn ring(id: &str) -> KeyRing {
        let id = KeyId::parse(id).unwrap();
        let key = PrivateKey::parse(&NewPair::generate().private).unwrap();
        KeyRing::new(id.clone(), [(id, key)], []).unwrap()
    }

    fn reopened(page: &Page) -> Page {
        let ring = ring("k1");
        let sealed = page.seal(ring.sealing_key()).unwrap();
        Page::open(&ring, page.id().clone(), &sealed).unwrap()
    }

    #[test]
    fn a_secret_opens_with_the_key_of_its_page_until_that_is_destroyed() {
        let mut page = Page::generate().unwrap();
        assert_eq!(page.keys().count(), usize::from(KEYS_IN_PAGE));
        let (source, event) =
            (SourceName::parse("blnk").unwrap(), MessageId::from_stored("blnk:a#1".into()));
        let bound_to =
            AssociatedData { source: &source, installation: None, event: &event, field: "api_key" };
        let secret = SecretString::from("blnk_secret");
        let key = page.key(5).unwrap();
        let sealed = key.seal(&secret, bound_to, &SealingNonce::random()).unwrap();
        let SealedUnder::DataKey(id) = sealed.under().unwrap() else { panic!("{sealed:?}") };
        assert_eq!(DataKeyId::parse(&id.to_string()), Some(key.id.clone()));

        let again = reopened(&page).key(id.slot).unwrap();
        let opened = again.open(&sealed, bound_to).unwrap();
        assert_eq!(opened.expose_secret(), secret.expose_secret());
        let elsewhere = AssociatedData { field: "other", ..bound_to };
        assert!(again.open(&sealed, elsewhere).is_err());
        assert!(page.key(6).unwrap().open(&sealed, bound_to).is_err(), "another key");

        let text = format!("{{\"a\":\"{}\",\"b\":\"v2.x\"}}", sealed.as_str());
        assert_eq!(data_keys_in(&text).collect::<Vec<_>>(), [id]);
        assert!(page.slots().any(|slot| slot == 5));
        assert!(page.destroy(5));
        assert!(!page.destroy(5));
        assert!(page.slots().all(|slot| slot != 5));
        let page = reopened(&page);
        assert!(page.key(5).is_none());
        assert_eq!(page.keys().count(), usize::from(KEYS_IN_PAGE) - 1);
    }

    #[test]
    fn a_page_opens_only_under_its_own_id() {
        let (page, ring_one) = (Page::generate().unwrap(), ring("k1"));
        let sealed = page.seal(ring_one.sealing_key()).unwrap();
        assert!(sealed.as_str().starts_with("v3.k1."), "{}", sealed.as_str());
        assert!(Page::open(&ring_one, page.id().clone(), &sealed).unwrap().has_keys_of(&page));
        let other = Page::generate().unwrap();
        assert!(Page::open(&ring_one, other.id().clone(), &sealed).is_err());
        assert!(Page::open(&ring("k1"), page.id().clone(), &sealed).is_err(), "another pair");
        let refused = Page::open(&ring("k2"), page.id().clone(), &sealed).unwrap_err();
        assert!(matches!(refused, OpenError::UnknownKey(_)), "{refused}");
    }

    #[test]
    fn a_page_from_before_key_pairs_opens_and_is_sealed_to_one() {
        let key = SymmetricKey::new(KeyId::parse("k1").unwrap(), &vec![7; 32].into()).unwrap();
        let page = Page::generate().unwrap();
        let before = page.seal_symmetric(&key, &SealingNonce::random()).unwrap();
        assert!(before.as_str().starts_with("v1.k1."), "{}", before.as_str());
        let pair = PrivateKey::parse(&NewPair::generate().private).unwrap();
        let active = KeyId::parse("k2").unwrap();
        let ring = KeyRing::new(active.clone(), [(active, pair)], [key]).unwrap();
        let opened = Page::open(&ring, page.id().clone(), &before).unwrap();
        assert!(opened.has_keys_of(&page));
        let now = opened.seal(ring.sealing_key()).unwrap();
        assert!(Page::open(&ring, page.id().clone(), &now).unwrap().has_keys_of(&page));
    }

    #[test]
    fn no_key_shows_in_debug() {
        let page = Page::generate().unwrap();
        let shown = format!("{page:?} {:?}", page.key(0).unwrap());
        let key = page.keys[0].as_ref().unwrap();
        assert!(!shown.contains(&BASE64_STANDARD_NO_PAD.encode(key.expose_secret())));
        assert!(shown.len() < 100, "{shown}");
    }

    #[test]
    fn ids_that_are_none_are_refused() {
        for bad in ["", "abc", "abc-", "abc-64", "abc-x", "-1", "a.b-1", "abc-+5", "abc-05"] {
            assert_eq!(DataKeyId::parse(bad), None, "{bad}");
        }
    }
}
