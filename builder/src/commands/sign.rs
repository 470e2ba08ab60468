// SPDX-License-Identifier: MIT OR Apache-2.0

//! `--sign`: the key, its password, and whether it is the one that the cluster file names.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::cli::{Options, Output};
use crate::commands::ClusterFile;
use crate::error::Failure;
use crate::signing::Signer;

/// The password of the key, for machines without anybody at them.
const VARIABLE: &str = "IMGBUILD_SIGN_PASSWORD";
/// Longest password that is read, in bytes, as minisign has it (PASSWORDMAXBYTES).
const LONGEST: u64 = 1024;

/// Outputs that carry a signature in them, for whoever installs from them.
fn carries_signature(output: Output) -> bool {
    match output {
        Output::Iso | Output::Pxe | Output::Bundle => true,
        Output::Disk | Output::Qcow2 | Output::Seed => false,
    }
}

/// The key that signs what is built, if anything is to be signed.
///
/// # Errors
/// No key for outputs that must be signed; one that the cluster file does not name; one that cannot be opened.
pub(super) fn signer(file: &ClusterFile, options: &Options) -> Result<Option<Signer>> {
    let wanted = file.cluster.cluster.signing_key;
    let Some(path) = &options.sign else {
        let carrying = options.output.iter().any(|output| carries_signature(*output));
        return match wanted.filter(|_| carrying) {
            None => Ok(None),
            Some(key) => Err(Failure::user(format!(
                "`signing_key` of {} has installers take only what is signed with the key {}",
                file.path.display(),
                key.id()
            ))
            .hint("give the secret key: --sign minisign.key; or take `signing_key` out of the cluster file")
            .into()),
        };
    };
    let signer = Signer::open(path, || password(path))?;
    let own = signer.public_key();
    match wanted {
        Some(key) if key != own => Err(Failure::user(format!(
            "{} is the key {}, and `signing_key` of {} is {}",
            path.display(),
            own.id(),
            file.path.display(),
            key.id()
        ))
        .hint(format!("sign with that key, or write signing_key = \"{own}\""))
        .into()),
        Some(_) => Ok(Some(signer)),
        None => {
            tracing::info!(
                "signing with the key {}; no installer asks for it until [cluster] of the cluster file has \
                 signing_key = \"{own}\"",
                own.id()
            );
            Ok(Some(signer))
        }
    }
}

/// The password of the key at `path`: of the environment, or typed.
fn password(path: &Path) -> Result<String> {
    match std::env::var(VARIABLE) {
        Ok(password) => Ok(password),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(Failure::user(format!("{VARIABLE} is not UTF-8")).hint("give it as minisign was given it").into())
        }
        Err(std::env::VarError::NotPresent) => ask(path),
    }
}

/// Asks on the terminal, which shows nothing of the answer.
fn ask(path: &Path) -> Result<String> {
    let terminal = File::options().read(true).write(true).open("/dev/tty").map_err(|e| {
        Failure::user(format!("{} is sealed with a password, and there is no terminal to ask for it", path.display()))
            .hint(format!("set {VARIABLE}"))
            .caused_by(e)
    })?;
    let silent = Silent::new(&terminal)?;
    write!(&terminal, "Password of {}: ", path.display()).context("asking for the password")?;
    let mut line = String::new();
    BufReader::new((&terminal).take(LONGEST + 1)).read_line(&mut line).context("reading the password")?;
    drop(silent);
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// A terminal that does not echo, until this is dropped.
struct Silent<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Silent<'a> {
    fn new(terminal: &'a File) -> Result<Self> {
        let before = tcgetattr(terminal).context("looking at the terminal")?;
        let mut modes = before.clone();
        modes.local_modes.remove(LocalModes::ECHO);
        // The line's end is shown, so that what comes next is on a line of its own.
        modes.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(terminal, OptionalActions::Flush, &modes).context("setting up the terminal")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // A terminal that is gone has nobody before it.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}
