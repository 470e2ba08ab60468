// SPDX-License-Identifier: MIT OR Apache-2.0

//! One GET, by http, https or from a file. Knows proxies and timeouts; nothing of hashes, retries or the store.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::mirror::Proxies;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const USER_AGENT: &str = concat!("imgbuild/", env!("CARGO_PKG_VERSION"));

/// What came back.
pub(crate) struct Response {
    /// The HTTP status.
    pub(crate) status: u16,
    /// How long the body is, if it was said.
    pub(crate) length: Option<u64>,
    /// Where in the file the body starts, if only a part was sent.
    pub(crate) start: Option<u64>,
    /// The body.
    pub(crate) body: Box<dyn Read + Send>,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GetError {
    /// Another try may go better.
    #[error("{0}")]
    Transient(String),
    /// It will not.
    #[error("{0}")]
    Permanent(String),
}

/// Makes requests.
#[derive(Debug)]
pub(crate) struct Client {
    direct: ureq::Agent,
    proxied: ureq::Agent,
    proxies: Proxies,
    stall: Duration,
}

impl Client {
    /// A client that gives up on a connection on which nothing happens for `stall`.
    pub(crate) fn new(proxies: &Proxies, stall: Duration) -> Result<Self, GetError> {
        let agent = |proxy: Option<ureq::Proxy>| {
            ureq::Agent::config_builder()
                .http_status_as_error(false)
                .user_agent(USER_AGENT)
                .max_redirects(5)
                .timeout_resolve(Some(CONNECT_TIMEOUT))
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_per_read(Some(stall))
                .timeout_recv_response(Some(stall))
                .proxy(proxy)
                .build()
                .new_agent()
        };
        let proxy = match &proxies.https {
            Some(url) => Some(
                ureq::Proxy::new(url).map_err(|e| GetError::Permanent(format!("using the https proxy {url}: {e}")))?,
            ),
            None => None,
        };
        Ok(Self { direct: agent(None), proxied: agent(proxy), proxies: proxies.clone(), stall })
    }

    /// Asks for what is at `url`, from byte `offset` on if the server can do that.
    pub(crate) fn get(&self, url: &str, offset: u64) -> Result<Response, GetError> {
        if let Some(path) = url.strip_prefix("file://") {
            return get_file(path, offset);
        }
        let (host, _) = host_and_path(url);
        let direct = self.is_direct(host);
        if let (true, false, Some(proxy)) = (url.starts_with("http://"), direct, &self.proxies.http) {
            // ureq would open a CONNECT tunnel, which caching proxies only allow for https.
            return get_by_proxy(proxy, url, offset, self.stall);
        }
        let agent = if direct { &self.direct } else { &self.proxied };
        let agent = if url.starts_with("https://") { agent } else { &self.direct };
        let mut request = agent.get(url).header("Accept-Encoding", "identity");
        if offset > 0 {
            request = request.header("Range", &format!("bytes={offset}-"));
        }
        let response = request.call().map_err(classify)?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let start = header("Content-Range").and_then(range_start);
        let (status, length) = (response.status().as_u16(), response.body().content_length());
        let body = response.into_body().into_with_config().limit(u64::MAX).reader();
        Ok(Response { status, length, start, body: Box::new(body) })
    }

    fn is_direct(&self, host: &str) -> bool {
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        self.proxies.direct.iter().any(|direct| {
            let direct = direct.trim_start_matches('.');
            direct == "*" || name == direct || name.strip_suffix(direct).is_some_and(|rest| rest.ends_with('.'))
        })
    }
}

fn classify(error: ureq::Error) -> GetError {
    use ureq::Error as E;
    match error {
        E::Io(_)
        | E::Timeout(_)
        | E::HostNotFound
        | E::ConnectionFailed
        | E::Protocol(_)
        | E::ConnectProxyFailed(_)
        | E::BodyStalled => GetError::Transient(error.to_string()),
        other => GetError::Permanent(other.to_string()),
    }
}

/// `bytes 100-199/200`
fn range_start(value: &str) -> Option<u64> {
    value.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

fn get_file(path: &str, offset: u64) -> Result<Response, GetError> {
    let open = || -> io::Result<Response> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        if offset > size {
            return Ok(Response { status: 416, length: None, start: None, body: Box::new(io::empty()) });
        }
        file.seek(SeekFrom::Start(offset))?;
        let (status, start) = if offset > 0 { (206, Some(offset)) } else { (200, None) };
        Ok(Response { status, length: Some(size - offset), start, body: Box::new(file) })
    };
    match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Ok(Response { status: 404, length: None, start: None, body: Box::new(io::empty()) })
        }
        other => other.map_err(|e| GetError::Permanent(e.to_string())),
    }
}

/// Host with port, and path with the slash, of an http URL.
fn host_and_path(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    (host.rsplit_once('@').map_or(host, |(_, host)| host), path)
}

/// A plain GET in absolute form, as RFC 9112 section 3.2.2 has it for proxies.
fn get_by_proxy(proxy: &str, url: &str, offset: u64, stall: Duration) -> Result<Response, GetError> {
    if proxy.contains("://") && !proxy.starts_with("http://") {
        return Err(GetError::Permanent(format!("the proxy {proxy} is of a kind that is not supported (http only)")));
    }
    let about = |e: io::Error| GetError::Transient(format!("proxy {proxy}: {e}"));
    let (host, _) = host_and_path(proxy);
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    let mut stream = None;
    for address in address.to_socket_addrs().map_err(about)? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(connected) => {
                stream = Some(connected);
                break;
            }
            Err(e) => last = e,
        }
    }
    let mut stream = stream.ok_or_else(|| about(last))?;
    stream.set_read_timeout(Some(stall)).map_err(about)?;
    let range = if offset > 0 { format!("Range: bytes={offset}-\r\n") } else { String::new() };
    let (target, _) = host_and_path(url);
    let request =
        format!("GET {url} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {USER_AGENT}\r\nConnection: close\r\n{range}\r\n");
    stream.write_all(request.as_bytes()).map_err(about)?;
    read_response(BufReader::new(stream)).map_err(about)
}

fn read_response(mut stream: BufReader<TcpStream>) -> io::Result<Response> {
    let garbled = || io::Error::new(io::ErrorKind::InvalidData, "garbled response");
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        // No header line of a mirror is longer than this.
        (&mut stream).take(16 << 10).read_line(&mut line)?;
        let line = line.trim_end().to_owned();
        if line.is_empty() || head.len() > 100 {
            break;
        }
        head.push(line);
    }
    let status = head.first().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let header = |wanted: &str| {
        head.iter()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find_map(|(name, value)| name.eq_ignore_ascii_case(wanted).then(|| value.trim()))
    };
    let length: Option<u64> = header("content-length").and_then(|value| value.parse().ok());
    let start = header("content-range").and_then(range_start);
    let body: Box<dyn Read + Send> = match length {
        _ if header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) => {
            Box::new(Chunked { stream, left: 0, done: false })
        }
        Some(length) => Box::new(stream.take(length)),
        None => Box::new(stream),
    };
    Ok(Response { status: status.ok_or_else(garbled)?, length, start, body })
}

/// A body in chunks: RFC 9112 section 7.1.
struct Chunked {
    stream: BufReader<TcpStream>,
    left: u64,
    done: bool,
}

impl Read for Chunked {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 && !self.done {
            let mut line = String::new();
            (&mut self.stream).take(1024).read_line(&mut line)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            if size.is_empty() && line.ends_with('\n') {
                continue; // the line end after a chunk
            }
            self.left = u64::from_str_radix(size, 16)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "garbled chunk"))?;
            self.done = self.left == 0;
        }
        let n = (&mut self.stream).take(self.left).read(buf)?;
        if n == 0 && self.left > 0 && !buf.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}
