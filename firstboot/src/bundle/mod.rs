// SPDX-License-Identifier: MIT OR Apache-2.0
//! A node on an operating system that was installed by others: `firstboot host-install` and `host-uninstall`. What they
//! check, change and leave alone: docs/bundle.md.

mod check;
mod disk;
mod install;
mod known;
mod media;
mod old_world;
mod record;
mod uninstall;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};
use profiles::NodeProfile;
use serde::{Deserialize, Serialize};

pub use disk::Disk;
pub use install::{Install, install};
pub use uninstall::{Uninstall, uninstall};

use crate::console::Console;
use crate::failure::Failure;
use crate::host::Host;
use crate::runner::{Command, Output, Runner};
use crate::seed::Sources;
use record::{Phase, Record};

/// How the operating system of this node came to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// It is an image of ours: all of it is firstboot's.
    #[default]
    Image,
    /// It was installed by others, and a bundle was put on it: its network, its resolver, its time and its users are not ours.
    Bundle,
}

impl Origin {
    /// What the node below `root` is, by the record of an installation.
    ///
    /// # Errors
    /// An installation that is not complete, or under way to be taken back: then nothing may be converged.
    pub fn of(root: &Path) -> Result<Self> {
        let unfinished = |what: &str, fix: &str| {
            Err(Failure::preflight(format!("the {what} of this machine's bundle did not come to its end"), fix).into())
        };
        match Record::read(root)?.map(|record| record.phase) {
            None => Ok(Self::Image),
            Some(Phase::Installed) => Ok(Self::Bundle),
            Some(Phase::Installing) => unfinished("installation", "run `./install` again, or `./uninstall`"),
            Some(Phase::Uninstalling | Phase::Restored) => unfinished("removal", "run `./uninstall` again"),
        }
    }

    /// Whether a file that the profile renders is the host's own business.
    pub fn leaves(self, path: &str) -> bool {
        self == Self::Bundle && known::LEFT_TO_THE_HOST.contains(&path)
    }
}

/// The machine that is to become a node, or no longer to be one.
pub struct Machine<'a> {
    /// Its files.
    pub disk: Disk,
    /// Runs programs.
    pub runner: &'a dyn Runner,
    /// The kernel.
    pub host: &'a dyn Host,
    /// Lines for whoever typed the command.
    pub console: &'a Console,
    /// Where NoCloud seeds come from.
    pub seeds: &'a dyn Sources,
    /// Whether we may change anything.
    pub is_root: bool,
    /// As `uname -m` says it.
    pub architecture: String,
    /// As `uname -r` says it.
    pub kernel: String,
}

impl std::fmt::Debug for Machine<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl Machine<'_> {
    /// Runs a program; any exit status is fine.
    fn ask<'s>(&self, program: &str, args: impl IntoIterator<Item = &'s str>) -> Result<Output> {
        self.runner.run(&Command::new(program, args), None, &mut |_| {})
    }

    /// Runs a program that must succeed, for its stdout.
    fn run<'s>(&self, program: &str, args: impl IntoIterator<Item = &'s str>) -> Result<String> {
        let command = Command::new(program, args);
        let output = self.runner.run(&command, None, &mut |_| {})?;
        ensure!(output.success(), "`{command}` exited with {}: {}", output.status, output.stderr_tail.trim());
        Ok(output.stdout)
    }

    /// Names of the network interfaces.
    fn interfaces(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.disk.path("/sys/class/net")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Where something is mounted, in the order it was.
    fn mounts(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.disk.path("/proc/self/mounts")).unwrap_or_default();
        text.lines().filter_map(|line| Some(unescape(line.split(' ').nth(1)?))).collect()
    }

    /// Whether systemd runs `unit` now.
    fn runs(&self, unit: &str) -> Result<bool> {
        Ok(self.ask("systemctl", ["is-active", "--quiet", unit])?.success())
    }
}

/// As fstab(5) writes blanks in paths: `\040`.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        match octal.and_then(|octal| u8::from_str_radix(std::str::from_utf8(octal).ok()?, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// It gets a block of ours.
const HOSTS: &str = "/etc/hosts";
/// Where the block of ours begins and ends in a host's `/etc/hosts`.
const BEGIN: &str = "# imgbuild: nodes of the cluster";
const END: &str = "# imgbuild: end";

/// A host's `/etc/hosts` with the nodes of the cluster in it.
fn hosts(before: &str, profile: &NodeProfile) -> String {
    let mut text = before.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text += &format!("{BEGIN}\n");
    for peer in &profile.peers {
        for address in peer.addresses() {
            text += &format!("{address} {}\n", peer.name);
        }
    }
    text + END + "\n"
}

/// `/etc/hosts` without the block of ours; `None` if it has none.
fn without_block(text: &str) -> Option<String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let begin = lines.iter().position(|line| line.trim_end() == BEGIN)?;
    let end = begin + lines[begin..].iter().position(|line| line.trim_end() == END)?;
    Some([&lines[..begin], &lines[end + 1..]].concat().concat())
}

/// For tests/fuzz.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &[u8]) {
    media::fuzz(text);
}
