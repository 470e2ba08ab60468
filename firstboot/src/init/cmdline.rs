// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our words on the kernel command line.

use anyhow::{Result, bail};

/// What the command line says to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline {
    /// GUID of the disk, lower case.
    pub disk: String,
    /// `a` or `b`.
    pub slot: String,
}

impl Cmdline {
    /// Reads `imgbuild.disk=` and `imgbuild.slot=`; as everywhere on that line, the last one counts.
    pub fn parse(text: &str) -> Result<Self> {
        let value =
            |key: &str| text.split_whitespace().rev().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let Some(disk) = value("imgbuild.disk") else {
            bail!("the kernel command line has no imgbuild.disk=GUID: boot one of imgbuild's entries");
        };
        let slot = value("imgbuild.slot").unwrap_or("a");
        if !matches!(slot, "a" | "b") {
            bail!("imgbuild.slot={slot} on the kernel command line is neither a nor b");
        }
        Ok(Self { disk: disk.to_ascii_lowercase(), slot: slot.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_our_words() {
        let line = "initrd=\\x imgbuild.disk=AB imgbuild.disk=0C12D0E5-0000 imgbuild.slot=b console=ttyS0\n";
        let expected = Cmdline { disk: "0c12d0e5-0000".into(), slot: "b".into() };
        assert_eq!(Cmdline::parse(line).unwrap(), expected);
        assert_eq!(Cmdline::parse("imgbuild.disk=x").unwrap().slot, "a");
        assert!(Cmdline::parse("ximgbuild.disk=x").is_err());
        assert!(Cmdline::parse("imgbuild.disk=x imgbuild.slot=../b").is_err());
    }
}
