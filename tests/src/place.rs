// SPDX-License-Identifier: MIT OR Apache-2.0

//! A folder with a cluster that is made of files, and `imgbuild` with a store there. Nothing in it can be booted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::archive::cluster_file;
pub use crate::archive::hex;
use crate::build::binary;
use crate::cli::Outcome;
use crate::random::Random;

/// See the module.
#[derive(Debug)]
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// With these inputs, each what a file is named and where it comes from. The first is the root filesystem.
    pub fn new(inputs: &[(&str, String)]) -> Self {
        Self::below(&std::env::temp_dir(), inputs)
    }

    /// The same in another folder than that for short-lived files, which may lie in memory.
    pub fn below(folder: &Path, inputs: &[(&str, String)]) -> Self {
        let place = Self { dir: tempfile::tempdir_in(folder).unwrap() };
        fs::create_dir(place.path("cluster")).unwrap();
        place.inputs(inputs);
        place
    }

    /// Has these inputs instead.
    pub fn inputs(&self, inputs: &[(&str, String)]) {
        let mut text = cluster_file(&[]);
        for (at, (name, from)) in inputs.iter().enumerate() {
            let kind = match at {
                0 => "kind = \"rootfs\"".to_owned(),
                _ => format!("kind = \"file\"\nto = \"/usr/share/{name}\""),
            };
            text += &format!("\n[[input]]\nname = \"{name}\"\n{kind}\n{from}\n");
        }
        fs::write(self.path("cluster/cluster.toml"), text).unwrap();
    }

    /// Writes `text` at the end of the cluster file.
    pub fn append(&self, text: &str) {
        let path = self.path("cluster/cluster.toml");
        let before = fs::read_to_string(&path).unwrap();
        fs::write(path, format!("{before}\n{text}")).unwrap();
    }

    /// A path in the folder: `cluster` is the cluster's, `store` the store.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Adds arguments, and those that name cluster and store, to a command that runs `imgbuild` in some way.
    pub fn with(&self, mut command: Command, arguments: &[&str]) -> Command {
        command.args(arguments).arg("--cluster").arg(self.path("cluster")).arg("--store").arg(self.path("store"));
        command.current_dir(self.dir.path()).stdin(Stdio::null()).env("no_proxy", "127.0.0.1");
        command.env_remove("SSL_CERT_FILE").env_remove("IMGBUILD_MIRROR");
        command
    }

    /// `imgbuild` with these arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.with(Command::new(binary()), arguments)
    }

    /// Runs it.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(&mut self.command(arguments))
    }

    /// The text of the lock.
    pub fn lock(&self) -> String {
        fs::read_to_string(self.path("cluster/imgbuild.lock")).unwrap()
    }
}

/// Bytes that do not repeat.
pub fn noise(random: &mut Random, len: usize) -> Vec<u8> {
    (0..len).map(|_| random.below(256) as u8).collect()
}
