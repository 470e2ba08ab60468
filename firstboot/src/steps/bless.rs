// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ends the boot counting of this boot's entry (systemd.io/AUTOMATIC_BOOT_ASSESSMENT): the node works, so its entry is good.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::context::{Cx, RUN_DIR};
use crate::engine::{State, Step, journal_state};
use crate::init::boot_record::{self, BootRecord};
use crate::seed::medium::mounted;

pub(super) struct Bless;

fn record(cx: &Cx<'_>) -> Option<BootRecord> {
    boot_record::read(&cx.root)
}

impl Step for Bless {
    fn id(&self) -> &'static str {
        "bless-boot"
    }

    fn title(&self) -> &'static str {
        "marking this boot as good"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        // A node that did not boot by our initramfs has no entry of ours.
        if record(cx).is_none_or(|record| record.esp.is_none()) {
            return Ok(State::Done);
        }
        Ok(journal_state(self, cx))
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        let Some(BootRecord { esp: Some(esp), slot, .. }) = record(cx) else { return Ok(()) };
        let target = cx.path(RUN_DIR).join("esp");
        let mut renamed = None;
        let result = mounted(Path::new(&esp), "vfat", true, &target, &mut |dir| {
            renamed = bless(&dir.join("loader/entries"), &slot)?;
            Ok(())
        });
        match (result, renamed) {
            (Ok(()), Some(name)) => cx.log(&format!("{name} is now imgbuild-{slot}.conf")),
            (Ok(()), None) => cx.log("no counted entry"),
            // A machine that boots by PXE or by GRUB has a working node all the same.
            (Err(error), _) => cx.say(&format!("cannot mark this boot as good: {error:#}")),
        }
        Ok(())
    }

    fn verify(&self, _: &Cx<'_>) -> Result<()> {
        Ok(())
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        record(cx).map(|record| format!("slot {}", record.slot)).unwrap_or_default()
    }
}

/// Renames `imgbuild-<slot>+<left>[-<done>].conf` to `imgbuild-<slot>.conf`; says what it was called.
fn bless(entries: &Path, slot: &str) -> Result<Option<String>> {
    let mut counted: Vec<(String, PathBuf)> = Vec::new();
    for entry in fs::read_dir(entries).with_context(|| format!("reading {}", entries.display()))? {
        let entry = entry.with_context(|| format!("reading {}", entries.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_counted(&name, slot) {
            counted.push((name, entry.path()));
        }
    }
    counted.sort();
    let good = entries.join(format!("imgbuild-{slot}.conf"));
    let first = counted.first().map(|(name, _)| name.clone());
    for (_, path) in counted {
        if good.exists() {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        } else {
            fs::rename(&path, &good).with_context(|| format!("renaming {}", path.display()))?;
        }
    }
    Ok(first)
}

fn is_counted(name: &str, slot: &str) -> bool {
    let counters = name.strip_prefix(&format!("imgbuild-{slot}+")).and_then(|rest| rest.strip_suffix(".conf"));
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    counters.is_some_and(|counters| match counters.split_once('-') {
        Some((left, done)) => number(left) && number(done),
        None => number(counters),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::converge;
    use crate::testing::Lab;

    #[test]
    fn only_this_slots_counters_end() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["imgbuild-a+2-1.conf", "imgbuild-b+3.conf", "other.conf", "imgbuild-a+x.conf"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        assert_eq!(bless(dir.path(), "a").unwrap().as_deref(), Some("imgbuild-a+2-1.conf"));
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["imgbuild-a+x.conf", "imgbuild-a.conf", "imgbuild-b+3.conf", "other.conf"]);
        assert_eq!(bless(dir.path(), "a").unwrap(), None);
    }

    #[test]
    fn a_node_without_our_boot_loader_converges_too() {
        let lab = Lab::new();
        converge(&lab.cx(), &[Box::new(Bless)]).unwrap();
        assert!(lab.console_lines().is_empty());
        lab.write("/run/imgbuild/boot.json", r#"{"disk":"/dev/gone","esp":"/dev/gone1","slot":"a"}"#);
        converge(&lab.cx(), &[Box::new(Bless)]).unwrap();
        assert!(lab.console_lines()[1].contains("cannot mark this boot as good"), "{:?}", lab.console_lines());
    }
}
