// SPDX-License-Identifier: MIT OR Apache-2.0

//! One GET, by http, https or from a file. Knows proxies, timeouts and roots of trust; nothing of hashes, retries or
//! the store.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use super::deb::release::seconds;
use super::mirror::Proxies;
use crate::error::Failure;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Names a file with roots of trust that count instead of the built-in ones, as with OpenSSL and curl.
const ROOTS: &str = "SSL_CERT_FILE";
/// By how much a date of change must be past for nothing to have changed in the same second by another clock (RFC 9110,
/// section 8.8.2.2, asks for a second and clocks that agree; RFC 7232 asked for a minute).
const SETTLED: i64 = 60;
const USER_AGENT: &str = concat!("imgbuild/", env!("CARGO_PKG_VERSION"));

/// What is asked for.
pub(crate) struct Ask<'a> {
    /// Where.
    pub(crate) url: &'a str,
    /// From which byte on, if the server can do that.
    pub(crate) offset: u64,
    /// From byte 0 on instead, if the file is not of this version any more, as the server sees it.
    pub(crate) version: Option<&'a str>,
    /// Header lines besides, none of which a redirect may take elsewhere: they want `follow` to be false.
    pub(crate) headers: &'a [(&'static str, String)],
    /// Whether to go where the server points to.
    pub(crate) follow: bool,
}

/// What came back.
pub(crate) struct Response {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The header lines, by name in lower case; none of a file.
    pub(crate) headers: Vec<(String, String)>,
    /// How long the body is, if it was said.
    pub(crate) length: Option<u64>,
    /// Where in the file the body starts, if only a part was sent.
    pub(crate) start: Option<u64>,
    /// How long the whole file is, if only a part was sent.
    pub(crate) total: Option<u64>,
    /// Whether the end of the body shows that it is whole: not where a server just hangs up.
    pub(crate) framed: bool,
    /// What tells this version of the file from any other: a strong ETag, or a date of change.
    pub(crate) version: Option<String>,
    /// The body.
    pub(crate) body: Box<dyn Read + Send>,
}

impl Response {
    /// The values of the header lines `name`, which is in lower case.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(own, _)| own == name).map(|(_, value)| value.as_str())
    }

    /// The value of the first of them.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        first(&self.headers, name)
    }
}

/// The value of the first header line `name`, in any case.
fn first<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
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
    /// It will not, and what to do about it is known.
    #[error("{0}")]
    Failed(Failure),
}

/// Makes requests.
#[derive(Debug)]
pub(crate) struct Client {
    direct: ureq::Agent,
    proxied: ureq::Agent,
    /// Why nothing can be had by https.
    no_roots: Option<String>,
    proxies: Proxies,
    stall: Duration,
}

impl Client {
    /// A client that gives up on a connection on which nothing happens for `stall`.
    ///
    /// # Errors
    /// If a proxy is no address. Where `SSL_CERT_FILE` names no file with certificates, what is by https cannot be had.
    pub(crate) fn new(proxies: &Proxies, stall: Duration) -> Result<Self, GetError> {
        let (roots, no_roots) = match roots(std::env::var_os(ROOTS).as_deref()) {
            Ok(roots) => (roots, None),
            Err(why) => (RootCerts::from([]), Some(why)),
        };
        Self::with_roots(proxies, stall, roots, no_roots)
    }

    /// The same, for servers whose certificates one of these authorities signs.
    pub(crate) fn trusting(
        proxies: &Proxies,
        stall: Duration,
        authorities: &[Certificate<'static>],
    ) -> Result<Self, GetError> {
        Self::with_roots(proxies, stall, RootCerts::new_with_certs(authorities), None)
    }

    fn with_roots(
        proxies: &Proxies,
        stall: Duration,
        roots: RootCerts,
        no_roots: Option<String>,
    ) -> Result<Self, GetError> {
        let tls = TlsConfig::builder().root_certs(roots).build();
        let agent = |proxy: Option<ureq::Proxy>| {
            ureq::Agent::config_builder()
                .http_status_as_error(false)
                .user_agent(USER_AGENT)
                .max_redirects(5)
                .timeout_resolve(Some(CONNECT_TIMEOUT))
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_per_read(Some(stall))
                .timeout_recv_response(Some(stall))
                .tls_config(tls.clone())
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
        Ok(Self { direct: agent(None), proxied: agent(proxy), no_roots, proxies: proxies.clone(), stall })
    }

    /// Asks for what is at `url`, from byte `offset` on if the server can do that.
    pub(crate) fn get(&self, url: &str, offset: u64) -> Result<Response, GetError> {
        self.get_version(url, offset, None)
    }

    /// As [`Self::get`], but from byte 0 on if the file is not of this version any more, as the server sees it.
    pub(crate) fn get_version(&self, url: &str, offset: u64, version: Option<&str>) -> Result<Response, GetError> {
        self.send(&Ask { url, offset, version, headers: &[], follow: true })
    }

    /// Asks, perhaps with further headers.
    pub(crate) fn send(&self, ask: &Ask<'_>) -> Result<Response, GetError> {
        let Ask { url, offset, version, headers, follow } = *ask;
        if let Some(path) = url.strip_prefix("file://") {
            return get_file(path, offset);
        }
        let (host, _) = host_and_path(url);
        let direct = self.is_direct(host);
        if let (true, false, Some(proxy)) = (url.starts_with("http://"), direct, &self.proxies.http) {
            // ureq would open a CONNECT tunnel, which caching proxies only allow for https.
            return get_by_proxy(proxy, ask, self.stall);
        }
        let agent = if direct { &self.direct } else { &self.proxied };
        let agent = if url.starts_with("https://") { agent } else { &self.direct };
        if let (Some(why), true) = (&self.no_roots, url.starts_with("https://")) {
            return Err(GetError::Permanent(why.clone()));
        }
        // What was to come by https does not come by http because a server says so; apt refuses that, too.
        let config = agent.get(url).config().https_only(url.starts_with("https://"));
        let request = if follow { config.build() } else { config.max_redirects(0).build() };
        let mut request = request.header("Accept-Encoding", "identity");
        if offset > 0 {
            request = request.header("Range", &format!("bytes={offset}-"));
            if let Some(version) = version {
                request = request.header("If-Range", version);
            }
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let response = request.call().map_err(classify)?;
        let line = |(name, value): (&ureq::http::HeaderName, &ureq::http::HeaderValue)| {
            Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
        };
        let headers: Vec<(String, String)> = response.headers().iter().filter_map(line).collect();
        let header = |name: &str| first(&headers, name);
        let (start, total) = header("Content-Range").map_or((None, None), range);
        let (status, length) = (response.status().as_u16(), response.body().content_length());
        let framed = header("Content-Length").is_some() || is_chunked(header("Transfer-Encoding"));
        let version = strong_version(header);
        let body = Box::new(response.into_body().into_with_config().limit(u64::MAX).reader());
        Ok(Response { status, headers, length, start, total, framed, version, body })
    }

    fn is_direct(&self, host: &str) -> bool {
        let name = host_name(host);
        // What a proxy calls loopback is another machine.
        is_loopback(name)
            || self.proxies.direct.iter().any(|direct| {
                let direct = direct.trim_start_matches('.');
                direct == "*" || name == direct || name.strip_suffix(direct).is_some_and(|rest| rest.ends_with('.'))
            })
    }
}

fn classify(error: ureq::Error) -> GetError {
    use ureq::Error as E;
    match error {
        E::Io(e) if e.to_string().contains("invalid peer certificate") => GetError::Permanent(format!(
            "{e}; if the host has its certificate from an authority of yours, name that in {ROOTS}"
        )),
        E::Io(_)
        | E::Timeout(_)
        | E::HostNotFound
        | E::ConnectionFailed
        | E::Protocol(_)
        | E::ConnectProxyFailed(_)
        | E::BodyStalled => GetError::Transient(error.to_string()),
        E::RequireHttpsOnly(url) => GetError::Permanent(format!("it leads to {url}, which is not https")),
        other => GetError::Permanent(other.to_string()),
    }
}

/// Mozilla's roots, which are compiled in, or else the certificates in `file`.
fn roots(file: Option<&OsStr>) -> Result<RootCerts, String> {
    let Some(file) = file.filter(|file| !file.is_empty()) else { return Ok(RootCerts::WebPki) };
    let about = |what: &str| format!("{ROOTS} names {}, {what}", file.display());
    let text = std::fs::read(file).map_err(|e| about(&format!("which cannot be read: {e}")))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| about(&format!("which is no PEM: {e}")))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(about("in which there is no certificate (PEM wanted)"));
    }
    Ok(RootCerts::from(certificates))
}

/// First byte and length of the whole: `bytes 100-199/200`, or `bytes */200` where the part does not exist.
fn range(value: &str) -> (Option<u64>, Option<u64>) {
    let Some((part, total)) = value.strip_prefix("bytes ").and_then(|rest| rest.split_once('/')) else {
        return (None, None);
    };
    (part.split('-').next().and_then(|start| start.parse().ok()), total.trim().parse().ok())
}

fn is_chunked(encoding: Option<&str>) -> bool {
    encoding.is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
}

/// What makes sure that a continued download is of the same version, if a server has it (RFC 9110, section 13.1.5): a
/// strong ETag, or where there is none at all the date of change, if that is long enough ago.
fn strong_version<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<String> {
    if let Some(tag) = header("ETag") {
        return (tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"')).then(|| tag.to_owned());
    }
    let changed = header("Last-Modified")?;
    (seconds(header("Date")?)? >= seconds(changed)?.saturating_add(SETTLED)).then(|| changed.to_owned())
}

fn get_file(path: &str, offset: u64) -> Result<Response, GetError> {
    let open = || -> io::Result<Response> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        if offset > size {
            return Ok(without_body(416));
        }
        file.seek(SeekFrom::Start(offset))?;
        let (status, start) = if offset > 0 { (206, Some(offset)) } else { (200, None) };
        let (length, total) = (Some(size - offset), start.map(|_| size));
        let (headers, body) = (Vec::new(), Box::new(file));
        Ok(Response { status, headers, length, start, total, framed: true, version: None, body })
    };
    match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(without_body(404)),
        other => other.map_err(|e| GetError::Permanent(e.to_string())),
    }
}

fn without_body(status: u16) -> Response {
    Response {
        status,
        headers: Vec::new(),
        length: None,
        start: None,
        total: None,
        framed: true,
        version: None,
        body: Box::new(io::empty()),
    }
}

/// A host without its port.
pub(super) fn host_name(host: &str) -> &str {
    match host.rsplit_once(':') {
        // A bare IPv6 address has brackets, inside of which colons are no port's.
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

/// Whether the host `name` is this machine.
pub(super) fn is_loopback(name: &str) -> bool {
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Host with port, and path with the slash and what follows it, of an http URL.
pub(super) fn host_and_path(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    // A query may have slashes in it, and an `@`.
    let (host, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    (host.rsplit_once('@').map_or(host, |(_, host)| host), path)
}

/// A plain GET in absolute form, as RFC 9112 section 3.2.2 has it for proxies.
fn get_by_proxy(proxy: &str, ask: &Ask<'_>, stall: Duration) -> Result<Response, GetError> {
    let Ask { url, offset, version, headers, .. } = *ask;
    if headers.iter().any(|(_, value)| value.contains(['\r', '\n'])) {
        return Err(GetError::Permanent("a header line with a line end in it".to_owned()));
    }
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
    let range = match version {
        _ if offset == 0 => String::new(),
        None => format!("Range: bytes={offset}-\r\n"),
        Some(version) => format!("Range: bytes={offset}-\r\nIf-Range: {version}\r\n"),
    };
    let further: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let (target, _) = host_and_path(url);
    let request = format!(
        "GET {url} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {USER_AGENT}\r\nConnection: close\r\n{range}{further}\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(about)?;
    read_response(BufReader::new(stream)).map_err(about)
}

fn read_response<R: Read + Send + 'static>(mut stream: BufReader<R>) -> io::Result<Response> {
    let garbled = || io::Error::new(io::ErrorKind::InvalidData, "garbled response");
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        // No header line of a mirror is longer than this.
        (&mut stream).take(16 << 10).read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() || head.len() > 100 {
            break;
        }
        // A bare CR is for some the end of a line (RFC 9112, section 2.2), and values are sent in later requests.
        if line.contains(|c: char| c.is_control() && c != '\t') {
            return Err(garbled());
        }
        head.push(line.to_owned());
    }
    let status = head.first().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let lines = head.iter().skip(1).filter_map(|line| line.split_once(':'));
    let headers: Vec<(String, String)> =
        lines.map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned())).collect();
    let header = |name: &str| first(&headers, name);
    let length: Option<u64> = header("content-length").and_then(|value| value.parse().ok());
    let (start, total) = header("content-range").map_or((None, None), range);
    let (chunked, version) = (is_chunked(header("transfer-encoding")), strong_version(header));
    let body: Box<dyn Read + Send> = match length {
        _ if chunked => Box::new(Chunked { stream, left: 0, done: false }),
        Some(length) => Box::new(stream.take(length)),
        None => Box::new(stream),
    };
    let framed = chunked || length.is_some();
    Ok(Response { status: status.ok_or_else(garbled)?, headers, length, start, total, framed, version, body })
}

/// A body in chunks: RFC 9112 section 7.1.
struct Chunked<R> {
    stream: BufReader<R>,
    left: u64,
    done: bool,
}

impl<R: Read> Read for Chunked<R> {
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

/// For tests/fuzz: reads `bytes` as the response of a proxy.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let Ok(response) = read_response(BufReader::new(io::Cursor::new(bytes.to_vec()))) else { return };
    for (name, value) in &response.headers {
        assert!(!value.contains(['\r', '\n', '\0']), "{name:?}: {value:?}");
    }
    let chunked = is_chunked(response.header("transfer-encoding"));
    let length = response.length.filter(|_| !chunked);
    let mut body = Vec::new();
    if response.body.take(1 << 20).read_to_end(&mut body).is_ok() {
        assert!(body.len() <= bytes.len());
        assert!(length.is_none_or(|length| body.len() as u64 <= length), "{length:?}");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn response(text: &'static str) -> io::Result<Response> {
        read_response(BufReader::new(text.as_bytes()))
    }

    fn body(text: &'static str) -> io::Result<String> {
        let mut body = String::new();
        response(text)?.body.read_to_string(&mut body)?;
        Ok(body)
    }

    #[test]
    fn responses_of_a_proxy() {
        let part = "HTTP/1.1 206 So\r\nContent-Length: 3\r\nContent-Range: bytes 2-4/5\r\nETag:\t\"a\"\r\n\r\nabcd";
        let found = response(part).unwrap();
        assert_eq!((found.status, found.length, found.start, found.total), (206, Some(3), Some(2), Some(5)));
        assert_eq!((found.framed, found.version.as_deref()), (true, Some("\"a\"")));
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd").unwrap(), "abc");
        assert_eq!(body("HTTP/1.0 200 OK\n\nabcd").unwrap(), "abcd");
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(body(chunked).unwrap(), "abcd");
        for (broken, kind) in [
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na", io::ErrorKind::UnexpectedEof),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\na", io::ErrorKind::InvalidData),
            ("HTTP/1.1 OK\r\n\r\n", io::ErrorKind::InvalidData),
            ("HTTP/1.1 200 OK\r\nETag: \"a\rX: y\"\r\n\r\n", io::ErrorKind::InvalidData),
            ("", io::ErrorKind::InvalidData),
        ] {
            assert_eq!(body(broken).unwrap_err().kind(), kind, "{broken:?}");
        }
    }

    #[test]
    fn hosts_end_where_paths_queries_and_fragments_begin() {
        for (url, wanted) in [
            ("http://user:secret@lab:80/a?b", ("lab:80", "/a?b")),
            ("http://lab?x=@other/", ("lab", "?x=@other/")),
            ("http://lab#@other", ("lab", "#@other")),
            ("lab:3128", ("lab:3128", "")),
        ] {
            assert_eq!(host_and_path(url), wanted, "{url}");
        }
    }

    fn version(headers: &[(&str, &'static str)]) -> Option<String> {
        strong_version(|name| headers.iter().find(|(own, _)| *own == name).map(|(_, value)| *value))
    }

    #[test]
    fn only_what_is_strong_tells_versions_apart() {
        assert_eq!(version(&[("ETag", "\"a-1\"")]).unwrap(), "\"a-1\"");
        let (early, late, later) =
            ("Sat, 10 Jan 2026 09:55:12 GMT", "Sat, 10 Jan 2026 09:56:11 GMT", "Sat, 10 Jan 2026 09:56:12 GMT");
        assert_eq!(version(&[("Last-Modified", early), ("Date", later)]).unwrap(), early);
        for headers in [
            &[][..],
            &[("ETag", "W/\"a-1\"")],
            // A client that has a tag may not use the date.
            &[("ETag", "W/\"a-1\""), ("Last-Modified", early), ("Date", later)],
            &[("ETag", "\"")],
            &[("Last-Modified", early)],
            &[("Last-Modified", early), ("Date", late)],
            &[("Last-Modified", "yesterday"), ("Date", later)],
        ] {
            assert_eq!(version(headers), None, "{headers:?}");
        }
    }

    #[test]
    fn ranges() {
        assert_eq!(range("bytes 100-199/200"), (Some(100), Some(200)));
        assert_eq!(range("bytes 100-199/*"), (Some(100), None));
        assert_eq!(range("bytes */200"), (None, Some(200)));
        assert_eq!(range("lines 1-2/3"), (None, None));
    }

    #[test]
    fn roots_are_those_of_a_file_that_has_some() {
        assert!(matches!(roots(None).unwrap(), RootCerts::WebPki));
        assert!(matches!(roots(Some(OsStr::new(""))).unwrap(), RootCerts::WebPki));
        let file = tempfile::NamedTempFile::new().unwrap();
        let fails = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            roots(Some(file.path().as_os_str())).map(drop).unwrap_err()
        };
        assert!(fails("nothing").ends_with("in which there is no certificate (PEM wanted)"));
        assert!(fails("-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n").contains("which is no PEM"));
        let missing = roots(Some(OsStr::new("/nowhere/ca.pem"))).map(drop).unwrap_err();
        assert!(missing.starts_with("SSL_CERT_FILE names /nowhere/ca.pem, which cannot be read"), "{missing}");
        // What it is does not matter before somebody connects.
        std::fs::write(file.path(), "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n").unwrap();
        let RootCerts::Specific(found) = roots(Some(file.path().as_os_str())).unwrap() else {
            panic!("the file's own")
        };
        assert_eq!(found.len(), 1);
    }
}
