// SPDX-License-Identifier: MIT OR Apache-2.0
//! A failure stays on the console until somebody has read it.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::console::{Console, console_devices};

/// How long a failure before anything was written stays; also how often one after that is said again.
const STAYS: Duration = Duration::from_secs(300);

/// Says the failure, and waits for somebody to press Enter. Of a failure while a disk was written nothing but that
/// leads on: a disk that breaks would be written again and again, with nobody there.
pub fn until_read(reason: &str, wrote: bool, console: &Console) {
    let mut keyboards = keyboards(Path::new("/"));
    loop {
        console.line(&format!("FAILED: {reason}"));
        if wrote {
            console.line("press Enter to restart the machine; it does not by itself, because a disk was being written");
        } else {
            let seconds = STAYS.as_secs();
            console.line(&format!(
                "no disk was written; press Enter to restart the machine, it does in {seconds} s by itself"
            ));
        }
        if pressed(&mut keyboards, STAYS) || !wrote {
            return;
        }
    }
}

/// All consoles, to read from.
fn keyboards(root: &Path) -> Vec<File> {
    let open = |path| {
        let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits() as i32;
        OpenOptions::new().read(true).custom_flags(flags).open(path).ok()
    };
    let mut keyboards: Vec<File> = console_devices(root).into_iter().filter_map(open).collect();
    // What was typed before does not count.
    pressed(&mut keyboards, Duration::ZERO);
    keyboards
}

/// Whether a whole line was typed on one of the keyboards within this time.
fn pressed(keyboards: &mut [File], within: Duration) -> bool {
    let started = Instant::now();
    loop {
        if keyboards.iter_mut().any(typed) {
            return true;
        }
        if started.elapsed() >= within {
            return false;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Whether Enter is among what was typed. A terminal gives out whole lines.
fn typed(keyboard: &mut File) -> bool {
    let mut buffer = [0; 256];
    keyboard.read(&mut buffer).is_ok_and(|count| buffer[..count].contains(&b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_enter_counts_and_only_after_the_question() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/console"), "early\n").unwrap();
        let mut keyboards = keyboards(root.path());
        assert_eq!(keyboards.len(), 1);
        assert!(!pressed(&mut keyboards, Duration::ZERO), "what was typed before is gone");
        let mut tty = OpenOptions::new().append(true).open(root.path().join("dev/console")).unwrap();
        std::io::Write::write_all(&mut tty, b"x").unwrap();
        assert!(!pressed(&mut keyboards, Duration::ZERO));
        std::io::Write::write_all(&mut tty, b"\n").unwrap();
        assert!(pressed(&mut keyboards, Duration::from_secs(5)));
        assert!(!pressed(&mut [], Duration::ZERO), "no console at all");
    }
}
