// SPDX-License-Identifier: MIT OR Apache-2.0
//! A real disk to write to, whose content is read back past the page cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use profiles::medium::Range;
use rustix::fs::{Advice, FallocateFlags, OFlags};

use super::verify::BUFFER;
use super::write::{DIRECT, Disk};

/// A block device, or a file that stands for one.
#[derive(Debug)]
pub struct Device {
    file: File,
    /// The same, past the page cache where the kernel can do that.
    direct: File,
    path: PathBuf,
    size: u64,
    buffer: Vec<u8>,
}

impl Device {
    /// Opens the device at `path`, for us alone: one that is mounted or part of something is refused.
    pub fn open(path: &Path, size: u64) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::EXCL.bits() as i32)
            .open(path)
            .with_context(|| format!("opening {} for writing", path.display()))?;
        let direct = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits() as i32).open(path);
        let direct = match direct {
            // A filesystem in memory has nothing to go past.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => File::open(path),
            other => other,
        };
        let direct = direct.with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { file, direct, path: path.to_owned(), size, buffer: Vec::new() })
    }

    /// Tells the kernel of the new table.
    pub fn reread_table(mut self) -> Result<()> {
        gptman::linux::reread_partition_table(&mut self.file)
            .with_context(|| format!("telling the kernel of the new table on {}", self.path.display()))
    }
}

impl Disk for Device {
    fn size(&self) -> u64 {
        self.size
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }

    /// On a block device this is what the ioctl BLKZEROOUT does: the disk's own command for it where it has one.
    fn zero(&mut self, range: Range) -> io::Result<()> {
        use rustix::io::Errno;
        let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, mode, range.at, range.len) {
            Ok(()) => Ok(()),
            // Not in whole sectors, or nothing that can do it.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                let zeros = vec![0; BUFFER.min(range.len as usize)];
                let mut done = 0;
                while done < range.len {
                    let part = &zeros[..(range.len - done).min(zeros.len() as u64) as usize];
                    self.file.write_all_at(part, range.at + done)?;
                    done += part.len() as u64;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        // Reads past the cache do not look at it, but where there is no such thing this drops what is in it.
        Ok(rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }

    fn read_back(&mut self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        let begin = at / DIRECT * DIRECT;
        let skip = (at - begin) as usize;
        let length = (skip + buffer.len()).next_multiple_of(DIRECT as usize);
        self.buffer.resize(length + DIRECT as usize, 0);
        let start = self.buffer.as_ptr().align_offset(DIRECT as usize);
        let aligned = &mut self.buffer[start..start + length];
        let mut done = 0;
        // The disk may end within the last block.
        while done < skip + buffer.len() {
            match self.direct.read_at(&mut aligned[done..], begin + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer.copy_from_slice(&aligned[skip..skip + buffer.len()]);
        Ok(())
    }
}
