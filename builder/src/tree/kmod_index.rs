// SPDX-License-Identifier: MIT OR Apache-2.0

//! Writes the binary index files of kmod (`modules.dep.bin` and its kin), which modprobe and udev search.
//! Knows nothing of modules.
//!
//! The format, as kmod's sources describe it: big-endian; magic `b007f457`, version `00020001`, offset of the root
//! node. The index is a radix tree over ASCII keys. A node is: its prefix, zero-terminated; the first and last label of
//! its children and an offset for each label between them, 0 for none; the number of its values, and for each its
//! priority and its text, zero-terminated. Which of the three parts there are is told by the top bits of the offset
//! that leads to the node.

use anyhow::{Result, bail};

const MAGIC: u32 = 0xb007_f457;
const VERSION: u32 = 0x0002_0001;
const HAS_PREFIX: u32 = 0x8000_0000;
const HAS_VALUES: u32 = 0x4000_0000;
const HAS_CHILDREN: u32 = 0x2000_0000;
const OFFSET_MASK: u32 = 0x0fff_ffff;
/// Longer keys than any name or alias; keeps the recursion shallow.
const LONGEST_KEY: usize = 4096;

/// Collects keys and values, then writes them.
#[derive(Debug, Clone, Default)]
pub struct Index {
    entries: Vec<(String, u32, String)>,
}

impl Index {
    /// Adds a value under `key`. Values of lower priority number come first.
    ///
    /// # Errors
    /// A key or value that the format cannot hold.
    pub fn insert(&mut self, key: &str, value: &str, priority: u32) -> Result<()> {
        if !key.is_ascii() || key.contains('\0') || value.contains('\0') || key.len() > LONGEST_KEY {
            bail!("a module index cannot hold `{}` = `{}`", key.escape_default(), value.escape_default());
        }
        self.entries.push((key.to_owned(), priority, value.to_owned()));
        Ok(())
    }

    /// The file.
    pub fn write(mut self) -> Result<Vec<u8>> {
        // kmod puts a value before earlier ones of the same priority: reverse, then sort stably.
        self.entries.reverse();
        self.entries.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let mut out = Vec::with_capacity(self.entries.len() * 48);
        for word in [MAGIC, VERSION, 0] {
            out.extend(word.to_be_bytes());
        }
        let root = write_node(&mut out, &self.entries, 0)?;
        out[8..12].copy_from_slice(&root.to_be_bytes());
        Ok(out)
    }
}

/// Writes the node of all `entries`, which share their first `from` bytes, and what is below it; says where it is.
fn write_node(out: &mut Vec<u8>, entries: &[(String, u32, String)], from: usize) -> Result<u32> {
    let prefix = match (entries.first(), entries.last()) {
        (Some((first, ..)), Some((last, ..))) => {
            // Sorted, so what the first and the last share, all share.
            let same = first.bytes().zip(last.bytes()).skip(from).take_while(|(a, b)| a == b).count();
            &first[from..from + same]
        }
        _ => "",
    };
    let end = from + prefix.len();
    let values = entries.iter().take_while(|(key, ..)| key.len() == end).count();
    let mut children: Vec<(u8, u32)> = Vec::new();
    let mut rest = &entries[values..];
    while let Some((key, ..)) = rest.first() {
        let label = key.as_bytes()[end];
        let count = rest.iter().take_while(|(key, ..)| key.as_bytes()[end] == label).count();
        children.push((label, write_node(out, &rest[..count], end + 1)?));
        rest = &rest[count..];
    }
    let mut offset = match u32::try_from(out.len()) {
        Ok(offset) if offset <= OFFSET_MASK => offset,
        _ => bail!("a module index is larger than its format can tell"),
    };
    if !prefix.is_empty() {
        out.extend(prefix.as_bytes());
        out.push(0);
        offset |= HAS_PREFIX;
    }
    if let (Some((first, _)), Some((last, _))) = (children.first(), children.last()) {
        out.extend([*first, *last]);
        let mut next = children.iter().peekable();
        for label in *first..=*last {
            let child = next.next_if(|(l, _)| *l == label).map_or(0, |(_, offset)| *offset);
            out.extend(child.to_be_bytes());
        }
        offset |= HAS_CHILDREN;
    }
    if values > 0 {
        out.extend((values as u32).to_be_bytes());
        for (_, priority, value) in &entries[..values] {
            out.extend(priority.to_be_bytes());
            out.extend(value.as_bytes());
            out.push(0);
        }
        offset |= HAS_VALUES;
    }
    Ok(offset)
}

/// A module alias as the index holds it: `-` becomes `_`, except in brackets. `None` if brackets don't match.
pub fn normalized_alias(alias: &str) -> Option<String> {
    let mut out = String::with_capacity(alias.len());
    let mut in_brackets = false;
    for c in alias.chars() {
        match c {
            ']' if !in_brackets => return None,
            '[' => in_brackets = true,
            ']' => in_brackets = false,
            _ => {}
        }
        out.push(if c == '-' && !in_brackets { '_' } else { c });
    }
    (!in_brackets).then_some(out)
}

/// Reads an index back, to compare what two of them say.
#[cfg(test)]
pub(crate) mod reader {
    use std::collections::BTreeMap;

    use super::{HAS_CHILDREN, HAS_PREFIX, HAS_VALUES, MAGIC, OFFSET_MASK, VERSION};

    /// Key to values with their priorities.
    pub(crate) type Entries = BTreeMap<String, Vec<(u32, String)>>;

    fn word(bytes: &[u8], at: &mut usize) -> u32 {
        *at += 4;
        u32::from_be_bytes(bytes[*at - 4..*at].try_into().unwrap())
    }

    fn text(bytes: &[u8], at: &mut usize) -> String {
        let len = bytes[*at..].iter().position(|byte| *byte == 0).unwrap();
        *at += len + 1;
        String::from_utf8(bytes[*at - len - 1..*at - 1].to_vec()).unwrap()
    }

    fn node(bytes: &[u8], offset: u32, mut key: String, out: &mut Entries) {
        let mut at = (offset & OFFSET_MASK) as usize;
        if offset & HAS_PREFIX != 0 {
            key += &text(bytes, &mut at);
        }
        if offset & HAS_CHILDREN != 0 {
            let (first, last) = (bytes[at], bytes[at + 1]);
            at += 2;
            for label in first..=last {
                match word(bytes, &mut at) {
                    0 => {}
                    child => node(bytes, child, format!("{key}{}", char::from(label)), out),
                }
            }
        }
        if offset & HAS_VALUES != 0 {
            let values = (0..word(bytes, &mut at)).map(|_| (word(bytes, &mut at), text(bytes, &mut at))).collect();
            assert!(out.insert(key, values).is_none());
        }
    }

    /// All that is in an index file.
    pub(crate) fn read(bytes: &[u8]) -> Entries {
        let mut at = 0;
        assert_eq!((word(bytes, &mut at), word(bytes, &mut at)), (MAGIC, VERSION));
        let root = word(bytes, &mut at);
        let mut out = Entries::new();
        node(bytes, root, String::new(), &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::reader::{Entries, read};
    use super::{Index, normalized_alias};

    #[test]
    fn one_key() {
        let mut index = Index::default();
        index.insert("ab", "x", 7).unwrap();
        let out = index.write().unwrap();
        assert_eq!(
            out,
            b"\xb0\x07\xf4\x57\x00\x02\x00\x01\xc0\x00\x00\x0cab\0\x00\x00\x00\x01\x00\x00\x00\x07x\0".to_vec()
        );
    }

    #[test]
    fn aliases() {
        assert_eq!(normalized_alias("net-pf-2[a-z]-x").as_deref(), Some("net_pf_2[a-z]_x"));
        assert_eq!(normalized_alias("a]"), None);
        assert_eq!(normalized_alias("[a"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(pairs: Vec<(String, u32)>) {
            let (mut index, mut want) = (Index::default(), Entries::new());
            for (key, priority) in pairs {
                if index.insert(&key, &key, priority).is_ok() {
                    want.entry(key.clone()).or_default().push((priority, key));
                }
            }
            for values in want.values_mut() {
                values.sort();
            }
            assert_eq!(read(&index.write().unwrap()), want);
        }
    }
}
