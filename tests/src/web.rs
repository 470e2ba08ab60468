// SPDX-License-Identifier: MIT OR Apache-2.0

//! A web server for files that can keep in step with its client: less than a block is ever on its way, so that what is
//! served twice is what the client had lost, and not what had waited for it in the kernel's buffers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

/// What `imgbuild fetch` promises to download less than again after each interruption, of each file: docs/contracts.md,
/// section 8.
pub const BLOCK: u64 = 128 << 10;
/// How much is sent at a time.
const PIECE: usize = 40_000;
/// A client that takes nothing for so long does not write what it has.
const STUCK: Duration = Duration::from_secs(60);

/// A running server; it ends with the process.
#[derive(Debug, Clone)]
pub struct Web {
    /// Its address, without a slash at the end.
    pub url: String,
    files: Arc<Mutex<BTreeMap<String, Served>>>,
}

/// A file, and what became of it.
#[derive(Debug, Clone, Default)]
struct Served {
    bytes: Arc<Vec<u8>>,
    /// Where it really is, if not here.
    location: Option<String>,
    /// Where the client keeps what it has of it.
    partial: Option<PathBuf>,
    sent: u64,
    stuck: bool,
}

impl Web {
    /// Serves nothing yet.
    pub fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let web = Self { url: format!("http://{}", listener.local_addr().unwrap()), files: Arc::default() };
        let own = web.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let web = own.clone();
                // A client that hangs up is no matter for the test.
                std::thread::spawn(move || web.answer(stream).ok());
            }
        });
        web
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Has this file at this path from now on.
    pub fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.files.lock().unwrap().entry(path.to_owned()).or_default().bytes = Arc::new(bytes.into());
    }

    /// Sends whoever asks for this path on to `location`, which is a URL, or begins with a slash, from now on.
    pub fn redirect(&self, path: &str, location: &str) {
        self.files.lock().unwrap().entry(path.to_owned()).or_default().location = Some(location.to_owned());
    }

    /// Sends no more of a file from now on than the client, which has it in the file `partial`, can have written, but
    /// for less than a block; and forgets what was sent before.
    pub fn in_step(&self, path: &str, partial: PathBuf) {
        let mut files = self.files.lock().unwrap();
        let file = files.get_mut(path).expect("a file that is there");
        (file.partial, file.sent) = (Some(partial), 0);
    }

    /// How many bytes of a file were sent.
    ///
    /// # Panics
    /// If a client did not write what it was sent.
    pub fn sent(&self, path: &str) -> u64 {
        let files = self.files.lock().unwrap();
        assert!(!files[path].stuck, "{path}: the client did not write what it was sent");
        files[path].sent
    }

    /// The same of all files.
    pub fn sent_in_all(&self) -> u64 {
        self.files.lock().unwrap().values().map(|file| file.sent).sum()
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let path = line.split(' ').nth(1).unwrap_or("").trim_start_matches('/').to_owned();
        let (mut start, mut version) = (0, None);
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
                break;
            }
            match header.trim().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                    start =
                        value.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("a range to the end");
                }
                Some((name, value)) if name.eq_ignore_ascii_case("if-range") => version = Some(value.to_owned()),
                _ => {}
            }
        }
        let Some(file) = self.files.lock().unwrap().get(&path).cloned() else {
            return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        };
        if let Some(location) = &file.location {
            let head = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n");
            return stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes());
        }
        let (bytes, whole) = (&file.bytes, file.bytes.len());
        let tag: String = Sha256::digest(bytes.as_slice()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let tag = format!("\"{tag}\"");
        if version.is_some_and(|version| version != tag) {
            start = 0;
        }
        let status = match start {
            0 => "200 OK".to_owned(),
            _ if start >= whole => format!("416 Range Not Satisfiable\r\nContent-Range: bytes */{whole}"),
            _ => format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{whole}", whole - 1),
        };
        let length = whole.saturating_sub(start);
        let head = format!("HTTP/1.1 {status}\r\nETag: {tag}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.set_read_timeout(Some(Duration::from_millis(1)))?;
        let mut at = start;
        while at < whole {
            let end = whole.min(at + PIECE);
            self.wait(&path, &file, &stream, end as u64)?;
            // Before it is sent, as nobody knows how much of it arrives.
            self.files.lock().unwrap().get_mut(&path).expect("it was there").sent += (end - at) as u64;
            stream.write_all(&bytes[at..end])?;
            at = end;
        }
        Ok(())
    }

    /// Waits until the client has all but less than a block of the first `end` bytes.
    fn wait(&self, path: &str, file: &Served, stream: &TcpStream, end: u64) -> io::Result<()> {
        let Some(partial) = &file.partial else { return Ok(()) };
        let begun = Instant::now();
        while end.saturating_sub(fs::metadata(partial).map_or(0, |meta| meta.len())) >= BLOCK {
            match stream.peek(&mut [0]) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                // It is gone; it has nothing more to say in any other case.
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            }
            if begun.elapsed() > STUCK {
                self.files.lock().unwrap().get_mut(path).expect("it was there").stuck = true;
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(())
    }
}
