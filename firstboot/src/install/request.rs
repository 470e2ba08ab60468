// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel command line asks of the installer (docs/contracts.md, section 11).

use anyhow::{Result, bail, ensure};

/// What the installer is to do, and from which medium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// SHA-256 of the medium's index, 64 lower-case hexadecimal digits.
    pub medium: String,
    /// What is to be done.
    pub task: Task,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Write a node to a disk, and boot it.
    Install(Which),
    /// Boot a node in memory.
    Diskless(Which),
    /// A root shell in memory.
    Rescue,
}

/// Which node of the medium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The one that this machine is known as.
    Auto,
    /// The one with this name.
    Named(String),
}

impl Request {
    /// Reads our words; `None` when the line asks for an ordinary boot. Of a word that is there twice the last counts.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let value =
            |key: &str| text.split_whitespace().rev().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let which = |node: &str| if node == "auto" { Which::Auto } else { Which::Named(node.to_owned()) };
        let mut tasks = Vec::new();
        tasks.extend(value("imgbuild.install").map(|node| Task::Install(which(node))));
        tasks.extend(value("imgbuild.diskless").map(|node| Task::Diskless(which(node))));
        tasks.extend(text.split_whitespace().any(|word| word == "imgbuild.rescue").then_some(Task::Rescue));
        let medium = value("imgbuild.medium");
        if medium.is_none() && tasks.is_empty() {
            return Ok(None);
        }
        let (Some(medium), Some(task)) = (medium, tasks.pop()) else {
            bail!(
                "the kernel command line needs both imgbuild.medium=SHA256 and one of imgbuild.install=NODE, \
                 imgbuild.diskless=NODE and imgbuild.rescue: boot one of the medium's own entries"
            );
        };
        ensure!(
            tasks.is_empty(),
            "the kernel command line asks for several of imgbuild.install, imgbuild.diskless and imgbuild.rescue: \
             leave one"
        );
        let medium = medium.to_ascii_lowercase();
        ensure!(
            medium.len() == 64 && medium.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "imgbuild.medium on the kernel command line is not a SHA-256: it wants 64 hexadecimal digits"
        );
        Ok(Some(Self { medium, task }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn task(words: &str) -> Task {
        let request = Request::parse(&format!("console=ttyS0 imgbuild.medium={SHA} {words}\n")).unwrap().unwrap();
        assert_eq!(request.medium, SHA);
        request.task
    }

    #[test]
    fn finds_our_words() {
        assert_eq!(task("imgbuild.install=auto"), Task::Install(Which::Auto));
        assert_eq!(
            task("imgbuild.install=auto imgbuild.install=master-1"),
            Task::Install(Which::Named("master-1".into()))
        );
        assert_eq!(task("imgbuild.diskless=worker-1"), Task::Diskless(Which::Named("worker-1".into())));
        assert_eq!(task("imgbuild.rescue systemd.unit=rescue.target"), Task::Rescue);
        assert_eq!(Request::parse("imgbuild.disk=x quiet imgbuild.rescued").unwrap(), None);
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        for (line, said) in [
            (format!("imgbuild.medium={SHA}"), "needs both"),
            ("imgbuild.install=auto".to_owned(), "needs both"),
            (format!("imgbuild.medium={SHA} imgbuild.install=a imgbuild.rescue"), "leave one"),
            ("imgbuild.medium=abc imgbuild.rescue".to_owned(), "64 hexadecimal digits"),
        ] {
            assert!(Request::parse(&line).unwrap_err().to_string().contains(said), "{line}");
        }
    }
}
