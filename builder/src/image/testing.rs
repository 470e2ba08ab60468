// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the tests of image formats share.

use std::path::Path;
use std::process::{Command, Output};

use crate::store::Store;

/// Runs somebody else's tool on our output. A missing tool fails the test and says which package has it.
pub(crate) fn tool(program: &str, package: &str, args: &[&str]) -> Output {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    Command::new(program)
        .args(args)
        .env("PATH", path)
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .env("MTOOLS_SKIP_CHECK", "1")
        .output()
        .unwrap_or_else(|e| panic!("cannot run `{program}` ({e}): install the package {package}"))
}

/// As [`tool`]; must succeed; gives stdout.
pub(crate) fn tool_ok(program: &str, package: &str, args: &[&str]) -> String {
    let output = tool(program, package, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{program} {args:?} ended with {}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A store in a folder that vanishes with it.
pub(crate) fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    (dir, store)
}

/// A path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
