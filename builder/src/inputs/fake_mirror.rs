// SPDX-License-Identifier: MIT OR Apache-2.0

//! For tests: a mirror in this process that can misbehave in all the ways mirrors do.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::store::Digest;

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
    /// Serves the rest of the file from one byte later on than was asked for, and says so.
    WrongStart,
    /// Serves the rest of the file whatever version of it was asked for.
    IgnoreVersion,
    /// Flips a bit of the byte at this place, counted from the end of the file on again.
    Flip(usize),
    /// Has so many bytes more.
    Longer(usize),
    /// Has so many bytes fewer.
    Shorter(usize),
    /// Has another file from now on.
    Change(Vec<u8>),
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// What to do with the next requests for a path, before being good again.
    moods: BTreeMap<String, Vec<Mood>>,
    requests: Vec<String>,
    /// Bytes of files that were sent, by path.
    served: BTreeMap<String, u64>,
    /// Whether versions of files are told apart.
    tags: bool,
}

/// A running fake mirror.
#[derive(Debug, Clone)]
pub(crate) struct FakeMirror {
    state: Arc<Mutex<State>>,
    pub(crate) uri: String,
}

impl FakeMirror {
    pub(crate) fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (uri, listener) = listen();
        let shared = state.clone();
        answer_all(listener, move |stream| serve(stream, &shared));
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

    /// Sends an ETag with each file from now on, and looks at `If-Range`.
    pub(crate) fn send_tags(&self) {
        self.state.lock().unwrap().tags = true;
    }

    /// How many bytes of the file were sent so far.
    pub(crate) fn served(&self, path: &str) -> u64 {
        self.state.lock().unwrap().served.get(&format!("/{path}")).copied().unwrap_or(0)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.uri)
    }

    /// The requests so far: the target, and the range if one was asked for.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }
}

/// Opens a port of its own, and gives its address, too.
pub(super) fn listen() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (format!("http://{}", listener.local_addr().unwrap()), listener)
}

/// Has each connection served in a thread of its own.
pub(super) fn answer_all(listener: TcpListener, serve: impl Fn(TcpStream) + Clone + Send + 'static) {
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
}

/// The lines of a request's head.
pub(super) fn head(stream: &TcpStream) -> Vec<String> {
    let lines = BufReader::new(stream).lines().map_while(Result::ok).map(|line| line.trim().to_owned());
    lines.take_while(|line| !line.is_empty()).collect()
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    let lines = head(&stream);
    let Some(target) = lines.first().and_then(|line| line.split(' ').nth(1)).map(str::to_owned) else { return };
    let header = |name: &str| lines.iter().find_map(|line| line.to_lowercase().strip_prefix(name).map(str::to_owned));
    let range = header("range: bytes=");
    let offset: usize = range.as_ref().map_or(0, |range| range.trim_end_matches('-').parse().unwrap());
    // A proxy is asked for a whole URL.
    let path = target.strip_prefix("http://").map_or(target.clone(), |rest| rest[rest.find('/').unwrap()..].to_owned());
    let (file, mood, tags) = {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{target}{}", range.map(|r| format!(" {r}")).unwrap_or_default()));
        let mood = state.moods.get_mut(&path).and_then(Vec::pop).unwrap_or(Mood::Good);
        if let Mood::Change(bytes) = &mood {
            state.files.insert(path.clone(), bytes.clone());
        }
        (state.files.get(&path).cloned(), mood, state.tags)
    };
    let count = |bytes: usize| *state.lock().unwrap().served.entry(path.clone()).or_default() += bytes as u64;
    let asked = Asked { offset, version: header("if-range: "), tags };
    let _ = answer(&mut stream, file, &mood, &asked, &count);
}

/// What a client wants of a file.
struct Asked {
    /// From where on.
    offset: usize,
    /// Only if the file is this one.
    version: Option<String>,
    /// Whether it is told which one it gets.
    tags: bool,
}

fn answer(
    stream: &mut TcpStream,
    file: Option<Vec<u8>>,
    mood: &Mood,
    asked: &Asked,
    count: &dyn Fn(usize),
) -> std::io::Result<()> {
    let Some(mut file) = file else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n");
    };
    if let Mood::Status(status) = mood {
        return write!(stream, "HTTP/1.1 {status} So\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let tag = format!("\"{}\"", &Digest::of(&file).to_string()[..16]);
    match mood {
        Mood::Lie => file.iter_mut().for_each(|byte| *byte ^= 1),
        Mood::Flip(at) if !file.is_empty() => {
            let at = at % file.len();
            file[at] ^= 1;
        }
        Mood::Longer(n) => file.resize(file.len() + n, b'+'),
        Mood::Shorter(n) => file.truncate(file.len().saturating_sub(*n)),
        _ => {}
    }
    let tag_line = if asked.tags { format!("ETag: {tag}\r\n") } else { String::new() };
    if *mood == Mood::Chunked {
        write!(stream, "HTTP/1.1 200 OK\r\n{tag_line}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")?;
        for chunk in file.chunks(7) {
            write!(stream, "{:x}\r\n", chunk.len())?;
            count(chunk.len());
            stream.write_all(chunk)?;
            write!(stream, "\r\n")?;
        }
        return write!(stream, "0\r\n\r\n");
    }
    let size = file.len();
    let is_same = *mood == Mood::IgnoreVersion || asked.version.as_ref().is_none_or(|version| *version == tag);
    let start = match mood {
        Mood::IgnoreRange => 0,
        _ if !is_same => 0,
        Mood::WrongStart if asked.offset > 0 => asked.offset + 1,
        _ => asked.offset,
    };
    if start > 0 && start >= size {
        let range = format!("Content-Range: bytes */{size}\r\n");
        return write!(stream, "HTTP/1.1 416 So\r\n{range}Content-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let body = &file[start..];
    if start > 0 {
        write!(stream, "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{size}\r\n", size - 1)?;
    } else {
        write!(stream, "HTTP/1.1 200 OK\r\n")?;
    }
    write!(stream, "{tag_line}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    let sent = match mood {
        Mood::Truncate(n) | Mood::Stall(n) => &body[..(*n).min(body.len())],
        _ => body,
    };
    count(sent.len());
    stream.write_all(sent)?;
    if let Mood::Stall(_) = mood {
        stream.flush()?;
        std::thread::sleep(Duration::from_secs(5));
    }
    Ok(())
}
