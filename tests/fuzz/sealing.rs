//! What is stored sealed: envelopes of secrets, and pages of data keys.

use std::sync::LazyLock;

use domain::data_key::Page;
use domain::id::{DataKeyId, KeyId, MessageId, PageId};
use domain::seal::{AssociatedData, Sealed, SealedUnder};
use secrecy::{ExposeSecret as _, SecretString};

use crate::mutate::Input;
use crate::world::{PAGE, RING, data_key, nonce, source, symmetric_key};

const SECRET: &str = "what is sealed";

/// Under a symmetric key of the ring, and under a data key.
static SEALED: LazyLock<[Sealed; 2]> = LazyLock::new(|| {
    let secret = SecretString::from(SECRET);
    bound(|to| {
        [symmetric_key().seal(&secret, to, &nonce()), data_key().seal(&secret, to, &nonce())]
            .map(Result::unwrap)
    })
});

static SEALED_PAGE: LazyLock<Sealed> = LazyLock::new(|| PAGE.seal(RING.sealing_key()).unwrap());

fn bound<T>(with: impl FnOnce(AssociatedData<'_>) -> T) -> T {
    let event = MessageId::from_stored("fuzzed:1#0".to_owned());
    with(AssociatedData { source: &source(), installation: None, event: &event, field: "api_key" })
}

pub(crate) fn envelopes() -> Vec<Input> {
    SEALED.iter().map(|sealed| Input::new("envelope", &[sealed.as_str()])).collect()
}

pub(crate) fn pages() -> Vec<Input> {
    vec![Input::new("page", &[PAGE.id().as_str(), SEALED_PAGE.as_str()])]
}

/// Opens only what was sealed, written as it was sealed.
pub(crate) fn envelope(input: &Input) {
    let sealed = Sealed::from_stored(input.text(0));
    let opened = bound(|to| match sealed.under().ok()? {
        SealedUnder::SymmetricKey(_) | SealedUnder::KeyPair(_) => RING.open(&sealed, to).ok(),
        SealedUnder::DataKey(id) => PAGE.key(id.slot)?.open(&sealed, to).ok(),
    });
    let is_genuine = SEALED.contains(&sealed);
    assert_eq!(opened.is_some(), is_genuine, "{}", sealed.as_str());
    if let Some(opened) = opened {
        assert_eq!(opened.expose_secret(), SECRET);
    }
    assert!(format!("{sealed:?}").len() < 80);
    key_ids(&input.text(0));
}

/// A name has one form.
fn key_ids(text: &str) {
    for part in text.split('.') {
        if let Some(id) = DataKeyId::parse(part) {
            assert_eq!(id.to_string(), part);
        }
        if let Ok(id) = KeyId::parse(part) {
            assert_eq!(id.as_str(), part);
        }
    }
}

pub(crate) fn page(input: &Input) {
    let (id, sealed) = (input.text(0), Sealed::from_stored(input.text(1)));
    let Ok(id) = PageId::parse(id) else { return };
    let is_genuine = id == *PAGE.id() && sealed == *SEALED_PAGE;
    let opened = Page::open(&RING, id, &sealed);
    assert_eq!(opened.is_ok(), is_genuine);
    let Ok(opened) = opened else { return };
    assert_eq!(opened.keys().count(), PAGE.keys().count());
}
