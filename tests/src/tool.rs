// SPDX-License-Identifier: MIT OR Apache-2.0

//! Other people's programs, and the package each comes in.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Debian package of every program the tests run. `tests/install-tools` installs these; a test compares the two.
pub const PACKAGES: &[(&str, &str)] = &[
    ("blkid", "util-linux"),
    ("blockdev", "util-linux"),
    ("cmp", "diffutils"),
    ("cpio", "cpio"),
    ("createrepo_c", "createrepo-c"),
    ("curl", "curl"),
    ("depmod", "kmod"),
    ("diff", "diffutils"),
    ("dnsmasq", "dnsmasq-base"),
    ("dpkg-deb", "dpkg"),
    ("fsck.vfat", "dosfstools"),
    ("gpg", "gnupg"),
    ("ip", "iproute2"),
    ("isoinfo", "genisoimage"),
    ("losetup", "mount"),
    ("mcopy", "mtools"),
    ("mdir", "mtools"),
    ("mformat", "mtools"),
    ("minisign", "minisign"),
    ("mke2fs", "e2fsprogs"),
    ("mlabel", "mtools"),
    ("modprobe", "kmod"),
    ("mount", "mount"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("rpmbuild", "rpm"),
    ("rpmsign", "rpm"),
    ("script", "bsdutils"),
    ("setpriv", "util-linux"),
    ("sgdisk", "gdisk"),
    ("skopeo", "skopeo"),
    ("strace", "strace"),
    ("tftp", "tftp-hpa"),
    ("unshare", "util-linux"),
    ("unsquashfs", "squashfs-tools"),
    ("xorriso", "xorriso"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// The distribution's Python, which has the distribution's modules; another one may come first in `PATH`.
const PYTHON: &str = "/usr/bin/python3";

/// A command for `program`, with no standard input and messages in English.
///
/// # Panics
/// If the program is not installed; the message names its package.
pub fn tool(program: &str) -> Command {
    let (_, package) = PACKAGES.iter().find(|(name, _)| *name == program).expect("a program listed in PACKAGES");
    let path = find(program).unwrap_or_else(|| missing(program, package));
    command(path)
}

/// A Python command that has `modules`, each given as `module=package`.
///
/// # Panics
/// If Python or one of the modules is not installed; the message names the package.
pub fn python(modules: &[&str]) -> Command {
    if !Path::new(PYTHON).exists() {
        missing(PYTHON, "python3");
    }
    for module in modules {
        let (module, package) = module.split_once('=').expect("module=package");
        if !command(PYTHON).args(["-c", &format!("import {module}")]).output().unwrap().status.success() {
            missing(&format!("Python's module {module}"), package);
        }
    }
    command(PYTHON)
}

/// Something of a package that `tests/install-tools` unpacks, because installing it would change this machine.
///
/// # Panics
/// If it is not there; the message names the package.
pub fn unpacked(path: &str, package: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .expect("HOME is set");
    let found = cache.join("imgbuild-tests").join(path);
    if !found.exists() {
        panic!("{} is missing; run tests/install-tools, which unpacks the Debian package {package}", found.display());
    }
    found
}

/// cloud-init, whose package would change how this machine boots.
pub fn cloud_init() -> Command {
    let root = unpacked("cloud-init/usr/lib/python3/dist-packages", "cloud-init");
    let mut python = python(&["yaml=python3-yaml", "jsonschema=python3-jsonschema"]);
    python.env("PYTHONPATH", root);
    python
}

/// Python with CycloneDX' own library, in an environment of its own.
pub fn cyclonedx() -> Command {
    command(unpacked("cyclonedx/bin/python", "python3-venv, and of the Python package index cyclonedx-python-lib"))
}

/// Runs a command and gives its standard output.
///
/// # Panics
/// If it fails; the message has everything it printed.
pub fn run(command: &mut Command) -> String {
    String::from_utf8(run_bytes(command)).expect("UTF-8 output")
}

/// As [`run`], for output that is not text.
pub fn run_bytes(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("running {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// A command with no standard input and messages in English.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
    command
}

/// Administrators' programs are not in everybody's `PATH`.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn missing(what: &str, package: &str) -> ! {
    panic!("{what} is missing; install the Debian package {package}, or run tests/install-tools for all of them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_install_script_has_every_package() {
        let script = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/install-tools")).unwrap();
        let words: Vec<&str> = script.split_whitespace().collect();
        for (program, package) in PACKAGES {
            assert!(words.contains(package), "tests/install-tools does not install {package} for {program}");
        }
    }

    #[test]
    #[should_panic(expected = "install the Debian package imaginary")]
    fn a_missing_tool_fails_and_names_its_package() {
        missing("no-such-tool", "imaginary");
    }

    #[test]
    #[should_panic(expected = "unpacks the Debian package imaginary")]
    fn something_that_was_not_unpacked_fails_and_names_its_package() {
        unpacked("no-such/file", "imaginary");
    }
}
