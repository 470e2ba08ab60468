// SPDX-License-Identifier: MIT OR Apache-2.0

//! The same lock and the same secrets give the same bytes: for another user, in another folder, from another store, in
//! another time zone, with another number of jobs and another umask.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use imgbuild_tests::build::{MEMBER_NAME, binary, copy_whole, folder, lab, linked_store, member};
use imgbuild_tests::cli::{NOBODY, Outcome, as_another, as_nobody, files_below};
use imgbuild_tests::compare;
use imgbuild_tests::random::Random;
use rustix::process::geteuid;

/// Every kind of output, and what is in the path of something that it makes.
const KINDS: [(&str, &str); 6] = [
    ("disk", ".img"),
    ("qcow2", ".qcow2"),
    ("iso", "lab-split.iso"),
    ("pxe", "-pxe/"),
    ("bundle", ".tar.zst"),
    ("seed", "-seed/"),
];

/// How old copies of files may look.
const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The kinds of output that the command line knows, by what it says of one that it does not know.
fn known_kinds() -> BTreeSet<String> {
    let outcome = Outcome::of(Command::new(binary()).args(["build", "--output", "none-such"]));
    let (_, list) = outcome.stderr.split_once("[possible values: ").unwrap_or_else(|| panic!("no kinds\n{outcome}"));
    let (list, _) = list.split_once(']').unwrap_or_else(|| panic!("no end\n{outcome}"));
    list.split(',').map(|kind| kind.trim().to_owned()).collect()
}

/// A folder that everybody may enter: where the tests keep things, if that is in nobody's home.
fn open_folder() -> tempfile::TempDir {
    let open = |base: PathBuf| {
        let dir = tempfile::tempdir_in(base).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let enters = as_nobody(Path::new("test")).arg("-x").arg(dir.path()).status().unwrap().success();
        enters.then_some(dir)
    };
    let found = [folder(), std::env::temp_dir()].into_iter().find_map(open);
    found.expect("nobody may enter the folder for short-lived files")
}

/// Copies a folder in another order, with other dates.
fn copy_otherwise(from: &Path, to: &Path, random: &mut Random) {
    fs::create_dir(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    let mut names: Vec<OsString> = fs::read_dir(from).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    // As it is chance that comes from the seed.
    names.sort();
    random.shuffle(&mut names);
    for name in names {
        let (source, target) = (from.join(&name), to.join(&name));
        if source.is_dir() {
            copy_otherwise(&source, &target, random);
            continue;
        }
        fs::copy(&source, &target).unwrap();
        let date = SystemTime::now() - random.up_to(TEN_YEARS);
        fs::File::open(&target).unwrap().set_modified(date).unwrap();
    }
}

/// Gives nobody a folder with all that is in it, but for files with several names, which are others' too.
fn give_away(path: &Path) {
    let meta = fs::symlink_metadata(path).unwrap();
    if meta.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give_away(&entry.unwrap().path()));
    } else if meta.nlink() > 1 {
        return;
    }
    lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
}

/// A place to build at, which differs from the other one in everything that must not matter.
struct Home {
    folder: PathBuf,
    another_user: bool,
    jobs: &'static str,
    zone: &'static str,
    umask: &'static str,
}

impl Home {
    /// Runs `imgbuild build` with a copy of the cluster and a store of its own, and gives where the outputs are.
    fn build(&self, program: &Path, kinds: &str) -> PathBuf {
        let shell = Path::new("sh");
        let mut command = if self.another_user { as_another(shell) } else { Command::new(shell) };
        command.args(["-c", "umask \"$0\" && exec \"$@\"", self.umask]).arg(program);
        command.args(["build", "--offline", "--profile", MEMBER_NAME, "--output", kinds, "--jobs", self.jobs]);
        for (option, name) in [("--cluster", "cluster"), ("--store", "store"), ("--out", "out")] {
            command.arg(option).arg(self.folder.join(name));
        }
        command.env("TZ", self.zone).env("HOME", &self.folder).current_dir(&self.folder);
        Outcome::of(&mut command).succeeds();
        self.folder.join("out")
    }
}

/// Every kind of output of the smallest node. Both builds begin with the locked inputs and nothing else in the store.
#[test]
fn built_lab_every_kind_of_output_is_bit_identical_for_another_user_elsewhere() {
    assert_eq!(known_kinds(), KINDS.iter().map(|(kind, _)| (*kind).to_owned()).collect::<BTreeSet<String>>());
    let mut random = Random::from_environment();
    let cluster = member();
    let lock = fs::read_to_string(cluster.join("imgbuild.lock")).unwrap();
    let scratch = open_folder();
    let program = scratch.path().join("imgbuild");
    fs::copy(binary(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let home = |name: &str, another_user, jobs, zone, umask| {
        let folder = scratch.path().join(name);
        fs::create_dir(&folder).unwrap();
        linked_store(&folder.join("store"), |digest| lock.contains(digest), |_| false);
        Home { folder, another_user, jobs, zone, umask }
    };
    let here = home("here", false, "1", "America/St_Johns", "022");
    copy_whole(cluster, &here.folder.join("cluster"));
    let there = home("another folder with a longer name", true, "3", "Pacific/Kiritimati", "077");
    copy_otherwise(cluster, &there.folder.join("cluster"), &mut random);
    if geteuid().is_root() {
        give_away(&there.folder);
    }
    let kinds = KINDS.map(|(kind, _)| kind).join(",");
    // Together, as one of them has one job.
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| there.build(&program, &kinds));
        (here.build(&program, &kinds), second.join().unwrap())
    });
    let outputs = files_below(&first);
    for (kind, part) in KINDS {
        assert!(outputs.iter().any(|path| path.to_string_lossy().contains(part)), "no {kind} in {outputs:?}");
    }
    if let Some(difference) = compare::folders(&first, &second) {
        panic!("{difference}");
    }
}

/// The image of a node that runs pods, with all that is in its payload. `IMGBUILD_TEST_FULL=1` compiles Kubernetes
/// again, which takes ten minutes. Without, the compiled one is taken: the source build has tests of its own.
#[test]
fn built_lab_image_with_containers_is_bit_identical_in_another_folder_and_with_one_job() {
    let scratch = tempfile::tempdir_in(folder()).unwrap();
    let home = scratch.path().join("another folder");
    let cluster = home.join("elsewhere");
    fs::create_dir_all(&home).unwrap();
    copy_whole(&lab().cluster, &cluster);
    let full = std::env::var_os("IMGBUILD_TEST_FULL").is_some();
    linked_store(&home.join("store"), |_| true, |record| !full && record.contains("\"kube-apiserver\""));
    let mut command = Command::new(binary());
    command.args(["build", "--offline", "--profile", "master-1", "--jobs", "1", "--cluster"]).arg(&cluster);
    command.arg("--store").arg(home.join("store")).arg("--out").arg(home.join("out")).current_dir(&home);
    command.env("TZ", "Pacific/Kiritimati").env("HOME", &home).env("USER", "somebody");
    Outcome::of(&mut command).succeeds();
    if let Some(difference) = compare::files(&lab().image, &home.join("out/master-1.img")) {
        panic!("{difference}");
    }
}
