// SPDX-License-Identifier: MIT OR Apache-2.0

//! Reads squashfs 4.0 images with zstd: for `inspect` and for tests. Every length and position is checked: an image from
//! elsewhere can be wrong in any byte and ends in an error.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::rc::Rc;

use anyhow::{Context, Result, bail};

use super::format::{
    BLOCK_STORED, DIR_EXTRA, Fields, META_SIZE, META_STORED, NAME_MAX, NONE32, NONE64, SUPER_SIZE, Superblock,
    XATTR_OUT_OF_LINE, XATTR_PREFIXES, inode,
};

/// Directories nest no deeper than this in an image we read (`PATH_MAX` / 2 of Linux).
const DEPTH_MAX: usize = 2048;
/// Longest symbolic link target (`PATH_MAX` of Linux).
const TARGET_MAX: usize = 4096;
/// Longest extended attribute, and the most that all names of an inode's may have (`XATTR_SIZE_MAX` and `XATTR_LIST_MAX` of Linux).
const XATTR_MAX: usize = 65_536;
/// An entry of a table takes at least this many bytes of the image, with what it leads to: a fragment block is a zstd frame, and
/// an attribute has a name and a value.
const TABLE_ENTRY_MIN: u64 = 8;

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Dir,
    /// A regular file.
    File(FileData),
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A block device, by the kernel's encoding.
    BlockDevice(u32),
    /// A character device, by the kernel's encoding.
    CharDevice(u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// Where the bytes of a file are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileData {
    /// Length in bytes.
    pub len: u64,
    start: u64,
    fragment: u32,
    offset: u32,
    /// How many blocks it has, and where their sizes are: a word each, read when they are needed.
    blocks: u64,
    words: Cursor,
}

/// One inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: u32,
    /// Inode number: equal for hard links.
    pub number: u32,
    /// Number of links.
    pub links: u32,
    /// Extended attributes by full name.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    listing: (u32, u16, u32),
}

/// An open image.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    base: u64,
    /// The superblock.
    pub superblock: Superblock,
    ids: Vec<u32>,
    fragments: Vec<(u64, u32)>,
    xattr_ids: Vec<(u64, u32)>,
    xattr_values: u64,
    /// The last metadata block read: position, bytes, position of the next.
    meta: Option<(u64, Vec<u8>, u64)>,
    /// The last fragment block read.
    fragment: Option<(u32, Vec<u8>)>,
}

/// A position in a table of metadata blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    block: u64,
    offset: usize,
}

impl<R: Read + Seek> Reader<R> {
    /// Opens an image that begins at byte `base` of `source`.
    ///
    /// # Errors
    /// Not an image this reader understands, or failing I/O.
    pub fn open(mut source: R, base: u64) -> Result<Self> {
        let mut bytes = [0; SUPER_SIZE];
        source.seek(SeekFrom::Start(base)).context("seeking to the squashfs superblock")?;
        source.read_exact(&mut bytes).context("reading the squashfs superblock")?;
        let superblock = Superblock::decode(&bytes)?;
        // What follows is bounded by the image's size: it must not be a claim.
        let there = source.seek(SeekFrom::End(0)).context("measuring the squashfs image")?.saturating_sub(base);
        if superblock.bytes_used > there {
            bail!("the squashfs image is cut short: {there} bytes of {}", superblock.bytes_used);
        }
        let mut reader = Self {
            source,
            base,
            superblock,
            ids: Vec::new(),
            fragments: Vec::new(),
            xattr_ids: Vec::new(),
            xattr_values: NONE64,
            meta: None,
            fragment: None,
        };
        reader.read_tables().context("reading the squashfs tables")?;
        Ok(reader)
    }

    fn read_tables(&mut self) -> Result<()> {
        let block = self.superblock.clone();
        let ids = self.table(block.id_table, u64::from(block.ids) * 4)?;
        self.ids = ids.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)).collect();
        if block.fragments > 0 {
            self.check_count(block.fragments, "fragment blocks")?;
            let bytes = self.table(block.fragment_table, u64::from(block.fragments) * 16)?;
            let mut fields = Fields::new(&bytes);
            for _ in 0..block.fragments {
                self.fragments.push((fields.u64()?, fields.u32()?));
                fields.u32()?;
            }
        }
        if block.xattr_table != NONE64 {
            let header = self.raw(block.xattr_table, 16)?;
            let mut fields = Fields::new(&header);
            self.xattr_values = fields.u64()?;
            let count = fields.u32()?;
            self.check_count(count, "sets of extended attributes")?;
            let ids = self.table(block.xattr_table.saturating_add(16), u64::from(count) * 16)?;
            let mut fields = Fields::new(&ids);
            for _ in 0..count {
                self.xattr_ids.push((fields.u64()?, fields.u32()?));
                fields.u32()?;
            }
        }
        Ok(())
    }

    /// Fails for a table with more entries than the image can have.
    fn check_count(&self, count: u32, what: &str) -> Result<()> {
        if u64::from(count) > self.superblock.bytes_used / TABLE_ENTRY_MIN {
            bail!("the squashfs image claims {count} {what}");
        }
        Ok(())
    }

    /// `len` bytes of the image as they are. Allocates no more than the image has.
    fn raw(&mut self, at: u64, len: usize) -> Result<Vec<u8>> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.superblock.bytes_used) {
            bail!("{len} bytes at {at} lie outside of the squashfs image");
        }
        let mut out = Vec::new();
        self.source.seek(SeekFrom::Start(self.base.saturating_add(at))).context("seeking in the squashfs image")?;
        (&mut self.source).take(len as u64).read_to_end(&mut out).context("reading the squashfs image")?;
        if out.len() != len {
            bail!("the squashfs image is cut short at {}", at + out.len() as u64);
        }
        Ok(out)
    }

    /// A table of `len` bytes whose index of metadata blocks is at `index`.
    fn table(&mut self, index: u64, len: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        for i in 0..len.div_ceil(META_SIZE as u64) {
            let at = self.raw(index.saturating_add(i * 8), 8)?;
            let at = Fields::new(&at).u64()?;
            out.extend_from_slice(&self.meta_block(at)?.0);
        }
        let len = usize::try_from(len)?;
        if out.len() < len {
            bail!("a table has {} bytes of {len}", out.len());
        }
        out.truncate(len);
        Ok(out)
    }

    /// The metadata block at `at`, and the position of the next one.
    fn meta_block(&mut self, at: u64) -> Result<(Vec<u8>, u64)> {
        let header = self.raw(at, 2)?;
        let header = Fields::new(&header).u16()?;
        let len = usize::from(header & !META_STORED);
        if len == 0 || len > META_SIZE {
            bail!("a metadata block at {at} has {len} bytes");
        }
        let body = self.raw(at + 2, len)?;
        let bytes = if header & META_STORED != 0 { body } else { unpack(&body, META_SIZE)? };
        Ok((bytes, at + 2 + len as u64))
    }

    /// `len` bytes at a cursor, which moves on, over the ends of blocks.
    fn take(&mut self, cursor: &mut Cursor, len: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < len {
            if self.meta.as_ref().is_none_or(|(at, ..)| *at != cursor.block) {
                let (bytes, next) = self.meta_block(cursor.block)?;
                self.meta = Some((cursor.block, bytes, next));
            }
            let (_, bytes, next) = self.meta.as_ref().context("a metadata block")?;
            let rest = bytes.get(cursor.offset..).unwrap_or_default();
            if rest.is_empty() && (bytes.len() < META_SIZE || cursor.offset > META_SIZE) {
                bail!("a metadata block ends early");
            }
            let n = rest.len().min(len - out.len());
            out.extend_from_slice(&rest[..n]);
            cursor.offset += n;
            if cursor.offset == META_SIZE && bytes.len() == META_SIZE {
                *cursor = Cursor { block: *next, offset: 0 };
            }
        }
        Ok(out)
    }

    fn cursor(&self, table: u64, reference: u64) -> Cursor {
        Cursor { block: table.saturating_add(reference >> 16), offset: (reference & 0xffff) as usize }
    }

    /// The root directory.
    ///
    /// # Errors
    /// A damaged image, or failing I/O.
    pub fn root(&mut self) -> Result<Node> {
        self.node(self.superblock.root)
    }

    fn node(&mut self, reference: u64) -> Result<Node> {
        let mut at = self.cursor(self.superblock.inode_table, reference);
        let head = self.take(&mut at, 16)?;
        let mut fields = Fields::new(&head);
        let (kind, mode, uid, gid) = (fields.u16()?, fields.u16()?, fields.u16()?, fields.u16()?);
        let (mtime, number) = (fields.u32()?, fields.u32()?);
        let id = |index: u16| self.ids.get(usize::from(index)).copied().context("an owner outside of the id table");
        let (uid, gid) = (id(uid)?, id(gid)?);
        let extended = kind > inode::SOCKET;
        let basic = if extended { kind - inode::EXTENDED } else { kind };
        let mut listing = (0, 0, 0);
        let (kind, links, xattr) = match basic {
            inode::DIR => {
                let (found, links, xattr) = self.dir_inode(&mut at, extended)?;
                listing = found;
                (NodeKind::Dir, links, xattr)
            }
            inode::FILE => self.file_inode(&mut at, extended)?,
            _ => self.other_inode(&mut at, basic, extended)?,
        };
        let xattrs = self.xattrs(xattr)?;
        Ok(Node { kind, mode, uid, gid, mtime, number, links, xattrs, listing })
    }

    fn dir_inode(&mut self, at: &mut Cursor, extended: bool) -> Result<((u32, u16, u32), u32, u32)> {
        let body = self.take(at, if extended { 24 } else { 16 })?;
        let mut fields = Fields::new(&body);
        if extended {
            let (links, size, block, _parent) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
            let (_index, offset, xattr) = (fields.u16()?, fields.u16()?, fields.u32()?);
            return Ok(((block, offset, size), links, xattr));
        }
        let (block, links) = (fields.u32()?, fields.u32()?);
        let (size, offset) = (fields.u16()?, fields.u16()?);
        Ok(((block, offset, u32::from(size)), links, NONE32))
    }

    fn file_inode(&mut self, at: &mut Cursor, extended: bool) -> Result<(NodeKind, u32, u32)> {
        let body = self.take(at, if extended { 40 } else { 16 })?;
        let mut fields = Fields::new(&body);
        let (start, len, fragment, offset, links, xattr);
        if extended {
            (start, len) = (fields.u64()?, fields.u64()?);
            fields.u64()?; // Bytes saved by sparse blocks.
            (links, fragment, offset, xattr) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
        } else {
            (start, fragment, offset) = (u64::from(fields.u32()?), fields.u32()?, fields.u32()?);
            (len, links, xattr) = (u64::from(fields.u32()?), 1, NONE32);
        }
        let block = u64::from(self.superblock.block_size);
        let count = if fragment == NONE32 { len.div_ceil(block) } else { len / block };
        // Each block has a word in the inode table, so more than the image has bytes cannot be true.
        if count > self.superblock.bytes_used.saturating_mul(4096) {
            bail!("a file claims {count} blocks");
        }
        Ok((NodeKind::File(FileData { len, start, fragment, offset, blocks: count, words: *at }), links, xattr))
    }

    fn other_inode(&mut self, at: &mut Cursor, basic: u16, extended: bool) -> Result<(NodeKind, u32, u32)> {
        let word = |bytes: &[u8]| Fields::new(bytes).u32();
        let links = word(&self.take(at, 4)?)?;
        let kind = match basic {
            inode::SYMLINK => {
                let len = word(&self.take(at, 4)?)? as usize;
                if len > TARGET_MAX {
                    bail!("a symbolic link has {len} bytes");
                }
                NodeKind::Symlink(self.take(at, len)?)
            }
            inode::BLOCK => NodeKind::BlockDevice(word(&self.take(at, 4)?)?),
            inode::CHAR => NodeKind::CharDevice(word(&self.take(at, 4)?)?),
            inode::FIFO => NodeKind::Fifo,
            inode::SOCKET => NodeKind::Socket,
            other => bail!("inode type {other} is unknown"),
        };
        let xattr = if extended { word(&self.take(at, 4)?)? } else { NONE32 };
        Ok((kind, links, xattr))
    }

    fn xattrs(&mut self, number: u32) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut out = BTreeMap::new();
        if number == NONE32 {
            return Ok(out);
        }
        let (reference, count) =
            *self.xattr_ids.get(number as usize).context("extended attributes outside of their table")?;
        let mut at = self.cursor(self.xattr_values, reference);
        let mut total = 0;
        for _ in 0..count {
            let head = self.take(&mut at, 4)?;
            let mut fields = Fields::new(&head);
            let (kind, len) = (fields.u16()?, fields.u16()?);
            let name = self.take(&mut at, usize::from(len))?;
            let prefix = XATTR_PREFIXES.get(usize::from(kind & !XATTR_OUT_OF_LINE));
            let prefix = prefix.context("an extended attribute of an unknown kind")?;
            let mut value = self.value(&mut at)?;
            if kind & XATTR_OUT_OF_LINE != 0 {
                let reference = Fields::new(&value).u64()?;
                let mut elsewhere = self.cursor(self.xattr_values, reference);
                value = self.value(&mut elsewhere)?;
            }
            // Many attributes may share one value that lies elsewhere.
            total += name.len() + value.len();
            if total > 2 * XATTR_MAX {
                bail!("an inode has more than {} bytes of extended attributes", 2 * XATTR_MAX);
            }
            out.insert(format!("{prefix}{}", String::from_utf8_lossy(&name)), value);
        }
        Ok(out)
    }

    fn value(&mut self, at: &mut Cursor) -> Result<Vec<u8>> {
        let len = self.take(at, 4)?;
        let len = Fields::new(&len).u32()? as usize;
        if len > XATTR_MAX {
            bail!("an extended attribute has {len} bytes");
        }
        self.take(at, len)
    }

    /// Names in a directory with the references of their inodes, in the order of the image. Most of them are never read: a
    /// small image may have many names for a large inode.
    fn entries(&mut self, dir: &Node) -> Result<Vec<(String, u64)>> {
        if dir.kind != NodeKind::Dir {
            bail!("not a directory");
        }
        let (block, offset, size) = dir.listing;
        let table = self.superblock.directory_table;
        let mut at = Cursor { block: table.saturating_add(u64::from(block)), offset: usize::from(offset) };
        let mut left = size.saturating_sub(DIR_EXTRA);
        let mut found = Vec::new();
        while left > 0 {
            let head = self.take(&mut at, 12)?;
            let mut fields = Fields::new(&head);
            let (count, start) = (fields.u32()?, fields.u32()?);
            left = left.checked_sub(12).context("a directory ends in a header")?;
            if count >= super::format::DIR_RUN as u32 {
                bail!("a directory header counts {count} entries");
            }
            for _ in 0..=count {
                let head = self.take(&mut at, 8)?;
                let mut fields = Fields::new(&head);
                let (offset, _delta, _kind, len) = (fields.u16()?, fields.u16()?, fields.u16()?, fields.u16()?);
                let len = usize::from(len) + 1;
                if len > NAME_MAX {
                    bail!("a name has {len} bytes");
                }
                let name = String::from_utf8(self.take(&mut at, len)?).context("a name is not UTF-8")?;
                if matches!(name.as_str(), "." | "..") || name.contains(['/', '\0']) {
                    bail!("a directory has an entry named {name:?}");
                }
                found.push((name, u64::from(start) << 16 | u64::from(offset)));
                if found.len() as u64 > self.most_names() {
                    bail!("a directory has far more names than the image has inodes");
                }
                left = left.checked_sub(8 + len as u32).context("a directory ends in an entry")?;
            }
        }
        Ok(found)
    }

    /// More names than this are no image's: names are compressed, but no two in a directory are the same.
    fn most_names(&self) -> u64 {
        u64::from(self.superblock.inodes).saturating_mul(64).min(self.superblock.bytes_used).saturating_add(64)
    }

    /// Visits everything below the root, parents first, with clean relative paths; the root is the empty path.
    ///
    /// # Errors
    /// What `visit` returns, a damaged image (a directory inside itself too), or failing I/O.
    pub fn walk(&mut self, visit: &mut impl FnMut(&mut Self, &str, &Node) -> Result<()>) -> Result<()> {
        let mut left = self.most_names();
        // The folder that a name is in, the name, where its inode is, and how deep.
        let mut stack: Vec<(Rc<str>, String, u64, usize)> = vec![("".into(), String::new(), self.superblock.root, 0)];
        while let Some((folder, name, reference, depth)) = stack.pop() {
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let node = self.node(reference).with_context(|| format!("reading the inode of `{path}`"))?;
            visit(self, &path, &node)?;
            if node.kind == NodeKind::Dir {
                if depth >= DEPTH_MAX || path.len() > TARGET_MAX {
                    bail!("directories are nested more than {DEPTH_MAX} deep");
                }
                let entries = self.entries(&node).with_context(|| format!("reading directory `{path}`"))?;
                left = left.checked_sub(entries.len() as u64).context("the image has far more names than inodes")?;
                let folder: Rc<str> = path.into();
                stack.extend(entries.into_iter().rev().map(|(name, at)| (folder.clone(), name, at, depth + 1)));
            }
        }
        Ok(())
    }

    /// The node at a clean relative path; symbolic links are not followed.
    ///
    /// # Errors
    /// A damaged image, or failing I/O.
    pub fn find(&mut self, path: &str) -> Result<Option<Node>> {
        let mut node = self.root()?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if node.kind != NodeKind::Dir {
                return Ok(None);
            }
            match self.entries(&node)?.into_iter().find(|(name, _)| name == part) {
                Some((_, reference)) => node = self.node(reference)?,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// All bytes of a file of at most `limit` bytes.
    ///
    /// # Errors
    /// A larger file, a damaged image, or failing I/O.
    pub fn read(&mut self, file: &FileData, limit: u64) -> Result<Vec<u8>> {
        if file.len > limit {
            bail!("a file has {} bytes, more than {limit}", file.len);
        }
        let mut out = Vec::new();
        self.copy(file, &mut out)?;
        Ok(out)
    }

    /// Writes all bytes of a file to `out`, block by block.
    ///
    /// # Errors
    /// A damaged image, or failing I/O.
    pub fn copy(&mut self, file: &FileData, out: &mut impl Write) -> Result<()> {
        let block = u64::from(self.superblock.block_size);
        let (mut left, mut at) = (file.len, file.start);
        let mut words = file.words;
        for _ in 0..file.blocks {
            let word = self.take(&mut words, 4)?;
            let word = Fields::new(&word).u32()?;
            let want = usize::try_from(block.min(left))?;
            let bytes = if word == 0 { vec![0; want] } else { self.block(at, word)? };
            if bytes.len() != want {
                bail!("a block has {} bytes, expected {want}", bytes.len());
            }
            out.write_all(&bytes).context("writing a block")?;
            left -= want as u64;
            at = at.saturating_add(u64::from(word & !BLOCK_STORED));
        }
        if file.fragment != NONE32 {
            if self.fragment.as_ref().is_none_or(|(index, _)| *index != file.fragment) {
                let (at, word) = *self.fragments.get(file.fragment as usize).context("no such fragment block")?;
                self.fragment = Some((file.fragment, self.block(at, word)?));
            }
            let (_, bytes) = self.fragment.as_ref().context("a fragment block")?;
            let tail = bytes.get(file.offset as usize..).and_then(|rest| rest.get(..usize::try_from(left).ok()?));
            out.write_all(tail.context("a file ends outside of its fragment block")?).context("writing a fragment")?;
            left = 0;
        }
        if left != 0 {
            bail!("a file has {} bytes of {}", file.len - left, file.len);
        }
        Ok(())
    }

    fn block(&mut self, at: u64, word: u32) -> Result<Vec<u8>> {
        let (block, len) = (self.superblock.block_size as usize, (word & !BLOCK_STORED) as usize);
        if len > block {
            bail!("a block at {at} has {len} bytes");
        }
        let bytes = self.raw(at, len)?;
        if word & BLOCK_STORED != 0 { Ok(bytes) } else { unpack(&bytes, block) }
    }
}

fn unpack(bytes: &[u8], limit: usize) -> Result<Vec<u8>> {
    zstd::bulk::decompress(bytes, limit).context("decompressing a block")
}
