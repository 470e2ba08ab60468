// SPDX-License-Identifier: MIT OR Apache-2.0

//! `imgbuild write IMAGE DEVICE`: an image onto a disk of this machine. Everything that speaks against it is found
//! first and said at once; then somebody confirms the very disk; then it is written, read back and compared.

use std::fs::File;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::cli::Options;
use crate::commands::bar;
use crate::device::plan::{self, Image, Plan};
use crate::device::probe::{self, Disk, Number, System};
use crate::device::write::{self, Device};
use crate::error::{self, Failure};
use crate::image::gpt::SECTOR;

/// Names that stay with a disk.
const BY_ID: &str = "/dev/disk/by-id";
/// Folder of all names that do not depend on the order in which disks were found.
const STABLE: &str = "/dev/disk/";

pub(super) fn run(options: &Options, image: &Path, device: &Path, yes: bool) -> Result<()> {
    let begun = Instant::now();
    let (file, disk, kind) = check(image, device, &System::this_machine()?)?;
    let plan = Plan::new(&kind, &file, disk.size)?;
    warn_of_name(device);
    if yes {
        tracing::info!("writing {} to {}", image.display(), describe(device, &disk));
    } else {
        confirm(image, device, &disk)?;
    }
    let mut medium = Device::open(device)?;
    write::write(&file, &plan, &mut medium, &bar(options))?;
    drop(medium);
    tracing::info!(
        "{} is on {}: {} written and read back, the same ({:.1}s)",
        image.display(),
        device.display(),
        shown(plan.bytes()),
        begun.elapsed().as_secs_f32()
    );
    Ok(())
}

/// Everything that speaks against writing `image` to `device`, at once.
fn check(image: &Path, device: &Path, system: &System) -> Result<(File, Disk, Image)> {
    let opened = open(image);
    let disk = probe(device, system);
    let mut findings = Findings::default();
    if let (Ok((file, kind)), Ok(disk)) = (&opened, &disk) {
        let size = file.metadata().context("measuring the image")?.len();
        findings.fit(kind, size, disk);
    }
    if let Ok(disk) = &disk {
        findings.disk(disk);
    }
    match (opened, disk) {
        (Ok((file, kind)), Ok(disk)) if findings.0.is_empty() => Ok((file, disk, kind)),
        (opened, disk) => {
            let errors = [opened.err(), disk.err()];
            // What was found wrong with the image decides the exit code: a damaged one is not the user's mistake.
            let kind = errors.iter().flatten().next().map_or(error::ErrorKind::User, error::kind);
            let mut lines: Vec<String> = errors.iter().flatten().map(with_hint).collect();
            lines.append(&mut findings.0);
            let message = format!("nothing was written to {}:\n  - {}", device.display(), lines.join("\n  - "));
            Err(Failure::new(kind, message).into())
        }
    }
}

fn with_hint(error: &anyhow::Error) -> String {
    match error::hint(error) {
        Some(hint) => format!("{error:#}; {hint}"),
        None => format!("{error:#}"),
    }
}

fn open(image: &Path) -> Result<(File, Image)> {
    let opening = |error| Failure::user(format!("opening the image {}", image.display())).caused_by(error);
    let file = File::open(image).map_err(opening)?;
    if !file.metadata().map_err(opening)?.is_file() {
        return Err(Failure::user(format!("the image {} is not a file", image.display())).into());
    }
    let kind = plan::identify(&file)?;
    Ok((file, kind))
}

fn probe(device: &Path, system: &System) -> Result<Disk> {
    let hint = "`lsblk -o NAME,SIZE,MODEL,SERIAL` and /dev/disk/by-id have the disks of this machine";
    let refused = |message: String| Failure::user(message).hint(hint);
    let Err(error) = std::fs::metadata(device) else {
        let number = Number::of(device);
        let number = number.ok_or_else(|| refused(format!("{} is not a disk (a block device)", device.display())))?;
        return Disk::probe(number, system);
    };
    Err(refused(format!("there is no {}", device.display())).caused_by(error).into())
}

/// What speaks against a disk, a line each.
#[derive(Debug, Default)]
struct Findings(Vec<String>);

impl Findings {
    fn disk(&mut self, disk: &Disk) {
        let name = &disk.name;
        if let Some(whole) = &disk.partition_of {
            self.0.push(format!(
                "/dev/{name} is a partition: an image has partitions of its own; name the disk, /dev/{whole}"
            ));
        }
        if disk.read_only {
            self.0.push(format!(
                "/dev/{name} is read-only: look for a write-protect switch, or `blockdev --setrw /dev/{name}`"
            ));
        }
        self.0.extend(disk.uses.iter().cloned());
    }

    fn fit(&mut self, kind: &Image, size: u64, disk: &Disk) {
        let name = &disk.name;
        if disk.size < size {
            let (have, need) = (disk.size, size);
            let smaller =
                "write it to a larger disk, or build it with a smaller `[disk] size` (or `disk_size` of the node)";
            self.0.push(format!(
                "/dev/{name} has {have} bytes and the image {need}, {} more; {smaller}",
                shown(need - have)
            ));
        }
        if disk.sector != SECTOR && matches!(kind, Image::Disk(_)) {
            let sector = disk.sector;
            self.0.push(format!(
                "/dev/{name} has sectors of {sector} bytes, and the image is for 512: no firmware would find its \
                 partitions; some disks can be set to 512 (`nvme format --lbaf`, `hdparm --set-sector-size`)"
            ));
        }
        if !size.is_multiple_of(SECTOR) {
            self.0.push(format!(
                "the image has {size} bytes, not a whole number of sectors: it was cut short; copy it again"
            ));
        }
    }
}

/// A name like sdb is given by the order in which disks are found, and may be another disk's after the next boot.
fn warn_of_name(device: &Path) {
    if device.starts_with(STABLE) {
        return;
    }
    if let Some(better) = Number::of(device).and_then(|number| probe::stable_name(Path::new(BY_ID), number)) {
        tracing::warn!(
            "warning: {} may be another disk after a restart; {} is always this one",
            device.display(),
            better.display()
        );
    }
}

fn describe(device: &Path, disk: &Disk) -> String {
    let known = [("model", &disk.model), ("serial", &disk.serial)];
    let known = known.iter().filter_map(|(what, value)| Some(format!(", {what} {}", value.as_ref()?)));
    format!("{} ({}, {}{})", device.display(), disk.name, shown(disk.size), known.collect::<String>())
}

/// What is typed to confirm: what stands on the disk's label, or failing that its name.
fn password(disk: &Disk) -> (&'static str, &str) {
    match (&disk.serial, &disk.model) {
        (Some(serial), _) => ("serial number", serial),
        (None, Some(model)) => ("model", model),
        (None, None) => ("name", &disk.name),
    }
}

fn confirm(image: &Path, device: &Path, disk: &Disk) -> Result<()> {
    let (stdin, mut stderr) = (std::io::stdin(), std::io::stderr());
    if !stdin.is_terminal() || !stderr.is_terminal() {
        return Err(Failure::user(format!("nobody can be asked whether {} may be overwritten", device.display()))
            .hint("run it on a terminal, or give --yes")
            .into());
    }
    let (what, wanted) = password(disk);
    let mut question = format!("{}\n", describe(device, disk));
    for (name, size) in &disk.partitions {
        question += &format!("  has {name}, {}\n", shown(*size));
    }
    question += &format!(
        "Everything on it will be lost, and until the end it cannot be booted.\n\
         To write {} to it, type its {what} ({wanted}): ",
        image.display()
    );
    let mut answer = String::new();
    let asking = |error| Failure::io("asking for a confirmation", error);
    stderr.write_all(question.as_bytes()).map_err(asking)?;
    stdin.lock().read_line(&mut answer).map_err(asking)?;
    if answer.trim() != wanted {
        return Err(Failure::user(format!("that is not its {what}: nothing was written")).into());
    }
    Ok(())
}

/// Bytes for people.
fn shown(bytes: u64) -> String {
    match bytes {
        0..0x1000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn disk() -> Disk {
        Disk {
            name: "sdb".into(),
            partition_of: None,
            size: 1 << 30,
            sector: 512,
            model: Some("BIG DISK".into()),
            serial: Some("S1".into()),
            read_only: false,
            partitions: vec![],
            uses: vec![],
        }
    }

    #[test]
    fn all_findings_come_at_once_with_numbers() {
        let mut findings = Findings::default();
        let uses = vec!["/dev/sdb1 is mounted on /".to_owned()];
        let bad = Disk { partition_of: Some("sda".into()), read_only: true, sector: 4096, uses, ..disk() };
        let table = crate::image::gpt::Table { disk: uuid::Uuid::nil(), partitions: vec![] };
        findings.fit(&Image::Disk(table), (1 << 30) + (3 << 20) + 1, &bad);
        findings.disk(&bad);
        let starts = [
            "/dev/sdb has 1073741824 bytes and the image 1076887553, 3.0 MiB more; write it to a larger disk",
            "/dev/sdb has sectors of 4096 bytes, and the image is for 512",
            "the image has 1076887553 bytes, not a whole number of sectors",
            "/dev/sdb is a partition: an image has partitions of its own; name the disk, /dev/sda",
            "/dev/sdb is read-only",
            "/dev/sdb1 is mounted on /",
        ];
        assert_eq!(findings.0.len(), starts.len());
        for (found, start) in findings.0.iter().zip(starts) {
            assert!(found.starts_with(start), "{found}");
        }
        let mut findings = Findings::default();
        findings.fit(&Image::Iso, 1 << 30, &Disk { sector: 4096, ..disk() });
        findings.disk(&disk());
        assert_eq!(findings.0, [""; 0]);
    }

    #[test]
    fn what_is_neither_image_nor_disk_is_said_in_one_message() {
        let dir = tempfile::tempdir().unwrap();
        let (image, target) = (dir.path().join("a.txt"), dir.path().join("b"));
        std::fs::write(&image, "text").unwrap();
        std::fs::write(&target, "precious").unwrap();
        let system = System::this_machine().unwrap();
        let message = |image: &Path, device: &Path| {
            let error = check(image, device, &system).unwrap_err();
            assert_eq!(error::kind(&error).exit_code(), 1);
            error.to_string()
        };
        let text = message(&image, &target);
        assert!(text.contains("no partition table and is no ISO 9660 volume"), "{text}");
        assert!(text.contains("b is not a disk (a block device)"), "{text}");
        let text = message(dir.path(), &dir.path().join("none"));
        assert!(text.contains("is not a file") && text.contains("there is no "), "{text}");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    }

    #[test]
    fn what_stands_on_the_label_confirms() {
        assert_eq!(password(&disk()), ("serial number", "S1"));
        assert_eq!(password(&Disk { serial: None, ..disk() }), ("model", "BIG DISK"));
        assert_eq!(password(&Disk { serial: None, model: None, ..disk() }), ("name", "sdb"));
        assert_eq!(describe(Path::new("/dev/x"), &disk()), "/dev/x (sdb, 1.0 GiB, model BIG DISK, serial S1)");
    }
}
