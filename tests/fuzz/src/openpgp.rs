// SPDX-License-Identifier: MIT OR Apache-2.0

//! Keyrings and signatures: a keyring, a text signed in the clear, a signature of that text.

use imgbuild::inputs::deb::openpgp::Keyring;
use p256::elliptic_curve::rand_core::OsRng;
use pgp::composed::{
    ArmorOptions, CleartextSignedMessage, DetachedSignature, KeyType, SecretKeyParamsBuilder, SubkeyParamsBuilder,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::ser::Serialize;
use pgp::types::Password;

use crate::{SEPARATOR, parts};

/// Reads a keyring and checks both signatures with it.
pub fn run(data: &[u8]) {
    let parts = parts(data);
    let Ok(ring) = Keyring::parse(parts[0], "fuzz") else { return };
    let signed = parts.get(1).copied().unwrap_or_default();
    for now in [None, Some(2_000_000_000)] {
        let _ = ring.verify(&String::from_utf8_lossy(signed), now);
    }
    let _ = ring.verify_detached(parts.get(2).copied().unwrap_or_default(), b"text\n");
}

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    let subkey = SubkeyParamsBuilder::default().key_type(KeyType::Ed25519Legacy).can_sign(true).build();
    let mut params = SecretKeyParamsBuilder::default();
    params.key_type(KeyType::Ed25519Legacy).can_sign(true).can_certify(true);
    params.subkeys(vec![subkey.expect("a subkey")]).primary_user_id("a <a@example>".to_owned());
    let key = params.build().expect("a key").generate(OsRng).expect("a key");
    let public = key.to_public_key();
    let binary = public.to_bytes().expect("a keyring");
    let armored = public.to_armored_bytes(ArmorOptions::default()).expect("a keyring");
    let message = CleartextSignedMessage::sign(OsRng, "text\n", &*key, &Password::empty()).expect("signing");
    let message = message.to_armored_bytes(ArmorOptions::default()).expect("signing");
    let hash = HashAlgorithm::Sha256;
    let detached = DetachedSignature::sign_binary_data(OsRng, &*key, &Password::empty(), hash, &b"text\n"[..]);
    let detached = detached.expect("signing").to_bytes().expect("signing");
    [binary, armored].into_iter().map(|ring| [&ring[..], &message, &detached].join(SEPARATOR)).collect()
}
