// SPDX-License-Identifier: MIT OR Apache-2.0

//! Brings files into the store: in parallel, continued where they broke off, tried again when the network fails. Those
//! of which sha256 and size are known are verified before anyone can see them; others ([`Downloader::fetch_new`]) are
//! continued only where the server says that they are still the same. Knows nothing of what the files are.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::http::{Client, GetError, Response};
use super::mirror::Proxies;
use super::registry::Registries;
use crate::error::{ErrorKind, Failure};
use crate::store::{Digest, Partial, Store};

/// How much is read from a connection before it is written, in bytes: what comes again after an interruption is less,
/// apart from what the kernel had received for a process that was killed.
const BLOCK: usize = 128 << 10;

/// One file to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What it is, for messages: `bash 5.2.15-2+b2 (amd64)`.
    pub name: String,
    /// Where it may be had, in order of preference.
    pub urls: Vec<String>,
    /// What it must be.
    pub sha256: Digest,
    /// Its size.
    pub size: u64,
    /// What to do if no mirror has it.
    pub missing_hint: String,
}

/// How to download.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many downloads run at a time.
    pub jobs: usize,
    /// Open no connection at all.
    pub offline: bool,
    /// How often a download that makes no progress is tried.
    pub attempts: u32,
    /// How long to wait before the second try; doubled for each further one.
    pub backoff: Duration,
    /// When a silent connection counts as dead.
    pub stall: Duration,
    /// Whether to check the content of everything that is there already, which takes a second for each gigabyte, and
    /// fetch again what is corrupt. Without, only sizes are: content is checked when an object is opened.
    pub recheck: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            jobs: 4,
            offline: false,
            attempts: 4,
            backoff: Duration::from_millis(500),
            stall: Duration::from_secs(30),
            recheck: false,
        }
    }
}

/// Shows how far the downloads are. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Shows nothing: for `--quiet` and `--log-format json`.
    pub fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Shows a bar on standard error, if that is a terminal.
    pub fn bar() -> Self {
        let bar = ProgressBar::new(0);
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn start(&self, count: usize, bytes: u64) {
        self.0.reset();
        self.0.set_length(bytes);
        self.0.set_message(format!("Fetching {count} files"));
    }
}

/// What is known of a file that is to come.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// What it must be.
    Locked { sha256: Digest, size: u64 },
    /// What somebody says that it is. It is taken as it comes.
    Claimed(Digest),
    /// Nothing. It is taken as it comes.
    Nothing,
}

impl Known {
    fn sha256(self) -> Option<Digest> {
        match self {
            Self::Locked { sha256, .. } | Self::Claimed(sha256) => Some(sha256),
            Self::Nothing => None,
        }
    }
}

/// Which version of a file is under way. Where a sha256 is known, that tells at the end whether what came at several
/// times fits together; where none is, this must.
#[derive(Debug, Serialize, Deserialize)]
struct Version {
    /// The boot of this machine in which it was begun: after a crash nobody knows which bytes reached the disk.
    boot: String,
    /// As the server names the version: [`Response::version`].
    name: String,
    /// Bytes of the whole file, if the server said so.
    size: Option<u64>,
}

/// A file under way.
struct Download {
    known: Known,
    partial: Partial,
    /// Bytes of the whole file, once they are known.
    size: Option<u64>,
    /// If the server names versions. Of a locked file it does not matter.
    version: Option<Version>,
}

impl Download {
    /// Begins, or goes on with what another process has left.
    fn open(store: &Store, known: Known, url: &str) -> Result<Self> {
        let (partial, size) = match known {
            Known::Locked { sha256, size } => (store.partial(&sha256)?, Some(size)),
            Known::Claimed(sha256) => (store.unknown_partial(&sha256)?, None),
            Known::Nothing => (store.unknown_partial(&Digest::of(url.as_bytes()))?, None),
        };
        let mut download = Self { known, partial, size, version: None };
        if !matches!(known, Known::Locked { .. }) {
            let version = download.partial.note().and_then(|note| serde_json::from_slice::<Version>(&note).ok());
            download.version = version.filter(|version| Some(&version.boot) == boot().as_ref());
            download.size = download.version.as_ref().and_then(|version| version.size);
        }
        if download.is_adrift() || download.size.is_some_and(|size| download.partial.len() > size) {
            download.restart()?;
        }
        Ok(download)
    }

    fn restart(&mut self) -> Result<()> {
        self.version = None;
        if !matches!(self.known, Known::Locked { .. }) {
            self.size = None;
        }
        self.partial.restart()
    }

    fn is_whole(&self) -> bool {
        self.size.is_some_and(|size| self.partial.len() >= size)
    }

    /// Whether there is a beginning, and nothing to tell by whether what comes is the rest of it.
    fn is_adrift(&self) -> bool {
        matches!(self.known, Known::Nothing) && self.version.is_none() && !self.partial.is_empty()
    }

    /// Whether an answer with a part of the file (HTTP 206) is the rest of what is there.
    fn is_rest(&self, response: &Response) -> bool {
        let offset = self.partial.len();
        match &self.version {
            // Not every server that knows ranges knows `If-Range`.
            Some(version) => {
                response.start == Some(offset)
                    && response.version.as_ref() == Some(&version.name)
                    && (version.size.is_none() || response.total == version.size)
            }
            None => !matches!(self.known, Known::Nothing) && response.start.is_none_or(|start| start == offset),
        }
    }

    /// Learns from an answer that has the rest of the file how long it is, and where it begins, which version it is.
    fn learn(&mut self, response: &Response) -> Result<()> {
        if matches!(self.known, Known::Locked { .. }) {
            return Ok(());
        }
        let length = response.length.map(|length| self.partial.len() + length);
        let begins = self.partial.is_empty();
        if begins || self.size.is_none() {
            self.size = response.total.or(length);
        }
        if begins {
            let version = boot().zip(response.version.clone());
            self.version = version.map(|(boot, name)| Version { boot, name, size: self.size });
            if let Some(version) = &self.version {
                // Before any of the content.
                self.partial.set_note(&serde_json::to_vec(version).context("noting the version of a download")?)?;
            }
        }
        Ok(())
    }
}

/// What names the time since this machine was started; none on a system that does not say.
fn boot() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// Why a download ended.
enum End {
    /// The network's fault: worth another try.
    Transient(String),
    /// This address cannot have it.
    NotFound(u16),
    /// What came is not what was promised.
    Wrong(String),
    /// Nothing to be done here: our own disk, an impossible address, or another download has failed.
    Fatal(anyhow::Error),
}

/// Downloads files into a store.
#[derive(Debug)]
pub struct Downloader {
    store: Store,
    client: Client,
    registries: Registries,
    options: Options,
    progress: Progress,
    stop: AtomicBool,
}

impl Downloader {
    /// A downloader into `store`.
    pub fn new(store: &Store, proxies: &Proxies, options: Options, progress: Progress) -> Result<Self> {
        let client = Client::new(proxies, options.stall)
            .map_err(|e| Failure::user("setting up downloads").hint("correct the proxy settings").caused_by(e))?;
        let registries = Registries::new(proxies, options.stall);
        Ok(Self { store: store.clone(), client, registries, options, progress, stop: AtomicBool::new(false) })
    }

    /// The same, with other registries of images than those of whom nothing is known.
    #[must_use]
    pub fn with_registries(mut self, registries: Registries) -> Self {
        self.registries = registries;
        self
    }

    /// The registries of images.
    pub(crate) fn registries(&self) -> &Registries {
        &self.registries
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether no connection may be opened.
    pub fn is_offline(&self) -> bool {
        self.options.offline
    }

    /// Brings all items into the store; see [`Options::recheck`] for those that are there.
    ///
    /// # Errors
    /// The first that leaves no hope, or all files that no mirror has. What came so far is kept.
    pub fn fetch(&self, items: &[Item]) -> Result<()> {
        let mut missing = Vec::new();
        for item in items {
            if !self.is_there(item)? {
                missing.push(item);
            }
        }
        missing.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.sha256.cmp(&b.sha256)));
        missing.dedup_by_key(|item| item.sha256);
        if missing.is_empty() {
            return Ok(());
        }
        if self.options.offline {
            return Err(offline(&mut missing).into());
        }
        self.progress.start(missing.len(), missing.iter().map(|item| item.size).sum());
        self.stop.store(false, Ordering::Relaxed);
        let workers = self.options.jobs.clamp(1, missing.len());
        let queue = Mutex::new(VecDeque::from(missing));
        let errors = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| self.work(&queue, &errors));
            }
        });
        self.progress.0.finish_and_clear();
        combine(errors.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the item is in the store. A corrupt one is as good as none, where it can be fetched again.
    fn is_there(&self, item: &Item) -> Result<bool> {
        let Some(size) = self.store.size(&item.sha256) else { return Ok(false) };
        if size == item.size && !self.options.recheck {
            return Ok(true);
        }
        // Removes what is corrupt.
        match self.store.verify(&item.sha256) {
            Ok(()) => Ok(true),
            Err(e) if self.options.offline => Err(e.context(format!("checking {}", item.name))),
            Err(e) => {
                tracing::warn!("{}: {e}; fetching it again.", item.name);
                Ok(false)
            }
        }
    }

    fn work(&self, queue: &Mutex<VecDeque<&Item>>, errors: &Mutex<Vec<anyhow::Error>>) {
        while !self.stop.load(Ordering::Relaxed) {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(item) = next else { return };
            match self.fetch_item(item) {
                Ok(()) => tracing::debug!("Fetched {}.", item.name),
                Err(e) => {
                    // Files that are gone are worth knowing all at once.
                    let fatal = !e.is::<Gone>();
                    // Noted before the others are stopped, so that theirs is not taken for the cause.
                    errors.lock().unwrap_or_else(PoisonError::into_inner).push(e);
                    if fatal {
                        self.stop.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    fn fetch_item(&self, item: &Item) -> Result<()> {
        let known = Known::Locked { sha256: item.sha256, size: item.size };
        self.fetch_known(known, &item.name, &item.urls, &item.missing_hint).map(drop)
    }

    /// Brings a file into the store that nobody has locked yet, and gives its sha256 and size. It is taken as it comes:
    /// the caller has to compare it with what is said of it. What is `claimed` to be its sha256 saves the download
    /// where the store has that.
    ///
    /// # Errors
    /// If it cannot be had. What came so far is kept.
    pub(crate) fn fetch_new(
        &self,
        name: &str,
        urls: &[String],
        claimed: Option<Digest>,
        missing_hint: &str,
    ) -> Result<(Digest, u64)> {
        if let Some(sha256) = claimed
            && let Some(size) = self.store.size(&sha256)
            && self.store.verify(&sha256).is_ok()
        {
            return Ok((sha256, size));
        }
        if self.options.offline {
            return Err(offline_without_lock(name).into());
        }
        self.progress.start(1, 0);
        self.stop.store(false, Ordering::Relaxed);
        let found = self.fetch_known(claimed.map_or(Known::Nothing, Known::Claimed), name, urls, missing_hint);
        self.progress.0.finish_and_clear();
        found
    }

    /// From the first of the addresses that has it.
    fn fetch_known(&self, known: Known, name: &str, urls: &[String], missing_hint: &str) -> Result<(Digest, u64)> {
        // A file may be called by its address.
        let message = |url: &str| {
            if name.ends_with(url) { format!("downloading {name}") } else { format!("downloading {name} from {url}") }
        };
        let mut last = None;
        for url in urls {
            match self.fetch_from(known, url) {
                Ok(found) => return Ok(found),
                Err(End::Fatal(e)) => return Err(e.context(message(url))),
                Err(end) => {
                    tracing::debug!("{name} is not to be had from {url}.");
                    // What a mirror had and was wrong says more than that another has nothing.
                    if !matches!((&last, &end), (Some((_, End::Wrong(_))), End::NotFound(_))) {
                        last = Some((url, end));
                    }
                }
            }
        }
        let Some((url, end)) = last else {
            return Err(Failure::new(ErrorKind::Internal, format!("{name} has no address")).into());
        };
        let message = message(url);
        Err(match end {
            End::NotFound(status) => {
                let gone = Gone { message: format!("{message}: the mirror does not have it (HTTP {status})") };
                let failure = Failure::environment(gone.message.clone()).hint(missing_hint);
                anyhow::Error::new(failure).context(gone)
            }
            End::Wrong(what) => Failure::verification(format!("{message}: {what}"))
                .hint("the mirror or a proxy before it is broken or out of step: try later, or another with --mirror URL")
                .into(),
            End::Transient(why) => Failure::environment(format!("{message}: {why}"))
                .hint("check the network and the mirror's address, or name another with --mirror URL; what has come is kept, the next run continues it")
                .into(),
            End::Fatal(e) => e,
        })
    }

    fn fetch_from(&self, known: Known, url: &str) -> Result<(Digest, u64), End> {
        let mut fresh = false;
        loop {
            let mut download = Download::open(&self.store, known, url).map_err(End::Fatal)?;
            if let Some(sha256) = known.sha256()
                && let Some(size) = self.store.size(&sha256)
            {
                // Another process was at it, and has it.
                download.partial.discard();
                return Ok((sha256, size));
            }
            if fresh {
                download.restart().map_err(End::Fatal)?;
            }
            let continued = !download.partial.is_empty();
            self.progress.0.inc(download.partial.len());
            if let Err(end) = self.fill(&mut download, url) {
                let partial = download.partial;
                self.progress.0.dec(partial.len());
                if partial.is_empty() || matches!(end, End::Wrong(_)) {
                    partial.discard();
                }
                return Err(end);
            }
            let partial = download.partial;
            let (found, size) = (partial.digest(), partial.len());
            let is_right = known.sha256().is_none_or(|sha256| sha256 == found);
            if !is_right && continued && !fresh {
                // What was there before may have been of another file: once more, from the start.
                self.progress.0.dec(size);
                fresh = true;
                continue;
            }
            if let (Known::Locked { sha256, .. }, false) = (known, is_right) {
                partial.discard();
                return Err(End::Wrong(format!("sha256 is {found}, expected {sha256}")));
            }
            partial.commit().map_err(End::Fatal)?;
            return Ok((found, size));
        }
    }

    /// Downloads until the file is whole.
    fn fill(&self, download: &mut Download, url: &str) -> Result<(), End> {
        let (mut tries, mut furthest) = (0, download.partial.len());
        while !download.is_whole() || download.size == Some(0) {
            match self.attempt(download, url) {
                Ok(()) => return Ok(()),
                Err(End::Transient(why)) => {
                    // One that starts over again and again makes no progress.
                    tries = if download.partial.len() > furthest { 1 } else { tries + 1 };
                    furthest = furthest.max(download.partial.len());
                    if tries >= self.options.attempts {
                        return Err(End::Transient(why));
                    }
                    tracing::debug!("{url}: {why}; trying again.");
                    std::thread::sleep(self.options.backoff * 2_u32.saturating_pow(tries - 1));
                }
                Err(end) => return Err(end),
            }
        }
        Ok(())
    }

    fn restart(&self, download: &mut Download) -> Result<(), End> {
        self.progress.0.dec(download.partial.len());
        download.restart().map_err(End::Fatal)
    }

    /// One request.
    fn attempt(&self, download: &mut Download, url: &str) -> Result<(), End> {
        if download.is_adrift() {
            self.restart(download)?;
        }
        let offset = download.partial.len();
        let version = download.version.as_ref().map(|version| version.name.as_str());
        let mut response = self.open(url, offset, version).map_err(|e| match e {
            GetError::Transient(why) => End::Transient(why),
            GetError::Failed(failure) => End::Fatal(failure.into()),
            GetError::Permanent(why) => End::Fatal(
                Failure::environment(why).hint("check the mirror's address, or name another with --mirror URL").into(),
            ),
        })?;
        match response.status {
            206 if download.is_rest(&response) => {}
            200 if offset == 0 => {}
            // A server that knows no ranges begins at the beginning, and so does one that has another version now.
            200 => self.restart(download)?,
            // Whether it is what was wanted, its sha256 will tell.
            416 if response.total == Some(offset) && matches!(download.known, Known::Claimed(_)) => return Ok(()),
            206 | 416 => {
                self.restart(download)?;
                return Err(End::Transient(format!("HTTP {}: the download cannot be continued", response.status)));
            }
            status @ (401 | 403 | 404 | 410) => return Err(End::NotFound(status)),
            status @ (408 | 425 | 429 | 500..) => return Err(End::Transient(format!("HTTP {status}"))),
            status => return Err(End::Wrong(format!("the mirror answers HTTP {status}"))),
        }
        download.learn(&response).map_err(End::Fatal)?;
        if let Known::Locked { size, .. } = download.known {
            if let Some(length) = response.length
                && download.partial.len() + length != size
            {
                return Err(wrong_size(download.partial.len() + length, size));
            }
        } else {
            self.progress.0.set_length(download.size.unwrap_or(0));
        }
        let mut buf = vec![0; BLOCK];
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(End::Fatal(Failure::environment("another download failed").into()));
            }
            let n = response.body.read(&mut buf).map_err(|e| End::Transient(e.to_string()))?;
            if n == 0 {
                break;
            }
            if let Some(size) = download.size
                && download.partial.len() + n as u64 > size
            {
                return Err(End::Wrong(format!("it is bigger than the {size} bytes that it should have")));
            }
            download.partial.write_all(&buf[..n]).map_err(|e| {
                End::Fatal(Failure::io(format!("writing to the store {}", self.store.root().display()), e).into())
            })?;
            self.progress.0.inc(n as u64);
        }
        let len = download.partial.len();
        match download.size {
            Some(size) if len < size => {
                Err(End::Transient(format!("the connection ended after {len} of {size} bytes")))
            }
            None if !response.framed && download.known.sha256() != Some(download.partial.digest()) => {
                let what = "the server does not say how long it is, so nobody can tell whether all of it came";
                Err(End::Wrong(what.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Asks whoever serves `url`: a registry has rules of its own.
    fn open(&self, url: &str, offset: u64, version: Option<&str>) -> Result<Response, GetError> {
        self.registries.get(url, offset).unwrap_or_else(|| self.client.get_version(url, offset, version))
    }

    /// Asks until there is an answer, or no hope for one.
    pub(crate) fn patiently<T>(&self, ask: impl Fn() -> Result<T, GetError>) -> Result<T, GetError> {
        let mut tries = 0;
        loop {
            match ask() {
                Err(GetError::Transient(why)) if tries + 1 < self.options.attempts => {
                    tracing::debug!("{why}; trying again.");
                    std::thread::sleep(self.options.backoff * 2_u32.saturating_pow(tries));
                    tries += 1;
                }
                other => return other,
            }
        }
    }

    /// Downloads a small file whose sha256 is not known; the caller has to verify it.
    pub(crate) fn fetch_unverified(&self, name: &str, urls: &[String], limit: u64) -> Result<Vec<u8>> {
        if self.options.offline {
            return Err(offline_without_lock(name).into());
        }
        let mut last = None;
        for url in urls {
            match self.patiently(|| self.get_small(url, limit)) {
                Ok(bytes) => return Ok(bytes),
                Err(e) => last = Some((url, e)),
            }
        }
        let (url, e) = last.with_context(|| format!("{name} has no address"))?;
        Err(Failure::environment(format!("downloading {name} from {url}: {e}"))
            .hint("check the network and the mirror's address, or name another with --mirror URL")
            .into())
    }

    fn get_small(&self, url: &str, limit: u64) -> Result<Vec<u8>, GetError> {
        let response = self.client.get(url, 0)?;
        match response.status {
            200 => {}
            status @ (408 | 425 | 429 | 500..) => return Err(GetError::Transient(format!("HTTP {status}"))),
            status => return Err(GetError::Permanent(format!("HTTP {status}"))),
        }
        small(response, limit)
    }
}

/// A body of at most `limit` bytes.
pub(super) fn small(response: Response, limit: u64) -> Result<Vec<u8>, GetError> {
    let mut bytes = Vec::new();
    let read = response.body.take(limit + 1).read_to_end(&mut bytes);
    read.map_err(|e| GetError::Transient(e.to_string()))?;
    if response.length.is_some_and(|length| (bytes.len() as u64) < length.min(limit)) {
        return Err(GetError::Transient("the connection ended early".to_owned()));
    }
    if bytes.len() as u64 > limit {
        return Err(GetError::Permanent(format!("it is bigger than {limit} bytes")));
    }
    Ok(bytes)
}

/// No mirror has a file: other files are still fetched.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Gone {
    message: String,
}

fn offline_without_lock(name: &str) -> Failure {
    Failure::user(format!("{name} is needed, and --offline forbids to fetch it"))
        .hint("without a lock there is nothing to build from: run `imgbuild lock` with a network first")
}

fn wrong_size(found: u64, wanted: u64) -> End {
    End::Wrong(format!("the mirror's file has {found} bytes, expected {wanted}"))
}

fn offline(missing: &mut [&Item]) -> Failure {
    missing.sort_by(|a, b| a.name.cmp(&b.name));
    let list: Vec<String> =
        missing.iter().map(|item| format!("\n  {} ({} bytes, sha256 {})", item.name, item.size, item.sha256)).collect();
    Failure::user(format!("--offline: {} not in the store:{}", count(missing.len()), list.concat()))
        .hint("run `imgbuild fetch` with a network, or bring a filled store here and name it with --store")
}

fn count(n: usize) -> String {
    if n == 1 { "1 file is".to_owned() } else { format!("{n} files are") }
}

/// One error of many: the first that is about more than a file that is gone, or all files that are.
fn combine(mut errors: Vec<anyhow::Error>) -> Result<()> {
    if let Some(at) = errors.iter().position(|e| !e.is::<Gone>()) {
        return Err(errors.swap_remove(at));
    }
    if errors.len() <= 1 {
        return errors.pop().map_or(Ok(()), |e| Err(e.downcast::<Failure>().map_or_else(|e| e, Into::into)));
    }
    let hint = crate::error::hint(&errors[0]).unwrap_or_default();
    let mut list: Vec<String> = errors.iter().map(|e| format!("\n  {e}")).collect();
    list.sort();
    Err(Failure::environment(format!("{} not on the mirror:{}", count(errors.len()), list.concat())).hint(hint).into())
}

#[cfg(test)]
#[path = "download_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "download_faults_tests.rs"]
mod faults_tests;
