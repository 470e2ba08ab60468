// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild serve`: hands out a PXE folder to the machines in the room.

use anyhow::Result;

use crate::serve::folder::Firmware;
use crate::serve::{Config, Server};

pub(super) fn run(config: &Config) -> Result<()> {
    let server = Server::open(config)?;
    let port = match config.http_port {
        80 => String::new(),
        port => format!(":{port}"),
    };
    tracing::info!("serving {} at http://{}{port}/ and by TFTP", config.folder.display(), server.address());
    for (firmware, file) in server.boot_files() {
        let machines = match firmware {
            Firmware::Bios => "x86 machines with a BIOS",
            Firmware::Amd64 => "x86_64 machines with UEFI",
            Firmware::Loong64 => "loongarch64 machines",
        };
        tracing::info!("{machines} boot {file}");
    }
    if server.boot_files().is_empty() {
        tracing::warn!(
            "warning: no --boot-file is given: only machines whose firmware has iPXE in it are told what to boot"
        );
    }
    tracing::warn!(
        "warning: nodes/ holds private keys, and whoever is on {} can read them: use a network of its own, and stop \
         serving (Ctrl-C) when the machines are installed",
        config.interface
    );
    server.run()
}
