// SPDX-License-Identifier: MIT OR Apache-2.0

#![allow(clippy::unwrap_used, reason = "tests")]

use p256::elliptic_curve::rand_core::OsRng;
use pgp::composed::ArmorOptions;
use pgp::packet::{SignatureConfig, Subpacket, SubpacketData};
use pgp::types::{Duration, Password};
use proptest::prelude::*;

use super::super::fixtures::{key, keyring, sign};
use super::*;

const TEXT: &str = "Origin: Test\nSuite: test\n - dashed\nSHA256:\n";

fn ring(keys: &[&pgp::composed::SignedSecretKey]) -> Keyring {
    Keyring::parse(&keyring(keys), "test.gpg").unwrap()
}

#[test]
fn good_signatures_of_primary_keys_and_subkeys() {
    let (a, b) = (key("a"), key("b"));
    let verified = ring(&[&a, &b]).verify(&sign(&b, TEXT), None).unwrap();
    assert_eq!(verified.text, TEXT);
    assert_eq!(verified.key, format!("{:X}", b.fingerprint()));
    let subkey = &a.secret_subkeys[0].key;
    let by_subkey = CleartextSignedMessage::sign(OsRng, TEXT, subkey, &Password::empty()).unwrap();
    let by_subkey = by_subkey.to_armored_string(ArmorOptions::default()).unwrap();
    assert_eq!(ring(&[&a]).verify(&by_subkey, None).unwrap().key, format!("{:X}", subkey.fingerprint()));
    // Armored keyrings as well.
    let armored = a.to_public_key().to_armored_bytes(ArmorOptions::default()).unwrap();
    Keyring::parse(&armored, "armored").unwrap().verify(&sign(&a, TEXT), None).unwrap();
}

#[test]
fn one_good_signature_of_several_is_enough() {
    let (a, b) = (key("a"), key("b"));
    let sign_both = |text: &str| {
        let one = |key: &pgp::composed::SignedSecretKey| {
            CleartextSignedMessage::sign(OsRng, text, &**key, &Password::empty()).unwrap().signatures()[0].clone()
        };
        CleartextSignedMessage::new_many(text, |_| Ok(vec![one(&a), one(&b)]))
    };
    let both = sign_both(TEXT).unwrap().to_armored_string(ArmorOptions::default()).unwrap();
    ring(&[&b]).verify(&both, None).unwrap();
    ring(&[&a]).verify(&both, None).unwrap();
    let e = ring(&[&key("c")]).verify(&both, None).unwrap_err().to_string();
    assert_eq!(e.matches("is not in it").count(), 2, "{e}");
}

#[test]
fn a_changed_text_is_refused() {
    let a = key("a");
    let signed = sign(&a, TEXT).replace("Suite: test", "Suite: evil");
    let e = ring(&[&a]).verify(&signed, None).unwrap_err();
    assert!(e.to_string().contains("no good signature by a key of the keyring test.gpg: BAD signature by"), "{e}");
    assert_eq!(e.kind.exit_code(), 4);
    assert!(e.hint.unwrap().contains("do not use this mirror"));
}

#[test]
fn text_outside_of_the_signature_is_never_returned() {
    let a = key("a");
    for signed in [format!("{}Evil: yes\n", sign(&a, TEXT)), format!("Evil: yes\n\n{}", sign(&a, TEXT))] {
        if let Ok(verified) = ring(&[&a]).verify(&signed, None) {
            assert_eq!(verified.text, TEXT);
        }
    }
}

#[test]
fn an_unknown_key_is_named() {
    let (a, b) = (key("a"), key("b"));
    let e = ring(&[&a]).verify(&sign(&b, TEXT), None).unwrap_err();
    assert!(e.to_string().contains(&format!("key {:X} is not in it", b.fingerprint())), "{e}");
}

#[test]
fn what_is_not_signed_is_refused() {
    let a = key("a");
    for text in ["", TEXT, "<html>login</html>", "-----BEGIN PGP SIGNED MESSAGE-----\n\nx\n"] {
        let e = ring(&[&a]).verify(text, None).unwrap_err();
        assert!(e.to_string().contains("it is not a cleartext-signed text"), "{e}");
        assert_eq!(e.kind.exit_code(), 4);
    }
}

#[test]
fn keyrings_that_are_none() {
    let e = Keyring::read(Path::new("/nonexistent.gpg")).unwrap_err();
    assert_eq!(e.to_string(), "reading the keyring /nonexistent.gpg");
    assert!(crate::error::hint(&e).unwrap().contains("debian-archive-keyring"));
    assert!(Keyring::parse(b"", "empty").is_err());
    let a = key("a");
    let secret = pgp::ser::Serialize::to_bytes(&a).unwrap();
    assert!(Keyring::parse(&secret, "secret").unwrap_err().to_string().contains("no usable public key"));
}

#[test]
fn expired_keys() {
    let a = key("a");
    let signature = |subpackets: Vec<SubpacketData>| {
        let mut config = SignatureConfig::from_key(OsRng, &a.primary_key, SignatureType::Text).unwrap();
        config.hashed_subpackets = subpackets.into_iter().map(|data| Subpacket::regular(data).unwrap()).collect();
        config.sign(&a.primary_key, &Password::empty(), &b"x"[..]).unwrap()
    };
    let at = |secs| SubpacketData::SignatureCreationTime(Timestamp::from_secs(secs));
    let life = signature(vec![at(1000), SubpacketData::KeyExpirationTime(Duration::from_secs(500))]);
    let born = Timestamp::from_secs(1000);
    let made = |secs| signature(vec![at(secs)]);
    assert_eq!(expiry_problem(born, &life, &made(1400), None), None);
    assert_eq!(expiry_problem(born, &life, &made(1400), Some(1450)), None);
    assert_eq!(expiry_problem(born, &life, &made(1400), Some(1600)).unwrap(), "has expired");
    assert_eq!(expiry_problem(born, &life, &made(1600), None).unwrap(), "has expired");
    assert_eq!(expiry_problem(born, &life, &made(999), None).unwrap(), "is younger than its signature");
    let short = signature(vec![at(1100), SubpacketData::SignatureExpirationTime(Duration::from_secs(10))]);
    assert_eq!(expiry_problem(born, &life, &short, None), None);
    assert!(expiry_problem(born, &life, &short, Some(1200)).unwrap().contains("signature that has expired"));
}

#[test]
fn the_keyring_of_a_debian_host_can_be_read() {
    let path = Path::new(crate::inputs::mirror::DEBIAN_KEYRING);
    if path.exists() {
        assert!(Keyring::read(path).unwrap().keys.len() >= 3);
    }
}

proptest! {
    #[test]
    fn it_never_panics(text in "(-----BEGIN PGP SIGNED MESSAGE-----\n(Hash: SHA256\n)?\n\\PC{0,9}\n)?(-----BEGIN PGP SIGNATURE-----\n\n[a-zA-Z0-9+/=\n]{0,60}\n-----END PGP SIGNATURE-----\n)?\\PC{0,9}") {
        let _ = Keyring { keys: vec![], name: String::new() }.verify(&text, None);
    }
}
