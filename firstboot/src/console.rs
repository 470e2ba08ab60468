// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines for people: on every console of the machine and on stdout (which systemd puts into the journal).

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Writes `firstboot: <who>: <step>: <text>`.
pub struct Console {
    who: RefCell<String>,
    sinks: RefCell<Vec<Box<dyn Write>>>,
    log: RefCell<Box<dyn Write>>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("who", &self.who).finish_non_exhaustive()
    }
}

impl Console {
    /// Stdout, and the machine's consoles when stdout is not a terminal: as a unit, stdout is the journal, and writing
    /// to the consoles is ours (`StandardOutput=journal`); typed by a person, stdout is all there is.
    pub fn for_unit() -> Self {
        let sinks = if io::stdout().is_terminal() { Vec::new() } else { open_consoles(Path::new("/")) };
        Self::new(sinks, Box::new(io::stdout()))
    }

    /// Any writers: `sinks` get what a person must see, `log` gets that and the details.
    pub fn new(sinks: Vec<Box<dyn Write>>, log: Box<dyn Write>) -> Self {
        Self { who: RefCell::new("node".to_owned()), sinks: RefCell::new(sinks), log: RefCell::new(log) }
    }

    /// The node's name, once it is known.
    pub fn set_who(&self, who: &str) {
        who.clone_into(&mut self.who.borrow_mut());
    }

    /// A line about `step` on the consoles and in the log.
    pub fn say(&self, step: &str, text: &str) {
        self.line(&format!("{step}: {text}"));
    }

    /// A line about the whole node.
    pub fn line(&self, text: &str) {
        let line = format!("firstboot: {}: {text}\n", self.who.borrow());
        for sink in self.sinks.borrow_mut().iter_mut() {
            // A terminal in raw mode needs the carriage return; a console that went away is not a reason to stop.
            let _ = sink.write_all(line.replace('\n', "\r\n").as_bytes()).and_then(|()| sink.flush());
        }
        self.to_log(&line);
    }

    /// A detail for the log alone.
    pub fn log(&self, step: &str, text: &str) {
        let who = self.who.borrow();
        for line in text.lines() {
            self.to_log(&format!("firstboot: {who}: {step}: {line}\n"));
        }
    }

    fn to_log(&self, line: &str) {
        let mut log = self.log.borrow_mut();
        let _ = log.write_all(line.as_bytes()).and_then(|()| log.flush());
    }
}

/// Device nodes of all consoles the kernel writes to: `console=tty0 console=ttyS0` means both, while `/dev/console`
/// is only the last.
pub fn console_devices(root: &Path) -> Vec<PathBuf> {
    let active = std::fs::read_to_string(root.join("sys/class/tty/console/active")).unwrap_or_default();
    let devices: Vec<_> = active.split_whitespace().map(|name| root.join("dev").join(name)).collect();
    if devices.is_empty() { vec![root.join("dev/console")] } else { devices }
}

/// The consoles of the machine.
pub fn open_consoles(root: &Path) -> Vec<Box<dyn Write>> {
    console_devices(root).into_iter().map(|path| Box::new(Terminal { path, file: None }) as Box<dyn Write>).collect()
}

/// A terminal that somebody else may hang up: every getty that starts does (agetty(8), vhangup(2)), and what was open
/// before answers with EIO from then on. So it is opened when first written to, and again when a write fails.
struct Terminal {
    path: PathBuf,
    file: Option<File>,
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(file) = &mut self.file
            && let Ok(written) = file.write(bytes)
        {
            return Ok(written);
        }
        self.file = Some(open(&self.path)?);
        self.file.as_mut().map_or(Ok(0), |file| file.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

/// Opening a serial line may wait for a carrier that never comes, writing to it may not be cut short: non-blocking first,
/// blocking afterwards.
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits() as i32;
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
    rustix::fs::fcntl_setfl(&file, OFlags::empty())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_consoles_of_the_kernel_count() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join("dev").join(name);
        assert_eq!(console_devices(root.path()), [path("console")]);
        std::fs::create_dir_all(root.path().join("sys/class/tty/console")).unwrap();
        std::fs::write(root.path().join("sys/class/tty/console/active"), "tty0 ttyS0\n").unwrap();
        assert_eq!(console_devices(root.path()), [path("tty0"), path("ttyS0")]);
        // One that is not there is no obstacle.
        std::fs::create_dir_all(root.path().join("dev")).unwrap();
        std::fs::write(path("ttyS0"), "").unwrap();
        let console = Console::new(open_consoles(root.path()), Box::new(io::sink()));
        console.set_who("master-1");
        console.say("etcd", "starting");
        assert_eq!(std::fs::read_to_string(path("ttyS0")).unwrap(), "firstboot: master-1: etcd: starting\r\n");
    }

    #[test]
    fn a_terminal_that_was_hung_up_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tty");
        std::fs::write(&path, "").unwrap();
        // Opened for reading only, it fails every write, as one that was hung up.
        let mut terminal = Terminal { file: Some(File::open(&path).unwrap()), path: path.clone() };
        terminal.write_all(b"line\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "line\n");
    }
}
