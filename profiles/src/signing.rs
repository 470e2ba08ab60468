// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signatures of lists of checksums, in the formats of minisign (<https://jedisct1.github.io/minisign/>): public keys
//! as cluster files and media carry them, and whether a signature fits. The builder makes signatures, the installer
//! asks for them.

use std::fmt;
use std::str::FromStr;

use base64ct::{Base64, Encoding};
use thiserror::Error;

/// What the name of a signature has behind that of the signed file.
pub const SUFFIX: &str = ".minisig";
/// The list of checksums of a medium, of a PXE folder and of an export.
pub const SUMS: &str = "SHA256SUMS";
/// Where an installer's initramfs has the public key, as `minisign.pub` has it.
pub const KEY_FILE: &str = "etc/imgbuild/signing.pub";
/// Longest file of a signature that is read, in bytes: minisign allows comments of 1 KiB and 8 KiB.
pub const SIGNATURE_MAX: u64 = 16 << 10;

/// What stands before the comment that nobody signs.
const UNTRUSTED: &str = "untrusted comment: ";
/// What stands before the one that is signed.
const TRUSTED: &str = "trusted comment: ";
/// Ed25519.
const ALGORITHM: [u8; 2] = *b"Ed";
/// Bytes of a public key: algorithm, number of the key, Ed25519 key.
const KEY_BYTES: usize = 2 + 8 + 32;
/// Bytes of a signature: algorithm, number of the key, Ed25519 signature.
const SIGNATURE_BYTES: usize = 2 + 8 + 64;
/// Bytes of a secret key, which people take for the public one.
const SECRET_KEY_BYTES: usize = 158;

/// Number of a key, as minisign shows it: 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// By its bytes as they are in keys and signatures.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey([u8; KEY_BYTES]);

/// Why a text is no public key. Never shows the text: it may be a secret key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Something that base64 has not.
    #[error("it is not base64")]
    Encoding,
    /// A secret key.
    #[error("it is a secret key, which belongs nowhere but on the machine that signs")]
    Secret,
    /// Another number of bytes.
    #[error("it has {0} bytes, and a public key of minisign has 42")]
    Length(usize),
    /// Another algorithm.
    #[error("it does not begin as a public key of minisign (`RW`)")]
    Algorithm,
    /// A file with other lines than those of `minisign.pub`.
    #[error("it is not one line of base64 below a comment")]
    Lines,
}

impl PublicKey {
    /// A key by its parts.
    pub fn new(id: KeyId, ed25519: [u8; 32]) -> Self {
        let mut bytes = [0; KEY_BYTES];
        bytes[..2].copy_from_slice(&ALGORITHM);
        bytes[2..10].copy_from_slice(&id.0);
        bytes[10..].copy_from_slice(&ed25519);
        Self(bytes)
    }

    /// The key in a file as `minisign -G` writes it, or alone in a file.
    ///
    /// # Errors
    /// Anything else.
    pub fn from_file(text: &str) -> Result<Self, KeyError> {
        let mut lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with(UNTRUSTED));
        match (lines.next(), lines.next()) {
            (Some(key), None) => key.trim().parse(),
            _ => Err(KeyError::Lines),
        }
    }

    /// The file that `minisign -G` writes.
    pub fn to_file(&self) -> String {
        format!("{UNTRUSTED}minisign public key {}\n{self}\n", self.id())
    }

    /// Its number.
    pub fn id(&self) -> KeyId {
        let mut id = [0; 8];
        id.copy_from_slice(&self.0[2..10]);
        KeyId(id)
    }

    /// Whether this key signed `content`, and the signature's comment.
    ///
    /// # Errors
    /// If not.
    pub fn verify(&self, content: &[u8], signature: &Signature) -> Result<(), NotSigned> {
        if signature.key != self.id() {
            return Err(NotSigned::OtherKey(signature.key));
        }
        let key = minisign_verify::PublicKey::from_base64(&self.to_string()).map_err(|_| NotSigned::Bad)?;
        let signature = minisign_verify::Signature::decode(&signature.text).map_err(|_| NotSigned::Bad)?;
        // Only hashed signatures, which minisign makes since 0.10, unless it is told to make others.
        key.verify(content, &signature, false).map_err(|_| NotSigned::Bad)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = Base64::decode_vec(text).map_err(|_| KeyError::Encoding)?;
        match <[u8; KEY_BYTES]>::try_from(bytes.as_slice()) {
            Ok(key) if key[..2] == ALGORITHM => Ok(Self(key)),
            Ok(_) => Err(KeyError::Algorithm),
            Err(_) if bytes.len() == SECRET_KEY_BYTES => Err(KeyError::Secret),
            Err(_) => Err(KeyError::Length(bytes.len())),
        }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Base64::encode_string(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// Why something does not count as signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotSigned {
    /// Another key made the signature.
    #[error("it is signed by another key, {0}")]
    OtherKey(KeyId),
    /// Content, comment or signature were changed.
    #[error("the signature does not fit: what it is over was changed, or the signature was")]
    Bad,
}

/// A signature as it is in a file: well-formed, and not verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    text: String,
    key: KeyId,
}

/// Why a file is no signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it is no signature of minisign")]
pub struct NoSignature;

impl Signature {
    /// Reads the file of a signature.
    ///
    /// # Errors
    /// What is not four lines in minisign's form.
    pub fn parse(text: &str) -> Result<Self, NoSignature> {
        let lines: Vec<&str> = text.lines().collect();
        let [untrusted, signature, trusted, global] = lines[..] else { return Err(NoSignature) };
        // Where this is missing, minisign-verify reads beyond the end of the line.
        if !untrusted.starts_with(UNTRUSTED) || !trusted.starts_with(TRUSTED) {
            return Err(NoSignature);
        }
        let bytes = Base64::decode_vec(signature).map_err(|_| NoSignature)?;
        let global = Base64::decode_vec(global).map_err(|_| NoSignature)?;
        if bytes.len() != SIGNATURE_BYTES || global.len() != 64 {
            return Err(NoSignature);
        }
        let mut id = [0; 8];
        id.copy_from_slice(&bytes[2..10]);
        Ok(Self { text: text.to_owned(), key: KeyId(id) })
    }

    /// Number of the key that is said to have made it.
    pub fn key(&self) -> KeyId {
        self.key
    }

    /// The comment, which is signed too.
    pub fn comment(&self) -> &str {
        self.text.lines().nth(2).unwrap_or_default().trim_start_matches(TRUSTED)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of minisign-verify: made by minisign over the word "test".
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    const SIGNED: &str = "untrusted comment: signature from minisign secret key\n\
        RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n\
        trusted comment: timestamp:1556193335\tfile:test\n\
        y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==\n";
    /// The same in minisign's old way, without hashing.
    const LEGACY: &str = "untrusted comment: signature from minisign secret key\n\
        RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=\n\
        trusted comment: timestamp:1555779966\tfile:test\n\
        QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==\n";

    fn key() -> PublicKey {
        KEY.parse().unwrap()
    }

    #[test]
    fn keys_are_read_and_written_as_minisign_has_them() {
        assert_eq!(key().to_string(), KEY);
        assert_eq!(key().id().to_string(), "E7620F1842B4E81F");
        let file = format!("untrusted comment: minisign public key E7620F1842B4E81F\n{KEY}\n");
        assert_eq!(key().to_file(), file);
        for text in [file.as_str(), KEY, &format!("{KEY}\n"), &file.replace('\n', "\r\n")] {
            assert_eq!(PublicKey::from_file(text), Ok(key()), "{text:?}");
        }
        let mut ed25519 = [0; 32];
        ed25519.copy_from_slice(&Base64::decode_vec(KEY).unwrap()[10..]);
        assert_eq!(PublicKey::new(key().id(), ed25519), key());
    }

    #[test]
    fn what_is_no_key_is_told_and_not_shown() {
        for (text, wanted) in [
            (String::new(), KeyError::Length(0)),
            ("hello!".to_owned(), KeyError::Encoding),
            (Base64::encode_string(&[0; KEY_BYTES]), KeyError::Algorithm),
            (KEY[..52].to_owned(), KeyError::Length(39)),
            (Base64::encode_string(&[7; SECRET_KEY_BYTES]), KeyError::Secret),
        ] {
            let error = text.parse::<PublicKey>().unwrap_err();
            assert_eq!(error, wanted);
            assert!(text.is_empty() || !error.to_string().contains(&text), "{error}");
        }
        for text in ["", "untrusted comment: x\n", &format!("{KEY}\n{KEY}\n")] {
            assert_eq!(PublicKey::from_file(text), Err(KeyError::Lines), "{text:?}");
        }
    }

    #[test]
    fn a_signature_of_minisign_is_verified() {
        let signature = Signature::parse(SIGNED).unwrap();
        assert_eq!((signature.key(), signature.comment()), (key().id(), "timestamp:1556193335\tfile:test"));
        key().verify(b"test", &signature).unwrap();
        assert_eq!(key().verify(b"Test", &signature), Err(NotSigned::Bad));
        let forged = Signature::parse(&SIGNED.replace("file:test", "file:else")).unwrap();
        assert_eq!(key().verify(b"test", &forged), Err(NotSigned::Bad), "another comment");
        assert_eq!(key().verify(b"test", &Signature::parse(LEGACY).unwrap()), Err(NotSigned::Bad));
        let other = PublicKey::new(KeyId([1; 8]), [2; 32]);
        let error = other.verify(b"test", &signature).unwrap_err();
        assert_eq!(error.to_string(), "it is signed by another key, E7620F1842B4E81F");
        assert_eq!(PublicKey::new(key().id(), [2; 32]).verify(b"test", &signature), Err(NotSigned::Bad));
    }

    #[test]
    fn what_is_no_signature_is_refused() {
        for text in
            ["", "\n\n\n\n", &SIGNED.replace("trusted comment: t", "t"), &SIGNED[..100], &format!("{SIGNED}x\n")]
        {
            assert_eq!(Signature::parse(text), Err(NoSignature), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_changed_signature_never_panics_and_never_fits(at in 0usize..400, byte in any::<u8>(), content: Vec<u8>) {
            let mut text = SIGNED.as_bytes().to_vec();
            let at = at % text.len();
            text[at] = byte;
            let Ok(text) = String::from_utf8(text) else { return Ok(()) };
            if let Ok(signature) = Signature::parse(&text) {
                // The first line is signed by nobody; a line may end in another way.
                let same = text.lines().skip(1).eq(SIGNED.lines().skip(1));
                prop_assert_eq!(key().verify(b"test", &signature).is_ok(), same, "{}", text);
                if content != b"test" {
                    prop_assert!(key().verify(&content, &signature).is_err());
                }
            }
            let _ = PublicKey::from_file(&text);
        }
    }
}
