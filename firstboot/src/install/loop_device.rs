// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files as block devices: the two ioctls of loop(4) that it takes, as linux/loop.h has them. `LOOP_CONFIGURE` is there
//! since Linux 5.8.

use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter};

const LOOP_CTL_GET_FREE: Opcode = 0x4c82;
const LOOP_CONFIGURE: Opcode = 0x4c0a;
/// `LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR`: the device is free again when its filesystem is gone.
const FLAGS: u32 = 1 | 4;

/// `struct loop_config`, the fields that stay zero in one piece each.
#[repr(C)]
#[derive(Debug)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    /// `lo_device`, `lo_inode`, `lo_rdevice`, `lo_offset`, `lo_sizelimit` of `struct loop_info64`.
    begin: [u64; 5],
    /// `lo_number`, `lo_encrypt_type`, `lo_encrypt_key_size`.
    numbers: [u32; 3],
    flags: u32,
    /// `lo_file_name`, `lo_crypt_name`, `lo_encrypt_key`.
    names: [u8; 64 + 64 + 32],
    /// `lo_init`, and what `struct loop_config` keeps for later.
    end: [u64; 2 + 8],
}

/// The number of a loop device that is free.
struct GetFree;

// SAFETY: LOOP_CTL_GET_FREE takes no argument; the pointer is not looked at. What it returns is a number.
#[allow(unsafe_code)]
unsafe impl Ioctl for GetFree {
    type Output = IoctlOutput;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(number: IoctlOutput, _: *mut c_void) -> rustix::io::Result<IoctlOutput> {
        Ok(number)
    }
}

/// A file as a read-only block device. The device goes when this and every mount of it are gone.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its device node.
    pub path: PathBuf,
    _open: File,
}

impl LoopDevice {
    /// Sets one up for the file at `path`.
    pub fn of(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control");
        let control = control.context("opening /dev/loop-control: the kernel has no loop devices")?;
        // Somebody else may take the device that was free.
        for _ in 0..16 {
            let number = free(&control).context("asking for a free loop device")?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            match configure(&device, file.as_raw_fd()) {
                Ok(()) => return Ok(Self { path, _open: device }),
                Err(rustix::io::Errno::BUSY) => {}
                Err(error) => return Err(error).with_context(|| format!("setting up {}", path.display())),
            }
        }
        anyhow::bail!("no loop device is free")
    }
}

// SAFETY: see `GetFree`.
#[allow(unsafe_code)]
fn free(control: &File) -> rustix::io::Result<IoctlOutput> {
    unsafe { rustix::ioctl::ioctl(control, GetFree) }
}

// SAFETY: LOOP_CONFIGURE reads a `struct loop_config`, which `LoopConfig` is, and keeps no pointer to it; the file
// descriptor is open during the call.
#[allow(unsafe_code)]
fn configure(device: &File, file: RawFd) -> rustix::io::Result<()> {
    let config = LoopConfig {
        fd: u32::try_from(file).map_err(|_| rustix::io::Errno::BADF)?,
        block_size: 0,
        begin: [0; 5],
        numbers: [0; 3],
        flags: FLAGS,
        names: [0; 160],
        end: [0; 10],
    };
    unsafe { rustix::ioctl::ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// Sizes and offsets that a C compiler gives with linux/loop.h.
    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(size_of::<LoopConfig>(), 304);
        assert_eq!(offset_of!(LoopConfig, begin), 8);
        assert_eq!(offset_of!(LoopConfig, flags), 60);
        assert_eq!(offset_of!(LoopConfig, names), 64);
        assert_eq!(offset_of!(LoopConfig, end), 224);
    }
}
