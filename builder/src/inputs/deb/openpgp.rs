// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whether a text was signed by a key of a keyring. Trust comes from the keyring file alone: there is no web of trust
//! and no key is ever fetched. Format: RFC 9580 (OpenPGP), its cleartext signature framework in section 7.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};
use pgp::composed::{
    CleartextSignedMessage, Deserializable, DetachedSignature, PublicOrSecret, SignedPublicKey, SignedPublicSubKey,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails, Tag, Timestamp, VerifyingKey};

use crate::error::Failure;
use crate::store::{Digest, Store};

/// The public keys that are trusted to sign something.
#[derive(Debug)]
pub struct Keyring {
    keys: Vec<SignedPublicKey>,
    /// Where they come from, for messages.
    name: String,
}

/// A text whose signature is good.
#[derive(Debug)]
pub struct Verified {
    /// The signed text and nothing around it, with `\n` line ends.
    pub text: String,
    /// Fingerprint of the key that signed it.
    pub key: String,
}

impl Keyring {
    /// Reads a keyring file, binary or armored.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| {
            let failure = Failure::user(format!("reading the keyring {}", path.display())).caused_by(e);
            failure.hint("install the distribution's keyring package (debian-archive-keyring), or name a keyring file")
        })?;
        Self::parse(&bytes, &path.display().to_string())
    }

    /// Reads keys, binary or armored. Keys of kinds that are not supported are left out.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self> {
        let (keys, _) =
            PublicOrSecret::from_reader_many(bytes).with_context(|| format!("reading the keyring {name}"))?;
        let public = |key: PublicOrSecret| match key {
            PublicOrSecret::Public(key) => Some(key),
            PublicOrSecret::Secret(_) => None,
        };
        let keys: Vec<_> = keys.filter_map(Result::ok).filter_map(public).collect();
        if keys.is_empty() {
            return Err(Failure::user(format!("the keyring {name} has no usable public key"))
                .hint("name the file with the distribution's archive keys, as in apt's Signed-By")
                .into());
        }
        Ok(Self { keys, name: name.to_owned() })
    }

    /// The keys of several files in the store, each with the name it has in messages; `None` without any file.
    ///
    /// # Errors
    /// As [`Keyring::parse`], of every file.
    pub fn of_objects<'a>(
        store: &Store,
        files: impl IntoIterator<Item = (&'a str, &'a Digest)>,
    ) -> Result<Option<Self>> {
        let mut all: Option<Self> = None;
        for (name, object) in files {
            let mut bytes = Vec::new();
            store.open_object(object)?.read_to_end(&mut bytes).context("reading a key")?;
            let own = Self::parse(&bytes, name)?;
            match &mut all {
                Some(all) => {
                    all.keys.extend(own.keys);
                    all.name += &format!(", {}", own.name);
                }
                None => all = Some(own),
            }
        }
        Ok(all)
    }

    /// Checks a cleartext-signed text, as an `InRelease` file is: at least one signature must be good, and none is
    /// needed from keys that are not in the keyring. Keys must have been valid when they signed, and with `now` (seconds
    /// since 1970) still be.
    pub fn verify(&self, signed: &str, now: Option<u32>) -> Result<Verified, Failure> {
        let unreadable = |e: pgp::errors::Error| {
            Failure::verification("it is not a cleartext-signed text")
                .hint("the mirror, or a proxy before it, answers with something else: see what the address shows")
                .caused_by(e)
        };
        let (message, _) = CleartextSignedMessage::from_string(signed.trim_start()).map_err(unreadable)?;
        let text = message.signed_text();
        let mut problems = Vec::new();
        for signature in message.signatures() {
            match self.check(signature, text.as_bytes(), now) {
                Ok(key) => return Ok(Verified { text: text.replace("\r\n", "\n"), key }),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            problems.push("it has no signature".to_owned());
        }
        Err(Failure::verification(format!(
            "no good signature by a key of the keyring {}: {}",
            self.name,
            problems.join("; ")
        ))
        .hint("do not use this mirror before you know why; a new release may need a newer keyring package"))
    }

    /// Checks signatures that stand by themselves, binary or armored, over `signed`; gives the fingerprint of the key that made
    /// the first good one. Keys must have been valid when they signed.
    pub fn verify_detached(&self, signatures: &[u8], signed: &[u8]) -> Result<String, Failure> {
        let unreadable = |e: pgp::errors::Error| Failure::verification("its signature cannot be read").caused_by(e);
        let (signatures, _) = DetachedSignature::from_reader_many(signatures).map_err(unreadable)?;
        let mut problems = Vec::new();
        for signature in signatures {
            match self.check(&signature.map_err(unreadable)?.signature, signed, None) {
                Ok(key) => return Ok(key),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() {
            problems.push("there is no signature".to_owned());
        }
        let problems = problems.join("; ");
        Err(Failure::verification(format!("no good signature by a key of {}: {problems}", self.name))
            .hint("name the key of whoever signed it, or take it from somewhere else"))
    }

    /// The fingerprint of the key that made the signature, or why it does not count.
    fn check(&self, signature: &Signature, text: &[u8], now: Option<u32>) -> Result<String, String> {
        if !matches!(signature.typ(), Some(SignatureType::Text | SignatureType::Binary)) {
            return Err("a signature of another kind".to_owned());
        }
        let strong = [HashAlgorithm::Sha256, HashAlgorithm::Sha384, HashAlgorithm::Sha512];
        if !signature.hash_alg().is_some_and(|hash| strong.contains(&hash)) {
            return Err("a signature with a weak hash".to_owned());
        }
        for key in &self.keys {
            if is_issuer(signature, &key.primary_key) {
                return check_key(signature, text, &key.primary_key, || primary_problem(key, signature, now));
            }
            if let Some(subkey) = key.public_subkeys.iter().find(|subkey| is_issuer(signature, &subkey.key)) {
                let problem =
                    || primary_problem(key, signature, now).or_else(|| subkey_problem(key, subkey, signature, now));
                return check_key(signature, text, &subkey.key, problem);
            }
        }
        let issuers: Vec<String> = match signature.issuer_fingerprint().as_slice() {
            [] => signature.issuer_key_id().iter().map(|id| format!("{id}").to_uppercase()).collect(),
            fingerprints => fingerprints.iter().map(|fingerprint| format!("{fingerprint:X}")).collect(),
        };
        Err(format!("key {} is not in it", issuers.join(" ")))
    }
}

fn check_key<K: VerifyingKey>(
    signature: &Signature,
    text: &[u8],
    key: &K,
    problem: impl FnOnce() -> Option<String>,
) -> Result<String, String> {
    let fingerprint = format!("{:X}", key.fingerprint());
    signature.verify(key, text).map_err(|_| format!("BAD signature by {fingerprint}: the text was changed"))?;
    match problem() {
        Some(problem) => Err(format!("key {fingerprint} {problem}")),
        None => Ok(fingerprint),
    }
}

fn is_issuer(signature: &Signature, key: &impl KeyDetails) -> bool {
    let (fingerprint, id) = (key.fingerprint(), key.legacy_key_id());
    signature.issuer_fingerprint().iter().any(|issuer| **issuer == fingerprint)
        || signature.issuer_key_id().iter().any(|issuer| **issuer == id)
}

/// Why a primary key cannot have made a signature, if so.
fn primary_problem(key: &SignedPublicKey, signature: &Signature, now: Option<u32>) -> Option<String> {
    let primary = &key.primary_key;
    if key.details.revocation_signatures.iter().any(|revocation| revocation.verify_key(primary).is_ok()) {
        return Some("is revoked".to_owned());
    }
    // The newest self-signature says how long the key is valid.
    let direct = key.details.direct_signatures.iter().filter(|sig| sig.verify_key(primary).is_ok());
    let users = key.details.users.iter().flat_map(|user| {
        let certifies = |sig: &&Signature| {
            sig.is_certification() && sig.verify_certification(primary, Tag::UserId, &user.id).is_ok()
        };
        user.signatures.iter().filter(certifies)
    });
    let Some(newest) = direct.chain(users).max_by_key(|sig| created(sig)) else {
        return Some("has no valid self-signature".to_owned());
    };
    expiry_problem(primary.created_at(), newest, signature, now)
}

/// Why a subkey cannot have made a signature, if so.
fn subkey_problem(
    key: &SignedPublicKey,
    subkey: &SignedPublicSubKey,
    signature: &Signature,
    now: Option<u32>,
) -> Option<String> {
    let valid = |sig: &&Signature| sig.verify_subkey_binding(&key.primary_key, &subkey.key).is_ok();
    let of = |wanted: SignatureType| subkey.signatures.iter().filter(move |sig| sig.typ() == Some(wanted));
    if of(SignatureType::SubkeyRevocation).any(|sig| valid(&sig)) {
        return Some("is revoked".to_owned());
    }
    let Some(binding) = of(SignatureType::SubkeyBinding).filter(valid).max_by_key(|sig| created(sig)) else {
        return Some("is not bound to its primary key".to_owned());
    };
    let agrees = |back: &Signature| back.verify_primary_key_binding(&subkey.key, &key.primary_key).is_ok();
    if !binding.key_flags().sign() || !binding.embedded_signature().is_some_and(agrees) {
        return Some("may not sign".to_owned());
    }
    expiry_problem(subkey.key.created_at(), binding, signature, now)
}

fn created(signature: &Signature) -> u32 {
    signature.created().map_or(0, Timestamp::as_secs)
}

/// Whether a key had expired when it signed or, if that matters, has since.
fn expiry_problem(
    born: Timestamp,
    self_signature: &Signature,
    signature: &Signature,
    now: Option<u32>,
) -> Option<String> {
    let signed = created(signature);
    if signed < born.as_secs() {
        return Some("is younger than its signature".to_owned());
    }
    let at = signed.max(now.unwrap_or(0));
    let over = |start: u32, lasts: Option<u32>| lasts.is_some_and(|secs| secs > 0 && at > start.saturating_add(secs));
    if over(born.as_secs(), self_signature.key_expiration_time().map(|d| d.as_secs())) {
        return Some("has expired".to_owned());
    }
    if over(signed, signature.signature_expiration_time().map(|d| d.as_secs())) {
        return Some("made a signature that has expired".to_owned());
    }
    None
}

#[cfg(test)]
#[path = "openpgp_tests.rs"]
mod tests;
