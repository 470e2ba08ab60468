// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a medium is signed by the key that this initramfs has (docs/provenance.md): the list of checksums is, the
//! list has the index, and the index has everything else.

use std::fmt;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use profiles::medium::INDEX;
use profiles::signing::{KEY_FILE, PublicKey, SIGNATURE_MAX, SUFFIX, SUMS, Signature};

use crate::files::read_limited;

/// A list of checksums has some lines for each node.
const SUMS_LIMIT: u64 = 16 << 20;

/// The medium is not signed, or not by that key. Waiting does not help.
#[derive(Debug)]
pub struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// The key below `root` that must have signed the medium, if there is one.
///
/// # Errors
/// A key that cannot be read is not the same as none.
pub fn key(root: &Path) -> Result<Option<PublicKey>> {
    let text = match read_limited(&root.join(KEY_FILE), SIGNATURE_MAX) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading /{KEY_FILE}")),
    };
    let text = String::from_utf8(text).with_context(|| format!("reading /{KEY_FILE}"))?;
    let key = PublicKey::from_file(&text);
    Ok(Some(key.with_context(|| format!("reading /{KEY_FILE} of the initramfs"))?))
}

/// Checks that `key` signed the medium in `dir`, whose index has this SHA-256.
///
/// # Errors
/// [`Refused`], or failing I/O.
pub fn check(dir: &Path, index: &str, key: &PublicKey) -> Result<()> {
    let refuse = |why: &str| {
        Refused(format!(
            "the medium is not signed by {}, the key of this installer: {why}. Nothing of it was used. Take the medium \
             as `imgbuild build --sign` wrote it, with its own kernel and initramfs",
            key.id()
        ))
    };
    let read = |name: &str, limit| -> Result<String> {
        let bytes = match read_limited(&dir.join(name), limit) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(refuse(&format!("it has no {name}")).into());
            }
            Err(error) => return Err(error).with_context(|| format!("reading {name} of the medium")),
        };
        String::from_utf8(bytes).map_err(|_| refuse(&format!("its {name} is not UTF-8")).into())
    };
    let list = read(SUMS, SUMS_LIMIT)?;
    let signature = read(&format!("{SUMS}{SUFFIX}"), SIGNATURE_MAX)?;
    let signature = Signature::parse(&signature).map_err(|error| refuse(&error.to_string()))?;
    key.verify(list.as_bytes(), &signature).map_err(|error| refuse(&error.to_string()))?;
    let mut listed = list.lines().filter_map(|line| line.strip_suffix(INDEX)?.strip_suffix("  "));
    match (listed.next(), listed.next()) {
        (Some(sum), None) if sum == index => Ok(()),
        _ => Err(refuse(&format!("its {SUMS} is that of another index")).into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// Made by minisign over the list below, with a key that was thrown away.
    pub(crate) const KEY: &str = include_str!("../../fixtures/signing/minisign.pub");
    const LIST: &str = include_str!("../../fixtures/signing/SHA256SUMS");
    const SIGNATURE: &str = include_str!("../../fixtures/signing/SHA256SUMS.minisig");
    /// SHA-256 of what stands for an index there.
    const INDEX_SUM: &str = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

    fn refused(dir: &Path, sum: &str, key: &PublicKey) -> String {
        let error = check(dir, sum, key).unwrap_err();
        assert!(error.downcast_ref::<Refused>().is_some(), "{error:#}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("the medium is not signed by {}, ", key.id())), "{text}");
        text
    }

    #[test]
    fn a_signed_medium_is_taken_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let key = PublicKey::from_file(KEY).unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(refused(dir.path(), INDEX_SUM, &key).contains("it has no SHA256SUMS"));
        put("SHA256SUMS", LIST);
        assert!(refused(dir.path(), INDEX_SUM, &key).contains("it has no SHA256SUMS.minisig"));
        put("SHA256SUMS.minisig", SIGNATURE);
        check(dir.path(), INDEX_SUM, &key).unwrap();
        assert!(refused(dir.path(), &"0".repeat(64), &key).contains("is that of another index"));
        let other: PublicKey = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3".parse().unwrap();
        assert!(refused(dir.path(), INDEX_SUM, &other).contains("signed by another key"));
        put("SHA256SUMS", &LIST.replacen('4', "5", 1));
        assert!(refused(dir.path(), INDEX_SUM, &key).contains("does not fit"));
        put("SHA256SUMS", LIST);
        put("SHA256SUMS.minisig", &SIGNATURE[..50]);
        assert!(refused(dir.path(), INDEX_SUM, &key).contains("no signature"));
        fs::write(dir.path().join("SHA256SUMS.minisig"), b"\xff").unwrap();
        assert!(refused(dir.path(), INDEX_SUM, &key).contains("is not UTF-8"));
    }

    #[test]
    fn a_key_is_there_or_not_or_broken() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(key(root.path()).unwrap(), None);
        fs::create_dir_all(root.path().join("etc/imgbuild")).unwrap();
        fs::write(root.path().join(KEY_FILE), KEY).unwrap();
        assert_eq!(key(root.path()).unwrap(), Some(PublicKey::from_file(KEY).unwrap()));
        for broken in ["", "RW", "untrusted comment: x\n"] {
            fs::write(root.path().join(KEY_FILE), broken).unwrap();
            assert!(key(root.path()).is_err(), "{broken}");
        }
    }
}
