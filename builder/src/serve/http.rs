// SPDX-License-Identifier: MIT OR Apache-2.0

//! An HTTP/1.1 server for files (RFC 9110, RFC 9112): GET and HEAD, ranges, connections that stay open. Requests are
//! parsed by httparse; a response is a head and a file that the kernel copies (`sendfile`).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use percent_encoding::percent_decode_str;

use super::Size;
use super::folder::{Folder, Found};

/// Largest head of a request, and most header lines. iPXE sends some 300 bytes.
const HEAD_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// What is read of a client that was refused, in bytes.
const UNREAD_MAX: u64 = 1 << 20;
/// How long a client may be silent, or take nothing.
const SILENCE: Duration = Duration::from_secs(60);
/// Connections at a time.
const CONNECTIONS_MAX: usize = 256;

/// Answers connections that come to `listener`, for ever.
///
/// # Errors
/// If the listener fails for good.
pub fn serve(listener: &TcpListener, folder: &Arc<Folder>) -> Result<()> {
    let connections = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            // Of one connection, not of the listener (accept(2)); out of descriptors: later.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(error).context("accepting connections");
            }
            Err(_) => {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if connections.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            continue;
        }
        connections.fetch_add(1, Ordering::Relaxed);
        let (count, folder) = (connections.clone(), folder.clone());
        let spawned = std::thread::Builder::new().name("http connection".into()).spawn(move || {
            // A client that goes away in the middle is no event.
            _ = connection(stream, &folder);
            count.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn connection(mut stream: TcpStream, folder: &Folder) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    let client = stream.peer_addr()?;
    let mut buffer = Vec::new();
    loop {
        let request = match read_request(&mut stream, &mut buffer)? {
            Read1::Request(request) => request,
            Read1::End => return Ok(()),
            Read1::Bad(status) => {
                refuse(&mut stream, status, false)?;
                return let_go(&mut stream);
            }
        };
        let keep = request.keep;
        respond(&mut stream, client, &request, folder)?;
        if !keep {
            return Ok(());
        }
    }
}

/// Closes a connection on which more may be coming: closed at once, the client would get a reset and not the answer.
fn let_go(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut rest = stream.take(UNREAD_MAX);
    io::copy(&mut rest, &mut io::sink()).map(|_| ())
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    method: String,
    /// Decoded, without query.
    path: String,
    range: Option<String>,
    /// Whether the connection stays open.
    keep: bool,
}

/// What came over a connection.
enum Read1 {
    Request(Request),
    End,
    /// Status and reason.
    Bad(&'static str),
}

const BAD_REQUEST: &str = "400 Bad Request";

/// Reads one request; what comes after it stays in `buffer`.
fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Read1> {
    let mut chunk = [0; 4096];
    loop {
        match parse(buffer) {
            Ok(Some((request, used))) => {
                buffer.drain(..used);
                return Ok(Read1::Request(request));
            }
            Ok(None) if buffer.len() >= HEAD_MAX => return Ok(Read1::Bad("431 Request Header Fields Too Large")),
            Ok(None) => {}
            Err(status) => return Ok(Read1::Bad(status)),
        }
        match stream.read(&mut chunk)? {
            0 => return Ok(Read1::End),
            len => buffer.extend_from_slice(&chunk[..len]),
        }
    }
}

/// A request and its length, if it is whole.
///
/// # Errors
/// The status to answer with.
fn parse(bytes: &[u8]) -> std::result::Result<Option<(Request, usize)>, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let used = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err("431 Request Header Fields Too Large"),
        Err(_) => return Err(BAD_REQUEST),
    };
    let (Some(method), Some(target), Some(version)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(BAD_REQUEST);
    };
    let header = |name: &str| {
        let found = parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        found.and_then(|header| std::str::from_utf8(header.value).ok()).map(str::trim)
    };
    // Nothing that is asked for has a body: what follows one would be taken for a request.
    if header("transfer-encoding").is_some() || header("content-length").is_some_and(|len| len != "0") {
        return Err("413 Content Too Large");
    }
    let connection = header("connection").unwrap_or_default();
    let keep = match version {
        1 => !connection.eq_ignore_ascii_case("close"),
        _ => connection.eq_ignore_ascii_case("keep-alive"),
    };
    // Absolute form (RFC 9112, 3.2.2): a server must take it.
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let path = percent_decode_str(path).decode_utf8().map_err(|_| BAD_REQUEST)?.into_owned();
    if !path.starts_with('/') {
        return Err(BAD_REQUEST);
    }
    let range = header("range").map(str::to_owned);
    Ok(Some((Request { method: method.to_owned(), path, range, keep }, used)))
}

fn respond(stream: &mut TcpStream, client: SocketAddr, request: &Request, folder: &Folder) -> io::Result<()> {
    let begun = Instant::now();
    let Request { method, path, range, keep } = request;
    if !["GET", "HEAD"].contains(&method.as_str()) {
        return refuse(stream, "405 Method Not Allowed\r\nAllow: GET, HEAD", *keep);
    }
    let found = match folder.get(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::info!("http: {client} asked for {path:?}, which is not there");
            return refuse(stream, "404 Not Found", *keep);
        }
        Err(error) => {
            tracing::warn!("http: {client}: opening {path:?}: {error}");
            return refuse(stream, "500 Internal Server Error", *keep);
        }
    };
    let Found { file, len } = found;
    // A range goes with GET alone (RFC 9110, 14.2).
    let (status, from, to) =
        match range.as_deref().filter(|_| method == "GET").map_or(Asked::Whole, |range| asked(range, len)) {
            Asked::Whole => ("200 OK".to_owned(), 0, len),
            Asked::Part(from, to) => {
                (format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{len}", to - 1), from, to)
            }
            Asked::Beyond => {
                return refuse(stream, &format!("416 Range Not Satisfiable\r\nContent-Range: bytes */{len}"), *keep);
            }
        };
    let kind = content_type(path);
    let connection = if *keep { "keep-alive" } else { "close" };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nAccept-Ranges: bytes\r\nConnection: {connection}\r\n\r\n",
        to - from
    );
    stream.write_all(head.as_bytes())?;
    if method == "HEAD" {
        return Ok(());
    }
    let mut part = io::BufReader::new(Part { file: &file, at: from, end: to });
    let sent = io::copy(&mut part, stream)?;
    if sent < to - from {
        // The file got shorter: only the end of the connection says so.
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    tracing::info!("http: {client} has {path}, {} ({:.1}s)", Size(sent), begun.elapsed().as_secs_f32());
    Ok(())
}

/// A part of a file, read without its position: the file may be read by others at a time.
struct Part<'a> {
    file: &'a std::fs::File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let got = self.file.read_at(&mut buffer[..want], self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

/// What of a file is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    Whole,
    /// From the first byte to the one after the last.
    Part(u64, u64),
    /// Nothing that is there.
    Beyond,
}

/// A range (RFC 9110, 14.1.2 and 14.2). Several ranges and what is malformed are ignored, as a server may.
fn asked(header: &str, len: u64) -> Asked {
    let Some((first, last)) = header.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Asked::Whole;
    };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match (first.trim().is_empty(), number(first), last.trim().is_empty(), number(last)) {
        // The last bytes.
        (true, _, _, Some(count)) if count > 0 && len > 0 => Asked::Part(len.saturating_sub(count), len),
        (true, _, _, Some(_)) => Asked::Beyond,
        (_, Some(from), true, _) if from < len => Asked::Part(from, len),
        (_, Some(from), _, Some(to)) if from < len && from <= to => Asked::Part(from, to.saturating_add(1).min(len)),
        (_, Some(from), _, Some(to)) if from > to => Asked::Whole,
        (_, Some(_), true, _) | (_, Some(_), _, Some(_)) => Asked::Beyond,
        _ => Asked::Whole,
    }
}

/// A type that a browser shows what it can of, and downloads the rest. Boot programs do not look at it.
fn content_type(path: &str) -> &'static str {
    let text = [".ipxe", ".cfg", ".txt", ".json", "SHA256SUMS"].iter().any(|end| path.ends_with(end));
    if text { "text/plain; charset=utf-8" } else { "application/octet-stream" }
}

/// Answers with a status, which may have header lines after it.
fn refuse(stream: &mut TcpStream, status: &str, keep: bool) -> io::Result<()> {
    let connection = if keep { "keep-alive" } else { "close" };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(head.as_bytes())
}

/// For tests/fuzz: reads what comes over a connection as a request, as it may come in two pieces.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = parse(&bytes[..bytes.len() / 2]);
    if let Ok(Some((request, used))) = parse(bytes) {
        assert!(used <= bytes.len() && request.path.starts_with('/'), "{request:?}");
        for len in [0, 1, 1 << 40] {
            if let Asked::Part(from, to) = asked(request.range.as_deref().unwrap_or_default(), len) {
                assert!(from < to && to <= len, "{from}..{to} of {len}");
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::testing::{text, tool, tool_ok};

    fn server() -> (tempfile::TempDir, SocketAddr) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("pxe");
        std::fs::create_dir_all(root.join("nodes")).unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        std::fs::write(root.join("boot.ipxe"), "#!ipxe\n").unwrap();
        std::fs::write(root.join("nodes/a b.cpio"), vec![7; 3_000_000]).unwrap();
        std::fs::write(root.join("empty"), "").unwrap();
        let folder = Arc::new(Folder::open(&root, &[]).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener, &folder));
        (dir, address)
    }

    /// All that comes for some bytes, which end the connection.
    fn raw(server: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(server).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn curl_gets_files_and_parts_of_them() {
        let (dir, server) = server();
        let out = dir.path().join("out");
        let url = |path: &str| format!("http://{server}/{path}");
        let curl = |arguments: &[&str], path: &str| {
            let url = url(path);
            let common =
                ["-sS", "--noproxy", "*", "--path-as-is", "-o", text(&out), "-w", "%{http_code} %{size_download}"];
            let said = tool_ok("curl", "curl", &[&common[..], arguments, &[&url]].concat());
            (said, std::fs::read(&out).unwrap_or_default())
        };
        assert_eq!(curl(&[], "boot.ipxe"), ("200 7".into(), b"#!ipxe\n".to_vec()));
        assert_eq!(curl(&[], "nodes/a%20b.cpio?x=1").0, "200 3000000");
        assert_eq!(curl(&["-r", "1-3"], "boot.ipxe"), ("206 3".into(), b"!ip".to_vec()));
        assert_eq!(curl(&["-r", "-2"], "boot.ipxe"), ("206 2".into(), b"e\n".to_vec()));
        assert_eq!(curl(&["-r", "5-"], "boot.ipxe"), ("206 2".into(), b"e\n".to_vec()));
        assert_eq!(curl(&["-r", "7-"], "boot.ipxe").0, "416 0");
        assert_eq!(curl(&[], "empty").0, "200 0");
        for path in [
            "none",
            "../secret",
            "nodes/../../secret",
            "%2e%2e/secret",
            "nodes",
            "",
            "%00",
            "nodes/%2e%2e/%2e%2e/secret",
        ] {
            assert_eq!(curl(&[], path).0, "404 0", "{path}");
        }
        assert_eq!(curl(&["-X", "POST"], "boot.ipxe").0, "405 0");
        let head = tool_ok("curl", "curl", &["-sSI", "--noproxy", "*", &url("boot.ipxe")]);
        assert!(head.contains("HTTP/1.1 200 OK") && head.contains("Content-Length: 7"), "{head}");
        // A download that was interrupted goes on.
        std::fs::write(&out, vec![7; 1_000_000]).unwrap();
        assert_eq!(curl(&["-C", "-"], "nodes/a%20b.cpio").0, "206 2000000");
        assert_eq!(std::fs::read(&out).unwrap(), vec![7; 3_000_000]);
        // Two requests over one connection.
        let (one, two) = (url("boot.ipxe"), url("none"));
        let twice = tool("curl", "curl", &["-sSv", "--noproxy", "*", &one, &two]);
        let said = String::from_utf8_lossy(&twice.stderr).into_owned();
        assert!(said.contains("Re-using existing connection") || said.contains("Reusing existing"), "{said}");
    }

    #[test]
    fn what_is_no_request_ends_the_connection() {
        let (_dir, server) = server();
        for (request, status) in [
            ("nonsense\r\n\r\n", "400"),
            ("GET boot.ipxe HTTP/1.1\r\n\r\n", "400"),
            ("GET /%ff HTTP/1.1\r\n\r\n", "400"),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nGET /", "413"),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "413"),
        ] {
            let answer = raw(server, request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}\n{answer}");
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
            assert!(answer.contains("Connection: close"), "{answer}");
        }
        let long = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(HEAD_MAX));
        assert!(raw(server, &long).starts_with("HTTP/1.1 431 "));
        assert_eq!(raw(server, "GET / HT"), "");
        // HTTP/1.0 closes, and absolute form is understood.
        let answer = raw(server, "GET http://10.0.0.1:80/boot.ipxe HTTP/1.0\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("\r\n\r\n#!ipxe\n"), "{answer}");
    }

    #[test]
    fn ranges() {
        for (header, len, wanted) in [
            ("bytes=0-0", 10, Asked::Part(0, 1)),
            ("bytes=3-100", 10, Asked::Part(3, 10)),
            ("bytes=3-18446744073709551615", 10, Asked::Part(3, 10)),
            ("bytes=-100", 10, Asked::Part(0, 10)),
            ("bytes=-0", 10, Asked::Beyond),
            ("bytes=-1", 0, Asked::Beyond),
            ("bytes=10-", 10, Asked::Beyond),
            ("bytes=10-20", 10, Asked::Beyond),
            ("bytes=5-4", 10, Asked::Whole),
            ("bytes=0-1,3-4", 10, Asked::Whole),
            ("bytes=-", 10, Asked::Whole),
            ("lines=1-2", 10, Asked::Whole),
            ("bytes=99999999999999999999-", 10, Asked::Whole),
        ] {
            assert_eq!(asked(header, len), wanted, "{header}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), range in "bytes=.{0,20}", len in any::<u64>()) {
            let _ = parse(&bytes);
            if let Asked::Part(from, to) = asked(&range, len) {
                prop_assert!(from < to && to <= len);
            }
        }
    }
}
