// SPDX-License-Identifier: MIT OR Apache-2.0
//! What answers on another member's etcd peer port: etcd, or a firstboot that greets because its member has no data yet.
//!
//! A firstboot says one line and closes: `imgbuild <cluster-id> fresh` or `imgbuild <cluster-id> agreed`. etcd says nothing
//! of itself, and a slow firstboot is silent for a while too, so silence proves nothing. Whoever asks sends a TLS record
//! at once that no handshake may begin with: etcd answers with a TLS alert, which nothing else does.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// A handshake record with a HelloRequest, which only servers may send. The answer is the alert `unexpected_message`.
const QUESTION: [u8; 9] = [0x16, 3, 1, 0, 4, 0, 0, 0, 0];
/// The first bytes of what TLS answers: an alert, or (should a server be lenient) a handshake.
const TLS_ALERT: u8 = 0x15;
const TLS_HANDSHAKE: u8 = 0x16;
/// No greeting is longer.
const LINE_LIMIT: u64 = 200;

/// How far a member without data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It looks for the others.
    Fresh,
    /// It has seen all others without data, and may start a new cluster with them.
    Agreed,
}

/// What answers on a peer port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerPort {
    /// Nothing, or nothing that makes sense yet.
    Absent,
    /// A member of this cluster without data.
    Waiting(Stage),
    /// A member without data of the cluster with this id.
    OtherCluster(String),
    /// etcd.
    Etcd,
}

/// The line that a member without data says.
pub fn greeting(cluster: &str, stage: Stage) -> String {
    let stage = match stage {
        Stage::Fresh => "fresh",
        Stage::Agreed => "agreed",
    };
    format!("imgbuild {cluster} {stage}\n")
}

/// Asks the peer port at `at`.
pub fn ask(at: SocketAddr, cluster: &str) -> PeerPort {
    answer(at).map_or(PeerPort::Absent, |answer| understand(&answer, cluster))
}

fn answer(at: SocketAddr) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&QUESTION)?;
    let mut answer = Vec::new();
    let mut limited = stream.take(LINE_LIMIT);
    let mut byte = [0];
    // One byte is enough of TLS; of a greeting, the line.
    while limited.read(&mut byte)? == 1 {
        answer.push(byte[0]);
        if byte[0] == b'\n' || matches!(answer[0], TLS_ALERT | TLS_HANDSHAKE) {
            break;
        }
    }
    Ok(answer)
}

fn understand(answer: &[u8], cluster: &str) -> PeerPort {
    if matches!(answer.first(), Some(&(TLS_ALERT | TLS_HANDSHAKE))) {
        return PeerPort::Etcd;
    }
    let line = answer.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    match line.split(' ').collect::<Vec<_>>().as_slice() {
        ["imgbuild", id, "fresh"] if *id == cluster => PeerPort::Waiting(Stage::Fresh),
        ["imgbuild", id, "agreed"] if *id == cluster => PeerPort::Waiting(Stage::Agreed),
        ["imgbuild", id, "fresh" | "agreed"] if is_cluster_id(id) => PeerPort::OtherCluster((*id).to_owned()),
        _ => PeerPort::Absent,
    }
}

/// It is shown on consoles: nothing else may be.
fn is_cluster_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Greets everyone who connects, until it is dropped; then the port is free for etcd.
pub trait Greeter {
    /// Says another line from now on.
    fn say(&self, line: String);
}

/// The real one.
#[derive(Debug)]
pub struct Listening {
    line: Arc<Mutex<String>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Listens at `at` and greets with `line`.
pub fn greet(at: SocketAddr, line: String) -> Result<Listening> {
    let listener = TcpListener::bind(at).with_context(|| format!("listening on {at}, the peer port of etcd"))?;
    listener.set_nonblocking(true).context("listening on the peer port of etcd")?;
    let (line, stop) = (Arc::new(Mutex::new(line)), Arc::new(AtomicBool::new(false)));
    let (said, stopped) = (line.clone(), stop.clone());
    let thread = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, _)) => {
                    let line = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    // Who hangs up early asks again.
                    let _ = answer_one(stream, &line);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    });
    Ok(Listening { line, stop, thread: Some(thread) })
}

fn answer_one(mut stream: TcpStream, line: &str) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    stream.write_all(line.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // Closing with the question unread would reset the connection, and with it take back the greeting.
    let mut question = [0; 64];
    for _ in 0..4 {
        if stream.read(&mut question)? == 0 {
            break;
        }
    }
    Ok(())
}

impl Greeter for Listening {
    fn say(&self, line: String) {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = line;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    /// A port that was free a moment ago.
    fn free_port() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[test]
    fn members_without_data_hear_each_other() {
        let at = free_port();
        assert_eq!(ask(at, ID), PeerPort::Absent);
        let listening = greet(at, greeting(ID, Stage::Fresh)).unwrap();
        assert_eq!(ask(at, ID), PeerPort::Waiting(Stage::Fresh));
        listening.say(greeting(ID, Stage::Agreed));
        assert_eq!(ask(at, ID), PeerPort::Waiting(Stage::Agreed));
        assert_eq!(ask(at, &"f".repeat(32)), PeerPort::OtherCluster(ID.to_owned()));
        drop(listening);
        assert_eq!(ask(at, ID), PeerPort::Absent);
        // The port is free again at once: etcd comes next.
        drop(TcpListener::bind(at).unwrap());
    }

    #[test]
    fn one_who_hangs_up_or_stays_silent_does_not_stop_the_greeting() {
        let at = free_port();
        let _listening = greet(at, greeting(ID, Stage::Fresh)).unwrap();
        drop(TcpStream::connect(at).unwrap());
        let _silent = TcpStream::connect(at).unwrap();
        assert_eq!(ask(at, ID), PeerPort::Waiting(Stage::Fresh));
    }

    #[test]
    fn only_tls_is_taken_for_etcd() {
        // What etcd 3.4.23 answers to the question.
        assert_eq!(understand(&[0x15, 3, 1, 0, 2, 2, 0x0a], ID), PeerPort::Etcd);
        for other in ["", "imgbuild", "imgbuild x fresh\n", "HTTP/1.1 400 Bad Request\r\n", "SSH-2.0-x\r\n"] {
            assert_eq!(understand(other.as_bytes(), ID), PeerPort::Absent, "{other}");
        }
        let torn = format!("imgbuild {ID} fresh");
        assert_eq!(understand(torn.as_bytes(), ID), PeerPort::Absent);
    }

    #[test]
    fn a_silent_listener_is_not_etcd() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(ask(listener.local_addr().unwrap(), ID), PeerPort::Absent);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = understand(&bytes, ID);
        }
    }
}
