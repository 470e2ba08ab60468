// SPDX-License-Identifier: MIT OR Apache-2.0
//! A registry for one client: `ctr` on this node, which pulls the payload's images from it while they are imported.
//!
//! containerd only takes an image without copying it when it pulls it: a blob that lies in its content store already is
//! adopted, not transferred. So what this registry really answers are questions about names and digests; it could
//! hand out everything, should containerd not find what we put there. It listens on the loopback address, on a port that the
//! kernel chooses, as long as the import runs.
//!
//! Source: distribution-spec, "Pulling manifests", "Pulling blobs"; docs/hosts.md of containerd for `ns` and hosts.toml.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use super::layout::{Blob, Layout};

/// A client that says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// No request of a client of ours is near as long.
const LONGEST_REQUEST: u64 = 16 << 10;

/// Serves until it is dropped.
#[derive(Debug)]
pub(super) struct Registry {
    address: SocketAddr,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What is served.
#[derive(Debug)]
struct Served {
    /// Manifests by the full name of their image.
    names: BTreeMap<String, Blob>,
    /// All blobs by their SHA-256, and where they lie.
    blobs: BTreeMap<String, (Blob, PathBuf)>,
}

impl Registry {
    /// Serves the images of `layout`.
    pub fn start(layout: &Layout) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on the loopback address")?;
        let address = listener.local_addr().context("asking for the port")?;
        let end = Arc::new(AtomicBool::new(false));
        let served = Arc::new(Served::of(layout));
        let ending = end.clone();
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if ending.load(Ordering::Relaxed) {
                    return;
                }
                let served = served.clone();
                // A client that went away is its own affair: it asks again, or says what it missed.
                thread::spawn(move || stream.and_then(|stream| served.answer(stream)));
            }
        });
        Ok(Self { address, end, thread: Some(thread) })
    }

    /// The text of a `hosts.toml` that leads to it.
    pub fn hosts_toml(&self) -> String {
        let url = format!("http://{}", self.address);
        format!("server = \"{url}\"\n\n[host.\"{url}\"]\ncapabilities = [\"pull\", \"resolve\"]\n")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        // Wakes it up; if that is not possible, nobody else can reach it either, and it ends with the process.
        if TcpStream::connect(self.address).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

impl Served {
    fn of(layout: &Layout) -> Self {
        let names = layout.images.iter().map(|image| (image.name.clone(), image.target.clone())).collect();
        let all = layout.images.iter().flat_map(|image| image.documents.iter().chain(&image.layers));
        let blobs = all.map(|blob| (blob.sha256.clone(), (blob.clone(), layout.path(&blob.sha256)))).collect();
        Self { names, blobs }
    }

    /// Reads one request and answers it.
    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut request = BufReader::new((&stream).take(LONGEST_REQUEST));
        let mut first = String::new();
        request.read_line(&mut first)?;
        let mut header = String::new();
        while request.read_line(&mut header)? > 2 {
            header.clear();
        }
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if !["GET", "HEAD"].contains(&method) {
            return empty(&mut stream, "405 Method Not Allowed");
        }
        if target == "/v2/" {
            return empty(&mut stream, "200 OK");
        }
        let Some((blob, path)) = self.find(target) else { return empty(&mut stream, "404 Not Found") };
        let head = format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n\r\n",
            blob.media_type,
            blob.size,
            blob.digest()
        );
        stream.write_all(head.as_bytes())?;
        if method == "GET" {
            io::copy(&mut File::open(path)?.take(blob.size), &mut stream)?;
        }
        stream.flush()
    }

    /// What is at `/v2/<name>/manifests/<tag or digest>` or `/v2/<name>/blobs/<digest>`, for the registry `?ns=<host>`.
    fn find(&self, target: &str) -> Option<&(Blob, PathBuf)> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let rest = path.strip_prefix("/v2/")?;
        if let Some((_, digest)) = rest.rsplit_once("/blobs/") {
            return self.blobs.get(digest.strip_prefix("sha256:")?);
        }
        let (name, reference) = rest.rsplit_once("/manifests/")?;
        if let Some(sha256) = reference.strip_prefix("sha256:") {
            return self.blobs.get(sha256);
        }
        let host = query.split('&').find_map(|pair| pair.strip_prefix("ns="))?.replace("%3A", ":");
        let target = self.names.get(&format!("{host}/{name}:{reference}"))?;
        self.blobs.get(&target.sha256)
    }
}

fn empty(stream: &mut TcpStream, status: &str) -> io::Result<()> {
    stream.write_all(format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").as_bytes())
}
