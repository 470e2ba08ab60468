// SPDX-License-Identifier: MIT OR Apache-2.0
//! How far something long is, on the console: a line every few seconds, and one at its end.

use std::time::{Duration, Instant};

use crate::console::Console;

/// A serial line of 9600 bits per second shows a line in a tenth of a second.
const EVERY: Duration = Duration::from_secs(5);

/// Something long.
#[derive(Debug)]
pub struct Progress<'c> {
    console: &'c Console,
    verb: &'static str,
    total: u64,
    done: u64,
    begun: Instant,
    said: Instant,
    every: Duration,
}

impl<'c> Progress<'c> {
    /// `verb` is `writing` or the like; `total` is in bytes.
    pub fn new(console: &'c Console, verb: &'static str, total: u64) -> Self {
        let now = Instant::now();
        Self { console, verb, total, done: 0, begun: now, said: now, every: EVERY }
    }

    /// That `bytes` more of `what` are done.
    pub fn add(&mut self, bytes: u64, what: &str) {
        self.done += bytes;
        if self.said.elapsed() >= self.every {
            self.said = Instant::now();
            let percent = self.done.saturating_mul(100) / self.total.max(1);
            self.console.line(&format!("{} {what}, {percent} % of {}", self.verb, megabytes(self.total)));
        }
    }

    /// That all of it is done.
    pub fn finish(self, what: &str) {
        let took = self.begun.elapsed().as_secs();
        self.console.line(&format!("{} {what}: done, {} in {took} s", self.verb, megabytes(self.done)));
    }
}

/// Decimal, as disks are sold.
pub fn megabytes(bytes: u64) -> String {
    if bytes < 10_000_000_000 {
        format!("{} MB", bytes.div_ceil(1_000_000))
    } else {
        format!("{} GB", bytes / 1_000_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::testing::recorded;

    #[test]
    fn lines_come_at_intervals() {
        let (console, lines) = recorded();
        let mut progress = Progress::new(&console, "writing", 812_000_000);
        progress.add(100, "root");
        assert!(lines().is_empty(), "nothing is said before its time");
        progress.every = Duration::ZERO;
        progress.add(405_999_900, "root");
        progress.finish("the disk");
        assert_eq!(lines(), ["writing root, 50 % of 812 MB", "writing the disk: done, 406 MB in 0 s"]);
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!([1, 9_999_999_999, 16 << 30].map(megabytes), ["1 MB", "10000 MB", "17 GB"]);
    }
}
