// SPDX-License-Identifier: MIT OR Apache-2.0

//! The inputs of a cluster file: locked, and in the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use profiles::reference::Reference;

use crate::assemble::{Sources, sources};
use crate::cli::{LogFormat, Options};
use crate::commands::{ClusterFile, jobs, now};
use crate::error::Failure;
use crate::inputs::download::{self, Downloader, Progress};
use crate::inputs::mirror::Mirrors;
use crate::inputs::registry::Registries;
use crate::inputs::request::{Request, Session, Update, digests};
use crate::lock::{self, Lock};
use crate::store::Store;

/// Locks what is not locked yet, fetches what is not in the store, and gives the result with the lock.
pub(super) fn ready(file: &ClusterFile, options: &Options, store: &Store) -> Result<(Sources, Lock)> {
    let room = Room::open(file, options, store, false)?;
    let lock = room.fetch_locked(file)?;
    Ok((sources::from_lock(&file.cluster, &lock)?, lock))
}

/// The inputs of a part of a cluster file, in the store. What its lock has is as locked, the rest is locked for this once; the
/// lock is not written.
pub(super) fn ready_part(file: &ClusterFile, options: &Options, store: &Store) -> Result<Sources> {
    let room = Room::open(file, options, store, false)?;
    let lock = room.resolve(file, Lock::read(&path(file))?.as_ref(), &Update::Stale)?;
    room.session(file)?.fetch(&lock)?;
    sources::from_lock(&file.cluster, &lock)
}

/// The lock at `path`, which is a lock file or a folder that holds one, and must be there.
pub(super) fn lock_at(path: &Path) -> Result<Lock> {
    let path = if path.is_dir() { &path.join(lock::FILE_NAME) } else { path };
    let lock = Lock::read(path)?;
    Ok(lock.ok_or_else(|| {
        Failure::user(format!("there is no {}", path.display())).hint("`imgbuild lock` makes one for a cluster file")
    })?)
}

/// The lock of a cluster file, which must be there and fit it.
pub(super) fn locked(file: &ClusterFile) -> Result<Lock> {
    let lock = lock_at(&path(file))?;
    lock.check(&digests(&sources::requests(&file.cluster)?)?)?;
    Ok(lock)
}

/// What locking and fetching need.
pub(super) struct Room {
    downloader: Downloader,
    mirrors: Mirrors,
    requests: BTreeMap<String, Request>,
}

impl Room {
    /// With `recheck`, what is in the store already is read and checked too.
    pub(super) fn open(file: &ClusterFile, options: &Options, store: &Store, recheck: bool) -> Result<Self> {
        let mut mirrors = Mirrors::discover(&options.mirror, Path::new("/"), |name| std::env::var(name).ok())?;
        for repository in file.cluster.rpm_repositories() {
            mirrors.add_repository(&repository.name, &repository.url);
        }
        let jobs = jobs(options).get();
        let settings = download::Options { jobs, offline: options.offline, recheck, ..download::Options::default() };
        let silent = options.quiet || options.log_format == LogFormat::Json;
        let progress = if silent { Progress::hidden() } else { Progress::bar() };
        let mut registries =
            Registries::new(mirrors.proxies(), settings.stall).discover(&mirrors, |name| std::env::var(name).ok());
        for input in file.cluster.ocis() {
            let hosts = input.images.iter().filter_map(|image| Some(Reference::parse(image).ok()?.registry));
            let authority = input.ca.as_ref().map(|path| file.dir().join(path));
            hosts.for_each(|host| authority.iter().for_each(|file| registries.trust(host, file)));
        }
        let downloader = Downloader::new(store, mirrors.proxies(), settings, progress)?.with_registries(registries);
        Ok(Self { downloader, mirrors, requests: sources::requests(&file.cluster)? })
    }

    fn session<'a>(&'a self, file: &'a ClusterFile) -> Result<Session<'a>> {
        // Only to see whether a suite is still valid: no result depends on it.
        let now = u32::try_from(now().as_second()).context("reading the clock: it is before 1970")?;
        Ok(Session { downloader: &self.downloader, mirrors: &self.mirrors, base: file.dir(), now })
    }

    /// The lock, made if there is none yet. One that does not fit the cluster file is an error, as it says what was tested.
    fn lock_once(&self, file: &ClusterFile) -> Result<Lock> {
        match Lock::read(&path(file))? {
            Some(lock) => {
                lock.check(&digests(&self.requests)?)?;
                Ok(lock)
            }
            None if self.downloader.is_offline() => {
                let message =
                    format!("{} is not there, and without a network nothing can be resolved", path(file).display());
                Err(Failure::user(message)
                    .hint("run `imgbuild lock` on a machine with a network, or leave out --offline")
                    .into())
            }
            None => self.relock(file, None, &Update::Stale),
        }
    }

    /// Resolves what `update` says and takes the rest from `previous`.
    pub(super) fn resolve(&self, file: &ClusterFile, previous: Option<&Lock>, update: &Update) -> Result<Lock> {
        tracing::info!("resolving the inputs of {}", file.path.display());
        self.session(file)?.lock(&self.requests, previous, update)
    }

    /// As [`Self::resolve`], and writes the lock.
    pub(super) fn relock(&self, file: &ClusterFile, previous: Option<&Lock>, update: &Update) -> Result<Lock> {
        let lock = self.resolve(file, previous, update)?;
        lock.write(&path(file))?;
        tracing::info!("{}: {} files of {} inputs", path(file).display(), lock.items().count(), lock.inputs.len());
        Ok(lock)
    }

    /// Fetches everything the lock names, and gives the lock.
    pub(super) fn fetch_locked(&self, file: &ClusterFile) -> Result<Lock> {
        let lock = self.lock_once(file)?;
        self.session(file)?.fetch(&lock)?;
        Ok(lock)
    }
}

/// Where the lock of a cluster file lies.
pub(super) fn path(file: &ClusterFile) -> PathBuf {
    file.dir().join(lock::FILE_NAME)
}
