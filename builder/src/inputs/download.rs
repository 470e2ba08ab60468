// SPDX-License-Identifier: MIT OR Apache-2.0

//! Brings files whose sha256 and size are known into the store: in parallel, continued where they broke off, tried
//! again when the network fails, verified before anyone can see them. Knows nothing of what the files are.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use super::http::{Client, GetError};
use super::mirror::Proxies;
use crate::error::{ErrorKind, Failure};
use crate::store::{Digest, Partial, Store};

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
    options: Options,
    progress: Progress,
    stop: AtomicBool,
}

impl Downloader {
    /// A downloader into `store`.
    pub fn new(store: &Store, proxies: &Proxies, options: Options, progress: Progress) -> Result<Self> {
        let client = Client::new(proxies, options.stall)
            .map_err(|e| Failure::user("setting up downloads").hint("correct the proxy settings").caused_by(e))?;
        Ok(Self { store: store.clone(), client, options, progress, stop: AtomicBool::new(false) })
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
        let mut last = None;
        for url in &item.urls {
            match self.fetch_from(item, url) {
                Ok(()) => return Ok(()),
                Err(End::Fatal(e)) => return Err(e.context(format!("downloading {} from {url}", item.name))),
                Err(end) => {
                    tracing::debug!("{} is not to be had from {url}.", item.name);
                    // What a mirror had and was wrong says more than that another has nothing.
                    if !matches!((&last, &end), (Some((_, End::Wrong(_))), End::NotFound(_))) {
                        last = Some((url, end));
                    }
                }
            }
        }
        let Some((url, end)) = last else {
            return Err(Failure::new(ErrorKind::Internal, format!("{} has no address", item.name)).into());
        };
        let message = format!("downloading {} from {url}", item.name);
        Err(match end {
            End::NotFound(status) => {
                let gone = Gone { message: format!("{message}: the mirror does not have it (HTTP {status})") };
                let failure = Failure::environment(gone.message.clone()).hint(item.missing_hint.clone());
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

    fn fetch_from(&self, item: &Item, url: &str) -> Result<(), End> {
        let mut fresh = false;
        loop {
            let mut partial = self.store.partial(&item.sha256).map_err(End::Fatal)?;
            if self.store.has(&item.sha256) {
                // Another process was at it, and has it.
                partial.discard();
                return Ok(());
            }
            if fresh || partial.len() > item.size {
                partial.restart().map_err(End::Fatal)?;
            }
            let continued = !partial.is_empty();
            self.progress.0.inc(partial.len());
            if let Err(end) = self.fill(&mut partial, item, url) {
                self.progress.0.dec(partial.len());
                if partial.is_empty() || matches!(end, End::Wrong(_)) {
                    partial.discard();
                }
                return Err(end);
            }
            match partial.commit() {
                Ok(()) => return Ok(()),
                // What was there before may have been of another file: once more, from the start.
                Err(_) if continued && !fresh => fresh = true,
                Err(e) if e.downcast_ref::<Failure>().is_some_and(|f| f.kind == ErrorKind::Verification) => {
                    return Err(End::Wrong(e.to_string()));
                }
                Err(e) => return Err(End::Fatal(e)),
            }
            self.progress.0.dec(item.size);
        }
    }

    /// Downloads until the file has its size.
    fn fill(&self, partial: &mut Partial, item: &Item, url: &str) -> Result<(), End> {
        let mut tries = 0;
        while partial.len() < item.size || item.size == 0 {
            let before = partial.len();
            match self.attempt(partial, item, url) {
                Ok(()) => return Ok(()),
                Err(End::Transient(why)) => {
                    tries = if partial.len() > before { 1 } else { tries + 1 };
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

    /// One request.
    fn attempt(&self, partial: &mut Partial, item: &Item, url: &str) -> Result<(), End> {
        let offset = partial.len();
        let mut response = self.client.get(url, offset).map_err(|e| match e {
            GetError::Transient(why) => End::Transient(why),
            GetError::Permanent(why) => End::Fatal(
                Failure::environment(why).hint("check the mirror's address, or name another with --mirror URL").into(),
            ),
        })?;
        let restart = |partial: &mut Partial| {
            self.progress.0.dec(partial.len());
            partial.restart().map_err(End::Fatal)
        };
        match response.status {
            206 if response.start.is_none_or(|start| start == offset) => {}
            200 if offset == 0 => {}
            // A server that knows no ranges begins at the beginning.
            200 => restart(partial)?,
            206 | 416 => {
                restart(partial)?;
                return Err(End::Transient(format!("HTTP {}: the download cannot be continued", response.status)));
            }
            status @ (401 | 403 | 404 | 410) => return Err(End::NotFound(status)),
            status @ (408 | 425 | 429 | 500..) => return Err(End::Transient(format!("HTTP {status}"))),
            status => return Err(End::Wrong(format!("the mirror answers HTTP {status}"))),
        }
        if let Some(length) = response.length
            && partial.len() + length != item.size
        {
            return Err(wrong_size(partial.len() + length, item.size));
        }
        let mut buf = vec![0; 128 << 10];
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(End::Fatal(Failure::environment("another download failed").into()));
            }
            let n = response.body.read(&mut buf).map_err(|e| End::Transient(e.to_string()))?;
            if n == 0 {
                break;
            }
            if partial.len() + n as u64 > item.size {
                return Err(End::Wrong(format!("it is bigger than {} bytes, its size by the index", item.size)));
            }
            partial.write_all(&buf[..n]).map_err(|e| {
                End::Fatal(Failure::io(format!("writing to the store {}", self.store.root().display()), e).into())
            })?;
            self.progress.0.inc(n as u64);
        }
        if partial.len() < item.size {
            let why = format!("the connection ended after {} of {} bytes", partial.len(), item.size);
            return Err(End::Transient(why));
        }
        Ok(())
    }

    /// Downloads a small file whose sha256 is not known; the caller has to verify it.
    pub(crate) fn fetch_unverified(&self, name: &str, urls: &[String], limit: u64) -> Result<Vec<u8>> {
        if self.options.offline {
            return Err(Failure::user(format!("{name} is needed, and --offline forbids to fetch it"))
                .hint("without a lock there is nothing to build from: run `imgbuild lock` with a network first")
                .into());
        }
        let mut last = None;
        for url in urls {
            for tries in 0..self.options.attempts {
                match self.get_small(url, limit) {
                    Ok(bytes) => return Ok(bytes),
                    Err(e @ GetError::Permanent(_)) => {
                        last = Some((url, e));
                        break;
                    }
                    Err(e) => last = Some((url, e)),
                }
                if tries + 1 < self.options.attempts {
                    std::thread::sleep(self.options.backoff * 2_u32.saturating_pow(tries));
                }
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
}

/// No mirror has a file: other files are still fetched.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Gone {
    message: String,
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
