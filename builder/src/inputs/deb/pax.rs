// SPDX-License-Identifier: MIT OR Apache-2.0

//! The headers of a tar archive that say more about the entry after them: pax records and GNU's long names.
//! Format: POSIX.1-2001 pax interchange format (`length key=value\n`); GNU tar manual, "Basic Tar Format".

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result, bail};
use tar::EntryType;

/// No honest header is longer.
const LIMIT: u64 = 1 << 20;

/// What is said in advance about the next entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Extra {
    /// Its path, if too long for its header.
    pub(super) path: Option<Vec<u8>>,
    /// Its link target, likewise.
    pub(super) link: Option<Vec<u8>>,
    /// Its size, if too big for its header.
    pub(super) size: Option<u64>,
    /// Owner.
    pub(super) uid: Option<u64>,
    /// Group.
    pub(super) gid: Option<u64>,
    /// Modification time.
    pub(super) mtime: Option<u64>,
    /// Extended attributes, which GNU tar and bsdtar write as `SCHILY.xattr.<name>`.
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
}

impl Extra {
    /// Takes in an entry, if it is about the next one or the archive; says whether it was.
    pub(super) fn read(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<bool> {
        let kind = entry.header().entry_type();
        if !matches!(
            kind,
            EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink
        ) {
            return Ok(false);
        }
        if entry.size() > LIMIT {
            bail!("a tar header of {} bytes", entry.size());
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).context("reading a tar header")?;
        let name = || bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        match kind {
            EntryType::GNULongName => self.path = Some(name()),
            EntryType::GNULongLink => self.link = Some(name()),
            EntryType::XHeader => self.records(&bytes).context("reading a pax header")?,
            // Global headers hold comments, such as git's commit.
            _ => {}
        }
        Ok(true)
    }

    fn records(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).context("a malformed pax record")?;
            bytes = rest;
            let number = || {
                // Times have a fraction.
                let text = std::str::from_utf8(value).ok().and_then(|text| text.split('.').next());
                text.and_then(|text| text.parse().ok()).with_context(|| format!("the pax record {key} is no number"))
            };
            match key {
                "path" => self.path = Some(value.to_owned()),
                "linkpath" => self.link = Some(value.to_owned()),
                "size" => self.size = Some(number()?),
                "uid" => self.uid = Some(number()?),
                "gid" => self.gid = Some(number()?),
                // Before 1970 is 1970.
                "mtime" => self.mtime = Some(if value.starts_with(b"-") { 0 } else { number()? }),
                key if key.starts_with("GNU.sparse.") => {
                    bail!("sparse files in tar archives are not supported: pack it without --sparse")
                }
                key => {
                    if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                        self.xattrs.insert(name.to_owned(), value.to_owned());
                    }
                }
            }
        }
        Ok(())
    }
}

/// The first record: key, value, and what follows it.
fn record(bytes: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((std::str::from_utf8(&record[..equals]).ok()?, &record[equals + 1..], rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_are_delimited_by_length_alone() {
        let mut extra = Extra::default();
        extra.records(b"20 mtime=1700000.25\n30 SCHILY.xattr.user.a=x\ny=\nz\n12 path=a=b\n6 a=b\n").unwrap();
        let wanted = Extra {
            mtime: Some(1_700_000),
            path: Some(b"a=b".to_vec()),
            xattrs: [("user.a".to_owned(), b"x\ny=\nz".to_vec())].into(),
            ..Extra::default()
        };
        assert_eq!(extra, wanted);
        for bad in [&b"9999 path=a\n"[..], b"0 path=a\n", b"x", b"11 path=a=b\n", b"13 uid=minus\n", b"3 =\n"] {
            let _ = Extra::default().records(bad);
        }
        assert!(Extra::default().records(b"9999 path=a\n").is_err());
        assert!(Extra::default().records(b"13 uid=minus\n").is_err());
        assert!(Extra::default().records(b"22 GNU.sparse.major=1\n").unwrap_err().to_string().contains("sparse"));
    }

    proptest! {
        #[test]
        fn it_never_panics(bytes in "([0-9]{1,3} )?(path|uid|mtime|a)?=?\\PC{0,5}\n?") {
            let _ = Extra::default().records(bytes.as_bytes());
        }
    }
}
