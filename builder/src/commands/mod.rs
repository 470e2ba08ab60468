//! One file per command; each turns options into calls of the library and says what came of it.

mod build;
mod fetch;
mod inspect;
mod lock;
mod render;
mod validate;

use std::process::ExitCode;

use crate::cli::{Cli, Command, LogFormat, Options};
use crate::error;

/// Runs one command and gives the process's exit code (see docs/exit-codes in README).
pub fn run(cli: &Cli) -> ExitCode {
    log_to_stderr(&cli.options);
    let result = match cli.command.clone().unwrap_or(Command::Build) {
        Command::Build => build::run(&cli.options),
        Command::Validate => validate::run(&cli.options),
        Command::Lock { update } => lock::run(&cli.options, update),
        Command::Fetch => fetch::run(&cli.options),
        Command::Render => render::run(&cli.options),
        Command::Inspect { image, json } => inspect::run(&image, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::report(&error, cli.options.log_format),
    }
}

/// Messages go to stderr, data to stdout.
fn log_to_stderr(options: &Options) {
    let level = if options.quiet { tracing::Level::ERROR } else { tracing::Level::INFO };
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level);
    match options.log_format {
        LogFormat::Text => builder.without_time().with_level(false).with_target(false).with_ansi(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}
