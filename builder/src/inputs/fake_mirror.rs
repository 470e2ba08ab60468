// SPDX-License-Identifier: MIT OR Apache-2.0

//! For tests: a mirror in this process that can misbehave in all the ways mirrors do.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the mirror does with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Serves the file.
    Good,
    /// Serves this many bytes, then closes the connection, though it promised all.
    Truncate(usize),
    /// Sends this many bytes, then nothing more.
    Stall(usize),
    /// Answers with a status and no file.
    Status(u16),
    /// Serves the whole file, whatever range was asked for.
    IgnoreRange,
    /// Serves other bytes of the same length.
    Lie,
    /// Serves in chunks.
    Chunked,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// What to do with the next requests for a path, before being good again.
    moods: BTreeMap<String, Vec<Mood>>,
    requests: Vec<String>,
}

/// A running fake mirror.
#[derive(Debug, Clone)]
pub(crate) struct FakeMirror {
    state: Arc<Mutex<State>>,
    pub(crate) uri: String,
}

impl FakeMirror {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { state, uri }
    }

    pub(crate) fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.state.lock().unwrap().files.insert(format!("/{path}"), bytes.into());
    }

    pub(crate) fn remove(&self, path: &str) {
        self.state.lock().unwrap().files.remove(&format!("/{path}"));
    }

    /// What the next requests for `path` get, in order.
    pub(crate) fn moods(&self, path: &str, moods: &[Mood]) {
        let reversed = moods.iter().rev().cloned().collect();
        self.state.lock().unwrap().moods.insert(format!("/{path}"), reversed);
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.uri)
    }

    /// The requests so far: the target, and the range if one was asked for.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let Some(target) = lines.first().and_then(|line| line.split(' ').nth(1)).map(str::to_owned) else { return };
    let range = lines.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let offset: usize = range.as_ref().map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    // A proxy is asked for a whole URL.
    let path = target.strip_prefix("http://").map_or(target.clone(), |rest| rest[rest.find('/').unwrap()..].to_owned());
    let (file, mood) = {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{target}{}", range.map(|r| format!(" {r}")).unwrap_or_default()));
        let mood = state.moods.get_mut(&path).and_then(Vec::pop).unwrap_or(Mood::Good);
        (state.files.get(&path).cloned(), mood)
    };
    let _ = answer(&mut stream, file, mood, offset);
}

fn answer(stream: &mut TcpStream, file: Option<Vec<u8>>, mood: Mood, offset: usize) -> std::io::Result<()> {
    let Some(mut file) = file else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n");
    };
    if let Mood::Status(status) = mood {
        return write!(stream, "HTTP/1.1 {status} So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    if mood == Mood::Lie {
        file.iter_mut().for_each(|byte| *byte ^= 1);
    }
    if mood == Mood::Chunked {
        write!(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")?;
        for chunk in file.chunks(7) {
            write!(stream, "{:x}\r\n", chunk.len())?;
            stream.write_all(chunk)?;
            write!(stream, "\r\n")?;
        }
        return write!(stream, "0\r\n\r\n");
    }
    let size = file.len();
    let partial = offset > 0 && mood != Mood::IgnoreRange;
    let body = if partial { &file[offset.min(size)..] } else { &file[..] };
    if partial {
        let range = format!("bytes {offset}-{}/{size}", size.saturating_sub(1));
        write!(stream, "HTTP/1.1 206 Partial Content\r\nContent-Range: {range}\r\n")?;
    } else {
        write!(stream, "HTTP/1.1 200 OK\r\n")?;
    }
    write!(stream, "Content-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    match mood {
        Mood::Truncate(n) => stream.write_all(&body[..n.min(body.len())]),
        Mood::Stall(n) => {
            stream.write_all(&body[..n.min(body.len())])?;
            stream.flush()?;
            std::thread::sleep(Duration::from_secs(5));
            Ok(())
        }
        _ => stream.write_all(body),
    }
}
