// SPDX-License-Identifier: MIT OR Apache-2.0

//! The extended attribute tables: each distinct set of attributes is stored once.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Context, Result, bail};

use super::format::{NONE32, NONE64, XATTR_PREFIXES};
use super::meta::{MetaWriter, put};
use super::pack::Packer;

/// The sets seen so far.
#[derive(Debug, Default)]
pub(super) struct XattrWriter<'a> {
    sets: BTreeMap<&'a BTreeMap<String, Vec<u8>>, u32>,
    values: MetaWriter,
    /// `struct squashfs_xattr_id`: reference, number of attributes, bytes.
    ids: Vec<u8>,
}

impl<'a> XattrWriter<'a> {
    /// The number of a set, to be put into an inode; `NONE32` for no attributes.
    pub(super) fn add(&mut self, packer: &mut Packer, path: &str, set: &'a BTreeMap<String, Vec<u8>>) -> Result<u32> {
        if set.is_empty() {
            return Ok(NONE32);
        }
        if let Some(number) = self.sets.get(set) {
            return Ok(*number);
        }
        let mut bytes = Vec::new();
        for (name, value) in set {
            let known = XATTR_PREFIXES.iter().zip(0u16..).find_map(|(prefix, i)| Some((name.strip_prefix(prefix)?, i)));
            let Some((short, kind)) = known else {
                bail!(
                    "`{path}` has the attribute `{name}`: squashfs keeps only those in user., trusted. and security."
                );
            };
            let len =
                u16::try_from(short.len()).with_context(|| format!("`{path}` has an attribute with a long name"))?;
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(short.as_bytes());
            bytes.extend_from_slice(&u32::try_from(value.len())?.to_le_bytes());
            bytes.extend_from_slice(value);
        }
        let number = u32::try_from(self.sets.len()).context("too many sets of extended attributes")?;
        self.ids.extend_from_slice(&self.values.reference().to_le_bytes());
        self.ids.extend_from_slice(&u32::try_from(set.len())?.to_le_bytes());
        self.ids.extend_from_slice(&u32::try_from(bytes.len())?.to_le_bytes());
        self.values.write(packer, &bytes)?;
        self.sets.insert(set, number);
        Ok(number)
    }
    /// Writes values, ids and header (`struct squashfs_xattr_id_table`); gives the header's position.
    pub(super) fn finish(self, out: &mut impl Write, at: &mut u64, packer: &mut Packer) -> Result<u64> {
        if self.sets.is_empty() {
            return Ok(NONE64);
        }
        let values_at = *at;
        put(out, at, &self.values.finish(packer)?.0)?;
        let mut ids = MetaWriter::default();
        ids.write(packer, &self.ids)?;
        let (bytes, starts) = ids.finish(packer)?;
        let ids_at = *at;
        put(out, at, &bytes)?;
        let header = *at;
        put(out, at, &values_at.to_le_bytes())?;
        put(out, at, &(self.sets.len() as u32).to_le_bytes())?;
        put(out, at, &0u32.to_le_bytes())?;
        for start in starts {
            put(out, at, &(ids_at + start).to_le_bytes())?;
        }
        Ok(header)
    }
}
