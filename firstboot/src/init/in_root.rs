// SPDX-License-Identifier: MIT OR Apache-2.0
//! Programs of the root, run from the initramfs: we start ourselves again, and that process changes its root and becomes
//! the program. (A change of root between fork and exec would need unsafe code.)

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::SYSROOT;
use crate::console::Console;
use crate::runner::PATH;

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status, -1 after a signal.
    pub status: i32,
    /// Everything it wrote, in one line.
    pub said: String,
}

/// Becomes `argv` with `dir` as its root. Returns only if that fails.
pub fn exec(dir: &Path, argv: &[OsString]) -> Result<()> {
    let (program, args) = argv.split_first().context("a program to run is missing")?;
    rustix::process::chroot(dir).with_context(|| format!("changing the root to {}", dir.display()))?;
    rustix::process::chdir("/").context("changing to the new root")?;
    let error = Command::new(program).args(args).exec();
    Err(error).with_context(|| format!("starting {}", program.display()))
}

/// Runs a program of the root and waits for its end.
pub(super) fn run(argv: &[&str], console: &Console) -> Result<Ended> {
    let output = Command::new("/proc/self/exe")
        .arg0("firstboot")
        .args(["in-root", SYSROOT])
        .args(argv)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", argv[0]))?;
    let bytes = [output.stdout, output.stderr].concat();
    let said = crate::failure::one_line(&String::from_utf8_lossy(&bytes));
    let status = output.status.code().unwrap_or(-1);
    console.log(argv[0], &format!("`{}` exited with {status}: {said}", argv.join(" ")));
    Ok(Ended { status, said })
}

/// Runs a program of the root that must succeed.
pub(super) fn must(argv: &[&str], console: &Console) -> Result<()> {
    let ended = run(argv, console)?;
    anyhow::ensure!(ended.status == 0, "`{}` exited with {}: {}", argv.join(" "), ended.status, ended.said);
    Ok(())
}
