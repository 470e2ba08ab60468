// SPDX-License-Identifier: MIT OR Apache-2.0

//! The numbers of squashfs 4.0, and its superblock. Source of every value: `fs/squashfs/squashfs_fs.h` of Linux
//! (names in the comments) and the format description of squashfs-tools-ng.

use anyhow::{Result, bail};

/// `SQUASHFS_MAGIC`, "hsqs".
pub const MAGIC: u32 = 0x7371_7368;
/// Size of the superblock (`struct squashfs_super_block`).
pub const SUPER_SIZE: usize = 96;
/// `SQUASHFS_METADATA_SIZE`: uncompressed size of a metadata block.
pub const META_SIZE: usize = 8192;
/// `SQUASHFS_COMPRESSED_BIT`: set in a metadata block's header when it is stored as it is.
pub const META_STORED: u16 = 1 << 15;
/// `SQUASHFS_COMPRESSED_BIT_BLOCK`: set in a data block's size when it is stored as it is.
pub const BLOCK_STORED: u32 = 1 << 24;
/// `SQUASHFS_INVALID_FRAG`, also "no extended attributes" (`SQUASHFS_INVALID_XATTR`).
pub const NONE32: u32 = u32::MAX;
/// `SQUASHFS_INVALID_BLK`: a table that is not there.
pub const NONE64: u64 = u64::MAX;
/// `ZSTD_COMPRESSION`.
pub const ZSTD: u16 = 6;
/// `SQUASHFS_DUPLICATE`: duplicates were looked for.
pub const FLAG_DUPLICATES: u16 = 1 << 6;
/// `SQUASHFS_EXPORT`: there is an export table.
pub const FLAG_EXPORT: u16 = 1 << 7;
/// `SQUASHFS_NO_XATTR`: there are no extended attributes.
pub const FLAG_NO_XATTRS: u16 = 1 << 9;
/// `SQUASHFS_COMP_OPT`: compressor options follow the superblock.
pub const FLAG_OPTIONS: u16 = 1 << 10;
/// `SQUASHFS_DIR_COUNT`: most entries below one directory header.
pub const DIR_RUN: usize = 256;
/// `SQUASHFS_NAME_LEN`.
pub const NAME_MAX: usize = 256;
/// A directory's `file_size` counts "." and "..", which are not stored, as 3 bytes (`squashfs_readdir`).
pub const DIR_EXTRA: u32 = 3;
/// `SQUASHFS_XATTR_VALUE_OOL`: the value lies elsewhere. Read, never written.
pub const XATTR_OUT_OF_LINE: u16 = 0x100;
/// Prefixes of extended attribute names by type number (`SQUASHFS_XATTR_USER`, `_TRUSTED`, `_SECURITY`).
pub const XATTR_PREFIXES: [&str; 3] = ["user.", "trusted.", "security."];
/// Images end on a multiple of this, as those of mksquashfs do, so that a loop device sees the last block.
pub const PAD: u64 = 4096;

/// Inode types (`SQUASHFS_DIR_TYPE` and on); the extended form is the basic one plus 7.
pub mod inode {
    /// Directory.
    pub const DIR: u16 = 1;
    /// Regular file.
    pub const FILE: u16 = 2;
    /// Symbolic link.
    pub const SYMLINK: u16 = 3;
    /// Block device.
    pub const BLOCK: u16 = 4;
    /// Character device.
    pub const CHAR: u16 = 5;
    /// Named pipe.
    pub const FIFO: u16 = 6;
    /// Socket. Read, never written.
    pub const SOCKET: u16 = 7;
    /// Distance from a basic type to its extended form.
    pub const EXTENDED: u16 = 7;
}

/// The superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Number of inodes.
    pub inodes: u32,
    /// Time the image was made.
    pub mtime: u32,
    /// Size of a data block.
    pub block_size: u32,
    /// Number of fragment blocks.
    pub fragments: u32,
    /// `FLAG_*`.
    pub flags: u16,
    /// Number of ids in the id table.
    pub ids: u16,
    /// Reference of the root directory's inode.
    pub root: u64,
    /// Bytes used, without the padding.
    pub bytes_used: u64,
    /// Where the id table's index is.
    pub id_table: u64,
    /// Where the extended attributes' header is.
    pub xattr_table: u64,
    /// Where the inodes begin.
    pub inode_table: u64,
    /// Where the directory listings begin.
    pub directory_table: u64,
    /// Where the fragment table's index is.
    pub fragment_table: u64,
    /// Where the export table's index is.
    pub export_table: u64,
}

impl Superblock {
    /// The 96 bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SUPER_SIZE);
        for value in [MAGIC, self.inodes, self.mtime, self.block_size, self.fragments] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        let log = self.block_size.ilog2() as u16;
        // Major and minor version: 4.0.
        for value in [ZSTD, log, self.flags, self.ids, 4, 0] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        for value in [
            self.root,
            self.bytes_used,
            self.id_table,
            self.xattr_table,
            self.inode_table,
            self.directory_table,
            self.fragment_table,
            self.export_table,
        ] {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out
    }

    /// Reads the superblock from the first bytes of an image.
    ///
    /// # Errors
    /// Anything but a zstd-compressed squashfs 4.0.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut at = Fields::new(bytes);
        if at.u32()? != MAGIC {
            bail!("not a squashfs image: the magic number is missing");
        }
        let (inodes, mtime, block_size, fragments) = (at.u32()?, at.u32()?, at.u32()?, at.u32()?);
        let (compressor, log, flags, ids) = (at.u16()?, at.u16()?, at.u16()?, at.u16()?);
        let (major, minor) = (at.u16()?, at.u16()?);
        if (major, minor) != (4, 0) {
            bail!("squashfs version {major}.{minor} is not supported, only 4.0");
        }
        if compressor != ZSTD {
            bail!("squashfs compressor {compressor} is not supported, only zstd ({ZSTD})");
        }
        // SQUASHFS_FILE_MAX_SIZE is 1 MiB; the kernel wants the logarithm to agree.
        if !(12..=20).contains(&log) || block_size != 1 << log {
            bail!("squashfs block size {block_size} is not a power of two between 4 KiB and 1 MiB");
        }
        Ok(Self {
            inodes,
            mtime,
            block_size,
            fragments,
            flags,
            ids,
            root: at.u64()?,
            bytes_used: at.u64()?,
            id_table: at.u64()?,
            xattr_table: at.u64()?,
            inode_table: at.u64()?,
            directory_table: at.u64()?,
            fragment_table: at.u64()?,
            export_table: at.u64()?,
        })
    }
}

/// Takes little-endian fields off the front of a slice.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((head, tail)) = self.rest.split_at_checked(n) else {
            bail!("squashfs structure is cut short: {n} bytes wanted, {} left", self.rest.len());
        };
        self.rest = tail;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }
    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn superblock_has_the_size_the_kernel_reads() {
        let block = Superblock {
            inodes: 1,
            mtime: 2,
            block_size: 131_072,
            fragments: 3,
            flags: FLAG_EXPORT,
            ids: 4,
            root: 5,
            bytes_used: 6,
            id_table: 7,
            xattr_table: NONE64,
            inode_table: 8,
            directory_table: 9,
            fragment_table: 10,
            export_table: 11,
        };
        let bytes = block.encode();
        assert_eq!(bytes.len(), SUPER_SIZE);
        assert_eq!(Superblock::decode(&bytes).unwrap(), block);
        assert!(Superblock::decode(&bytes[..95]).is_err());
    }
}
