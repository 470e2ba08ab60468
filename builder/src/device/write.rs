// SPDX-License-Identifier: MIT OR Apache-2.0

//! Writes an image onto a disk by its [`Plan`], and reads back what the disk has kept. The disk is without a partition
//! table from the first write to the last, so that one that was interrupted does not boot.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use rustix::fs::{Advice, FallocateFlags, Mode, OFlags};

use super::plan::{Action, Plan, Step};
use crate::error::Failure;

/// Bytes that are read and written at a time.
const CHUNK: u64 = 4 << 20;
/// After so many bytes the disk is waited for: else the kernel takes everything into memory, and the progress bar shows
/// how fast memory is.
const SYNC_EVERY: u64 = 64 << 20;
/// Protective MBR and the header of the GPT, one sector each: what makes the rest a partition table.
const TABLE_HEADER: u64 = 1024;

/// What is written to. Tests have one that fails.
pub trait Medium {
    /// Writes all bytes at an offset.
    ///
    /// # Errors
    /// Failing I/O.
    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Makes a part read as zeros.
    ///
    /// # Errors
    /// Failing I/O.
    fn zero(&mut self, at: u64, len: u64) -> io::Result<()>;
    /// Waits until everything written is on the medium, and forgets what memory has of it.
    ///
    /// # Errors
    /// Failing I/O.
    fn sync(&mut self) -> io::Result<()>;
    /// Reads a part back.
    ///
    /// # Errors
    /// Failing I/O.
    fn read(&mut self, bytes: &mut [u8], at: u64) -> io::Result<()>;
}

/// A disk that nobody else uses while it is open.
#[derive(Debug)]
pub struct Device {
    file: File,
}

impl Device {
    /// Opens the disk at `path`, for this process alone. When it is closed again, udev reads its new partition table.
    ///
    /// # Errors
    /// No permission, or a disk in use.
    pub fn open(path: &Path) -> Result<Self> {
        // For a block device, O_EXCL without O_CREAT means: not while it is mounted or held by another driver
        // (open(2)).
        let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
        let shown = path.display();
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| {
            let failure = Failure::environment(format!("opening {shown}")).caused_by(error);
            match error {
                rustix::io::Errno::BUSY => failure
                    .hint("something uses the disk: a mount in a container, a RAID, LVM, another program that writes"),
                rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => failure.hint("writing to a disk needs root"),
                rustix::io::Errno::ROFS => failure.hint("the disk is write-protected"),
                _ => failure,
            }
        })?;
        Ok(Self { file: file.into() })
    }
}

impl Medium for Device {
    fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }
    fn zero(&mut self, at: u64, len: u64) -> io::Result<()> {
        // On a block device this is the ioctl BLKZEROOUT: the disk's own command for it where there is one.
        match rustix::fs::fallocate(&self.file, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, at, len) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        let zeros = vec![0; len.min(CHUNK) as usize];
        chunks(at, len).try_for_each(|(at, len)| self.file.write_all_at(&zeros[..len], at))
    }
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)?;
        Ok(())
    }
    fn read(&mut self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }
}

/// Offsets and lengths of the parts in which a range is handled.
fn chunks(at: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    (at..at + len).step_by(CHUNK as usize).map(move |from| (from, (at + len - from).min(CHUNK) as usize))
}

/// Writes what `plan` says of `image` to `medium`, and compares what is there then. The bar goes over twice the plan's
/// bytes: once for writing, once for reading back.
///
/// # Errors
/// Failing I/O; a medium that does not keep what is written. It has no partition table then.
pub fn write(image: &File, plan: &Plan, medium: &mut dyn Medium, bar: &ProgressBar) -> Result<()> {
    let mut job = Job { image, medium, bar, buffer: vec![0; CHUNK as usize], back: vec![0; CHUNK as usize] };
    bar.set_length(2 * plan.bytes());
    bar.set_message("Writing");
    let head = Step { at: 0, len: plan.head, action: Action::Copy };
    // First of all the disk stops to be what it was, in both places where it may say so.
    job.put(&[Step { action: Action::Zero, ..head }, plan.tail])?;
    job.put(&plan.steps)?;
    bar.set_message("Reading back");
    job.compare(&[plan.tail])?;
    job.compare(&plan.steps)?;
    // The header last: what it makes valid is on the disk by then, and so is everything else.
    let split = TABLE_HEADER.min(plan.head);
    job.put_quietly(&[Step { at: split, len: plan.head - split, action: Action::Copy }])?;
    job.put_quietly(&[Step { at: 0, len: split, action: Action::Copy }])?;
    job.compare(&[head])?;
    bar.finish_and_clear();
    Ok(())
}

struct Job<'a> {
    image: &'a File,
    medium: &'a mut dyn Medium,
    bar: &'a ProgressBar,
    buffer: Vec<u8>,
    back: Vec<u8>,
}

impl Job<'_> {
    fn put(&mut self, steps: &[Step]) -> Result<()> {
        self.each(steps, true)
    }

    /// Bytes that the bar has counted already.
    fn put_quietly(&mut self, steps: &[Step]) -> Result<()> {
        self.each(steps, false)
    }

    fn each(&mut self, steps: &[Step], counted: bool) -> Result<()> {
        let mut unsynced = 0;
        for step in steps {
            for (at, len) in chunks(step.at, step.len) {
                match step.action {
                    Action::Zero => self.medium.zero(at, len as u64),
                    Action::Copy => {
                        load(self.image, &mut self.buffer[..len], at)?;
                        self.medium.write(&self.buffer[..len], at)
                    }
                }
                .map_err(|error| failed("writing", at, error))?;
                unsynced += len as u64;
                if unsynced >= SYNC_EVERY {
                    self.medium.sync().map_err(|error| failed("writing", at, error))?;
                    unsynced = 0;
                }
                if counted {
                    self.bar.inc(len as u64);
                }
            }
        }
        let end = steps.last().map_or(0, |step| step.at + step.len);
        self.medium.sync().map_err(|error| failed("writing", end, error).into())
    }

    fn compare(&mut self, steps: &[Step]) -> Result<()> {
        for step in steps {
            for (at, len) in chunks(step.at, step.len) {
                let (wanted, got) = (&mut self.buffer[..len], &mut self.back[..len]);
                match step.action {
                    Action::Zero => wanted.fill(0),
                    Action::Copy => load(self.image, wanted, at)?,
                }
                self.medium.read(got, at).map_err(|error| failed("reading back", at, error))?;
                if let Some(place) = wanted.iter().zip(got.iter()).position(|(wanted, got)| wanted != got) {
                    let message = format!("the disk did not keep what was written at byte {}", at + place as u64);
                    let hint =
                        "the disk, its cable or its adapter is broken, or something else wrote to it: use another one";
                    return Err(Failure::verification(message).hint(hint).into());
                }
                self.bar.inc(len as u64);
            }
        }
        Ok(())
    }
}

fn failed(doing: &str, at: u64, error: io::Error) -> Failure {
    let failure = Failure::environment(format!("{doing} at byte {at} of the disk"));
    let hint = "the disk has no partition table now and will not boot: write to it again, or use another one";
    failure.hint(hint).caused_by(error)
}

/// Reads a part of the image, holes included.
fn load(image: &File, bytes: &mut [u8], at: u64) -> Result<()> {
    image.read_exact_at(bytes, at).with_context(|| format!("reading the image at byte {at}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::device::plan::identify;
    use crate::device::plan::tests::{SIZE, image};
    use crate::error::kind;
    use crate::image::gpt;

    const MIB: u64 = 1 << 20;
    /// The disk is larger than the image.
    const DISK: u64 = SIZE + 3 * MIB;

    /// A disk of old data, that fails after some operations or forgets what is written to one place. As a disk with a
    /// cache does, it may lose what was not synced.
    struct Fake {
        bytes: Vec<u8>,
        left: usize,
        bad: Option<usize>,
        unsynced: Vec<(u64, Vec<u8>)>,
    }

    impl Fake {
        /// Full of 0xEE, with another partition table at both ends.
        fn used() -> Self {
            let mut disk = std::io::Cursor::new(vec![0xee; DISK as usize]);
            let table = gpt::Table { disk: gpt::derive_guid("old", "n", "disk"), partitions: vec![] };
            gpt::write(&mut disk, &table).unwrap();
            Self { bytes: disk.into_inner(), left: usize::MAX, bad: None, unsynced: vec![] }
        }
        fn step(&mut self) -> io::Result<()> {
            self.left = self.left.checked_sub(1).ok_or(io::ErrorKind::TimedOut)?;
            Ok(())
        }
        /// The power is cut: of what was not synced, all is lost, or all but the last and every second write before.
        fn cut(&mut self, keep_some: bool) {
            let (skip, step) = if keep_some { (1, 2) } else { (0, 1) };
            for (at, before) in std::mem::take(&mut self.unsynced).into_iter().rev().skip(skip).step_by(step) {
                self.bytes[at as usize..][..before.len()].copy_from_slice(&before);
            }
        }
        /// Whether firmware would find a partition table, the backup at the end of the disk included.
        fn has_table(&self) -> bool {
            let protective = self.bytes[510..512] == [0x55, 0xaa];
            protective && [512, DISK as usize - 512].iter().any(|at| self.bytes[*at..].starts_with(b"EFI PART"))
        }
    }

    impl Medium for Fake {
        fn write(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
            self.step()?;
            let place = at as usize..at as usize + bytes.len();
            self.unsynced.push((at, self.bytes[place.clone()].to_vec()));
            self.bytes[place.clone()].copy_from_slice(bytes);
            if let Some(bad) = self.bad.filter(|bad| place.contains(bad)) {
                self.bytes[bad] = 0x55;
            }
            Ok(())
        }
        fn zero(&mut self, at: u64, len: u64) -> io::Result<()> {
            self.write(&vec![0; len as usize], at)
        }
        fn sync(&mut self) -> io::Result<()> {
            self.step()?;
            self.unsynced.clear();
            Ok(())
        }
        fn read(&mut self, bytes: &mut [u8], at: u64) -> io::Result<()> {
            self.step()?;
            bytes.copy_from_slice(&self.bytes[at as usize..][..bytes.len()]);
            Ok(())
        }
    }

    fn run(medium: &mut dyn Medium) -> Result<()> {
        let file = image();
        let plan = Plan::new(&identify(&file).unwrap(), &file, DISK).unwrap();
        let bar = ProgressBar::hidden();
        write(&file, &plan, medium, &bar)?;
        assert_eq!((bar.length(), bar.position()), (Some(2 * plan.bytes()), 2 * plan.bytes()));
        Ok(())
    }

    #[test]
    fn a_used_disk_becomes_the_image_where_it_matters() {
        let mut disk = Fake::used();
        assert!(disk.has_table());
        run(&mut disk).unwrap();
        let (mib, size) = (MIB as usize, SIZE as usize);
        let mut wanted = vec![0; 5 * mib];
        image().read_exact_at(&mut wanted, 0).unwrap();
        assert!(disk.bytes[..5 * mib] == wanted[..]);
        for zero in [5 * mib, 6 * mib - 1, 8 * mib, 9 * mib, 10 * mib - 1, size + 2 * mib, size + 3 * mib - 1] {
            assert_eq!(disk.bytes[zero], 0, "{zero}");
        }
        for old in [6 * mib, 8 * mib - 1, size, size + 2 * mib - 1] {
            assert_eq!(disk.bytes[old], 0xee, "{old}");
        }
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&disk.bytes[..size], 0).unwrap();
        assert_eq!(identify(&file).unwrap(), identify(&image()).unwrap());
    }

    #[test]
    fn whenever_it_is_cut_there_is_no_table_or_everything() {
        let mut disk = Fake::used();
        run(&mut disk).unwrap();
        let operations = usize::MAX - disk.left;
        assert!(operations > 20, "{operations}");
        let mib = MIB as usize;
        for (left, keep_some) in (0..operations).flat_map(|left| [(left, false), (left, true)]) {
            let mut disk = Fake { left, ..Fake::used() };
            let error = run(&mut disk).unwrap_err();
            assert_eq!(kind(&error).exit_code(), 3, "{error:#}");
            disk.cut(keep_some);
            // Until the first sync ends, the old table may still be there, and nothing else was written.
            let places = [2 * mib + 100, 5 * mib, 9 * mib].map(|at| disk.bytes[at]);
            let whole = places == [0xee; 3] || places == [7, 0, 0];
            assert!(!disk.has_table() || whole, "cut after {left} operations");
        }
    }

    #[test]
    fn a_disk_that_forgets_is_found_out_and_gets_no_table() {
        for bad in [MIB as usize, 2 * MIB as usize + 101, DISK as usize - 3] {
            let mut disk = Fake { bad: Some(bad), ..Fake::used() };
            let error = run(&mut disk).unwrap_err();
            assert_eq!(error.to_string(), format!("the disk did not keep what was written at byte {bad}"));
            assert_eq!(kind(&error).exit_code(), 4);
            assert!(!disk.has_table());
        }
    }

    #[test]
    fn a_plain_file_takes_zeros_and_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![0xee; 3 * MIB as usize]).unwrap();
        let mut device = Device::open(&path).unwrap();
        device.zero(4096, MIB).unwrap();
        device.write(b"abc", 2 * MIB).unwrap();
        device.sync().unwrap();
        let mut got = [1; 3];
        device.read(&mut got, 2 * MIB).unwrap();
        assert_eq!(&got, b"abc");
        for (at, want) in [(4095, [0xee, 0, 0]), (4096 + MIB - 1, [0, 0xee, 0xee])] {
            device.read(&mut got, at).unwrap();
            assert_eq!(got, want);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 * MIB);
        assert!(Device::open(&dir.path().join("none")).is_err());
    }
}
