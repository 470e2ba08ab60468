// SPDX-License-Identifier: MIT OR Apache-2.0

//! A folder with a cluster, a store, and an archive of the test's own, signed with a key of its own, on loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::archive::{Archive, Package, cluster_folder};
use crate::build::binary;
use crate::cli::{Outcome, check_store, files_below, in_own_mounts, sha256};

/// The distribution's keyring, which signs what a mirror carries.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A folder with a cluster, a store and an archive for them.
#[derive(Debug)]
pub struct Room {
    dir: tempfile::TempDir,
    /// The archive.
    pub archive: Archive,
}

impl Room {
    /// With these packages, all of which the cluster wants.
    pub fn new(packages: &[Package]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        cluster_folder(dir.path(), &names);
        Self { dir, archive: Archive::serve(packages) }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `imgbuild <verb>` on this room's cluster, with its archive and key.
    pub fn command(&self, verb: &str) -> Command {
        self.arguments(self.with_key("exec \"$@\"", &[binary()]), verb)
    }

    /// A shell script for which the archive's key is the distribution's. There is no option for that, and rightly so.
    pub fn with_key(&self, script: &str, arguments: &[&Path]) -> Command {
        let key = self.archive.keyring.display();
        in_own_mounts(&format!("mount --bind '{key}' {KEYRING} || exit 99\n{script}"), arguments)
    }

    /// Adds the verb, and what names cluster, archive and store.
    pub fn arguments(&self, mut command: Command, verb: &str) -> Command {
        command.args([verb, "--mirror", &self.archive.url, "--cluster"]).arg(self.path("cluster"));
        command.arg("--store").arg(self.path("store"));
        command.current_dir(self.dir.path());
        command
    }

    /// Runs `imgbuild <verb>`.
    pub fn run(&self, verb: &str) -> Outcome {
        Outcome::of(&mut self.command(verb))
    }

    /// Checks that there is nothing but whole objects in the store, no output, no lock that was not there.
    pub fn nothing_is_half_made(&self) {
        check_store(&self.path("store"));
        assert_eq!(files_below(&self.path("out")), [""; 0].map(PathBuf::from), "output left behind");
        let lock = self.path("cluster/imgbuild.lock");
        assert!(!lock.exists(), "a lock was left behind:\n{}", fs::read_to_string(&lock).unwrap());
    }

    /// The store's object with the content of the archive's file.
    pub fn object(&self, path: &str) -> PathBuf {
        let file = self.path("wanted");
        fs::write(&file, self.archive.file(path)).unwrap();
        let hash = sha256(&file);
        self.path("store/objects").join(&hash[..2]).join(&hash[2..])
    }
}

/// The path of a package in the archive.
pub fn deb(name: &str) -> String {
    format!("pool/main/{name}_1.0-1_amd64.deb")
}
