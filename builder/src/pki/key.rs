// SPDX-License-Identifier: MIT OR Apache-2.0

//! Private keys: ECDSA P-256, which kubeadm and etcd of every supported version accept; but RSA for service accounts.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use rcgen::{PublicKeyData, SignatureAlgorithm};
use rsa::RsaPrivateKey;
use rsa::rand_core::OsRng;
use sha2::{Digest as _, Sha256};

/// A private key that signs deterministically (RFC 6979): one key always gives the same certificate bytes.
pub(super) struct Key {
    secret: SigningKey,
    /// SEC1 uncompressed point, as a SubjectPublicKeyInfo holds it.
    pub(super) public: Vec<u8>,
}

impl Key {
    fn new(secret: SigningKey) -> Self {
        let public = secret.verifying_key().to_encoded_point(false).as_bytes().to_vec();
        Self { secret, public }
    }

    pub(super) fn generate() -> Result<Self> {
        let mut random = File::open("/dev/urandom").context("opening /dev/urandom")?;
        loop {
            let mut bytes = [0; 32];
            random.read_exact(&mut bytes).context("reading /dev/urandom")?;
            // Numbers outside the curve's order (about one in 2^32) are refused: take the next.
            if let Ok(secret) = SigningKey::from_slice(&bytes) {
                return Ok(Self::new(secret));
            }
        }
    }

    pub(super) fn from_pem(pem: &str) -> Result<Self> {
        Ok(Self::new(SigningKey::from_pkcs8_pem(pem).context("reading a P-256 private key in PKCS#8")?))
    }

    pub(super) fn to_pem(&self) -> Result<String> {
        Ok(self.secret.to_pkcs8_pem(LineEnding::LF).context("encoding a private key")?.to_string())
    }

    /// RFC 7093, method 1: the leftmost 160 bits of the sha256 of the public key.
    pub(super) fn identifier(&self) -> Vec<u8> {
        Sha256::digest(&self.public)[..20].to_vec()
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature: DerSignature = self.secret.sign(message);
        Ok(signature.as_bytes().to_vec())
    }
}

/// Size of the service-account key in bits: what kubeadm makes itself.
const SERVICE_ACCOUNT_BITS: usize = 2048;

/// The key that signs service-account tokens. RSA, because `kubeadm join --control-plane` of Kubernetes 1.20 takes no other
/// ("the private key file isn't in RSA format"), although its `init` does.
pub(super) struct ServiceAccountKey(RsaPrivateKey);

impl ServiceAccountKey {
    pub(super) fn generate() -> Result<Self> {
        Ok(Self(RsaPrivateKey::new(&mut OsRng, SERVICE_ACCOUNT_BITS).context("making an RSA key")?))
    }

    pub(super) fn from_pem(pem: &str) -> Result<Self> {
        Ok(Self(RsaPrivateKey::from_pkcs8_pem(pem).context("reading an RSA private key in PKCS#8")?))
    }

    pub(super) fn to_pem(&self) -> Result<String> {
        Ok(self.0.to_pkcs8_pem(LineEnding::LF).context("encoding a private key")?.to_string())
    }

    pub(super) fn public_pem(&self) -> Result<String> {
        self.0.to_public_key().to_public_key_pem(LineEnding::LF).context("encoding a public key")
    }
}
