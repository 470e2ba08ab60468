// SPDX-License-Identifier: MIT OR Apache-2.0

//! One file per command; each turns options into calls of the library and says what came of it.

mod build;
mod fetch;
mod hybrid;
mod images;
mod inputs;
mod inspect;
mod lock;
mod outputs;
mod render;
mod serve;
mod sign;
mod store;
mod validate;
mod verify;
mod write;

use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use profiles::Cluster;

use crate::assemble::calico::Manifests;
use crate::cli::{Cli, Command, LogFormat, Options};
use crate::error::{self, Failure};
use crate::pki::{self, Pki};
use crate::serve::Config;
use crate::store::Store;

/// Runs one command and gives the exit code of the process: 0, or the code of the kind of error (`imgbuild --help`).
pub fn run(cli: &Cli) -> ExitCode {
    log_to_stderr(&cli.options);
    let result = match cli.command.clone().unwrap_or(Command::Build) {
        Command::Build => build::run(&cli.options),
        Command::Validate => validate::run(&cli.options),
        Command::Lock(what) => lock::run(&cli.options, what),
        Command::Fetch => fetch::run(&cli.options),
        Command::Images { json } => images::run(&cli.options, json),
        Command::Render => render::run(&cli.options),
        Command::Inspect { image, json } => inspect::run(&image, json),
        Command::Hybrid { bundle, other } => hybrid::run(&cli.options, [&bundle, &other]),
        Command::Serve { folder, interface, http_port, boot_files } => {
            serve::run(&Config { folder, boot_files, interface, http_port })
        }
        Command::Store(what) => store::run(&cli.options, &what),
        Command::Verify { file, key, key_file } => verify::run(&file, key, key_file.as_deref()),
        Command::Write { image, device, yes } => write::run(&cli.options, &image, &device, yes),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, cli.options.log_format);
            ExitCode::from(error::kind(&error).exit_code())
        }
    }
}

/// Says what the user should know of manifests.
fn say(manifests: &Manifests) {
    warn(manifests.values().flat_map(|one| &one.warnings));
}

fn warn<'a>(warnings: impl IntoIterator<Item = &'a String>) {
    for warning in warnings {
        tracing::warn!("warning: {warning}");
    }
}

/// Says what failed, why, and what to do about it.
fn report(error: &anyhow::Error, format: LogFormat) {
    let hint = error::hint(error);
    match format {
        LogFormat::Text => {
            eprintln!("error: {error:#}");
            if let Some(hint) = hint {
                eprintln!("hint: {hint}");
            }
        }
        LogFormat::Json => tracing::error!(kind = ?error::kind(error), hint, "{error:#}"),
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

/// A cluster file that was read and found valid.
struct ClusterFile {
    path: PathBuf,
    cluster: Cluster,
}

impl ClusterFile {
    /// Reads `path`, or `path`/cluster.toml.
    fn load(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join("cluster.toml") } else { path.to_owned() };
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Failure::user(format!("reading the cluster file {shown}"))
                .hint("--cluster names a cluster file, or the folder that holds cluster.toml; profiles/lab is one")
                .caused_by(error)
        })?;
        let cluster = Cluster::parse(&shown, &text).map_err(|report| Failure::user(report.to_string()))?;
        Ok(Self { path, cluster })
    }

    /// The folder that holds the cluster file, its lock and its secrets.
    fn dir(&self) -> &Path {
        match self.path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        }
    }

    /// The names that --profile gives, checked, or all for --all.
    fn nodes(&self, options: &Options) -> Result<Vec<String>> {
        if options.all {
            return Ok(self.cluster.node.iter().map(|node| node.name.clone()).collect());
        }
        for name in &options.profile {
            self.cluster.node(name).map_err(|unknown| Failure::user(unknown.to_string()))?;
        }
        Ok(options.profile.clone())
    }

    /// As [`Self::nodes`], but one of the options must be given.
    fn some_nodes(&self, options: &Options) -> Result<Vec<String>> {
        let nodes = self.nodes(options)?;
        if nodes.is_empty() {
            let names: Vec<&str> = self.cluster.node.iter().map(|node| node.name.as_str()).collect();
            return Err(Failure::user("which node? give --profile NODE, or --all")
                .hint(format!("{} has: {}", self.path.display(), names.join(", ")))
                .into());
        }
        Ok(nodes)
    }

    fn secrets(&self) -> PathBuf {
        self.dir().join("secrets")
    }

    /// The cluster's PKI, made if there is none.
    fn pki(&self) -> Result<Pki> {
        Pki::open(&self.secrets(), now())
    }

    /// The cluster's id, if it has a PKI. Makes none.
    fn known_cluster_id(&self) -> Result<Option<String>> {
        pki::known_cluster_id(&self.secrets())
    }
}

/// The store that --store names, or the user's.
fn open_store(options: &Options) -> Result<Store> {
    let root = match &options.store {
        Some(root) => root.clone(),
        None => default_store().ok_or_else(|| {
            Failure::user("there is no place for the store: neither XDG_CACHE_HOME nor HOME is set")
                .hint("give --store DIR")
        })?,
    };
    Store::open(&root)
}

/// `$XDG_CACHE_HOME/imgbuild`, by the XDG base directory specification `$HOME/.cache/imgbuild` where that is not set.
fn default_store() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("imgbuild"))
}

/// The only place that reads the clock for what is built. It decides how long new certificates are valid, and whether a
/// suite still is, and nothing else.
fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// More threads than this bring nothing: the disk is the limit then.
const MOST_JOBS: usize = 8;

fn jobs(options: &Options) -> NonZeroUsize {
    let cpus = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST_JOBS);
    NonZeroUsize::new(options.jobs.map_or_else(cpus, usize::from)).unwrap_or(NonZeroUsize::MIN)
}

/// A bar of bytes on standard error, if that is a terminal and bars are wanted.
fn bar(options: &Options) -> ProgressBar {
    if options.quiet || options.log_format == LogFormat::Json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    match ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Data goes to stdout; a reader that has gone away is no error.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}
