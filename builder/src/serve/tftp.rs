// SPDX-License-Identifier: MIT OR Apache-2.0

//! A TFTP server for reading (RFC 1350) with the options that firmware asks for: block size (RFC 2348), size of the
//! file and timeout (RFC 2349), several blocks at a time (RFC 7440).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Size;
use super::folder::{Folder, Found};

/// Operation codes (RFC 1350, 5; RFC 2347).
const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;
/// Error codes (RFC 1350, appendix).
const UNDEFINED: u16 = 0;
const NOT_FOUND: u16 = 1;
const ACCESS: u16 = 2;
const ILLEGAL: u16 = 4;
/// Bytes of a block when nobody asks for another size.
const BLOCK: usize = 512;
/// Largest block: what fits into an Ethernet frame with the headers of IP (20), UDP (8) and TFTP (4). Firmware does not
/// put fragments together.
const BLOCK_MAX: usize = 1500 - 32;
/// Most blocks at a time: 64 of the largest are less than what a socket takes at once.
const WINDOW_MAX: u64 = 64;
/// How long an acknowledgement is waited for, when nobody asks for another time, and how often.
const TIMEOUT: Duration = Duration::from_secs(1);
const TRIES: u32 = 6;
/// Transfers at a time: more are not answered, and clients ask again.
const TRANSFERS_MAX: usize = 64;

/// Answers requests that come to `socket`, for ever.
///
/// # Errors
/// If the socket fails for good.
pub fn serve(socket: &UdpSocket, folder: &Arc<Folder>) -> Result<()> {
    let transfers = Arc::new(AtomicUsize::new(0));
    let mut buffer = [0; 1500];
    loop {
        let (len, client) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if transient(&error) => continue,
            Err(error) => return Err(error).context("receiving TFTP requests"),
        };
        if transfers.load(Ordering::Relaxed) >= TRANSFERS_MAX {
            continue;
        }
        let (request, folder) = (buffer[..len].to_vec(), folder.clone());
        let slot = Slot::take(&transfers);
        // Each transfer has a port of its own, its transfer identifier (RFC 1350, 4).
        let spawned = std::thread::Builder::new().name("tftp transfer".into()).spawn(move || {
            let _slot = slot;
            match transfer(&request, client, &folder) {
                Ok(Some(done)) => tracing::info!("tftp: {client} {done}"),
                Ok(None) => {}
                Err(error) => tracing::warn!("tftp: {client}: {error:#}"),
            }
        });
        if let Err(error) = spawned {
            tracing::warn!("tftp: starting a transfer: {error}");
        }
    }
}

/// Errors that say something of one client, not of the socket: ICMP messages come as errors of later calls.
fn transient(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(error.kind(), Interrupted | ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable)
}

/// One of the transfers at a time.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request to read a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Request {
    name: String,
    options: Vec<(String, String)>,
}

impl Request {
    /// From a packet.
    ///
    /// # Errors
    /// Code and text of the error to answer with; none where an answer would be wrong.
    fn parse(packet: &[u8]) -> std::result::Result<Self, Option<(u16, &'static str)>> {
        match packet.first_chunk().map(|code| u16::from_be_bytes(*code)) {
            Some(READ) => {}
            Some(WRITE) => return Err(Some((ACCESS, "this server only hands out"))),
            // Late packets of ended transfers, and errors, which are never answered.
            Some(DATA | ACK | ERROR | OACK) | None => return Err(None),
            Some(_) => return Err(Some((ILLEGAL, "not a request"))),
        }
        let malformed = Some((ILLEGAL, "malformed request"));
        // Name, mode, and pairs of option and value, each ending in a NUL.
        let Some(text) = packet[2..].strip_suffix(&[0]) else { return Err(malformed) };
        let mut fields = Vec::new();
        for field in text.split(|byte| *byte == 0) {
            fields.push(std::str::from_utf8(field).map_err(|_| malformed)?.to_owned());
        }
        let mut fields = fields.into_iter();
        let (Some(name), Some(mode)) = (fields.next(), fields.next()) else { return Err(malformed) };
        // Text mode would change line ends; nobody boots in it.
        if !mode.eq_ignore_ascii_case("octet") {
            return Err(Some((ILLEGAL, "only mode octet")));
        }
        let mut options = Vec::new();
        while let (Some(option), Some(value)) = (fields.next(), fields.next()) {
            options.push((option.to_ascii_lowercase(), value));
        }
        Ok(Self { name, options })
    }
}

/// What was agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Terms {
    block: usize,
    window: u64,
    timeout: Duration,
    /// What the client asked for and gets.
    accepted: Vec<(String, String)>,
}

impl Terms {
    /// Options that are unknown or out of range are left out, which says no (RFC 2347).
    fn agree(request: &Request, len: u64) -> Self {
        let mut terms = Self { block: BLOCK, window: 1, timeout: TIMEOUT, accepted: Vec::new() };
        for (option, value) in &request.options {
            let Ok(number) = value.parse::<u64>() else { continue };
            // Each may come once (RFC 2347): an answer is not to grow with what is repeated.
            if terms.accepted.iter().any(|(accepted, _)| accepted == option) {
                continue;
            }
            let accepted = match (option.as_str(), number) {
                ("blksize", 8..=65_464) => {
                    terms.block = BLOCK_MAX.min(number as usize);
                    terms.block as u64
                }
                ("tsize", _) => len,
                ("timeout", 1..=255) => {
                    terms.timeout = Duration::from_secs(number);
                    number
                }
                ("windowsize", 1..=65_535) => {
                    terms.window = number.min(WINDOW_MAX);
                    terms.window
                }
                _ => continue,
            };
            terms.accepted.push((option.clone(), accepted.to_string()));
        }
        terms
    }
}

fn transfer(packet: &[u8], client: SocketAddr, folder: &Folder) -> Result<Option<String>> {
    let begun = Instant::now();
    let socket = UdpSocket::bind(("0.0.0.0", 0)).context("opening a port")?;
    socket.connect(client).context("opening a port")?;
    let refuse = |code: u16, text: &str| {
        // Whether it arrives is the client's affair.
        _ = socket.send(&error_packet(code, text));
    };
    let request = match Request::parse(packet) {
        Ok(request) => request,
        Err(answer) => {
            if let Some((code, text)) = answer {
                refuse(code, text);
            }
            return Ok(None);
        }
    };
    let name = &request.name;
    let found = match folder.get(name) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            refuse(NOT_FOUND, "no such file");
            return Ok(Some(format!("asked for {name:?}, which is not there")));
        }
        Err(error) => {
            refuse(UNDEFINED, "cannot be read");
            return Err(error).with_context(|| format!("opening {name:?}"));
        }
    };
    let terms = Terms::agree(&request, found.len);
    let mut wire = Wire { socket, timeout: terms.timeout, buffer: vec![0; 4 + BLOCK_MAX] };
    match send(&mut wire, &terms, &found).with_context(|| format!("sending {name:?}"))? {
        End::Whole => Ok(Some(format!("has {name}, {} ({:.1}s)", Size(found.len), begun.elapsed().as_secs_f32()))),
        // A client may ask for the size alone, and say with an error that it has it.
        End::Stopped(text) => Ok(Some(format!("stopped reading {name}: {text}"))),
    }
}

fn error_packet(code: u16, text: &str) -> Vec<u8> {
    [&ERROR.to_be_bytes(), &code.to_be_bytes(), text.as_bytes(), &[0]].concat()
}

/// How a transfer ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Whole,
    Stopped(String),
}

/// What came from the client.
enum Came {
    Ack(u16),
    Error(String),
    Nothing,
}

struct Wire {
    socket: UdpSocket,
    timeout: Duration,
    buffer: Vec<u8>,
}

impl Wire {
    fn put(&self, packet: &[u8]) -> Result<()> {
        match self.socket.send(packet) {
            Ok(_) => Ok(()),
            // The client's port is closed, or its network is down for a moment: that ends in a timeout.
            Err(error) if transient(&error) => Ok(()),
            Err(error) => Err(error).context("sending"),
        }
    }

    /// The next acknowledgement or error before `deadline`.
    fn get(&mut self, deadline: Instant) -> Result<Came> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Came::Nothing);
            }
            self.socket.set_read_timeout(Some(left)).context("waiting")?;
            let len = match self.socket.recv(&mut self.buffer) {
                Ok(len) => len,
                Err(error) if transient(&error) => continue,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(Came::Nothing);
                }
                Err(error) => return Err(error).context("receiving"),
            };
            let packet = &self.buffer[..len];
            match (packet.first_chunk().map(|code| u16::from_be_bytes(*code)), packet.get(2..4)) {
                (Some(ACK), Some(number)) => return Ok(Came::Ack(u16::from_be_bytes([number[0], number[1]]))),
                (Some(ERROR), _) => {
                    let text = packet.get(4..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
                    return Ok(Came::Error(String::from_utf8_lossy(text).into_owned()));
                }
                _ => {}
            }
        }
    }
}

/// Sends a file. Only an acknowledgement of something new brings new packets: one that comes twice must not double
/// everything from there on (RFC 1123, 4.2.3.1, "the sorcerer's apprentice").
fn send(wire: &mut Wire, terms: &Terms, found: &Found) -> Result<End> {
    let mut tries = 0;
    // With options, block 0 stands for their confirmation.
    let mut confirmed = terms.accepted.is_empty();
    let mut oack = OACK.to_be_bytes().to_vec();
    for text in terms.accepted.iter().flat_map(|(option, value)| [option, value]) {
        oack.extend_from_slice(text.as_bytes());
        oack.push(0);
    }
    // A block shorter than the others ends the file: with none left over, it is empty.
    let blocks = found.len / terms.block as u64 + 1;
    let mut acked = 0;
    let mut packet = Vec::new();
    while !confirmed || acked < blocks {
        let last = if confirmed { blocks.min(acked + terms.window) } else { 0 };
        if !confirmed {
            wire.put(&oack)?;
        }
        for block in acked + 1..=last {
            let at = (block - 1) * terms.block as u64;
            let len = (found.len - at).min(terms.block as u64) as usize;
            packet.clear();
            packet.extend_from_slice(&DATA.to_be_bytes());
            // Numbers have 16 bits and begin again after 65535: a large file has more blocks than that.
            packet.extend_from_slice(&(block as u16).to_be_bytes());
            packet.resize(4 + len, 0);
            found.file.read_exact_at(&mut packet[4..], at).context("reading the file")?;
            wire.put(&packet)?;
        }
        let deadline = Instant::now() + wire.timeout;
        loop {
            match wire.get(deadline)? {
                Came::Error(text) => return Ok(End::Stopped(text)),
                Came::Ack(0) if !confirmed => confirmed = true,
                Came::Ack(number) if confirmed => match (acked + 1..=last).find(|block| *block as u16 == number) {
                    Some(block) => acked = block,
                    None => continue,
                },
                Came::Ack(_) => continue,
                Came::Nothing => {
                    tries += 1;
                    if tries == TRIES {
                        return Ok(End::Stopped(format!("no answer after block {acked} of {blocks}")));
                    }
                    break;
                }
            }
            tries = 0;
            break;
        }
    }
    Ok(End::Whole)
}

/// For tests/fuzz: reads a packet as a request.
#[cfg(fuzzing)]
pub(crate) fn fuzz(packet: &[u8]) {
    let Ok(request) = Request::parse(packet) else { return };
    let terms = Terms::agree(&request, 1 << 40);
    assert!((8..=BLOCK_MAX).contains(&terms.block) && (1..=WINDOW_MAX).contains(&terms.window), "{terms:?}");
    assert!(terms.accepted.len() <= 4, "{terms:?}");
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(name: &str, options: &[(&str, &str)]) -> Vec<u8> {
        let mut packet = READ.to_be_bytes().to_vec();
        for text in [name, "octet"].into_iter().chain(options.iter().flat_map(|(option, value)| [*option, *value])) {
            packet.extend_from_slice(text.as_bytes());
            packet.push(0);
        }
        packet
    }

    /// A server with the files `empty`, `exact` (1024 bytes), `large` (5 MB), and its address.
    fn server() -> (tempfile::TempDir, SocketAddr) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("empty"), "").unwrap();
        std::fs::write(dir.path().join("exact"), vec![1; 1024]).unwrap();
        let large: Vec<u8> = (0..5_000_000u32).map(|i| (i / 7) as u8).collect();
        std::fs::write(dir.path().join("large"), large).unwrap();
        let folder = Arc::new(Folder::open(dir.path(), &[]).unwrap());
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || serve(&socket, &folder));
        (dir, address)
    }

    /// A client that loses every `lose`-th packet it gets, and acknowledges every block twice.
    fn fetch(
        server: SocketAddr,
        packet: &[u8],
        block: usize,
        window: u64,
        lose: usize,
    ) -> std::result::Result<Vec<u8>, (u16, String)> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.send_to(packet, server).unwrap();
        let (mut bytes, mut buffer, mut next, mut count, mut since) = (Vec::new(), vec![0; 70_000], 1u64, 0, 0);
        loop {
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            assert_ne!(from.port(), server.port(), "a transfer has a port of its own");
            count += 1;
            if lose > 0 && count % lose == 0 {
                continue;
            }
            let ack = |number: u64| {
                for _ in 0..2 {
                    socket.send_to(&[&ACK.to_be_bytes()[..], &(number as u16).to_be_bytes()].concat(), from).unwrap();
                }
            };
            let number = u16::from_be_bytes([buffer[2], buffer[3]]);
            match u16::from_be_bytes([buffer[0], buffer[1]]) {
                OACK => ack(0),
                DATA if number == next as u16 => {
                    bytes.extend_from_slice(&buffer[4..len]);
                    next += 1;
                    since += 1;
                    let end = len - 4 < block;
                    if end || since == window {
                        ack(next - 1);
                        since = 0;
                    }
                    if end {
                        return Ok(bytes);
                    }
                }
                // Something was lost: what came before is acknowledged again (RFC 7440, 4).
                DATA => {
                    ack(next - 1);
                    since = 0;
                }
                ERROR => {
                    return Err((number, String::from_utf8_lossy(&buffer[4..len - 1]).into_owned()));
                }
                other => panic!("operation {other}"),
            }
        }
    }

    #[test]
    fn files_arrive_whole_in_blocks_of_any_size() {
        let (dir, server) = server();
        for name in ["empty", "exact", "large"] {
            let wanted = std::fs::read(dir.path().join(name)).unwrap();
            let options = [("blksize", "1024"), ("tsize", "0")];
            assert!(fetch(server, &request(name, &options), 1024, 1, 0).unwrap() == wanted, "{name}");
        }
        let wanted = std::fs::read(dir.path().join("exact")).unwrap();
        assert!(fetch(server, &request("/exact", &[]), 512, 1, 0).unwrap() == wanted);
        // 5 MB in blocks of 64 bytes are more than 65535 of them.
        let wanted = std::fs::read(dir.path().join("large")).unwrap();
        let options = [("BLKSIZE", "64"), ("windowsize", "16")];
        assert!(fetch(server, &request("large", &options), 64, 16, 0).unwrap() == wanted);
    }

    #[test]
    fn what_is_lost_is_sent_again() {
        let (dir, server) = server();
        let wanted = std::fs::read(dir.path().join("large")).unwrap();
        let options = [("blksize", "1468"), ("windowsize", "8"), ("timeout", "1")];
        assert!(fetch(server, &request("large", &options), 1468, 8, 700).unwrap() == wanted);
    }

    #[test]
    fn what_is_not_there_or_not_allowed_is_an_error() {
        let (_dir, server) = server();
        let refused = |packet: &[u8]| fetch(server, packet, 512, 1, 0).unwrap_err();
        assert_eq!(refused(&request("none", &[])), (NOT_FOUND, "no such file".into()));
        assert_eq!(refused(&request("../../etc/passwd", &[])), (NOT_FOUND, "no such file".into()));
        assert_eq!(refused(b"\0\x02exact\0octet\0"), (ACCESS, "this server only hands out".into()));
        assert_eq!(refused(b"\0\x01exact\0netascii\0"), (ILLEGAL, "only mode octet".into()));
        assert_eq!(refused(b"\0\x01exact"), (ILLEGAL, "malformed request".into()));
        assert_eq!(refused(b"\0\x01\xff\0octet\0"), (ILLEGAL, "malformed request".into()));
        assert_eq!(refused(b"\0\x09"), (ILLEGAL, "not a request".into()));
    }

    #[test]
    fn options_are_bounded_and_unknown_ones_left_out() {
        let agreed = |options: &[(&str, &str)]| Terms::agree(&Request::parse(&request("a", options)).unwrap(), 5000);
        let terms =
            agreed(&[("blksize", "65464"), ("tsize", "0"), ("windowsize", "1000"), ("timeout", "3"), ("x", "1")]);
        assert_eq!((terms.block, terms.window, terms.timeout), (1468, 64, Duration::from_secs(3)));
        let pairs = [("blksize", "1468"), ("tsize", "5000"), ("windowsize", "64"), ("timeout", "3")];
        assert_eq!(terms.accepted, pairs.map(|(option, value)| (option.to_owned(), value.to_owned())));
        let terms = agreed(&[("blksize", "7"), ("timeout", "0"), ("windowsize", "0"), ("tsize", "x")]);
        assert_eq!((terms.block, terms.window, terms.accepted), (512, 1, vec![]));
        let terms = agreed(&[("blksize", "1000"), ("blksize", "8"), ("BLKSIZE", "9")]);
        assert_eq!((terms.block, terms.accepted.len()), (1000, 1), "what comes again is no option");
    }

    #[test]
    fn other_packets_are_not_answered() {
        for packet in [&b""[..], b"\0", b"\0\x03\0\x01x", b"\0\x04\0\x01", b"\0\x05\0\x01x\0", b"\0\x06"] {
            assert_eq!(Request::parse(packet), Err(None), "{packet:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(packet in proptest::collection::vec(any::<u8>(), 0..100), read in any::<bool>()) {
            let packet = if read { [&[0, 1], &packet[..]].concat() } else { packet };
            if let Ok(request) = Request::parse(&packet) {
                let _ = Terms::agree(&request, 1);
            }
        }
    }
}
