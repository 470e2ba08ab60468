// SPDX-License-Identifier: MIT OR Apache-2.0

//! Inodes and directory listings.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::Options;
use super::blocks::Data;
use super::format::{DIR_EXTRA, DIR_RUN, META_SIZE, NAME_MAX, NONE32, inode};
use super::meta::MetaWriter;
use super::pack::Packer;
use super::plan::{Place, Plan, link_target};
use super::xattr::XattrWriter;
use crate::tree::{Entry, FileTree, Kind};

/// An inode that has been written.
#[derive(Debug, Clone, Copy)]
struct Written {
    reference: u64,
    number: u32,
    kind: u16,
}

/// The inode and directory tables while they are made.
#[derive(Debug)]
pub(super) struct InodeWriter<'a> {
    tree: &'a FileTree,
    plan: &'a Plan<'a>,
    data: &'a Data,
    epoch: u32,
    pub(super) inodes: MetaWriter,
    pub(super) directories: MetaWriter,
    pub(super) xattrs: XattrWriter<'a>,
    ids: BTreeMap<u32, u16>,
    /// Ids in the order of their index.
    pub(super) id_list: Vec<u32>,
    written: BTreeMap<&'a str, Written>,
    /// Inode references by number, for the export table.
    pub(super) references: Vec<u64>,
}

/// A directory's listing, in the directory table.
#[derive(Debug)]
struct Listing {
    block: u32,
    offset: u16,
    len: u32,
    index: Vec<u8>,
    index_count: u16,
}

impl<'a> InodeWriter<'a> {
    pub(super) fn new(tree: &'a FileTree, plan: &'a Plan<'a>, data: &'a Data, options: &Options) -> Self {
        Self {
            tree,
            plan,
            data,
            epoch: options.epoch,
            inodes: MetaWriter::default(),
            directories: MetaWriter::default(),
            xattrs: XattrWriter::default(),
            ids: BTreeMap::new(),
            id_list: Vec::new(),
            written: BTreeMap::new(),
            references: vec![0; plan.inodes as usize],
        }
    }

    /// Writes everything, children before parents; gives the reference of the root.
    pub(super) fn run(&mut self, packer: &mut Packer) -> Result<u64> {
        let mut children: BTreeMap<&'a str, Vec<(&'a str, &'a str)>> = BTreeMap::new();
        for (path, entry) in self.tree.iter() {
            if matches!(entry.kind, Kind::Dir) {
                children.entry(path).or_default();
            }
            if !path.is_empty() {
                let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
                if name.len() > NAME_MAX {
                    bail!("the last part of `{path}` is longer than {NAME_MAX} bytes");
                }
                // Siblings come in the order of their names, since they share all that is before.
                children.entry(dir).or_default().push((name, path));
            }
        }
        // A directory's path sorts before those of its children, so backwards every child comes first.
        for (dir, names) in children.iter().rev() {
            for (_, path) in names {
                self.leaf(packer, path)?;
            }
            self.directory(packer, dir, names)?;
        }
        self.written.get("").map(|root| root.reference).context("the tree has no root directory")
    }

    fn id(&mut self, id: u32) -> Result<u16> {
        if let Some(index) = self.ids.get(&id) {
            return Ok(*index);
        }
        // The superblock's count is 16 bits wide.
        let index = u16::try_from(self.ids.len()).ok().filter(|i| *i < u16::MAX).context("more than 65535 owners")?;
        self.ids.insert(id, index);
        self.id_list.push(id);
        Ok(index)
    }

    /// Begins an inode: the fields all of them share (`struct squashfs_base_inode`).
    fn begin(&mut self, kind: u16, entry: &Entry, number: u32) -> Result<Vec<u8>> {
        let (uid, gid) = (self.id(entry.uid)?, self.id(entry.gid)?);
        let mut out = Vec::with_capacity(64);
        for value in [kind, entry.mode & 0o7777, uid, gid] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        push(&mut out, &[entry.mtime.min(self.epoch), number]);
        Ok(out)
    }

    fn end(&mut self, packer: &mut Packer, path: &'a str, kind: u16, number: u32, bytes: &[u8]) -> Result<()> {
        let reference = self.inodes.reference();
        self.inodes.write(packer, bytes)?;
        self.references[number as usize - 1] = reference;
        let basic = if kind > inode::SOCKET { kind - inode::EXTENDED } else { kind };
        self.written.insert(path, Written { reference, number, kind: basic });
        Ok(())
    }

    /// Writes the inode of anything but a directory; of a hard link, that of its file, unless it has been written.
    fn leaf(&mut self, packer: &mut Packer, path: &'a str) -> Result<()> {
        let tree = self.tree;
        let mut entry = tree.get(path).context("an entry of the tree")?;
        let mut file = path;
        if let Kind::HardLink(target) = &entry.kind {
            file = link_target(tree, path, target)?;
            entry = tree.get(file).context("a hard link's file")?;
        }
        if !matches!(entry.kind, Kind::Dir) && !self.written.contains_key(file) {
            self.new_leaf(packer, file, entry)?;
        }
        if let Some(written) = self.written.get(file).copied() {
            self.written.insert(path, written);
        }
        Ok(())
    }

    fn new_leaf(&mut self, packer: &mut Packer, path: &'a str, entry: &'a Entry) -> Result<()> {
        let number = *self.plan.numbers.get(path).context("an inode number")?;
        let xattr = self.xattrs.add(packer, path, &entry.xattrs)?;
        let long = if xattr == NONE32 { 0 } else { inode::EXTENDED };
        let kind = match &entry.kind {
            Kind::File(_) => return self.file(packer, path, entry, number, xattr),
            Kind::Symlink(_) => inode::SYMLINK,
            Kind::BlockDevice { .. } => inode::BLOCK,
            Kind::CharDevice { .. } => inode::CHAR,
            Kind::Fifo => inode::FIFO,
            Kind::Dir | Kind::HardLink(_) => bail!("`{path}` is not a leaf"),
        };
        let mut out = self.begin(kind + long, entry, number)?;
        push(&mut out, &[1]); // Links.
        match &entry.kind {
            Kind::Symlink(target) => {
                push(&mut out, &[u32::try_from(target.len()).context("a symbolic link's length")?]);
                out.extend_from_slice(target.as_bytes());
            }
            Kind::BlockDevice { major, minor } | Kind::CharDevice { major, minor } => {
                push(&mut out, &[device(*major, *minor).with_context(|| format!("writing device `{path}`"))?]);
            }
            _ => {}
        }
        if long != 0 {
            push(&mut out, &[xattr]);
        }
        self.end(packer, path, kind + long, number, &out)
    }

    fn file(&mut self, packer: &mut Packer, path: &'a str, entry: &Entry, number: u32, xattr: u32) -> Result<()> {
        let distinct = &self.plan.contents[*self.plan.files.get(path).context("a file's content")?];
        let len = distinct.content.len();
        let links = self.plan.links.get(path).copied().unwrap_or(1);
        let (mut start, mut fragment, mut offset, mut sizes, mut sparse) = (0, NONE32, 0, Vec::new(), 0);
        match distinct.place {
            Place::Empty => {}
            Place::Fragment { index, offset: at } => (fragment, offset) = (index, at),
            Place::Blocks { first, count } => {
                let blocks = &self.data.stored[first..first + count];
                start = blocks[0].offset;
                sizes = blocks.iter().map(|block| block.size).collect();
                let block = u64::from(self.data.block_size);
                let zero = |i: &usize| blocks[*i].size == 0;
                sparse = (0..count).filter(zero).map(|i| block.min(len - block * i as u64)).sum();
            }
        }
        let basic = links == 1 && xattr == NONE32 && sparse == 0;
        if let (Ok(start), Ok(len), true) = (u32::try_from(start), u32::try_from(len), basic) {
            // struct squashfs_reg_inode
            let mut out = self.begin(inode::FILE, entry, number)?;
            push(&mut out, &[start, fragment, offset, len]);
            push(&mut out, &sizes);
            return self.end(packer, path, inode::FILE, number, &out);
        }
        // struct squashfs_lreg_inode
        let kind = inode::FILE + inode::EXTENDED;
        let mut out = self.begin(kind, entry, number)?;
        for value in [start, len, sparse] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        push(&mut out, &[links, fragment, offset, xattr]);
        push(&mut out, &sizes);
        self.end(packer, path, kind, number, &out)
    }

    fn directory(&mut self, packer: &mut Packer, dir: &'a str, names: &[(&'a str, &'a str)]) -> Result<()> {
        let entry = self.tree.get(dir).with_context(|| format!("`{dir}` has entries but is not in the tree"))?;
        if !matches!(entry.kind, Kind::Dir) {
            bail!("`{dir}` has entries but is not a directory");
        }
        let number = *self.plan.numbers.get(dir).context("an inode number")?;
        let parent = match dir.rsplit_once('/') {
            // The root's parent is one past the last inode, as mksquashfs has it.
            None if dir.is_empty() => self.plan.inodes + 1,
            up => *self.plan.numbers.get(up.map_or("", |(up, _)| up)).context("a parent's inode number")?,
        };
        let xattr = self.xattrs.add(packer, dir, &entry.xattrs)?;
        let listing = self.listing(packer, names)?;
        let below = names.iter().filter(|(_, path)| self.written.get(path).is_some_and(|w| w.kind == inode::DIR));
        let links = 2 + u32::try_from(below.count())?;
        let size = listing.len + DIR_EXTRA;
        if let (Ok(size), true) = (u16::try_from(size), xattr == NONE32 && listing.index_count == 0) {
            // struct squashfs_dir_inode
            let mut out = self.begin(inode::DIR, entry, number)?;
            push(&mut out, &[listing.block, links]);
            out.extend_from_slice(&size.to_le_bytes());
            out.extend_from_slice(&listing.offset.to_le_bytes());
            push(&mut out, &[parent]);
            return self.end(packer, dir, inode::DIR, number, &out);
        }
        // struct squashfs_ldir_inode
        let kind = inode::DIR + inode::EXTENDED;
        let mut out = self.begin(kind, entry, number)?;
        push(&mut out, &[links, size, listing.block, parent]);
        out.extend_from_slice(&listing.index_count.to_le_bytes());
        out.extend_from_slice(&listing.offset.to_le_bytes());
        push(&mut out, &[xattr]);
        out.extend_from_slice(&listing.index);
        self.end(packer, dir, kind, number, &out)
    }

    /// Writes the entries of a directory, in runs below a header each, and an index of the headers that begin in a new block.
    fn listing(&mut self, packer: &mut Packer, names: &[(&'a str, &'a str)]) -> Result<Listing> {
        let (block, offset) = self.directories.position();
        let block = u32::try_from(block).context("the directory table is larger than 4 GiB")?;
        let mut listing = Listing { block, offset, len: 0, index: Vec::new(), index_count: 0 };
        let mut indexed = 0;
        let mut rest = names;
        while let Some((first_name, first_path)) = rest.first() {
            let first = *self.written.get(first_path).context("a child's inode")?;
            let run: Vec<(&str, Written)> = rest
                .iter()
                .take(DIR_RUN)
                .map_while(|(name, path)| {
                    let child = *self.written.get(path)?;
                    let near = i16::try_from(i64::from(child.number) - i64::from(first.number)).is_ok();
                    (child.reference >> 16 == first.reference >> 16 && near).then_some((*name, child))
                })
                .collect();
            let in_block = (usize::from(offset) + listing.len as usize) / META_SIZE;
            if in_block != indexed {
                indexed = in_block;
                // struct squashfs_dir_index
                let at = u32::try_from(self.directories.position().0).context("the directory table's size")?;
                push(&mut listing.index, &[listing.len, at, first_name.len() as u32 - 1]);
                listing.index.extend_from_slice(first_name.as_bytes());
                listing.index_count =
                    listing.index_count.checked_add(1).context("a directory index of 65536 blocks")?;
            }
            let mut out = Vec::new();
            // struct squashfs_dir_header
            push(&mut out, &[run.len() as u32 - 1, (first.reference >> 16) as u32, first.number]);
            for (name, child) in &run {
                // struct squashfs_dir_entry
                let delta = (i64::from(child.number) - i64::from(first.number)) as i16;
                out.extend_from_slice(&(child.reference as u16).to_le_bytes());
                out.extend_from_slice(&delta.to_le_bytes());
                out.extend_from_slice(&child.kind.to_le_bytes());
                out.extend_from_slice(&(name.len() as u16 - 1).to_le_bytes());
                out.extend_from_slice(name.as_bytes());
            }
            self.directories.write(packer, &out)?;
            listing.len += u32::try_from(out.len())?;
            rest = &rest[run.len()..];
        }
        Ok(listing)
    }
}

fn push(out: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

/// `new_encode_dev` of Linux: 12 bits of major, 20 of minor.
fn device(major: u32, minor: u32) -> Result<u32> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        bail!("device number {major}:{minor} does not fit into 12 and 20 bits");
    }
    Ok(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}
