// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one place where firstboot runs other programs.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Where programs are looked for: the payload first, then the root.
pub const PATH: &str = "/opt/imgbuild/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Lines of stderr quoted in errors.
const TAIL_LINES: usize = 8;
/// stdout is kept up to this many bytes: `kubectl get -o json` fits, a runaway program does not eat the node.
const STDOUT_LIMIT: usize = 8 << 20;
/// Of util-linux: runs a program that dies with its parent.
const SETPRIV: &str = "setpriv";

/// A program to run, its arguments and limits.
#[derive(Debug, Clone)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment beyond `PATH` and `LC_ALL`.
    pub env: Vec<(String, String)>,
    /// It is killed, with its children, after this time.
    pub timeout: Duration,
}

impl Command {
    /// A program with arguments, and two minutes.
    pub fn new<S: AsRef<str>>(program: &str, args: impl IntoIterator<Item = S>) -> Self {
        let mut argv = vec![program.to_owned()];
        argv.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        Self { argv, env: Vec::new(), timeout: Duration::from_secs(120) }
    }

    /// With another time limit.
    pub fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = Duration::from_secs(seconds);
        self
    }

    /// With an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.argv.join(" "))
    }
}

/// How a program ended.
#[derive(Debug, Clone, Default)]
pub struct Output {
    /// Exit status; 128 + signal if a signal ended it.
    pub status: i32,
    /// What it wrote to stdout.
    pub stdout: String,
    /// The last lines of its stderr.
    pub stderr_tail: String,
    /// How long it took.
    pub elapsed: Duration,
}

impl Output {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        self.status == 0
    }
}

/// Writes a program's stdin.
pub type Feed<'a> = &'a mut (dyn FnMut(&mut dyn Write) -> io::Result<()> + Send);

/// Runs programs; tests have one that only pretends.
pub trait Runner {
    /// Runs `command` to its end. Every line of its stdout and stderr goes to `on_line` as it appears.
    fn run(&self, command: &Command, feed: Option<Feed<'_>>, on_line: &mut dyn FnMut(&str)) -> Result<Output>;
    /// Runs `commands` to their ends, `at_once` of them at a time, and hands out how each one ended as soon as it has.
    fn run_all(&self, commands: &[Command], at_once: usize, each: &mut dyn FnMut(usize, Result<Output>));
    /// Starts `command` beside everything else, until what this returns is dropped. Nobody reads what it writes.
    fn start(&self, command: &Command) -> Result<Box<dyn Background>>;
}

/// A program that runs until this is dropped.
pub trait Background {
    /// Whether it still runs.
    fn runs(&mut self) -> bool;
}

/// Runs them for real.
#[derive(Debug, Default)]
pub struct RealRunner;

enum Line {
    Out(String),
    Err(String),
}

impl Runner for RealRunner {
    fn run(&self, command: &Command, feed: Option<Feed<'_>>, on_line: &mut dyn FnMut(&str)) -> Result<Output> {
        let started = Instant::now();
        let mut child = spawn(command, feed.is_some())?;
        let deadline = started + command.timeout;
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let stdin = child.stdin.take();
        let mut collected = Collected::default();
        let (status, fed) = std::thread::scope(|scope| {
            let err_sender = sender.clone();
            scope.spawn(move || send_lines(stdout, &sender, Line::Out));
            scope.spawn(move || send_lines(stderr, &err_sender, Line::Err));
            let feeder = scope.spawn(move || match (feed, stdin) {
                (Some(feed), Some(mut stdin)) => feed(&mut stdin),
                _ => Ok(()),
            });
            let status = wait(&mut child, &lines, deadline, |line| collected.take(line, on_line));
            (status, feeder.join())
        });
        let (status, timed_out) = status.with_context(|| format!("waiting for {}", command.argv[0]))?;
        if timed_out {
            collected.push_tail(format!("killed after {} s", command.timeout.as_secs()));
        }
        let mut output = Output {
            status: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: collected.stdout,
            stderr_tail: collected.tail.into_iter().collect::<Vec<_>>().join("\n"),
            elapsed: started.elapsed(),
        };
        // A program that failed also breaks its pipe: then its own words say more than ours.
        match fed {
            Ok(Err(error)) if output.success() => {
                return Err(error).with_context(|| format!("feeding {}", command.argv[0]));
            }
            Err(_) => output.status = 255,
            _ => {}
        }
        Ok(output)
    }

    fn run_all(&self, commands: &[Command], at_once: usize, each: &mut dyn FnMut(usize, Result<Output>)) {
        let next = AtomicUsize::new(0);
        let (sender, ends) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..at_once.clamp(1, commands.len().max(1)) {
                let (next, sender) = (&next, sender.clone());
                scope.spawn(move || {
                    loop {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(command) = commands.get(at) else { return };
                        let end = RealRunner.run(command, None, &mut |_| {});
                        if sender.send((at, end)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            ends.iter().for_each(|(at, end)| each(at, end));
        });
    }

    fn start(&self, command: &Command) -> Result<Box<dyn Background>> {
        // Drop does not run when we are killed; then the kernel ends the program, if setpriv(1) can ask it to. (The unit's
        // control group does so too, but firstboot may also have been typed by a person.)
        let mut argv = command.argv.clone();
        if Path::new(&resolve(SETPRIV)).exists() {
            argv.splice(0..0, [SETPRIV, "--pdeathsig", "KILL"].map(str::to_owned));
        }
        let mut started = prepare(&Command { argv, ..command.clone() })?;
        let started = started.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = started.with_context(|| format!("starting {} (looked in {PATH})", command.argv[0]))?;
        Ok(Box::new(RealBackground(child)))
    }
}

struct RealBackground(Child);

impl Background for RealBackground {
    fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for RealBackground {
    fn drop(&mut self) {
        if self.runs() {
            kill_group(&self.0);
            let _ = self.0.wait();
        }
    }
}

fn spawn(command: &Command, feed: bool) -> Result<Child> {
    prepare(command)?
        .stdin(if feed { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {} (looked in {PATH})", command.argv[0]))
}

/// The program with its arguments and environment, in a process group of its own.
fn prepare(command: &Command) -> Result<std::process::Command> {
    let (program, args) = command.argv.split_first().context("a command has a program")?;
    let mut prepared = std::process::Command::new(resolve(program));
    prepared
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", "/root")
        .envs(command.env.iter().map(|(name, value)| (name, value)))
        .process_group(0);
    Ok(prepared)
}

/// The program's path by our own `PATH`: `std` would search the parent's.
fn resolve(program: &str) -> String {
    if program.contains('/') {
        return program.to_owned();
    }
    PATH.split(':')
        .map(|dir| format!("{dir}/{program}"))
        .find(|path| Path::new(path).exists())
        .unwrap_or_else(|| program.to_owned())
}

fn send_lines(from: Option<impl Read>, to: &mpsc::Sender<Line>, wrap: fn(String) -> Line) {
    let Some(from) = from else { return };
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line).into_owned();
        line.clear();
        if to.send(wrap(text)).is_err() {
            return;
        }
    }
}

/// Hands out lines until the program has ended and its pipes are empty; kills its process group at the deadline.
/// A daemon that the program left behind may hold the pipes open: two seconds after the end they are given up.
fn wait(
    child: &mut Child,
    lines: &mpsc::Receiver<Line>,
    deadline: Instant,
    mut each: impl FnMut(Line),
) -> io::Result<(ExitStatus, bool)> {
    let mut ended: Option<(ExitStatus, Instant)> = None;
    let mut timed_out = false;
    loop {
        let closed = match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => {
                each(line);
                continue;
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => true,
        };
        if ended.is_none() {
            ended = child.try_wait()?.map(|status| (status, Instant::now()));
        }
        match ended {
            Some((status, at)) if closed || at.elapsed() > Duration::from_secs(2) => {
                if !closed {
                    kill_group(child);
                }
                return Ok((status, timed_out));
            }
            None if !timed_out && Instant::now() >= deadline => {
                timed_out = true;
                kill_group(child);
            }
            _ if closed => std::thread::sleep(Duration::from_millis(10)),
            _ => {}
        }
    }
}

fn kill_group(child: &Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

#[derive(Default)]
struct Collected {
    stdout: String,
    tail: VecDeque<String>,
}

impl Collected {
    fn take(&mut self, line: Line, on_line: &mut dyn FnMut(&str)) {
        match line {
            Line::Out(text) => {
                on_line(text.trim_end());
                if self.stdout.len() < STDOUT_LIMIT {
                    self.stdout.push_str(&text);
                }
            }
            Line::Err(text) => {
                on_line(text.trim_end());
                self.push_tail(text.trim_end().to_owned());
            }
        }
    }

    fn push_tail(&mut self, line: String) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }
}

/// Hides what looks like a bootstrap token (`[a-z0-9]{6}.[a-z0-9]{16}`): kubeadm prints tokens, journals are kept.
pub fn redact(line: &str) -> String {
    let is_token_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    line.split_inclusive(|c: char| !(is_token_char(c) || c == '.'))
        .map(|piece| {
            let word = piece.trim_end_matches(|c: char| !(is_token_char(c) || c == '.'));
            match word.split_once('.') {
                Some((id, secret)) if id.len() == 6 && secret.len() == 16 && secret.chars().all(is_token_char) => {
                    format!("<token>{}", &piece[word.len()..])
                }
                _ => piece.to_owned(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, timeout: u64) -> (Output, Vec<String>) {
        let mut lines = Vec::new();
        let command = Command::new("sh", ["-c", script]).timeout(timeout);
        let output = RealRunner.run(&command, None, &mut |line| lines.push(line.to_owned())).unwrap();
        (output, lines)
    }

    #[test]
    fn keeps_stdout_and_the_tail_of_stderr() {
        let (output, lines) = run("echo out; for i in 1 2 3 4 5 6 7 8 9 10; do echo e$i >&2; done; exit 3", 10);
        assert_eq!(output.status, 3);
        assert_eq!(output.stdout, "out\n");
        assert!(output.stderr_tail.starts_with("e3\n") && output.stderr_tail.ends_with("e10"));
        assert_eq!(lines.len(), 11);
    }

    #[test]
    fn kills_what_takes_too_long_and_its_children() {
        let started = Instant::now();
        let (output, _) = run("sleep 60 & sleep 60", 1);
        assert!(started.elapsed() < Duration::from_secs(10));
        assert_eq!(output.status, 128 + 9);
        assert!(output.stderr_tail.contains("killed after 1 s"));
    }

    #[test]
    fn a_background_program_ends_with_what_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let beat = dir.path().join("beat");
        let script = format!("sleep 60 & while :; do echo x >>{}; sleep 0.05; done", beat.display());
        let size = || std::fs::metadata(&beat).map_or(0, |meta| meta.len());
        let mut held = RealRunner.start(&Command::new("sh", ["-c", &script])).unwrap();
        let started = Instant::now();
        while size() < 4 && started.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(size() >= 4 && held.runs());
        drop(held);
        let after = size();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(size(), after);
        let mut short = RealRunner.start(&Command::new("true", [""; 0])).unwrap();
        while short.runs() && started.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(!short.runs());
    }

    #[test]
    fn several_run_at_once_and_each_end_is_handed_out() {
        let sleep = |status| Command::new("sh", ["-c".to_owned(), format!("sleep 0.5; exit {status}")]);
        let commands: Vec<Command> = (0..4).map(sleep).collect();
        let started = Instant::now();
        let mut ends = Vec::new();
        RealRunner.run_all(&commands, 4, &mut |at, end| ends.push((at, end.unwrap().status)));
        assert!(started.elapsed() < Duration::from_millis(1800), "{:?}", started.elapsed());
        ends.sort_unstable();
        assert_eq!(ends, [(0, 0), (1, 1), (2, 2), (3, 3)]);
        RealRunner.run_all(&[], 4, &mut |_, _| unreachable!());
    }

    #[test]
    fn feeds_stdin() {
        let mut feed = |stdin: &mut dyn Write| (0..1000).try_for_each(|_| stdin.write_all(&[b'x'; 1000]));
        let command = Command::new("sh", ["-c", "wc -c"]);
        let output = RealRunner.run(&command, Some(&mut feed), &mut |_| {}).unwrap();
        assert_eq!(output.stdout.trim(), "1000000");
    }

    #[test]
    fn a_program_that_does_not_read_is_not_our_failure_to_explain() {
        let mut feed = |stdin: &mut dyn Write| (0..1000).try_for_each(|_| stdin.write_all(&[b'x'; 1000]));
        let command = Command::new("sh", ["-c", "echo no space >&2; exit 4"]);
        let output = RealRunner.run(&command, Some(&mut feed), &mut |_| {}).unwrap();
        assert_eq!((output.status, output.stderr_tail.as_str()), (4, "no space"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = RealRunner.run(&Command::new("no-such-program", [""; 0]), None, &mut |_| {}).unwrap_err();
        assert!(format!("{error:#}").contains("starting no-such-program"));
    }

    #[test]
    fn tokens_are_hidden() {
        assert_eq!(redact("join --token k3pqzv.0123456789abcdex --x"), "join --token <token> --x");
        assert_eq!(redact("Using token: k3pqzv.0123456789abcdex"), "Using token: <token>");
        assert_eq!(redact("k8s.gcr.io/pause:3.2 10.0.2.15"), "k8s.gcr.io/pause:3.2 10.0.2.15");
    }
}
