// SPDX-License-Identifier: MIT OR Apache-2.0

//! The program and the image under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::cli::{Outcome, files_below};
use crate::tool::run;

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository")
}

/// Cargo's folder of the profile these tests are built with, `target/release`.
fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    // target/release/deps/vm_lab-0123
    test.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps").to_owned()
}

/// Where tests keep what the next run can use again.
pub fn folder() -> PathBuf {
    let folder = profile_folder().join("imgbuild-tests");
    fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("making {}: {error}", folder.display()));
    folder
}

/// The `imgbuild` program, compiled with the profile of the tests; `IMGBUILD_TEST_BINARY` names another one.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("IMGBUILD_TEST_BINARY") {
            return path.into();
        }
        // Cargo does not build the programs of other packages for a test. Of the whole workspace, as the tests: with
        // one package alone, its dependencies may have other features, and would be compiled once more.
        let folder = profile_folder();
        let name = folder.file_name().and_then(|name| name.to_str()).expect("a profile has a name");
        let profile = if name == "debug" { "dev" } else { name };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(["build", "--quiet", "--workspace", "--bin", "imgbuild", "--profile", profile]);
        // What cargo told this test of its package must not reach the build scripts of others: ring's, for one, looks at it,
        // and would be compiled again, with all that needs it, each time another cargo comes along.
        for (name, _) in std::env::vars_os() {
            if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|of_ours| name.to_string_lossy().starts_with(of_ours)) {
                command.env_remove(name);
            }
        }
        let status = command.current_dir(repository()).status().expect("running cargo");
        assert!(status.success(), "{command:?}: {status}");
        folder.join("imgbuild")
    })
}

/// The user's store, from which the lab is built.
pub fn users_store() -> PathBuf {
    if let Some(store) = std::env::var_os("IMGBUILD_STORE") {
        return store.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    cache.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").expect("HOME is set")).join(".cache")).join("imgbuild")
}

/// The built lab.
#[derive(Debug)]
pub struct Lab {
    /// A copy of `profiles/lab`, with a lock and secrets of its own.
    pub cluster: PathBuf,
    /// The disk image of `master-1`. Not to be written to.
    pub image: PathBuf,
}

/// Builds the lab as a user does, in the user's store, so that nothing is fetched or compiled twice. The cluster folder is a
/// copy: its secrets are not the user's.
pub fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let cluster = folder().join("lab");
        copy_cluster(&repository().join("profiles/lab"), &cluster);
        let out = folder().join("out");
        let start = std::time::Instant::now();
        let outcome = Outcome::of(
            Command::new(binary())
                .args(["build", "--profile", "master-1", "--cluster"])
                .args([&cluster, Path::new("--out"), &out])
                .current_dir(folder()),
        );
        assert_eq!(outcome.code, Some(0), "building the lab:\n{}", outcome.stderr);
        eprintln!("lab built in {:.1} s", start.elapsed().as_secs_f64());
        Lab { cluster, image: out.join("master-1.img") }
    })
}

/// The bundle of the lab with the seed of `master-1`, built from the cluster folder of [`lab`].
pub fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| build_bundle(&folder().join("out")))
}

/// Builds that bundle to another folder.
pub fn build_bundle(out: &Path) -> PathBuf {
    let start = std::time::Instant::now();
    let outcome = Outcome::of(
        Command::new(binary())
            .args(["build", "--profile", "master-1", "--output", "bundle", "--cluster"])
            .args([&lab().cluster, Path::new("--out"), out])
            .current_dir(folder()),
    );
    assert_eq!(outcome.code, Some(0), "building the lab's bundle:\n{}", outcome.stderr);
    eprintln!("bundle of the lab built in {:.1} s", start.elapsed().as_secs_f64());
    out.join("imgbuild-lab-amd64.tar.zst")
}

/// The cluster folder of `profiles/lab-split`, with a lock and with the secrets of its etcd member, whose image was
/// built. Nothing is compiled for that node, the smallest one that boots. The folder is not to be written to.
pub fn member() -> &'static Path {
    static MEMBER: OnceLock<PathBuf> = OnceLock::new();
    MEMBER.get_or_init(|| {
        let cluster = folder().join("member");
        copy_cluster(&repository().join("profiles/lab-split"), &cluster);
        let mut command = Command::new(binary());
        command.args(["build", "--profile", MEMBER_NAME, "--cluster"]).arg(&cluster);
        command.arg("--out").arg(folder().join("out-member")).current_dir(folder());
        Outcome::of(&mut command).succeeds();
        cluster
    })
}

/// The name of the node of [`member`].
pub const MEMBER_NAME: &str = "etcd-1";

/// Copies a cluster folder as it is, with lock and secrets.
pub fn copy_whole(from: &Path, to: &Path) {
    run(Command::new("cp").arg("--archive").args([from, to]));
}

/// Makes a store of links to objects of the user's store, those whose digests `objects` wants, and of copies of the
/// step records that `steps` wants, by their text.
pub fn linked_store(to: &Path, objects: impl Fn(&str) -> bool, steps: impl Fn(&str) -> bool) {
    let from = users_store();
    for object in files_below(&from.join("objects")) {
        if !objects(&object.to_str().expect("digests are ASCII").replace('/', "")) {
            continue;
        }
        let (source, target) = (from.join("objects").join(&object), to.join("objects").join(&object));
        fs::create_dir_all(target.parent().expect("objects lie in folders")).unwrap();
        // Objects are immutable, so that a link is as good as a copy.
        if fs::hard_link(&source, &target).is_err() {
            fs::copy(&source, &target).unwrap();
        }
    }
    fs::create_dir_all(to.join("steps")).unwrap();
    for step in files_below(&from.join("steps")) {
        // Another process may have removed it.
        let record = fs::read_to_string(from.join("steps").join(&step)).unwrap_or_default();
        if steps(&record) {
            fs::write(to.join("steps").join(step), record).unwrap();
        }
    }
}

/// Copies the files of a cluster folder. What is in `to` already and not in `from`, such as secrets, stays.
pub fn copy_cluster(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap_or_else(|error| panic!("making {}: {error}", to.display()));
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("reading {}: {error}", from.display())) {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}
