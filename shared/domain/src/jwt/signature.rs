//! The signatures of tokens, checked by ring, which rustls brings along already.

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{Error, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};

/// For every token of this process. A second time it is refused, and right already.
pub fn install() {
    PROVIDER.install_default().ok();
}

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: no_signer,
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(), // for private keys, which we have none of
};

fn no_signer(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    Err(ErrorKind::UnsupportedAlgorithm.into())
}

/// Who checks a token says which algorithms it may have; and no key is used with an algorithm
/// of another family, so that no public key passes for a shared secret.
fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(Box::new(Checked { algorithm: *algorithm, key: key.clone() }))
}

struct Checked {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtVerifier for Checked {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for Checked {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let is_right = match self.algorithm {
            Algorithm::HS256 => self.is_mac(message, signature),
            Algorithm::RS256 => {
                self.is_rsa(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            Algorithm::PS256 => {
                self.is_rsa(&signature::RSA_PSS_2048_8192_SHA256, message, signature)
            }
            Algorithm::ES256 => {
                self.is_signed(&signature::ECDSA_P256_SHA256_FIXED, message, signature)
            }
            Algorithm::ES384 => {
                self.is_signed(&signature::ECDSA_P384_SHA384_FIXED, message, signature)
            }
            Algorithm::EdDSA => self.is_signed(&signature::ED25519, message, signature),
            _ => false,
        };
        if is_right { Ok(()) } else { Err(Error::new()) }
    }
}

impl Checked {
    fn is_mac(&self, message: &[u8], mac: &[u8]) -> bool {
        let DecodingKeyKind::SecretOrDer(secret) = self.key.kind() else { return false };
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
        ring::hmac::verify(&key, message, mac).is_ok()
    }

    fn is_rsa(
        &self,
        parameters: &'static signature::RsaParameters,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        match self.key.kind() {
            DecodingKeyKind::RsaModulusExponent { n, e } => {
                let key = signature::RsaPublicKeyComponents { n, e };
                key.verify(parameters, message, signature).is_ok()
            }
            DecodingKeyKind::SecretOrDer(_) => self.is_signed(parameters, message, signature),
        }
    }

    fn is_signed(
        &self,
        algorithm: &'static dyn VerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let DecodingKeyKind::SecretOrDer(key) = self.key.kind() else { return false };
        UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
    }
}
