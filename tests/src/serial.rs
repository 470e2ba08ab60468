// SPDX-License-Identifier: MIT OR Apache-2.0

//! A serial line of a virtual machine: a thread reads it into a log, and tests wait for text in it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// One end of a serial line. Clones share the log.
#[derive(Debug, Clone)]
pub struct Serial {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    log: Mutex<Log>,
    changed: Condvar,
    line: UnixStream,
}

#[derive(Debug, Default)]
struct Log {
    /// What came, without escape sequences and carriage returns.
    text: String,
    closed: bool,
}

/// Why a wait ended without the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missed {
    /// The time is up.
    Deadline,
    /// The other end hung up.
    Closed,
    /// A line came that means failure.
    Fatal(String),
}

impl Serial {
    /// Starts reading `line`; with `copy`, everything is also written there as it comes.
    pub fn start(line: UnixStream, mut copy: Option<File>) -> Self {
        let mut reader = line.try_clone().expect("a socket can be cloned");
        let shared = Arc::new(Shared { log: Mutex::default(), changed: Condvar::new(), line });
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut filter = Filter::default();
            let mut buffer = [0; 4096];
            loop {
                let n = reader.read(&mut buffer).unwrap_or(0);
                let mut log = theirs.log.lock().unwrap();
                let before = log.text.len();
                filter.push(&buffer[..n], &mut log.text);
                if let Some(copy) = &mut copy {
                    // A full disk shall not hide what the test is about.
                    _ = copy.write_all(&log.text.as_bytes()[before..]);
                }
                log.closed = n == 0;
                theirs.changed.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        Self { shared }
    }

    /// Length of the log so far, for [`Serial::wait`].
    pub fn position(&self) -> usize {
        self.shared.log.lock().unwrap().text.len()
    }

    /// Everything that came since `from`.
    pub fn since(&self, from: usize) -> String {
        self.shared.log.lock().unwrap().text[from..].to_owned()
    }

    /// Sends text.
    pub fn send(&self, text: &str) {
        (&self.shared.line).write_all(text.as_bytes()).expect("writing to a serial line");
    }

    /// Waits until a whole line that contains `needle` came after `from`, and gives that line.
    ///
    /// # Errors
    /// If a whole line contains one of `fatal`, if the line is hung up, or after `limit`.
    pub fn wait(&self, needle: &str, from: usize, fatal: &[&str], limit: Duration) -> Result<String, Missed> {
        self.wait_by(|line| line.contains(needle), from, fatal, limit)
    }

    /// As [`Serial::wait`], for a line of which `wanted` says yes.
    ///
    /// # Errors
    /// As [`Serial::wait`].
    pub fn wait_by(
        &self,
        wanted: impl Fn(&str) -> bool,
        from: usize,
        fatal: &[&str],
        limit: Duration,
    ) -> Result<String, Missed> {
        let deadline = Instant::now() + limit;
        let mut log = self.shared.log.lock().unwrap();
        let mut at = from;
        loop {
            // Only whole lines count, so that what is found does not depend on how the bytes came.
            while let Some(end) = log.text[at..].find('\n') {
                let line = &log.text[at..at + end];
                if wanted(line) {
                    return Ok(line.to_owned());
                }
                if fatal.iter().any(|fatal| line.contains(fatal)) {
                    return Err(Missed::Fatal(line.to_owned()));
                }
                at += end + 1;
            }
            if log.closed {
                return Err(Missed::Closed);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Missed::Deadline);
            }
            log = self.shared.changed.wait_timeout(log, left).unwrap().0;
        }
    }

    /// The last `count` lines.
    pub fn tail(&self, count: usize) -> String {
        let log = self.shared.log.lock().unwrap();
        let lines: Vec<&str> = log.text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

/// Takes away what is for terminals only: escape sequences and carriage returns, also when split between two reads.
#[derive(Debug, Default)]
struct Filter {
    state: State,
    /// The first bytes of a character whose rest has not come.
    pending: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Text,
    Escape,
    /// After `ESC [`.
    Control,
    /// After `ESC ]`: ends with BEL or with the next escape.
    Command,
}

impl Filter {
    fn push(&mut self, bytes: &[u8], out: &mut String) {
        for &byte in bytes {
            self.state = match (self.state, byte) {
                (State::Text | State::Command, 0x1b) => State::Escape,
                (State::Text, b'\r') => State::Text,
                (State::Text, _) => {
                    self.pending.push(byte);
                    State::Text
                }
                (State::Escape, b'[') => State::Control,
                (State::Escape, b']') => State::Command,
                (State::Control, 0x20..=0x3f) => State::Control,
                (State::Command, 0x07) => State::Text,
                (State::Command, _) => State::Command,
                (State::Escape | State::Control, _) => State::Text,
            };
        }
        let whole = match std::str::from_utf8(&self.pending) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.pending.len(),
        };
        out.push_str(&String::from_utf8_lossy(&self.pending[..whole]));
        self.pending.drain(..whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_characters_may_be_split() {
        let bytes = "\x1b[1;32mgr\u{fc}n\x1b[0m\r\nplain\x1b]0;title\x07!\n".as_bytes();
        for cut in 0..bytes.len() {
            let (mut filter, mut out) = (Filter::default(), String::new());
            filter.push(&bytes[..cut], &mut out);
            filter.push(&bytes[cut..], &mut out);
            assert_eq!(out, "gr\u{fc}n\nplain!\n", "cut at {cut}");
        }
    }

    #[test]
    fn a_wait_finds_its_line_or_says_why_not() {
        let (mut far, near) = UnixStream::pair().unwrap();
        let serial = Serial::start(near, None);
        let long = Duration::from_secs(20);
        far.write_all(b"one\ntwo and").unwrap();
        far.write_all(b" three\n").unwrap();
        assert_eq!(serial.wait("two", 0, &[], long), Ok("two and three".to_owned()));
        assert_eq!(serial.wait("four", 0, &[], Duration::from_millis(20)), Err(Missed::Deadline));
        assert_eq!(serial.wait("four", 0, &["three"], long), Err(Missed::Fatal("two and three".to_owned())));
        drop(far);
        assert_eq!(serial.wait("four", 0, &[], long), Err(Missed::Closed));
        assert_eq!(serial.tail(1), "two and three");
    }
}
