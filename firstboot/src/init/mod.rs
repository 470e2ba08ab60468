// SPDX-License-Identifier: MIT OR Apache-2.0
//! PID 1 of the initramfs: from a bare kernel to systemd in the read-only root (docs/contracts.md, sections 4 and 5).
//!
//! Everything that decides is a function of bytes or of a directory; what mounts is in [`mounts`] and [`switch`].

pub mod boot_record;
pub mod cmdline;
pub mod data;
pub mod disk;
pub mod ext4;
pub mod fnmatch;
pub mod gpt;
pub mod in_root;
pub mod modules;
pub mod mounts;
pub mod seeding;
pub mod switch;

use std::convert::Infallible;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::console::{Console, open_consoles};
use boot_record::BootRecord;
use cmdline::Cmdline;
use disk::Disk;

/// Where the root is built.
pub const SYSROOT: &str = "/sysroot";
/// How long a failure stays on the console before the machine tries again.
const REBOOT_AFTER: Duration = Duration::from_secs(60);

/// Entry point; returns only by rebooting.
pub fn main() -> ExitCode {
    let console = Console::new(vec![Box::new(io::stdout())], Box::new(io::sink()));
    console.set_who("init");
    let (console, error) = match mounts::kernel_filesystems() {
        Ok(()) => {
            let console = Console::new(open_consoles(Path::new("/")), Box::new(Kmsg::open()));
            console.set_who("init");
            let Err(error) = boot(&console);
            (console, error)
        }
        Err(error) => (console, error),
    };
    console.line(&format!("FAILED: {error:#}"));
    console.line(&format!("rebooting in {} s", REBOOT_AFTER.as_secs()));
    rustix::fs::sync();
    std::thread::sleep(REBOOT_AFTER);
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    // A PID 1 that ends is a kernel panic, which reboots too where `panic=` is set.
    ExitCode::FAILURE
}

fn boot(console: &Console) -> Result<Infallible> {
    let text = std::fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?;
    let cmdline = Cmdline::parse(&text)?;
    let mut modules = modules::Modules::read(Path::new("/lib/modules"))?;
    modules.load_always(console);
    let disk = disk::wait_for(&cmdline.disk, &mut modules, console)?;
    console.line(&format!("disk {} is {}, slot {}", cmdline.disk, disk.device.display(), cmdline.slot));
    let disk = grow(disk, console);
    let root = disk.partition(&format!("root-{}", cmdline.slot))?;
    let payload = disk.partition(&format!("payload-{}", cmdline.slot))?;
    mounts::read_only_root(&root, &payload)?;
    mounts::bind_kernel_filesystems()?;
    data::bring_up(&disk.partition(gpt::DATA)?, &disk.partition_guid(gpt::DATA)?, console)?;
    let record = BootRecord {
        disk: disk.device.display().to_string(),
        esp: disk.partition("ESP").ok().map(|esp| esp.display().to_string()),
        slot: cmdline.slot.clone(),
    };
    record.write(Path::new("/"))?;
    console.line("starting systemd");
    switch::switch_root()
}

/// Grows the data partition to the end of the disk. A disk that stays as small as it was still boots.
fn grow(disk: Disk, console: &Console) -> Disk {
    let again = disk.clone();
    match disk.grow_data(console) {
        Ok(disk) => disk,
        Err(error) => {
            console.line(&format!("cannot grow the data partition, going on with its old size: {error:#}"));
            again
        }
    }
}

/// The kernel's log, at a level that no console shows: the messages of the initramfs end up in the journal.
struct Kmsg(Option<std::fs::File>);

impl Kmsg {
    fn open() -> Self {
        Self(OpenOptions::new().write(true).open("/dev/kmsg").ok())
    }
}

impl Write for Kmsg {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(file) = &mut self.0 {
            let mut record = b"<7>".to_vec();
            record.extend_from_slice(bytes);
            file.write_all(&record)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
