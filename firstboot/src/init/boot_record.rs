// SPDX-License-Identifier: MIT OR Apache-2.0
//! `/run/imgbuild/boot.json`: what the initramfs found, for the running system.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

const PATH: &str = "run/imgbuild/boot.json";

/// What the initramfs found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootRecord {
    /// The disk's device node.
    pub disk: String,
    /// The EFI system partition's device node.
    pub esp: Option<String>,
    /// The slot that booted.
    pub slot: String,
}

impl BootRecord {
    /// Writes it below `root`.
    pub fn write(&self, root: &Path) -> Result<()> {
        let path = root.join(PATH);
        let text = serde_json::to_vec_pretty(self).context("encoding boot.json")?;
        fs::create_dir_all(root.join("run/imgbuild"))
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("writing {}", path.display()))
    }
}

/// Reads it below `root`; `None` on a node that booted in another way.
pub fn read(root: &Path) -> Option<BootRecord> {
    serde_json::from_slice(&fs::read(root.join(PATH)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), None);
        let record = BootRecord { disk: "/dev/vda".into(), esp: None, slot: "a".into() };
        record.write(dir.path()).unwrap();
        assert_eq!(read(dir.path()), Some(record));
    }
}
