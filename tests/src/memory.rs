// SPDX-License-Identifier: MIT OR Apache-2.0

//! How much memory a program needs at its peak, and files that are large and take no room.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::cli::Outcome;
use crate::tool::python;

/// Runs a program and writes its ru_maxrss to a file, which getrusage(2) has in KiB. It is Python that does so because
/// rustix has no wait4(2). Python's own memory at that moment, some 10 MB, is the least that is measured.
const MEASURE: &str = r#"
import os, sys
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as report:
    report.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"#;

/// Unit of a tar archive in bytes.
const TAR_BLOCK: u64 = 512;

/// Runs a command, and gives what it said with the most memory that it had at a time (resident set), in bytes.
pub fn peak_of(command: &Command) -> (Outcome, u64) {
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut measuring = python(&[]);
    measuring.args(["-c", MEASURE]).arg(report.path()).arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        measuring.current_dir(folder);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => measuring.env(name, value),
            None => measuring.env_remove(name),
        };
    }
    let outcome = Outcome::of(&mut measuring);
    let text = fs::read_to_string(report.path()).unwrap();
    let kib: u64 = text.parse().unwrap_or_else(|_| panic!("nothing was measured\n{outcome}"));
    (outcome, kib * 1024)
}

/// Makes a file of `size` zeros, none of which is stored.
pub fn holes(path: &Path, size: u64) {
    File::create(path).unwrap().set_len(size).unwrap();
}

/// The SHA-256 of that, as hex.
pub fn sha256_of_zeros(size: u64) -> String {
    let zeros = vec![0_u8; 1 << 16];
    let mut hasher = Sha256::new();
    let mut left = size;
    while left > 0 {
        let n = left.min(zeros.len() as u64);
        hasher.update(&zeros[..n as usize]);
        left -= n;
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes a tar archive of small files, and at the end one of `size` zeros, none of which is stored. It is as GNU tar
/// writes it without `--sparse`.
pub fn tar_of_holes(path: &Path, small: &[(&str, &[u8])], (name, size): (&str, u64)) {
    let mut file = File::create(path).unwrap();
    let mut at = 0;
    let mut member = |name: &str, content: &[u8], size: u64| {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).unwrap();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        file.write_all(content).unwrap();
        at += TAR_BLOCK + size.next_multiple_of(TAR_BLOCK);
        // Two empty blocks are the end of an archive.
        file.set_len(at + 2 * TAR_BLOCK).unwrap();
    };
    for (name, content) in small {
        member(name, content, content.len() as u64);
    }
    member(name, &[], size);
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::cli::sha256;
    use crate::tool::run;

    #[test]
    fn what_a_program_holds_is_measured_and_its_exit_code_kept() {
        let mut small = python(&[]);
        small.args(["-c", "import sys; sys.exit(3)"]);
        let mut large = python(&[]);
        large.args(["-c", "print(len(b'x' * 150_000_000))"]);
        let ((small, least), (large, peak)) = (peak_of(&small), peak_of(&large));
        assert_eq!((small.code, large.code, large.stdout.as_str()), (Some(3), Some(0), "150000000\n"));
        assert!(least < 100_000_000, "{least}");
        assert!((150_000_000..300_000_000).contains(&peak), "{peak}");
    }

    #[test]
    fn tar_reads_what_is_made_of_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, zeros) = (dir.path().join("a.tar"), dir.path().join("zeros"));
        tar_of_holes(&archive, &[("one", b"1".as_slice()), ("two", b"22".as_slice())], ("big", 1_000_000));
        run(Command::new("tar").args(["--extract", "--file"]).arg(&archive).arg("--directory").arg(dir.path()));
        assert_eq!(fs::read(dir.path().join("two")).unwrap(), b"22");
        holes(&zeros, 1_000_000);
        assert_eq!(sha256(&dir.path().join("big")), sha256(&zeros));
        assert_eq!(sha256_of_zeros(1_000_000), sha256(&zeros));
        // More than 8 GiB is more than octal digits have room for.
        tar_of_holes(&archive, &[], ("big", 10 << 30));
        let listed = run(Command::new("tar").args(["--list", "--verbose", "--file"]).arg(&archive));
        assert!(listed.contains(" 10737418240 "), "{listed}");
        assert!(fs::metadata(&archive).unwrap().blocks() < 1000);
    }
}
