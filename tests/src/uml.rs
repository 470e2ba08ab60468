// SPDX-License-Identifier: MIT OR Apache-2.0

//! Machines of User-Mode Linux: a kernel that is a program of this computer, with memory, disks, a network and serial lines of its
//! own. What runs on it is executed by this computer's processor, and only what it asks of its kernel goes a longer way. Where KVM
//! is not to be had, QEMU could not translate fast enough for many machines that share a computer.
//!
//! **What is the same as in QEMU:** the image, with its initramfs, partitions, root, payload and seed, all that firstboot, systemd
//! and Kubernetes do, the switch, the power cut.
//!
//! **What is not:** there is no firmware and no boot loader. [`Boot::of`] reads the boot entry on the image's EFI system
//! partition as a boot loader would. And the kernel is not the image's: `tests/uml/build` makes it, and [`cluster_file`] puts its
//! modules into the image, beside those of the image's own.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::build::repository;
use crate::cluster::replace_once;
use crate::disk::{DEBUG_SHELL, boot_entries, entry_value, read_fat};
use crate::tool::{command, run, run_bytes, tool};

/// The archive with the kernel's modules, in a cluster folder.
const OVERLAY: &str = "user-mode-linux.tar";
/// Where inputs begin in a cluster file.
const FIRST_INPUT: &str = "# Where everything comes from.\n";
/// What the initramfs knows of modules. Empty: the kernel has in it what a root needs.
const MODULES: &str = "lib/modules/modules.list";

/// A cluster file whose images have modules for User-Mode Linux, too, from an archive that is put beside it, in `cluster`.
pub fn cluster_file(text: &str, cluster: &Path) -> String {
    let (from, to) = (made().join("overlay.tar"), cluster.join(OVERLAY));
    fs::copy(&from, to).unwrap_or_else(|error| panic!("copying {}: {error}", from.display()));
    let input =
        format!("[[input]]\nkind = \"tar\"\nname = \"user-mode-linux\"\npath = \"{OVERLAY}\"\nto = \"/usr/lib\"\n");
    replace_once(text, FIRST_INPUT, &format!("{FIRST_INPUT}{input}\n"))
}

/// The folder of what `tests/uml/build` makes, which may take minutes; asked once per process.
fn made() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = run(command(repository().join("tests/uml/build")).stderr(Stdio::inherit()));
        PathBuf::from(folder.trim_end())
    })
}

/// What a boot loader finds in an image.
#[derive(Debug, Clone)]
pub struct Boot {
    kernel: PathBuf,
    initramfs: PathBuf,
    /// The kernel's arguments, with the one for the tests' shell.
    arguments: Vec<String>,
}

impl Boot {
    /// Takes the initramfs out of an image, to `folder`.
    ///
    /// # Panics
    /// Unless the image has one boot entry, and in it one initramfs and arguments.
    pub fn of(image: &Path, folder: &Path) -> Self {
        let entries = boot_entries(image);
        let [entry] = &entries[..] else { panic!("one boot entry wanted in {}: {entries:?}", image.display()) };
        let entry = String::from_utf8(read_fat(image, "ESP", entry)).expect("boot entries are text");
        let mut initramfs = read_fat(image, "ESP", entry_value(&entry, "initrd"));
        // Of two archives in one initramfs the later one's files count.
        initramfs.resize(initramfs.len().next_multiple_of(4), 0);
        initramfs.extend(without_modules());
        let path = folder.join("initramfs");
        fs::write(&path, initramfs).expect("writing the initramfs");
        let arguments =
            entry_value(&entry, "options").split_whitespace().chain([DEBUG_SHELL]).map(str::to_owned).collect();
        Self { kernel: made().join("linux"), initramfs: path, arguments }
    }

    /// The program that is a machine, its console and its second serial line.
    ///
    /// `disk` is a copy of the image, for what differs from an image cannot be kept in a file of its own: in Linux 7.2, large
    /// reads find the image's blocks in the place of written ones. `port` is a socket of [`crate::switch::packets`].
    pub(crate) fn machine(
        &self,
        folder: &Path,
        size: (u32, u32),
        disk: &Path,
        network: (&Path, &str),
    ) -> (Command, [UnixStream; 2]) {
        let (cpus, memory_mib) = size;
        let (port, mac) = network;
        let [console, shell] = [(); 2].map(|()| UnixStream::pair().expect("a pair of sockets"));
        let mut linux = command(&self.kernel);
        linux
            .args([format!("mem={memory_mib}M"), format!("ncpus={cpus}")])
            // Of both ways to run programs the fast one; without it there is one processor, whatever `ncpus` says.
            .arg("seccomp=on")
            // What this computer keeps of the machine while it runs: below its temporary folder.
            .args([format!("uml_dir={}/", folder.display()), "umid=machine".to_owned()])
            .arg(format!("ubd0={}", disk.display()))
            .arg(format!("initrd={}", self.initramfs.display()))
            .arg(format!("vec0:transport=bess,dst={},mac={mac}", port.display()))
            .args(["con=null", "con0=null", "ssl=null", "ssl0=fd:0", "ssl1=fd:1"])
            .args(&self.arguments)
            .env("TMPDIR", memory_folder(folder, u64::from(memory_mib) << 20))
            .stdin(Stdio::from(OwnedFd::from(console.1)))
            .stdout(Stdio::from(OwnedFd::from(shell.1)));
        (linux, [console.0, shell.0])
    }
}

/// Where the file is that is a machine's memory: in this computer's memory, or in `folder` where there is no room for it, as in
/// containers, which often have 64 MB.
fn memory_folder(folder: &Path, wanted: u64) -> &Path {
    const SHARED: &str = "/dev/shm";
    let fits = rustix::fs::statvfs(SHARED).is_ok_and(|stat| stat.f_bavail * stat.f_frsize >= wanted);
    if fits { Path::new(SHARED) } else { folder }
}

/// An archive for an initramfs whose modules are for another kernel.
fn without_modules() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("making a temporary folder");
    let list = folder.path().join(MODULES);
    fs::create_dir_all(list.parent().expect("a folder")).expect("making a folder");
    fs::write(&list, "").expect("writing a file");
    let names = folder.path().join("names");
    fs::write(&names, MODULES).expect("writing a file");
    let names = fs::File::open(names).expect("opening a file");
    run_bytes(tool("cpio").args(["--quiet", "-o", "-H", "newc"]).current_dir(folder.path()).stdin(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_modules_is_emptied() {
        let archive = without_modules();
        // The kernel reads on behind what is before it in blocks of four bytes.
        assert_eq!((archive.len() % 4, &archive[..6]), (0, &b"070701"[..]));
        assert!(archive.windows(MODULES.len()).any(|bytes| bytes == MODULES.as_bytes()));
    }
}
