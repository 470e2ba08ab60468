// SPDX-License-Identifier: MIT OR Apache-2.0

//! Layers: a file tree as an uncompressed tar, the same bytes for the same tree.
//!
//! The form is POSIX ustar with pax records only where ustar has no room (long names, extended attributes), entries in
//! the tree's order, one modification time for all, owners by number only. It is what
//! <https://github.com/opencontainers/image-spec>, layer.md, asks for and every runtime reads.

use std::collections::BTreeMap;
use std::io::{Read as _, Write};

use anyhow::{Context, Result, bail};
use tar::{EntryType, Header};

use super::Descriptor;
use crate::store::{Digest, Store};
use crate::tree::{Content, Entry, FileTree, Kind};

const MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// A file of this name removes one from the layers below (layer.md, "Whiteouts"), which is never what a tree means.
const WHITEOUT: &str = ".wh.";

/// Unit of a tar archive in bytes.
const BLOCK: usize = 512;

/// A layer in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The tar archive.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What made it, for the image's history.
    pub created_by: String,
}

impl Layer {
    /// Writes `tree` into the store as a layer in which everything was modified at `epoch` (seconds since 1970).
    ///
    /// # Errors
    /// If a file cannot be read, the store cannot be written, a hard link leads to no file, or a name has a meaning of
    /// its own in a layer.
    pub fn write(store: &Store, tree: &FileTree, epoch: u32, created_by: &str) -> Result<Self> {
        let mut writer = store.writer()?;
        write_tar(&mut writer, store, tree, epoch).with_context(|| format!("writing layer \"{created_by}\""))?;
        let (digest, size) = writer.commit(None)?;
        Ok(Self { digest, size, created_by: created_by.to_owned() })
    }

    pub(super) fn content(&self) -> Content {
        Content::Slice { object: self.digest, offset: 0, len: self.size }
    }

    pub(super) fn descriptor(&self) -> Descriptor {
        Descriptor { media_type: MEDIA_TYPE.to_owned(), digest: self.digest, size: self.size }
    }
}

/// Writes all entries but the root, which every layer shares, as a tar archive.
///
/// # Errors
/// As [`Layer::write`].
pub fn write_tar(out: &mut impl Write, store: &Store, tree: &FileTree, epoch: u32) -> Result<()> {
    let mut archive = Archive { out, store, tree, epoch, first_names: first_names(tree)? };
    for (path, entry) in tree.iter().filter(|(path, _)| !path.is_empty()) {
        if path.split('/').any(|name| name.starts_with(WHITEOUT)) {
            bail!("{path} would remove a file of a lower layer");
        }
        archive.add(path, entry).with_context(|| format!("adding {path}"))?;
    }
    // Two empty blocks end an archive.
    archive.out.write_all(&[0; 2 * BLOCK]).context("writing the end of the archive")
}

/// For every file with several names, the one that comes first: a hard link may only lead back.
fn first_names(tree: &FileTree) -> Result<BTreeMap<&str, &str>> {
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    for (path, entry) in tree.iter() {
        let Kind::HardLink(target) = &entry.kind else { continue };
        if !matches!(tree.get(target), Some(Entry { kind: Kind::File(_), .. })) {
            bail!("{path} is a hard link to {target}, which is no file");
        }
        // Names come in order, so the first link seen is the first of the links.
        first.entry(target).or_insert_with(|| path.min(target));
    }
    Ok(first)
}

struct Archive<'a, W> {
    out: &'a mut W,
    store: &'a Store,
    tree: &'a FileTree,
    epoch: u32,
    first_names: BTreeMap<&'a str, &'a str>,
}

impl<W: Write> Archive<'_, W> {
    fn add(&mut self, path: &str, entry: &Entry) -> Result<()> {
        // What a name of a file with several names stands for: the file at its first name, a link to that elsewhere.
        let (file_path, entry) = match &entry.kind {
            Kind::HardLink(target) => (target.as_str(), self.tree.get(target).context("a hard link leads to no file")?),
            _ => (path, entry),
        };
        let first = self.first_names.get(file_path).copied().unwrap_or(path);

        let mut header = Header::new_ustar();
        header.set_mode(entry.mode.into());
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_mtime(self.epoch.into());
        header.set_size(0);
        let mut link = None;
        let mut content = None;
        let kind = match &entry.kind {
            Kind::File(_) if first != path => {
                link = Some(first);
                EntryType::Link
            }
            Kind::File(bytes) => {
                header.set_size(bytes.len());
                content = Some(bytes);
                EntryType::Regular
            }
            Kind::Dir => EntryType::Directory,
            Kind::Symlink(target) => {
                link = Some(target.as_str());
                EntryType::Symlink
            }
            Kind::CharDevice { major, minor } => {
                set_device(&mut header, *major, *minor)?;
                EntryType::Char
            }
            Kind::BlockDevice { major, minor } => {
                set_device(&mut header, *major, *minor)?;
                EntryType::Block
            }
            Kind::Fifo => EntryType::Fifo,
            Kind::HardLink(target) => bail!("{target} is a hard link itself"),
        };
        header.set_entry_type(kind);

        let mut records = Vec::new();
        let name = if kind == EntryType::Directory { format!("{path}/") } else { path.to_owned() };
        if header.set_path(&name).is_err() {
            records.push(("path".to_owned(), name.as_bytes()));
            header.set_path("long").context("naming an entry")?;
        }
        if let Some(link) = link
            && header.set_link_name_literal(link).is_err()
        {
            records.push(("linkpath".to_owned(), link.as_bytes()));
        }
        if kind != EntryType::Link {
            // As GNU tar and Go's archive/tar name extended attributes.
            records.extend(entry.xattrs.iter().map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_slice())));
        }
        self.add_records(&records)?;
        header.set_cksum();
        self.out.write_all(header.as_bytes()).context("writing a header")?;
        match content {
            Some(content) => self.add_content(content),
            None => Ok(()),
        }
    }

    /// Writes a pax extended header, if there is anything to say.
    fn add_records(&mut self, records: &[(String, &[u8])]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let body: Vec<u8> = records.iter().flat_map(|(name, value)| record(name, value)).collect();
        let mut header = Header::new_ustar();
        header.set_path("pax").context("naming an extended header")?;
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(self.epoch.into());
        header.set_size(body.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes()).context("writing an extended header")?;
        self.out.write_all(&body).context("writing an extended header")?;
        self.pad(body.len() as u64)
    }

    fn add_content(&mut self, content: &Content) -> Result<()> {
        let mut reader = content.reader(self.store)?.take(content.len());
        let copied = std::io::copy(&mut reader, self.out).context("copying content")?;
        if copied != content.len() {
            bail!("store object is shorter than its index says: {copied} of {} bytes", content.len());
        }
        self.pad(copied)
    }

    /// Fills the last block of `length` bytes.
    fn pad(&mut self, length: u64) -> Result<()> {
        let used = (length % BLOCK as u64) as usize;
        let padding = if used == 0 { 0 } else { BLOCK - used };
        self.out.write_all(&[0; BLOCK][..padding]).context("filling a block")
    }
}

fn set_device(header: &mut Header, major: u32, minor: u32) -> Result<()> {
    header.set_device_major(major).context("writing a device number")?;
    header.set_device_minor(minor).context("writing a device number")
}

/// A pax record, "<length> <name>=<value>\n", whose length counts its own digits.
fn record(name: &str, value: &[u8]) -> Vec<u8> {
    // A blank, an equals sign and a newline.
    let rest = name.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {name}=").as_bytes(), value, b"\n"].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EPOCH: u32 = 1_610_543_941;

    fn tar(tree: &FileTree) -> Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut out = Vec::new();
        write_tar(&mut out, &store, tree, EPOCH).map(|()| out)
    }

    /// Reads an archive back: headers with the `tar` crate, pax records here, since the crate ends them at a newline.
    fn read_back(archive: &[u8]) -> FileTree {
        let mut tree = FileTree::new();
        let mut records: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap().raw(true) {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let header = entry.header();
            assert_eq!(header.mtime().unwrap(), u64::from(EPOCH));
            if header.entry_type() == EntryType::XHeader {
                records = parse_records(&bytes);
                continue;
            }
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            let path = text(records.remove("path").unwrap_or_else(|| header.path_bytes().into_owned()));
            let link = records.remove("linkpath").or(header.link_name_bytes().map(|link| link.into_owned()));
            let link = text(link.unwrap_or_default());
            let xattrs = std::mem::take(&mut records)
                .into_iter()
                .map(|(name, value)| (name.strip_prefix("SCHILY.xattr.").unwrap().to_owned(), value))
                .collect();
            let kind = match header.entry_type() {
                EntryType::Regular => Kind::File(Content::Bytes(bytes.into())),
                EntryType::Directory => Kind::Dir,
                EntryType::Symlink => Kind::Symlink(link),
                EntryType::Link => Kind::HardLink(link),
                EntryType::Char => Kind::CharDevice {
                    major: header.device_major().unwrap().unwrap(),
                    minor: header.device_minor().unwrap().unwrap(),
                },
                other => panic!("{other:?}"),
            };
            let mode = u16::try_from(header.mode().unwrap()).unwrap();
            let [uid, gid] = [header.uid(), header.gid()].map(|id| u32::try_from(id.unwrap()).unwrap());
            let entry = Entry { kind, mode, uid, gid, mtime: 0, xattrs };
            tree.insert(path.strip_suffix('/').unwrap_or(&path), entry).unwrap();
        }
        tree
    }

    fn parse_records(mut bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut records = BTreeMap::new();
        while !bytes.is_empty() {
            let blank = bytes.iter().position(|byte| *byte == b' ').unwrap();
            let length: usize = std::str::from_utf8(&bytes[..blank]).unwrap().parse().unwrap();
            let record = bytes[blank + 1..length].strip_suffix(b"\n").unwrap();
            let equals = record.iter().position(|byte| *byte == b'=').unwrap();
            records.insert(String::from_utf8(record[..equals].to_vec()).unwrap(), record[equals + 1..].to_vec());
            bytes = &bytes[length..];
        }
        records
    }

    #[test]
    fn everything_survives() {
        let mut tree = FileTree::new();
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
        let mut capable = Entry::file(*b"\x7fELF", 0o4755);
        capable.xattrs.insert("security.capability".into(), vec![1, 0, 0, 2, b'\n', 0xff]);
        (capable.uid, capable.gid) = (65_535, 3_000_000);
        tree.insert("bin/capable", capable).unwrap();
        tree.insert(&long, Entry::file(vec![7; 513], 0o600)).unwrap();
        tree.insert("dev/null", Entry::new(Kind::CharDevice { major: 1, minor: 3 }, 0o666)).unwrap();
        tree.insert("link", Entry::symlink("/".to_owned() + &"t".repeat(300))).unwrap();
        tree.insert("empty", Entry::file(*b"", 0o644)).unwrap();
        let archive = tar(&tree).unwrap();
        assert_eq!(archive.len() % BLOCK, 0);
        assert_eq!(read_back(&archive), tree);
    }

    #[test]
    fn the_first_name_of_a_file_has_the_content() {
        let mut tree = FileTree::new();
        let mut target = Entry::file(*b"content", 0o755);
        target.xattrs.insert("user.a".into(), vec![1]);
        tree.insert("m", target.clone()).unwrap();
        for name in ["a", "b", "z"] {
            tree.insert(name, Entry::new(Kind::HardLink("m".into()), 0)).unwrap();
        }
        let back = read_back(&tar(&tree).unwrap());
        assert_eq!(back.get("a"), Some(&target));
        for name in ["b", "m", "z"] {
            assert_eq!(back.get(name).unwrap().kind, Kind::HardLink("a".into()), "{name}");
        }
    }

    #[test]
    fn refuses_whiteouts_and_links_to_nothing() {
        let mut tree = FileTree::new();
        tree.insert("etc/.wh.passwd/x", Entry::file(*b"", 0o644)).unwrap();
        assert_eq!(tar(&tree).unwrap_err().to_string(), "etc/.wh.passwd would remove a file of a lower layer");
        let mut tree = FileTree::new();
        tree.insert("a", Entry::new(Kind::HardLink("b".into()), 0)).unwrap();
        assert_eq!(tar(&tree).unwrap_err().to_string(), "a is a hard link to b, which is no file");
    }

    #[test]
    fn the_bytes_are_pinned() {
        let mut tree = FileTree::new();
        tree.insert("usr/bin/pause", Entry::file(*b"\x7fELF", 0o755)).unwrap();
        // Once changed, every image of every earlier build is another one.
        assert_eq!(
            Digest::of(&tar(&tree).unwrap()).to_string(),
            "3be525047f3f0ae415a043b473cc8ccf59e3b0afb2f22ee7d1519e2382aa3995"
        );
    }

    #[test]
    fn the_time_of_the_tree_does_not_matter() {
        let mut tree = FileTree::new();
        tree.insert("f", Entry::file(*b"x", 0o644)).unwrap();
        let before = tar(&tree).unwrap();
        tree.get_mut("f").unwrap().mtime = 5;
        assert_eq!(tar(&tree).unwrap(), before);
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let kind = prop_oneof![
            Just(Kind::Dir),
            proptest::collection::vec(any::<u8>(), 0..1100).prop_map(|bytes| Kind::File(Content::Bytes(bytes.into()))),
            "[a-z/.]{1,130}".prop_map(Kind::Symlink),
            (0u32..4096, 0u32..4096).prop_map(|(major, minor)| Kind::CharDevice { major, minor }),
        ];
        let xattrs =
            proptest::collection::btree_map("user\\.[a-z]{1,8}", proptest::collection::vec(any::<u8>(), 0..120), 0..3);
        (kind, 0u16..0o10000, any::<u32>(), any::<u32>(), xattrs).prop_map(|(kind, mode, uid, gid, xattrs)| Entry {
            kind,
            mode,
            uid,
            gid,
            mtime: 0,
            xattrs,
        })
    }

    proptest! {
        #[test]
        fn any_tree_survives(entries in proptest::collection::btree_map("[a-zA-Zéü -]{1,110}(/[a-z.]{0,60}z){0,3}", entry(), 0..12)) {
            let mut tree = FileTree::new();
            for (path, entry) in entries {
                // A path through a file is refused by the tree, and a whiteout by the layer: neither is the matter here.
                if !path.contains("/.wh.") {
                    let _ = tree.insert(&path, entry);
                }
            }
            let archive = tar(&tree).unwrap();
            prop_assert_eq!(read_back(&archive), tree);
        }
    }
}
