// SPDX-License-Identifier: MIT OR Apache-2.0

//! Signs lists of checksums with a secret key of minisign (<https://jedisct1.github.io/minisign/>, "Secret key format"
//! and "Signature format"). The same key and the same content give the same signature, as minisign itself has it.
//! Verifying is `profiles::signing`, which is other code.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result};
use base64ct::{Base64, Encoding};
use blake2::digest::consts::U32;
use blake2::{Blake2b, Blake2b512, Digest as _};
use ed25519_dalek::{Signer as _, SigningKey};
use profiles::signing::{KeyId, PublicKey};

use crate::error::Failure;

/// Largest file of a key that is read: a comment of at most 1 KiB and a line of base64.
const FILE_MAX: u64 = 16 << 10;
/// Bytes of a secret key: algorithms of signature, key derivation and checksum; salt and two limits of the derivation;
/// number of the key, Ed25519 key pair, checksum.
const KEY_BYTES: usize = 2 + 2 + 2 + SALT + 8 + 8 + SEALED;
const SALT: usize = 32;
/// What a password seals: number, key pair, checksum.
const SEALED: usize = 8 + 64 + 32;
/// Where that begins.
const SEALED_AT: usize = KEY_BYTES - SEALED;
/// Signatures that are over a hash of the content.
const HASHED: [u8; 2] = *b"ED";
/// What `minisign -G` asks for (libsodium's SENSITIVE): 1 GiB for the derivation of a key. Nobody asks for more.
const MEMORY_MAX: u64 = 1 << 30;

/// A key that signs.
#[derive(Clone)]
pub struct Signer {
    key: SigningKey,
    id: KeyId,
    id_bytes: [u8; 8],
}

/// Shows nothing but the number of the key.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.id)
    }
}

impl Signer {
    /// The key in the file that `minisign -G` wrote. `password` is asked for if it is sealed with one.
    ///
    /// # Errors
    /// A file that is no secret key of minisign, a wrong password, too little memory.
    pub fn open(path: &Path, password: impl FnOnce() -> Result<String>) -> Result<Self> {
        const WANTED: &str = "--sign wants the secret key that `minisign -G` wrote";
        let doing = || format!("reading the secret key {}", path.display());
        let file = File::open(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Failure::user(doing()).hint(WANTED).caused_by(e),
            _ => Failure::io(doing(), e),
        })?;
        let mut text = String::new();
        file.take(FILE_MAX).read_to_string(&mut text).map_err(|e| Failure::io(doing(), e))?;
        let of = |why: &str, hint: &str| Failure::user(format!("{}: {why}", path.display())).hint(hint);
        let bytes = decode(&text).map_err(|why| of(why, WANTED))?;
        let opened = match &bytes[2..4] {
            [0, 0] => sealed(&bytes),
            b"Sc" => unseal(&bytes, &password()?).with_context(|| format!("opening {}", path.display()))?,
            _ => return Err(of("its key derivation is unknown", "make one with `minisign -G`").into()),
        };
        let (id, rest) = opened.split_at(8);
        let (pair, checksum) = rest.split_at(64);
        let mut hash = Blake2b::<U32>::new();
        for part in [&bytes[..2], id, pair] {
            hash.update(part);
        }
        // minisign leaves the checksum empty where there is no password; there the two halves of the key vouch for each other.
        let is_empty = bytes[2..4] == [0, 0] && checksum.iter().all(|byte| *byte == 0);
        if !is_empty && hash.finalize().as_slice() != checksum {
            let why = if bytes[2..4] == [0, 0] { "it is damaged" } else { "the password is wrong, or it is damaged" };
            return Err(of(why, "the password is that of `minisign -G`").into());
        }
        let (mut pair_bytes, mut id_bytes) = ([0; 64], [0; 8]);
        pair_bytes.copy_from_slice(pair);
        id_bytes.copy_from_slice(id);
        let key = SigningKey::from_keypair_bytes(&pair_bytes)
            .map_err(|_| of("its public half is not that of its secret half", "make one with `minisign -G`"))?;
        Ok(Self { key, id: KeyId::from_bytes(id_bytes), id_bytes })
    }

    /// The public key that goes with it.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::new(self.id, self.key.verifying_key().to_bytes())
    }

    /// The signature over `content`, as a file. `comment` is one line, and signed too.
    pub fn sign(&self, content: &[u8], comment: &str) -> String {
        let signature = self.key.sign(&Blake2b512::digest(content)).to_bytes();
        let global = self.key.sign(&[&signature[..], comment.as_bytes()].concat()).to_bytes();
        let first = [&HASHED[..], &self.id_bytes, &signature].concat();
        format!(
            "untrusted comment: signature by imgbuild, key {}\n{}\ntrusted comment: {comment}\n{}\n",
            self.id,
            Base64::encode_string(&first),
            Base64::encode_string(&global)
        )
    }
}

/// The bytes of a secret key. Errors do not show the text.
fn decode(text: &str) -> Result<[u8; KEY_BYTES], &'static str> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let (Some(comment), Some(key), None) = (lines.next(), lines.next(), lines.next()) else {
        return Err("it is not the two lines of a secret key");
    };
    if !comment.starts_with("untrusted comment: ") {
        return Err("its first line is no comment of minisign");
    }
    let bytes = Base64::decode_vec(key.trim()).map_err(|_| "its second line is not base64")?;
    let bytes = <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).map_err(|_| match bytes.len() {
        42 => "it is a public key",
        _ => "its second line is no secret key",
    })?;
    if bytes[..2] != *b"Ed" || bytes[4..6] != *b"B2" {
        return Err("its algorithms are unknown");
    }
    Ok(bytes)
}

fn sealed(bytes: &[u8; KEY_BYTES]) -> [u8; SEALED] {
    let mut sealed = [0; SEALED];
    sealed.copy_from_slice(&bytes[SEALED_AT..]);
    sealed
}

/// Opens the seal with a password, be it right or wrong.
fn unseal(bytes: &[u8; KEY_BYTES], password: &str) -> Result<[u8; SEALED]> {
    let number = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let params = parameters(number(6 + SALT), number(14 + SALT))?;
    let mut stream = [0; SEALED];
    scrypt::scrypt(password.as_bytes(), &bytes[6..6 + SALT], &params, &mut stream)
        .map_err(|_| Failure::user("its key derivation cannot be done"))?;
    let mut opened = sealed(bytes);
    opened.iter_mut().zip(stream).for_each(|(byte, other)| *byte ^= other);
    Ok(opened)
}

/// What scrypt is run with, as libsodium chooses it by limits of operations and bytes of memory (`pickparams` of
/// crypto_pwhash_scryptsalsa208sha256).
fn parameters(operations: u64, memory: u64) -> Result<scrypt::Params> {
    const R: u64 = 8;
    if memory > MEMORY_MAX {
        let message = format!("its key derivation wants {} MiB of memory, more than minisign's own keys", memory >> 20);
        return Err(Failure::user(message).hint("make one with `minisign -G`").into());
    }
    let operations = operations.max(32_768);
    let log_n = |most: u64| (1u8..63).find(|log| 1u64 << *log > most / 2).unwrap_or(63);
    let (log_n, p) = if operations < memory / 32 {
        (log_n(operations / (R * 4)), 1)
    } else {
        let log_n = log_n(memory / (R * 128));
        (log_n, (operations / 4 / (1u64 << log_n)).min(0x3fff_ffff) / R)
    };
    let p = u32::try_from(p).context("a key derivation with too many rounds")?;
    scrypt::Params::new(log_n, R as u32, p, scrypt::Params::RECOMMENDED_LEN)
        .map_err(|_| Failure::user("its key derivation is none").hint("make one with `minisign -G`").into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(crate) mod tests {
    use profiles::signing::{NotSigned, Signature};
    use proptest::prelude::*;

    use super::*;
    use crate::error::kind;

    /// A key as `minisign -G -W` writes it, from bytes of an Ed25519 seed.
    fn key_file(seed: u8, seal: Option<(&str, u64, u64)>) -> String {
        let pair = SigningKey::from_bytes(&[seed; 32]).to_keypair_bytes();
        let id = [seed, 2, 3, 4, 5, 6, 7, 8];
        let mut hash = Blake2b::<U32>::new();
        for part in [&b"Ed"[..], &id, &pair] {
            hash.update(part);
        }
        let mut opened = [&id[..], &pair, &hash.finalize()].concat();
        let salt = [9; SALT];
        let (algorithm, operations, memory) = match seal {
            None => {
                opened[8 + 64..].fill(0);
                ([0, 0], 0, 0)
            }
            Some((password, operations, memory)) => {
                let mut stream = [0; SEALED];
                let params = parameters(operations, memory).unwrap();
                scrypt::scrypt(password.as_bytes(), &salt, &params, &mut stream).unwrap();
                opened.iter_mut().zip(stream).for_each(|(byte, other)| *byte ^= other);
                (*b"Sc", operations, memory)
            }
        };
        let limits = [operations.to_le_bytes(), memory.to_le_bytes()].concat();
        let bytes = [&b"Ed"[..], &algorithm, b"B2", &salt, &limits, &opened].concat();
        format!("untrusted comment: minisign encrypted secret key\n{}\n", Base64::encode_string(&bytes))
    }

    fn open(text: &str, password: &str) -> Result<Signer> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("minisign.key");
        std::fs::write(&path, text).unwrap();
        Signer::open(&path, || Ok(password.to_owned()))
    }

    /// A key for tests elsewhere.
    pub(crate) fn signer() -> Signer {
        open(&key_file(7, None), "").unwrap()
    }

    #[test]
    fn what_is_signed_is_verified_by_other_code() {
        let signer = signer();
        let text = signer.sign(b"content", "cluster:lab\tfile:SHA256SUMS");
        assert_eq!(text, signer.sign(b"content", "cluster:lab\tfile:SHA256SUMS"), "no random bytes, no clock");
        let signature = Signature::parse(&text).unwrap();
        assert_eq!(signature.comment(), "cluster:lab\tfile:SHA256SUMS");
        signer.public_key().verify(b"content", &signature).unwrap();
        assert_eq!(signer.public_key().verify(b"contents", &signature), Err(NotSigned::Bad));
        let other = open(&key_file(8, None), "").unwrap();
        assert!(matches!(other.public_key().verify(b"content", &signature), Err(NotSigned::OtherKey(_))));
        assert_eq!(format!("{signer:?}"), "Signer(0807060504030207)");
    }

    #[test]
    fn a_password_opens_a_key() {
        // Small limits: those of minisign take a gigabyte and seconds.
        let text = key_file(7, Some(("correct horse", 32_768, 1 << 20)));
        let sealed = open(&text, "correct horse").unwrap();
        assert_eq!(sealed.public_key(), signer().public_key());
        let error = open(&text, "wrong").unwrap_err();
        assert!(error.to_string().ends_with("minisign.key: the password is wrong, or it is damaged"), "{error}");
        assert_eq!(kind(&error).exit_code(), 1);
        // What minisign asks for: 2^20, 8, 1.
        let params = parameters(33_554_432, 1_073_741_824).unwrap();
        assert_eq!((params.log_n(), params.r(), params.p()), (20, 8, 1));
        assert!(parameters(1, 2 << 30).unwrap_err().to_string().contains("2048 MiB"));
    }

    #[test]
    fn what_is_no_secret_key_is_told_and_not_shown() {
        let good = key_file(7, None);
        let line = good.lines().nth(1).unwrap();
        let damaged = |at: usize| {
            let mut bytes = Base64::decode_vec(line).unwrap();
            bytes[at] ^= 1;
            good.replace(line, &Base64::encode_string(&bytes))
        };
        for (text, wanted) in [
            (String::new(), "it is not the two lines"),
            (good.replace("untrusted ", ""), "is no comment"),
            (good.replace(line, "!"), "is not base64"),
            (signer().public_key().to_file(), "it is a public key"),
            (good.replace(line, "QUJD"), "is no secret key"),
            (damaged(SEALED_AT + 8), "its public half is not that of its secret half"),
            (damaged(KEY_BYTES - 1), "it is damaged"),
        ] {
            let error = open(&text, "").unwrap_err();
            assert!(error.to_string().contains(wanted), "{wanted}: {error}");
            assert!(!format!("{error:#}").contains(&line[20..40]), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), KEY_BYTES)) {
            let mut bytes = bytes;
            bytes[..2].copy_from_slice(b"Ed");
            bytes[2..4].fill(0);
            bytes[4..6].copy_from_slice(b"B2");
            let text = format!("untrusted comment: x\n{}\n", Base64::encode_string(&bytes));
            prop_assert!(open(&text, "").is_err());
        }

        #[test]
        fn limits_give_parameters_or_an_error(operations: u64, memory in 0..=MEMORY_MAX) {
            if let Ok(params) = parameters(operations, memory) {
                prop_assert!((1u64 << params.log_n()) * u64::from(params.r()) * 128 <= MEMORY_MAX);
            }
        }
    }
}
