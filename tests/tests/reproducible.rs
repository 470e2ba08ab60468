// SPDX-License-Identifier: MIT OR Apache-2.0

//! The same lock and the same secrets give the same bytes: in another folder, from another store, with other numbers of
//! jobs, for another user's environment.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::Command;

use imgbuild_tests::build::{binary, folder, lab, users_store};
use imgbuild_tests::cli::{Outcome, files_below};
use imgbuild_tests::disk::partitions;
use imgbuild_tests::tool::run;

/// A store with the inputs of `from` and none of its results, but for the compiled Kubernetes: compiling it takes ten
/// minutes, and whether that is reproducible is the source build's own test. `IMGBUILD_TEST_FULL=1` leaves that out, too.
fn store_without_results(from: &Path, to: &Path) {
    let full = std::env::var_os("IMGBUILD_TEST_FULL").is_some();
    for object in files_below(&from.join("objects")) {
        let target = to.join("objects").join(&object);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        let source = from.join("objects").join(&object);
        // Objects are immutable, so that a link is as good as a copy.
        if fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target).unwrap();
        }
    }
    fs::create_dir_all(to.join("steps")).unwrap();
    for step in files_below(&from.join("steps")) {
        let record = fs::read_to_string(from.join("steps").join(&step)).unwrap_or_default();
        if !full && record.contains("\"kube-apiserver\"") {
            fs::write(to.join("steps").join(step), record).unwrap();
        }
    }
}

/// Where two images differ first, in words.
fn difference(a: &Path, b: &Path) -> Option<String> {
    use std::os::unix::fs::FileExt;
    let (first, second) = (fs::File::open(a).unwrap(), fs::File::open(b).unwrap());
    let len = first.metadata().unwrap().len();
    if second.metadata().unwrap().len() != len {
        return Some(format!("{len} bytes and {} bytes", second.metadata().unwrap().len()));
    }
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (0..len).step_by(1 << 20) {
        let n = usize::try_from((len - at).min(1 << 20)).unwrap();
        first.read_exact_at(&mut left[..n], at).unwrap();
        second.read_exact_at(&mut right[..n], at).unwrap();
        if left[..n] != right[..n] {
            let offset = at + left.iter().zip(&right).position(|(l, r)| l != r).unwrap() as u64;
            let found = partitions(a).into_iter().find(|p| (p.offset..p.offset + p.len).contains(&offset));
            return Some(match found {
                Some(p) => format!("at byte {} of partition {}", offset - p.offset, p.name),
                None => format!("at byte {offset}, outside of partitions"),
            });
        }
    }
    None
}

#[test]
fn built_lab_is_bit_identical_in_another_folder_store_and_number_of_jobs() {
    let reference = &lab().image;
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    for jobs in ["1", "2"] {
        let home = scratch.path().join(format!("a folder for {jobs}"));
        let cluster = home.join("elsewhere");
        fs::create_dir_all(&home).unwrap();
        // With the lock and the secrets.
        run(Command::new("cp").arg("--archive").args([&lab().cluster, &cluster]));
        let store = home.join("store");
        store_without_results(&users_store(), &store);
        let mut command = Command::new(binary());
        command.args(["build", "--offline", "--profile", "master-1", "--jobs", jobs, "--cluster"]).arg(&cluster);
        command.arg("--store").arg(&store).arg("--out").arg(home.join("out")).current_dir(&home);
        command.env("TZ", "Pacific/Kiritimati").env("HOME", &home).env("USER", "somebody").env("UMASK", "077");
        Outcome::of(&mut command).succeeds();
        let image = home.join("out/master-1.img");
        if let Some(difference) = difference(reference, &image) {
            panic!("built with --jobs {jobs}, the image differs from the first: {difference}");
        }
        fs::remove_dir_all(&home).unwrap();
    }
}

#[test]
fn differences_are_found_and_placed() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&a, [0; 100]).unwrap();
    fs::write(&b, [0; 100]).unwrap();
    assert_eq!(difference(&a, &b), None);
    fs::write(&b, [0; 99]).unwrap();
    assert_eq!(difference(&a, &b).unwrap(), "100 bytes and 99 bytes");
}
