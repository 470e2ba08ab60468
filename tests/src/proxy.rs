// SPDX-License-Identifier: MIT OR Apache-2.0

//! An HTTP proxy that can misbehave: it cuts connections, flips bits, and says things of its own. It knows hosts by
//! names that nobody else knows, so that whoever gets something from them has asked the proxy.
//!
//! What it does to a request depends on a seed, on what is asked for, and on how often that was asked for before. The
//! order in which requests for different things arrive does not matter: with the same seed it does the same again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::build::binary;
use crate::cli::in_own_mounts;
use crate::random::Random;

/// What is done to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: it is answered.
    Nothing,
    /// The connection ends before anything was said.
    Silence,
    /// The connection ends somewhere in the answer.
    Cut,
    /// One bit of the body is another one.
    Flip,
    /// Nothing comes for a moment in the middle; then the rest does.
    Pause,
    /// The answer is a page of the proxy's, with this status.
    Status(u16),
    /// The answer is that to a request for something else, if there was one; or else as with status 200.
    Other,
    /// The answer is no HTTP.
    Garbage,
}

/// What is chosen from by chance: some faults are likelier than others, and often there is none.
const CHANCES: &[Fault] = &[
    Fault::Nothing,
    Fault::Nothing,
    Fault::Nothing,
    Fault::Nothing,
    Fault::Nothing,
    Fault::Nothing,
    Fault::Nothing,
    Fault::Cut,
    Fault::Cut,
    Fault::Cut,
    Fault::Cut,
    Fault::Flip,
    Fault::Flip,
    Fault::Pause,
    Fault::Silence,
    Fault::Garbage,
    Fault::Other,
    Fault::Status(200),
    Fault::Status(403),
    Fault::Status(502),
    Fault::Status(503),
];

/// Which faults there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conduct {
    /// None.
    Good,
    /// Any, by chance.
    Bad,
    /// Always this one.
    Always(Fault),
}

/// How long a pause is: a multiple of what a network needs, and far less than what a client takes for the end.
const PAUSE: Duration = Duration::from_millis(200);
/// A server that says nothing for so long is broken.
const STUCK: Duration = Duration::from_secs(60);
/// What passes a tunnel before it is too late for a fault, in bytes: as long as the files that tests have behind one.
const TUNNELLED: usize = 200_000;
/// An alert of TLS.
const GARBAGE: &[u8] = b"\x15\x03\x03\x00\x02\x02\x28";
/// What ends the head of a response.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// A running proxy; it ends with the process.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Its address, without a slash at the end.
    pub url: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Servers by what clients call them: a host; for TLS, with its port.
    servers: BTreeMap<String, SocketAddr>,
    seed: usize,
    conduct: Mutex<Conduct>,
    /// How often something was asked for.
    asked: Mutex<BTreeMap<String, u64>>,
    /// The last whole answer to each request, as it came.
    answers: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Proxy {
    /// A proxy that behaves and knows these servers: what clients call them, and where they are.
    pub fn start(servers: &[(&str, &str)], random: &mut Random) -> Self {
        let address = |(name, address): &(&str, &str)| ((*name).to_owned(), address.parse::<SocketAddr>().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let shared = Arc::new(Shared {
            servers: servers.iter().map(address).collect(),
            seed: random.below(usize::MAX),
            conduct: Mutex::new(Conduct::Good),
            asked: Mutex::default(),
            answers: Mutex::default(),
        });
        let proxy = Self { url: format!("http://{}", listener.local_addr().unwrap()), shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                // A client that hangs up is no matter for the test.
                thread::spawn(move || shared.answer(stream).ok());
            }
        });
        proxy
    }

    /// From now on, requests are treated like this.
    pub fn conduct(&self, conduct: Conduct) {
        *self.shared.conduct.lock().unwrap() = conduct;
    }

    /// `imgbuild`, which is told of this proxy by the environment, as curl is. `apt` is a folder that is made for it.
    pub fn by_environment(&self, apt: &Path) -> Command {
        let mut command = hiding_apt(apt);
        command.env("http_proxy", &self.url).env("https_proxy", &self.url);
        command
    }

    /// The same, told by apt's configuration, which counts more than the environment.
    pub fn by_apt(&self, apt: &Path) -> Command {
        let mut command = hiding_apt(apt);
        fs::write(apt.join("apt.conf"), format!("Acquire::http::Proxy \"{}\";\n", self.url)).unwrap();
        command.env("http_proxy", "http://127.0.0.1:1").env_remove("https_proxy").env_remove("HTTPS_PROXY");
        command
    }
}

/// `imgbuild` with `apt` in place of what this machine has told its apt, which may be another proxy.
fn hiding_apt(apt: &Path) -> Command {
    fs::create_dir_all(apt).unwrap();
    let script = "apt=$1; shift; [ ! -d /etc/apt ] || mount --bind \"$apt\" /etc/apt || exit 99; exec \"$@\"";
    in_own_mounts(script, &[apt, binary()])
}

impl Shared {
    /// What is to be done to a request for `target`, and chance for the details.
    fn chosen(&self, target: &str) -> (Fault, Random) {
        let time = {
            let mut asked = self.asked.lock().unwrap();
            let time = asked.entry(target.to_owned()).or_default();
            *time += 1;
            *time
        };
        let hash = Sha256::digest(format!("{} {target} {time}", self.seed));
        let mut random = Random::new(u64::from_le_bytes(hash[..8].try_into().expect("eight bytes")));
        let fault = match *self.conduct.lock().unwrap() {
            Conduct::Good => Fault::Nothing,
            Conduct::Bad => *random.one_of(CHANCES),
            Conduct::Always(fault) => fault,
        };
        println!("proxy: {target}, time {time}: {fault:?}");
        (fault, random)
    }

    fn answer(&self, mut client: TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let mut head: Vec<String> = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            head.push(line.trim_end().to_owned());
        }
        let mut words = head.first().map_or("", String::as_str).split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let rest = target.strip_prefix("http://").unwrap_or(target);
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let Some(server) = self.servers.get(host) else { return client.write_all(&page(502)) };
        let (fault, mut random) = self.chosen(target);
        if method == "CONNECT" {
            return tunnel(client, *server, fault, &mut random);
        }
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(STUCK))?;
        // Its header lines ask to end the connection after the answer.
        let lines: String = head.iter().skip(1).map(|line| format!("{line}\r\n")).collect();
        stream.write_all(format!("{method} {path} HTTP/1.1\r\n{lines}\r\n").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let other = {
            let mut answers = self.answers.lock().unwrap();
            let other = answers.iter().find(|(own, _)| *own != target).map(|(_, answer)| answer.clone());
            if answer.starts_with(b"HTTP/1.1 200") {
                answers.insert(target.to_owned(), answer.clone());
            }
            other
        };
        spoil(&mut client, answer, other, fault, &mut random)
    }
}

/// Sends `answer` with a fault.
fn spoil(
    client: &mut TcpStream,
    mut answer: Vec<u8>,
    other: Option<Vec<u8>>,
    fault: Fault,
    random: &mut Random,
) -> io::Result<()> {
    let body = answer.windows(HEAD_END.len()).position(|end| end == HEAD_END).map_or(answer.len(), |at| at + 4);
    let middle = random.below(answer.len().max(1));
    match fault {
        Fault::Nothing => client.write_all(&answer),
        Fault::Silence => Ok(()),
        Fault::Cut => client.write_all(&answer[..middle]),
        Fault::Flip => {
            if body < answer.len() {
                let at = body + random.below(answer.len() - body);
                answer[at] ^= 1 << random.below(8);
            }
            client.write_all(&answer)
        }
        Fault::Pause => {
            client.write_all(&answer[..middle])?;
            thread::sleep(PAUSE);
            client.write_all(&answer[middle..])
        }
        Fault::Status(status) => client.write_all(&page(status)),
        Fault::Other => client.write_all(&other.unwrap_or_else(|| page(200))),
        Fault::Garbage => client.write_all(GARBAGE),
    }
}

/// Connects client and server, with a fault in what the server says.
fn tunnel(mut client: TcpStream, server: SocketAddr, fault: Fault, random: &mut Random) -> io::Result<()> {
    match fault {
        Fault::Silence => return Ok(()),
        Fault::Status(status) => return client.write_all(&page(status)),
        Fault::Other => return client.write_all(&page(200)),
        Fault::Garbage => return client.write_all(GARBAGE),
        Fault::Nothing | Fault::Cut | Fault::Flip | Fault::Pause => {}
    }
    let mut server = TcpStream::connect(server)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        // Whoever hangs up first ends both directions.
        _ = io::copy(&mut from, &mut to);
        _ = to.shutdown(Shutdown::Write);
    });
    let passed = pass(&mut server, &mut client, fault, random);
    // They fail where the other side was faster.
    _ = server.shutdown(Shutdown::Both);
    _ = client.shutdown(Shutdown::Both);
    passed
}

/// Passes on what the server says, with a fault.
fn pass(server: &mut TcpStream, client: &mut TcpStream, fault: Fault, random: &mut Random) -> io::Result<()> {
    let place = random.below(TUNNELLED);
    let (mut buf, mut passed) = (vec![0; 16 << 10], 0);
    loop {
        let n = server.read(&mut buf)?;
        if n == 0 {
            return Ok(());
        }
        if (passed..passed + n).contains(&place) {
            let at = place - passed;
            match fault {
                Fault::Cut => return client.write_all(&buf[..at]),
                Fault::Flip => buf[at] ^= 1 << random.below(8),
                Fault::Pause => thread::sleep(PAUSE),
                _ => {}
            }
        }
        client.write_all(&buf[..n])?;
        passed += n;
    }
}

/// What the proxy has to say itself.
fn page(status: u16) -> Vec<u8> {
    let text = format!("<!DOCTYPE html><title>{status}</title><p>This is not what you asked for, but the proxy.\n");
    let length = format!("Content-Length: {}\r\n", text.len());
    format!("HTTP/1.1 {status} By the proxy\r\nContent-Type: text/html\r\n{length}Connection: close\r\n\r\n{text}")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::Web;

    const HOST: &str = "files.example.invalid";

    fn setup(bytes: &[u8]) -> (Web, Proxy) {
        let web = Web::serve();
        web.put("file", bytes);
        let proxy = Proxy::start(&[(HOST, web.address())], &mut Random::new(1));
        (web, proxy)
    }

    /// Head and body of what comes of a request.
    fn get(proxy: &Proxy, url: &str) -> (String, Vec<u8>) {
        let mut stream = TcpStream::connect(proxy.url.trim_start_matches("http://")).unwrap();
        write!(stream, "GET {url} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let at = answer.windows(4).position(|end| end == HEAD_END).map_or(answer.len(), |at| at + 4);
        (String::from_utf8_lossy(&answer[..at]).into_owned(), answer[at..].to_vec())
    }

    #[test]
    fn a_good_one_gives_what_the_server_has_and_knows_no_other_server() {
        let (web, proxy) = setup(b"some bytes");
        let (head, body) = get(&proxy, &format!("http://{HOST}/file"));
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(body, b"some bytes");
        assert_eq!(web.sent("file"), 10);
        assert!(get(&proxy, &format!("http://{HOST}/none")).0.starts_with("HTTP/1.1 404 "));
        assert!(get(&proxy, "http://elsewhere.example.invalid/file").0.starts_with("HTTP/1.1 502 "));
    }

    #[test]
    fn every_fault_is_one() {
        let bytes: Vec<u8> = (0..30_000_u32).map(|i| (i / 7) as u8).collect();
        let (web, proxy) = setup(&bytes);
        web.put("other", b"other");
        let ask = |fault| {
            proxy.conduct(Conduct::Always(fault));
            get(&proxy, &format!("http://{HOST}/file"))
        };
        assert_eq!(ask(Fault::Silence), (String::new(), vec![]));
        let (head, body) = ask(Fault::Cut);
        assert!(body.len() < bytes.len() && bytes.starts_with(&body), "{head}");
        let different = ask(Fault::Flip).1.iter().zip(&bytes).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
        assert_eq!(different, 1);
        assert_eq!(ask(Fault::Pause).1, bytes);
        assert!(ask(Fault::Status(407)).0.starts_with("HTTP/1.1 407 "));
        assert_eq!(ask(Fault::Garbage).0.as_bytes().first(), Some(&0x15));
        assert!(ask(Fault::Other).1.starts_with(b"<!DOCTYPE"), "nothing else was asked for");
        proxy.conduct(Conduct::Good);
        assert_eq!(get(&proxy, &format!("http://{HOST}/other")).1, b"other");
        assert_eq!(ask(Fault::Other).1, b"other");
    }

    #[test]
    fn chance_depends_on_the_seed_and_on_what_is_asked_for() {
        let faults = |seed, target: &str| {
            let proxy = Proxy::start(&[], &mut Random::new(seed));
            proxy.conduct(Conduct::Bad);
            (0..40).map(|_| proxy.shared.chosen(target).0).collect::<Vec<Fault>>()
        };
        let first = faults(1, "a");
        assert_eq!(faults(1, "a"), first);
        assert_ne!(faults(2, "a"), first);
        assert_ne!(faults(1, "b"), first);
        let good = first.iter().filter(|fault| **fault == Fault::Nothing).count();
        assert!((3..30).contains(&good), "{first:?}");
    }
}
