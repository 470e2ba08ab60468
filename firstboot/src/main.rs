// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `firstboot` command, and `/init` of the initramfs.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return firstboot::init::main();
    }
    firstboot::cli::main()
}
