// SPDX-License-Identifier: MIT OR Apache-2.0

//! Runs the command and judges what it says and leaves.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha256};

use crate::tool::tool;

/// Exit codes of the command; README has the same table.
pub mod code {
    /// Done.
    pub const OK: i32 = 0;
    /// The user's input: command line, cluster file, a missing node.
    pub const USER: i32 = 1;
    /// A mistake in imgbuild.
    pub const INTERNAL: i32 = 2;
    /// The world around: network, disk, permission.
    pub const ENVIRONMENT: i32 = 3;
    /// Something is not what its signature or hash says.
    pub const VERIFICATION: i32 = 4;
    /// `lock --check` found something newer.
    pub const NEWER: i32 = 5;
}

/// What a run of the command said.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Exit code; `None`: ended by a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// Runs `command` with nothing from the environment that could change what it says.
    pub fn of(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).env("NO_COLOR", "1").env("LC_ALL", "C.UTF-8");
        command.env_remove("RUST_BACKTRACE").env_remove("RUST_LOG").env("no_proxy", "127.0.0.1");
        let output = command.output().unwrap_or_else(|error| panic!("running {command:?}: {error}"));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("messages are UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Checks that the run ended with `code` and one error, which has every one of `parts` in it.
    pub fn fails(&self, code: i32, parts: &[&str]) {
        let errors = self.stderr.lines().filter(|line| line.starts_with("error:")).count();
        assert_eq!(errors, 1, "one `error:` wanted\n{self}");
        self.fails_with_several(code, parts);
    }

    /// As [`Outcome::fails`], where several errors may be reported at once.
    pub fn fails_with_several(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "exit code\n{self}");
        assert!(self.stderr.lines().any(|line| line.starts_with("error")), "an `error` wanted\n{self}");
        for part in parts {
            assert!(self.stderr.contains(part), "`{part}` wanted in the message\n{self}");
        }
        for noise in ["panicked", "backtrace", "Os {", "Error {", "unwrap()"] {
            assert!(!self.stderr.contains(noise), "`{noise}` is not for users\n{self}");
        }
    }

    /// Checks that the run went well.
    pub fn succeeds(&self) -> &Self {
        assert_eq!(self.code, Some(code::OK), "exit code\n{self}");
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "code: {:?}\nstdout:\n{}\nstderr:\n{}", self.code, self.stdout, self.stderr)
    }
}

/// All files below `folder`, sorted, relative; none when there is no such folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&next) else { continue };
        for entry in entries {
            let entry = entry.expect("reading a folder");
            if entry.file_type().expect("reading a folder").is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(folder).expect("it is below").to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The SHA-256 of a file, as hex.
pub fn sha256(path: &Path) -> String {
    let mut file = std::fs::File::open(path).unwrap_or_else(|error| panic!("opening {}: {error}", path.display()));
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut Hashing(&mut hasher)).expect("reading a file");
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a disk image holds, as hex: two images have the same if and only if their bytes are the same. Reads only where
/// there is data, which of a sparse image of 16 GiB is a few hundred MB.
pub fn contents(image: &Path) -> String {
    const BLOCK: usize = 64 * 1024;
    let read = || -> std::io::Result<String> {
        let file = std::fs::File::open(image)?;
        let size = file.metadata()?.len();
        let mut hasher = Sha256::new();
        hasher.update(size.to_le_bytes());
        let mut block = vec![0; BLOCK];
        let mut at = 0;
        while at < size {
            at = match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
                // Where a file has data is the filesystem's affair: only blocks that are not zero count, at fixed places.
                Ok(data) => data / BLOCK as u64 * BLOCK as u64,
                Err(rustix::io::Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let len = BLOCK.min(usize::try_from(size - at).unwrap_or(BLOCK));
            file.read_exact_at(&mut block[..len], at)?;
            if block[..len].iter().any(|byte| *byte != 0) {
                hasher.update(at.to_le_bytes());
                hasher.update(&block[..len]);
            }
            at += BLOCK as u64;
        }
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    };
    read().unwrap_or_else(|error| panic!("reading {}: {error}", image.display()))
}

struct Hashing<'a>(&'a mut Sha256);

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Checks what the store promises whatever happened: every object is what its name says, and no scratch is left.
pub fn check_store(store: &Path) {
    for object in files_below(&store.join("objects")) {
        let name: String = object.components().map(|part| part.as_os_str().to_str().unwrap().to_owned()).collect();
        assert_eq!(sha256(&store.join("objects").join(&object)), name, "a store object is not what its name says");
    }
    assert_eq!(files_below(&store.join("work")), [""; 0].map(PathBuf::from), "scratch left in the store");
}

/// The number of the user nobody, and of its group.
pub const NOBODY: u32 = 65534;

/// `program` as somebody without rights: root may write anywhere, so root lends the rights of nobody.
pub fn as_nobody(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = tool("setpriv");
    command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
    command.args(["--clear-groups", "--no-new-privs"]).arg(program);
    command
}

/// `program` as another user than the one who runs the tests: for root as nobody, for others as root of a namespace.
pub fn as_another(program: &Path) -> Command {
    if rustix::process::geteuid().is_root() {
        return as_nobody(program);
    }
    let mut command = tool("unshare");
    command.arg("--map-root-user").arg(program);
    command
}

/// A shell script in mount namespace of its own, so that it may mount what it likes and nobody sees it.
pub fn in_own_mounts(script: &str, arguments: &[&Path]) -> Command {
    drop(tool("mount"));
    let mut command = tool("unshare");
    command.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["sh", "-c", script, "sh"]).args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_the_same_whether_zeros_are_stored_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let (sparse, dense) = (dir.path().join("sparse"), dir.path().join("dense"));
        let mut bytes = vec![0; 5_000_001];
        bytes[3_000_000] = 1;
        std::fs::write(&dense, &bytes).unwrap();
        let file = std::fs::File::create(&sparse).unwrap();
        file.set_len(5_000_001).unwrap();
        let empty = contents(&sparse);
        file.write_all_at(&[1], 3_000_000).unwrap();
        assert_eq!(contents(&sparse), contents(&dense));
        assert_ne!(contents(&sparse), empty);
        file.set_len(5_000_000).unwrap();
        assert_ne!(contents(&sparse), contents(&dense));
        for place in [0, 2_999_999, 4_999_999] {
            let before = contents(&sparse);
            file.write_all_at(&[2], place).unwrap();
            assert_ne!(contents(&sparse), before, "{place}");
        }
    }
}
