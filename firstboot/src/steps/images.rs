// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payload's images in containerd, under exactly the names kubelet asks for.
//!
//! The payload is an OCI layout; `ctr` reads a tar of one from stdin, so nothing is copied to the disk in between.
//! containerd does not fsync what it unpacks: an import that a power cut stopped may leave files of zeros behind a
//! database that calls them complete. So such an import starts over with an empty containerd.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::{INIT, containerd, services};
use crate::context::{Cx, PAYLOAD_DIR};
use crate::engine::{State, Step, journal_state, was_interrupted};
use crate::files;
use crate::journal::Progress;
use crate::runner::Command;

const STORE: &str = "/var/lib/containerd";

pub(super) struct Images;

impl Step for Images {
    fn id(&self) -> &'static str {
        "images"
    }

    fn title(&self) -> &'static str {
        "importing container images"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        Ok(journal_state(self, cx))
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        if was_interrupted(self, cx) {
            start_over(cx)?;
        }
        let layout = cx.path(&format!("{PAYLOAD_DIR}/images"));
        let files = layout_files(&layout)?;
        let total: u64 = files.iter().map(|(_, size)| size).sum();
        cx.say(&format!("{} images, {} MB", cx.plan.payload.images.len(), total / 1_000_000));
        let command = Command::new("ctr", ["-n", "k8s.io", "images", "import", "-"]).timeout(3600);
        let mut feed = |stdin: &mut dyn Write| write_layout(stdin, &layout, &files);
        let output = cx.run_with(&command, Some(&mut feed), &mut |line| cx.log(line))?;
        cx.expect_success(&command, output)?;
        Ok(())
    }

    fn verify(&self, cx: &Cx<'_>) -> Result<()> {
        let listed = cx.run(&Command::new("ctr", ["-n", "k8s.io", "images", "ls", "-q"]))?.stdout;
        let missing: Vec<_> = cx
            .plan
            .payload
            .images
            .iter()
            .filter(|wanted| !listed.lines().any(|line| line.trim() == wanted.as_str()))
            .map(String::as_str)
            .collect();
        ensure!(missing.is_empty(), "containerd does not list {} after the import", missing.join(", "));
        Ok(())
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        let index = fs::read(cx.path(&format!("{PAYLOAD_DIR}/images/index.json"))).unwrap_or_default();
        Sha256::digest(index).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Empties containerd. Only as long as no pod of this node can live in it.
fn start_over(cx: &Cx<'_>) -> Result<()> {
    if cx.progress(INIT) != Progress::Never {
        return Ok(());
    }
    cx.say("an earlier import was interrupted: starting over with an empty containerd");
    services::stop(cx, containerd::UNIT)?;
    files::remove(&cx.path(STORE))?;
    services::bring_up(cx, containerd::UNIT, false)?;
    containerd::wait(cx)
}

/// All files of the layout, relative and in a fixed order, with their sizes. The small ones that explain the rest come first.
fn layout_files(layout: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut files = Vec::new();
    for name in ["oci-layout", "index.json"] {
        let meta = fs::metadata(layout.join(name));
        files.push((
            PathBuf::from(name),
            meta.with_context(|| format!("reading {name} of the payload's images"))?.len(),
        ));
    }
    let blobs = layout.join("blobs/sha256");
    let mut found = Vec::new();
    for entry in fs::read_dir(&blobs).with_context(|| format!("reading {}", blobs.display()))? {
        let entry = entry.with_context(|| format!("reading {}", blobs.display()))?;
        let size = entry.metadata().with_context(|| format!("reading {}", entry.path().display()))?.len();
        found.push((Path::new("blobs/sha256").join(entry.file_name()), size));
    }
    found.sort();
    files.append(&mut found);
    Ok(files)
}

fn write_layout(out: &mut dyn Write, layout: &Path, files: &[(PathBuf, u64)]) -> io::Result<()> {
    let mut tar = tar::Builder::new(out);
    for (path, size) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(*size);
        header.set_mode(0o644);
        header.set_entry_type(tar::EntryType::Regular);
        tar.append_data(&mut header, path, File::open(layout.join(path))?)?;
    }
    tar.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::converge;
    use crate::testing::Lab;

    fn lab() -> Lab {
        let mut lab = Lab::new();
        prepare(&mut lab);
        lab
    }

    fn prepare(lab: &mut Lab) {
        lab.write("/opt/imgbuild/images/oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        lab.write("/opt/imgbuild/images/index.json", "{}");
        lab.write(&format!("/opt/imgbuild/images/blobs/sha256/{}", "b".repeat(64)), "layer");
        lab.write(&format!("/opt/imgbuild/images/blobs/sha256/{}", "a".repeat(64)), "manifest");
        lab.plan.payload.images = vec!["k8s.gcr.io/pause:3.2".into()];
        lab.runner.answer("ctr -n k8s.io images ls -q", 0, "k8s.gcr.io/pause:3.2\nother\n", "");
    }

    #[test]
    fn streams_the_layout_once() {
        let lab = lab();
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        let fed = lab.runner.fed.borrow().clone();
        let mut archive = tar::Archive::new(fed.as_slice());
        let names: Vec<_> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        let blob = |letter: &str| format!("blobs/sha256/{}", letter.repeat(64));
        assert_eq!(names, ["oci-layout".to_owned(), "index.json".to_owned(), blob("a"), blob("b")]);
        assert_eq!(lab.runner.take_trace(), ["ctr -n k8s.io images import -", "ctr -n k8s.io images ls -q"]);
        let mut lab = lab.reboot();
        prepare(&mut lab);
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        assert!(lab.runner.take_trace().is_empty());
    }

    #[test]
    fn an_interrupted_import_starts_over_with_an_empty_containerd() {
        let lab = lab();
        let cx = lab.cx();
        cx.journal.borrow_mut().fuse = Some(1);
        converge(&cx, &[Box::new(Images)]).unwrap_err();
        drop(cx);
        let mut lab = lab.reboot();
        prepare(&mut lab);
        lab.write("/var/lib/containerd/half", "zeros");
        converge(&lab.cx(), &[Box::new(Images)]).unwrap();
        assert!(!lab.exists("/var/lib/containerd/half"));
        let trace = lab.runner.take_trace();
        assert_eq!(trace[0], "systemctl stop containerd");
        assert_eq!(trace.iter().filter(|line| line.contains("images import")).count(), 1);
    }

    #[test]
    fn an_image_that_is_not_listed_fails_by_name() {
        let lab = lab();
        lab.runner.answer("ctr -n k8s.io images ls -q", 0, "other\n", "");
        let (step, failure) = converge(&lab.cx(), &[Box::new(Images)]).unwrap_err();
        assert_eq!((step, failure.exit.code()), ("images", 30));
        assert!(failure.reason.contains("k8s.gcr.io/pause:3.2"));
    }
}
