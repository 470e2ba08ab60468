// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Go toolchain, unpacked from packages and run with nothing but what it is given.
//!
//! Owns its environment, the flags that make its output a function of its input, and overlays. Knows nothing of what is
//! compiled.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use profiles::node::Architecture;
use serde::Serialize;

/// How much of a failed command's messages goes into the error.
const MESSAGE_TAIL: usize = 4096;

/// A Go toolchain on disk, with a workspace of its own.
#[derive(Debug)]
pub struct Go {
    goroot: PathBuf,
    work: PathBuf,
    /// Where the libraries of packages are, if the source brings none of its own.
    libraries: Option<PathBuf>,
    jobs: NonZeroUsize,
}

/// What to compile, and how.
#[derive(Debug)]
pub struct Build<'a> {
    /// Import paths of the main packages.
    pub packages: &'a [String],
    /// The architecture; `None` for this machine's own.
    pub target: Option<Architecture>,
    /// Build tags.
    pub tags: &'a [&'static str],
    /// Values for string variables (`importpath.name`) of the packages.
    pub variables: &'a [(String, String)],
    /// Changes to the source.
    pub overlay: Option<&'a Path>,
    /// Where the programs go, each named for the last element of its import path.
    pub output: &'a Path,
}

impl Go {
    /// Finds the toolchain of release `release` ("1.19") in the directory `packages`, where Debian's golang packages
    /// are unpacked, and uses the existing directory `work` as its workspace.
    ///
    /// # Errors
    /// If it is not there, or of another release.
    pub fn find(packages: &Path, release: &str, work: &Path, jobs: NonZeroUsize) -> Result<Self> {
        let goroot = packages.join("usr/lib").join(format!("go-{release}"));
        let file = goroot.join("VERSION");
        let version = fs::read_to_string(&file).context("reading usr/lib/go-*/VERSION of the toolchain packages")?;
        let wanted = format!("go{release}");
        if version.trim() != wanted && !version.starts_with(&format!("{wanted}.")) {
            bail!("toolchain is {}, wanted {wanted}", version.trim());
        }
        let go = Self { goroot, work: work.to_owned(), libraries: None, jobs };
        for dir in ["home", "tmp", "cache", "gopath/src"] {
            let path = go.work.join(dir);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        Ok(go)
    }

    /// Lets libraries be found in `folder` (`<folder>/src/<import path>`), after the source's own.
    pub fn with_libraries(self, folder: &Path) -> Self {
        Self { libraries: Some(folder.to_owned()), ..self }
    }

    /// Where the source of an import path belongs.
    pub fn source_dir(&self, import_path: &str) -> PathBuf {
        self.work.join("gopath/src").join(import_path)
    }

    /// Compiles static programs whose bytes depend on nothing but source, toolchain and `build`.
    ///
    /// # Errors
    /// If the compiler cannot be run or refuses; the error ends with its last messages.
    pub fn build(&self, directory: &Path, build: &Build<'_>) -> Result<()> {
        fs::create_dir_all(build.output).with_context(|| format!("creating {}", build.output.display()))?;
        // No symbol table, no debugging information, and no build id, which would differ from one cache to another.
        let mut linker = "-s -w -buildid=".to_owned();
        for (name, value) in build.variables {
            if value.contains(['\'', '"', ' ']) {
                bail!("value of {name} needs quoting: {value}");
            }
            linker.push_str(&format!(" -X {name}={value}"));
        }
        let mut command = self.command(&self.goroot.join("bin/go"), directory, build.target);
        command.args(["build", "-trimpath", "-buildvcs=false", "-p"]).arg(self.jobs.to_string());
        command.arg("-ldflags").arg(linker);
        if !build.tags.is_empty() {
            command.arg("-tags").arg(build.tags.join(","));
        }
        if let Some(overlay) = build.overlay {
            command.arg("-overlay").arg(overlay);
        }
        // With the trailing slash it is a directory even for a single program.
        command.arg("-o").arg(build.output.join("")).args(build.packages);
        run(command, "go build")?;
        if build.target == Some(Architecture::Loong64) {
            for package in build.packages {
                let program = build.output.join(package.rsplit('/').next().unwrap_or(package));
                mark_new_world(&program).with_context(|| format!("marking {}", program.display()))?;
            }
        }
        Ok(())
    }

    /// Runs a program made by [`Go::build`] for this machine, as `go run` would: it finds source as the toolchain does.
    ///
    /// # Errors
    /// If it cannot be run or fails; the error ends with its last messages.
    pub fn run(&self, program: &Path, directory: &Path, arguments: &[impl AsRef<OsStr>]) -> Result<()> {
        // Which files of a package count depends on the architecture. What a generator writes must not depend on this
        // machine's, so it is told the same one everywhere.
        let mut command = self.command(program, directory, Some(Architecture::Amd64));
        command.args(arguments);
        run(command, &program.file_name().unwrap_or_default().to_string_lossy())
    }

    /// A command with the whole environment it gets.
    fn command(&self, program: &Path, directory: &Path, target: Option<Architecture>) -> Command {
        let mut gopath = self.work.join("gopath").into_os_string();
        if let Some(libraries) = &self.libraries {
            gopath.push(":");
            gopath.push(libraries);
        }
        let mut command = Command::new(program);
        command.current_dir(directory).stdin(Stdio::null()).env_clear();
        command
            .env("PWD", directory)
            .env("HOME", self.work.join("home"))
            .env("TMPDIR", self.work.join("tmp"))
            .env("GOROOT", &self.goroot)
            .env("GOPATH", gopath)
            .env("GOCACHE", self.work.join("cache"))
            .env("GOTMPDIR", self.work.join("tmp"))
            .env("GOMAXPROCS", self.jobs.to_string())
            .env("GOOS", "linux")
            .env("CGO_ENABLED", "0")
            // Sources are complete with their vendored libraries; modules would only be looked for elsewhere.
            .env("GO111MODULE", "off")
            .env("GOPROXY", "off")
            .env("GOSUMDB", "off")
            .env("GOTOOLCHAIN", "local")
            .env("GOENV", "off")
            .env("GOFLAGS", "");
        if let Some(target) = target {
            command.env("GOARCH", goarch(target));
        }
        command
    }
}

/// Go's name of an architecture.
pub fn goarch(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Amd64 => "amd64",
        Architecture::Loong64 => "loong64",
    }
}

/// Writes the object ABI that Go 1.20 and later write into the header of programs for LoongArch. Go 1.19 writes the one
/// before it, as the old world does. It is the version of the relocations, of which a linked program has none: Go's own
/// port only makes programs for the new world (the LoongArch ELF psABI, "e_flags").
fn mark_new_world(program: &Path) -> Result<()> {
    const FLAGS_AT: u64 = 48;
    const DOUBLE_FLOAT: [u8; 4] = [0x03, 0, 0, 0];
    const DOUBLE_FLOAT_V1: [u8; 4] = [0x43, 0, 0, 0];
    let file = fs::OpenOptions::new().read(true).write(true).open(program)?;
    let mut flags = [0; 4];
    file.read_exact_at(&mut flags, FLAGS_AT)?;
    if flags == DOUBLE_FLOAT {
        file.write_all_at(&DOUBLE_FLOAT_V1, FLAGS_AT)?;
    }
    Ok(())
}

fn run(mut command: Command, name: &str) -> Result<()> {
    tracing::debug!(?command, "running");
    let output = command.output().with_context(|| format!("starting {name}"))?;
    if output.status.success() {
        return Ok(());
    }
    let tail = &output.stderr[output.stderr.len().saturating_sub(MESSAGE_TAIL)..];
    bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(tail).trim())
}

/// Changes to source files that the compiler sees and the source tree does not (`go help build`, `-overlay`).
#[derive(Debug, Default, Serialize)]
pub struct Overlay {
    /// Path in the tree to the file that stands for it; the empty string hides it.
    #[serde(rename = "Replace")]
    replace: BTreeMap<PathBuf, PathBuf>,
}

impl Overlay {
    /// Puts `file` in the place of `path`, whether there is one or not.
    pub fn replace(&mut self, path: PathBuf, file: PathBuf) {
        self.replace.insert(path, file);
    }

    /// Puts the source files of the directory `library`, and of those below it, in the place of those of `directory`.
    ///
    /// # Errors
    /// If one of the two cannot be read, or `library` has no source at all.
    pub fn replace_directory(&mut self, directory: &Path, library: &Path) -> Result<()> {
        for path in sources(directory)? {
            self.replace.insert(directory.join(path), PathBuf::new());
        }
        let replacement = sources(library)?;
        if replacement.is_empty() {
            bail!("{} has no Go source files", library.display());
        }
        for path in replacement {
            self.replace.insert(directory.join(&path), library.join(&path));
        }
        Ok(())
    }

    /// Writes the overlay as the compiler reads it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_vec_pretty(self).context("describing an overlay")?;
        fs::write(path, json).with_context(|| format!("writing overlay {}", path.display()))
    }
}

/// The Go and assembler files below `directory`, relative to it.
fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(below) = pending.pop() {
        let path = directory.join(&below);
        let reading = || format!("reading directory {}", path.display());
        for entry in fs::read_dir(&path).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            let name = below.join(entry.file_name());
            if entry.file_type().with_context(reading)?.is_dir() {
                pending.push(name);
            } else if name.extension().is_some_and(|extension| extension == "go" || extension == "s") {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn programs_for_loongarch_are_marked() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        for (before, after) in [(0x03, 0x43), (0x43, 0x43), (0x41, 0x41)] {
            let mut header = vec![0; 64];
            header[48] = before;
            fs::write(&program, &header).unwrap();
            mark_new_world(&program).unwrap();
            header[48] = after;
            assert_eq!(fs::read(&program).unwrap(), header);
        }
        assert!(mark_new_world(&dir.path().join("none")).is_err());
    }

    #[test]
    fn another_release_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let goroot = dir.path().join("usr/lib/go-1.19");
        fs::create_dir_all(&goroot).unwrap();
        let find = || Go::find(dir.path(), "1.19", dir.path(), NonZeroUsize::MIN).map(drop);
        assert_eq!(find().unwrap_err().to_string(), "reading usr/lib/go-*/VERSION of the toolchain packages");
        fs::write(goroot.join("VERSION"), "go1.190").unwrap();
        assert_eq!(find().unwrap_err().to_string(), "toolchain is go1.190, wanted go1.19");
        for good in ["go1.19", "go1.19.8", "go1.19.8\n"] {
            fs::write(goroot.join("VERSION"), good).unwrap();
            find().unwrap();
        }
    }

    #[test]
    fn a_library_replaces_a_vendored_one() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        for (file, top) in [("a.go", &old), ("gone.go", &old), ("LICENSE", &old), ("a.go", &new), ("sub/b.s", &new)] {
            fs::create_dir_all(top.join(file).parent().unwrap()).unwrap();
            fs::write(top.join(file), "").unwrap();
        }
        let mut overlay = Overlay::default();
        overlay.replace_directory(&old, &new).unwrap();
        let expected = [("a.go", new.join("a.go")), ("gone.go", PathBuf::new()), ("sub/b.s", new.join("sub/b.s"))];
        assert_eq!(overlay.replace, expected.map(|(path, file)| (old.join(path), file)).into());
        overlay.write(&dir.path().join("overlay.json")).unwrap();
        let json = fs::read_to_string(dir.path().join("overlay.json")).unwrap();
        assert!(json.starts_with("{\n  \"Replace\": {"), "{json}");

        fs::remove_dir_all(&new).unwrap();
        fs::create_dir(&new).unwrap();
        assert!(overlay.replace_directory(&old, &new).is_err());
    }

    #[test]
    fn a_failed_command_tells_its_last_words() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo broken >&2; exit 3"]).env_clear();
        assert_eq!(run(command, "tool").unwrap_err().to_string(), "tool failed (exit status: 3): broken");
    }
}
