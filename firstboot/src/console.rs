// SPDX-License-Identifier: MIT OR Apache-2.0
//! Lines for people: on every console of the machine and on stdout (which systemd puts into the journal).

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

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

/// The consoles that can be opened.
pub fn open_consoles(root: &Path) -> Vec<Box<dyn Write>> {
    use std::os::unix::fs::OpenOptionsExt;
    let noctty = rustix::fs::OFlags::NOCTTY.bits() as i32;
    console_devices(root)
        .into_iter()
        .filter_map(|path| OpenOptions::new().write(true).custom_flags(noctty).open(path).ok())
        .map(|file| Box::new(file) as Box<dyn Write>)
        .collect()
}
