//! The `imgbuild` command.

use std::process::ExitCode;

use clap::Parser;
use imgbuild::cli::Cli;

fn main() -> ExitCode {
    imgbuild::commands::run(&Cli::parse())
}
