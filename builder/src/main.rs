// SPDX-License-Identifier: MIT OR Apache-2.0

//! The `imgbuild` command.

use std::process::ExitCode;

use clap::Parser;
use imgbuild::cli::Cli;

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => imgbuild::commands::run(&cli),
        // clap would exit with 2, which is for our own mistakes. What goes to stdout (help, version) was asked for.
        Err(usage) => {
            // There is nobody to tell when the terminal is gone.
            _ = usage.print();
            if usage.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
    }
}
