use super::*;
use crate::key_pair::{NewPair, PrivateKey};
use crate::key_ring::{KeyRing, RingError};

const SECRET: &str = "blnk_test_0123456789";

fn symmetric(id: &str) -> SymmetricKey {
    let byte = id.bytes().last().unwrap();
    SymmetricKey::new(KeyId::parse(id).unwrap(), &vec![byte; KEY_BYTES].into()).unwrap()
}

fn ring(ids: &[&str]) -> KeyRing {
    let pair = PrivateKey::parse(&NewPair::generate().private).unwrap();
    let active = KeyId::parse("pair").unwrap();
    KeyRing::new(active.clone(), [(active, pair)], ids.iter().map(|id| symmetric(id))).unwrap()
}

struct Bound {
    source: SourceName,
    installation: InstallationId,
    event: MessageId,
}

impl Bound {
    fn to(source: &str, installation: &str, key: &str) -> Self {
        let source = SourceName::parse(source).unwrap();
        let event = MessageId::from_stored(format!("{source}:{key}"));
        Self { source, installation: InstallationId::parse(installation).unwrap(), event }
    }

    fn field<'a>(&'a self, field: &'a str) -> AssociatedData<'a> {
        AssociatedData {
            source: &self.source,
            installation: Some(&self.installation),
            event: &self.event,
            field,
        }
    }
}

fn seal(id: &str, bound: &Bound) -> Sealed {
    symmetric(id).seal(&SECRET.into(), bound.field("api_key"), &SealingNonce::random()).unwrap()
}

#[test]
fn what_was_sealed_opens_again() {
    let (ring, bound) = (ring(&["k1"]), Bound::to("blnk", "i1", "install:i1"));
    let sealed = seal("k1", &bound);
    assert!(!sealed.as_str().contains(SECRET));
    let opened = ring.open(&sealed, bound.field("api_key")).unwrap();
    assert_eq!(opened.expose_secret(), SECRET);
}

#[test]
fn a_ciphertext_moved_elsewhere_does_not_open() {
    let (ring, bound) = (ring(&["k1"]), Bound::to("blnk", "i1", "install:i1"));
    let sealed = seal("k1", &bound);
    let elsewhere = [
        Bound::to("other", "i1", "install:i1"),
        Bound::to("blnk", "i2", "install:i1"),
        Bound::to("blnk", "i1", "install:i2"),
    ];
    for place in &elsewhere {
        let refused = ring.open(&sealed, place.field("api_key")).unwrap_err();
        assert_eq!(refused, OpenError::Authentication);
    }
    let refused = ring.open(&sealed, bound.field("refresh_token")).unwrap_err();
    assert_eq!(refused, OpenError::Authentication);
    // Without length prefixes these two would be the same bytes.
    let shifted = AssociatedData { installation: None, ..bound.field("i1api_key") };
    assert!(ring.open(&sealed, shifted).is_err());
}

#[test]
fn a_retired_key_still_opens_and_an_unknown_one_is_named() {
    let bound = Bound::to("blnk", "i1", "install:i1");
    let sealed = seal("k1", &bound);
    assert!(ring(&["k1", "k2"]).open(&sealed, bound.field("api_key")).is_ok());
    assert_eq!(sealed.under().unwrap().to_string(), "k1");

    let without = ring(&["k2"]).open(&sealed, bound.field("api_key")).unwrap_err();
    assert_eq!(without, OpenError::UnknownKey(KeyId::parse("k1").unwrap()));
}

#[test]
fn the_key_is_chosen_by_id_and_never_by_trial() {
    let bound = Bound::to("blnk", "i1", "install:i1");
    let ring = ring(&["k1", "k2"]);
    let renamed = Sealed(seal("k1", &bound).0.replacen(".k1.", ".k2.", 1));
    let refused = ring.open(&renamed, bound.field("api_key")).unwrap_err();
    assert_eq!(refused, OpenError::Authentication);
}

#[test]
fn every_truncation_is_refused() {
    let (ring, bound) = (ring(&["k1"]), Bound::to("blnk", "i1", "install:i1"));
    let sealed = seal("k1", &bound);
    for length in 0..sealed.0.len() {
        let cut = Sealed(sealed.0[..length].to_owned());
        assert!(ring.open(&cut, bound.field("api_key")).is_err(), "cut to {length} bytes");
    }
}

#[test]
fn every_flipped_bit_of_nonce_and_ciphertext_is_refused() {
    let (ring, bound) = (ring(&["k1"]), Bound::to("blnk", "i1", "install:i1"));
    let sealed = seal("k1", &bound);
    let parts: Vec<&str> = sealed.0.split('.').collect();
    for part in [2, 3] {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(parts[part]).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let encoded = BASE64_URL_SAFE_NO_PAD.encode(flipped);
            let mut parts = parts.clone();
            parts[part] = &encoded;
            let refused = ring.open(&Sealed(parts.join(".")), bound.field("api_key"));
            assert_eq!(refused.unwrap_err(), OpenError::Authentication, "part {part} bit {bit}");
        }
    }
}

#[test]
fn keys_of_the_wrong_length_and_a_missing_active_key_are_refused() {
    for bad in ["", "AAAA", "not base64 !", &"A".repeat(44)] {
        assert_eq!(parse_key(&bad.into()).unwrap_err(), KeyError::Malformed, "{bad}");
    }
    let active = || KeyId::parse("k1").unwrap();
    let none = KeyRing::new(active(), [], []).unwrap_err();
    assert_eq!(none, RingError::NoActivePair(active()));
    let symmetric_alone = KeyRing::new(active(), [], [symmetric("k1")]).unwrap_err();
    assert_eq!(symmetric_alone, RingError::NoActivePair(active()));
    let pair = PrivateKey::parse(&NewPair::generate().private).unwrap();
    let twice = KeyRing::new(active(), [(active(), pair)], [symmetric("k1")]).unwrap_err();
    assert_eq!(twice, RingError::Twice(active()));
}

#[test]
fn debug_shows_neither_key_nor_ciphertext() {
    let (ring, bound) = (ring(&["k1"]), Bound::to("blnk", "i1", "install:i1"));
    let sealed = seal("k1", &bound);
    assert_eq!(format!("{sealed:?}"), "Sealed(key k1)");
    assert_eq!(format!("{ring:?}"), "KeyRing(active pair, 2 keys)");
}
