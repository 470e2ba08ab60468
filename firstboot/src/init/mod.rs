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
use crate::install::request::Request;
use crate::install::{self, Next};
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
    let (console, failed) = match mounts::kernel_filesystems() {
        Ok(()) => {
            let console = Console::new(open_consoles(Path::new("/")), Box::new(Kmsg::open()));
            console.set_who("init");
            let Err(failed) = boot(&console);
            (console, failed)
        }
        Err(error) => (console, Failed::Boot(error)),
    };
    match failed {
        Failed::Boot(error) => {
            console.line(&format!("FAILED: {error:#}"));
            console.line(&format!("rebooting in {} s", REBOOT_AFTER.as_secs()));
            rustix::fs::sync();
            std::thread::sleep(REBOOT_AFTER);
        }
        Failed::Install(failed) => install::pause::until_read(&format!("{:#}", failed.error), failed.wrote, &console),
    }
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
    // A PID 1 that ends is a kernel panic, which reboots too where `panic=` is set.
    ExitCode::FAILURE
}

/// What ended a boot, and with it how long that stays on the console.
enum Failed {
    /// An ordinary boot.
    Boot(anyhow::Error),
    /// The installer.
    Install(install::Failed),
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self::Boot(error)
    }
}

fn boot(console: &Console) -> Result<Infallible, Failed> {
    let text = std::fs::read_to_string("/proc/cmdline").context("reading /proc/cmdline")?;
    let mut modules = modules::Modules::read(Path::new("/lib/modules"))?;
    modules.load_always(console);
    let request = Request::parse(&text).map_err(|error| Failed::Install(error.into()))?;
    let Some(request) = request else {
        return Ok(from_disk(&Cmdline::parse(&text)?, &mut modules, console, &|_| Ok(()))?);
    };
    let next = install::run(&request, &mut modules, console).map_err(Failed::Install)?;
    console.set_who("init");
    match next {
        Next::Disk(disk) => {
            Ok(from_disk(&Cmdline { disk, slot: "a".to_owned() }, &mut modules, console, &kernel_fits)?)
        }
        Next::Memory(unit) => Ok(start(unit, console)?),
    }
}

/// Boots a disk whose root, once it is mounted, `fits`.
fn from_disk(
    cmdline: &Cmdline,
    modules: &mut modules::Modules,
    console: &Console,
    fits: &dyn Fn(&Path) -> Result<()>,
) -> Result<Infallible> {
    let disk = disk::wait_for(&cmdline.disk, modules, console)?;
    console.line(&format!("disk {} is {}, slot {}", cmdline.disk, disk.device.display(), cmdline.slot));
    let disk = grow(disk, console);
    let root = disk.partition(&format!("root-{}", cmdline.slot))?;
    let payload = disk.partition(&format!("payload-{}", cmdline.slot))?;
    mounts::read_only_root(&root, &payload)?;
    fits(Path::new(SYSROOT))?;
    mounts::bind_kernel_filesystems()?;
    data::bring_up(&disk.partition(gpt::DATA)?, &disk.partition_guid(gpt::DATA)?, console)?;
    let record = BootRecord {
        disk: disk.device.display().to_string(),
        esp: disk.partition("ESP").ok().map(|esp| esp.display().to_string()),
        slot: cmdline.slot.clone(),
    };
    record.write(Path::new("/"))?;
    start(None, console)
}

fn start(unit: Option<&str>, console: &Console) -> Result<Infallible> {
    console.line("starting systemd");
    switch::switch_root(unit)
}

/// An installation medium of a later build boots what an earlier one installed: then the root has no modules for the
/// kernel that runs. A root without any modules is one whose kernel has everything built in.
fn kernel_fits(root: &Path) -> Result<()> {
    let modules = root.join("usr/lib/modules");
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    anyhow::ensure!(
        !modules.is_dir() || modules.join(&release).is_dir(),
        "the root on the disk is not for the kernel that runs, {release}: boot from the disk, and take the \
         installation medium out of the machine"
    );
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_of_another_kernel_is_refused() {
        let root = tempfile::tempdir().unwrap();
        kernel_fits(root.path()).unwrap();
        let modules = root.path().join("usr/lib/modules");
        std::fs::create_dir_all(modules.join("1.2.3-other")).unwrap();
        assert!(kernel_fits(root.path()).unwrap_err().to_string().contains("boot from the disk"));
        std::fs::create_dir(modules.join(rustix::system::uname().release().to_str().unwrap())).unwrap();
        kernel_fits(root.path()).unwrap();
    }
}
