// SPDX-License-Identifier: MIT OR Apache-2.0

//! Recipes for Kubernetes out of Debian's source package `kubernetes`, with two programs of ours from the same tree.
//!
//! It does what `debian/rules` and the Makefile do for the programs wanted, without `make`: apply the distribution's
//! patches, generate the one file that the archive lacks (kube-apiserver's OpenAPI definitions), set the version, compile.
//! `crictl` and `pause` are ours since no package has them and compiling them needs nothing more.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use profiles::node::Architecture;
use serde::Serialize;

use super::golang::{Build, Overlay};
use super::steps::{Workshop, keep, path_text, read, replace_line, write};
use super::workspace::single_top;
use super::{Programs, Trees};
use crate::store::Store;
use crate::tree::FileTree;

/// The import path of the whole tree. Its libraries are found below it (`vendor/`), since it is compiled as a GOPATH:
/// the archive's `go.mod` is of a time when Go let requirements be implied, and Go 1.19 wants to update it.
const TOP: &str = "k8s.io/kubernetes";

/// Import path of our own programs, below [`TOP`] so that they find its libraries.
const OURS: &str = "cmd/imgbuild";

/// How one release of Kubernetes is compiled. Every field is part of the step key.
#[derive(Debug, Serialize)]
pub struct Recipe {
    /// To be raised when the code below would make something else out of the same recipe.
    #[serde(skip)]
    pub step_version: u32,
    /// The release, without `v`.
    pub version: &'static str,
    /// Name of the distribution's source package.
    pub source_package: &'static str,
    /// Release of Go.
    go: &'static str,
    /// Packages the toolchain consists of.
    toolchain: &'static [&'static str],
    /// When this release says it was built.
    build_date: &'static str,
    /// Programs of Kubernetes, by import path below [`TOP`].
    programs: &'static [&'static str],
    /// Our programs: name and source.
    ours: &'static [(&'static str, &'static str)],
    /// Directories with types that kube-apiserver describes, one a line.
    openapi: &'static str,
    /// Changes to vendored libraries.
    changes: &'static [Change],
}

/// A change to a vendored library, on all architectures or on one.
#[derive(Debug, Serialize)]
struct Change {
    only: Option<Architecture>,
    what: Edit,
}

#[derive(Debug, Serialize)]
enum Edit {
    /// The whole library is replaced by a package's.
    Library { import_path: &'static str, package: &'static str },
    /// One line of a file, without its newline, is replaced.
    Line { file: &'static str, from: &'static str, to: &'static str },
}

/// Kubernetes 1.20.2 of Debian bookworm.
const KUBERNETES_1_20_2: Recipe = Recipe {
    step_version: 1,
    version: "1.20.2",
    source_package: "kubernetes",
    go: "1.19",
    toolchain: &["golang-1.19-go", "golang-1.19-src"],
    // The time of the commit, which the entries of the archive carry.
    build_date: "2021-01-13T13:19:01Z",
    programs: &[
        "cmd/kubeadm",
        "cmd/kubelet",
        "cmd/kubectl",
        "cmd/kube-apiserver",
        "cmd/kube-controller-manager",
        "cmd/kube-scheduler",
        "cmd/kube-proxy",
    ],
    ours: &[("crictl", include_str!("go/crictl/main.go")), ("pause", include_str!("go/pause/main.go"))],
    // KUBE_OPENAPI_DIRS of build/root/Makefile.generated_files: what is tagged `+k8s:openapi-gen=` outside of the
    // code generator and the sample API server. The check of the rule report below would notice a missing one.
    openapi: include_str!("openapi-1.20.txt"),
    changes: &[
        // 1.0.1 calls the runtime's map iterator with the arguments it had before Go 1.18, and crashes
        // (https://github.com/modern-go/reflect2/issues/24).
        Change {
            only: None,
            what: Edit::Library {
                import_path: "github.com/modern-go/reflect2",
                package: "golang-github-modern-go-reflect2-dev",
            },
        },
        // The two below are older than Go's port to LoongArch.
        Change {
            only: Some(Architecture::Loong64),
            what: Edit::Library { import_path: "golang.org/x/sys", package: "golang-golang-x-sys-dev" },
        },
        Change {
            only: Some(Architecture::Loong64),
            what: Edit::Line {
                file: "vendor/github.com/opencontainers/runc/libcontainer/system/syscall_linux_64.go",
                from: "// +build arm64 amd64 mips mipsle mips64 mips64le ppc ppc64 ppc64le riscv64 s390x",
                to: "// +build arm64 amd64 loong64 mips mipsle mips64 mips64le ppc ppc64 ppc64le riscv64 s390x",
            },
        },
    ],
};

/// The recipe for a release ("1.20.2"), if there is one.
pub fn recipe(version: &str) -> Option<&'static Recipe> {
    const RECIPES: [&Recipe; 1] = [&KUBERNETES_1_20_2];
    RECIPES.into_iter().find(|recipe| recipe.version == version)
}

impl Recipe {
    /// The packages to unpack for this recipe: the toolchain, of the architecture of this machine, and libraries.
    /// Nothing that they depend on is needed, except for the C library that the `go` command runs on.
    pub fn packages(&self, target: Architecture) -> Vec<&'static str> {
        let libraries = self.changes_for(target).filter_map(|edit| match edit {
            Edit::Library { package, .. } => Some(*package),
            Edit::Line { .. } => None,
        });
        self.toolchain.iter().copied().chain(libraries).collect()
    }

    /// Names of the programs that [`super::build`] makes.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let programs = self.programs.iter().map(|path| path.rsplit('/').next().unwrap_or(path));
        programs.chain(self.ours.iter().map(|(name, _)| *name))
    }

    /// Whether a program is one of ours.
    pub(super) fn is_ours(&self, program: &str) -> bool {
        self.ours.iter().any(|(name, _)| *name == program)
    }

    fn changes_for(&self, target: Architecture) -> impl Iterator<Item = &'static Edit> {
        self.changes
            .iter()
            .filter(move |change| change.only.is_none_or(|only| only == target))
            .map(|change| &change.what)
    }

    pub(super) fn compile(
        &self,
        store: &Store,
        trees: &Trees,
        target: Architecture,
        jobs: NonZeroUsize,
    ) -> Result<Programs> {
        self.check_release(store, &trees.upstream)?;
        let workshop = Workshop::open(store, trees, self.go, TOP, jobs)?;

        let job = Job { recipe: self, workshop, target };
        let overlay = job.overlay()?;
        let output = job.workshop.path.join("output");
        tracing::info!("compiling Kubernetes {} for {target:?}: this takes minutes", self.version);
        job.build(
            self.programs.iter().map(|path| format!("{TOP}/{path}")),
            self.version_variables(),
            &overlay,
            &output,
        )?;
        let ours = self.ours.iter().map(|(name, _)| format!("{TOP}/{OURS}/{name}"));
        let variables = vec![("main.version".to_owned(), format!("v{}", self.version))];
        job.build(ours, variables, &overlay, &output)?;

        self.names().map(|name| Ok((name.to_owned(), keep(store, &output.join(name))?))).collect()
    }

    /// Makes sure that the archive is of the release that its version will claim.
    fn check_release(&self, store: &Store, upstream: &FileTree) -> Result<()> {
        // `git archive` replaced `$Format:%D$` by the tags of the commit (.gitattributes, export-subst).
        let file = "hack/lib/version.sh";
        let text = read(store, upstream, single_top(upstream), file)?;
        if !text.contains(&format!("'tag: v{}'", self.version)) {
            bail!("{file} of the source does not name the tag v{}", self.version);
        }
        Ok(())
    }

    /// The variables that `hack/lib/version.sh` sets. The commit is in the source, put there by `git archive`.
    fn version_variables(&self) -> Vec<(String, String)> {
        let mut numbers = self.version.split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        let version = format!("v{}", self.version);
        let variables = [
            ("gitVersion", version.as_str()),
            ("gitMajor", major),
            ("gitMinor", minor),
            // Neither "clean" nor "dirty": made from an archive.
            ("gitTreeState", "archive"),
            ("buildDate", self.build_date),
        ];
        let packages = ["vendor/k8s.io/client-go/pkg/version", "vendor/k8s.io/component-base/version"];
        packages
            .iter()
            .flat_map(|package| variables.map(|(name, value)| (format!("{TOP}/{package}.{name}"), value.to_owned())))
            .collect()
    }
}

/// One compilation.
struct Job<'a> {
    recipe: &'a Recipe,
    workshop: Workshop,
    target: Architecture,
}

impl Job<'_> {
    fn build(
        &self,
        packages: impl Iterator<Item = String>,
        variables: Vec<(String, String)>,
        overlay: &Path,
        output: &Path,
    ) -> Result<()> {
        let packages: Vec<_> = packages.collect();
        let target = Some(self.target);
        let build =
            Build { packages: &packages, target, tags: &[], variables: &variables, overlay: Some(overlay), output };
        self.workshop.go.build(&self.workshop.source, &build)
    }

    /// Collects everything that the compiler shall see and the archive does not have.
    fn overlay(&self) -> Result<PathBuf> {
        let mut overlay = Overlay::default();
        let files = self.workshop.path.join("overlay");
        for edit in self.recipe.changes_for(self.target) {
            match edit {
                Edit::Library { import_path, package } => overlay
                    .replace_directory(
                        &self.workshop.source.join("vendor").join(import_path),
                        &self.workshop.libraries.join(import_path),
                    )
                    .with_context(|| format!("replacing the vendored {import_path} by package {package}"))?,
                Edit::Line { file, from, to } => {
                    let path = self.workshop.source.join(file);
                    let text = fs::read_to_string(&path).with_context(|| format!("reading {file}"))?;
                    let text = replace_line(&text, from, to).with_context(|| format!("changing {file}"))?;
                    overlay.replace(path, write(&files.join(file), &text)?);
                }
            }
        }
        for (name, text) in self.recipe.ours {
            let file = format!("{OURS}/{name}/main.go");
            overlay.replace(self.workshop.source.join(&file), write(&files.join(&file), text)?);
        }
        let generated = "pkg/generated/openapi/zz_generated.openapi.go";
        overlay.replace(self.workshop.source.join(generated), self.generate_openapi()?.join(generated));
        let path = self.workshop.path.join("overlay.json");
        overlay.write(&path)?;
        Ok(path)
    }

    /// Generates kube-apiserver's OpenAPI definitions, as the target `gen_openapi` of build/root/Makefile.generated_files
    /// does, and gives the directory that stands for the top of the source.
    fn generate_openapi(&self) -> Result<PathBuf> {
        tracing::info!("generating the OpenAPI definitions of Kubernetes {}", self.recipe.version);
        let tools = self.workshop.path.join("tools");
        let generator = [format!("{TOP}/vendor/k8s.io/kube-openapi/cmd/openapi-gen")];
        let build =
            Build { packages: &generator, target: None, tags: &[], variables: &[], overlay: None, output: &tools };
        self.workshop.go.build(&self.workshop.source, &build).context("compiling the OpenAPI generator")?;

        let inputs: Vec<_> = self.recipe.openapi.lines().map(|directory| format!("{TOP}/{directory}")).collect();
        let generated = self.workshop.path.join("generated");
        let report = self.workshop.path.join("openapi.report");
        let arguments = [
            "--logtostderr",
            "--input-dirs",
            &inputs.join(","),
            "--output-package",
            &format!("{TOP}/pkg/generated/openapi"),
            "--output-file-base",
            "zz_generated.openapi",
            "--go-header-file",
            "vendor/k8s.io/code-generator/hack/boilerplate.go.txt",
            "--output-base",
            path_text(&generated)?,
            "--report-filename",
            path_text(&report)?,
        ];
        let openapi_gen = tools.join("openapi-gen");
        self.workshop
            .go
            .run(&openapi_gen, &self.workshop.source, &arguments)
            .context("generating OpenAPI definitions")?;

        // The Makefile compares, too: the known violations of its rules cover every directory of the list, so a report
        // that equals them was made from all of them.
        let known = "api/api-rules/violation_exceptions.list";
        let [found, wanted] = [report, self.workshop.source.join(known)]
            .map(|path| fs::read(&path).with_context(|| format!("reading OpenAPI rule violations {}", path.display())));
        if found? != wanted? {
            bail!("OpenAPI rule violations differ from {known}: some directory is missing, or one too many");
        }
        Ok(generated.join(TOP))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::inputs::source::steps::apply_patches;
    use crate::tree::Entry;

    #[test]
    fn the_recipe_names_its_packages_and_programs() {
        let recipe = recipe("1.20.2").unwrap();
        let common = ["golang-1.19-go", "golang-1.19-src", "golang-github-modern-go-reflect2-dev"];
        assert_eq!(recipe.packages(Architecture::Amd64), common);
        assert_eq!(recipe.packages(Architecture::Loong64)[3..], ["golang-golang-x-sys-dev"]);
        let names: Vec<_> = recipe.names().collect();
        assert_eq!(names[..2], ["kubeadm", "kubelet"]);
        assert_eq!(names[7..], ["crictl", "pause"]);
        assert!(super::recipe("1.20.3").is_none());
    }

    #[test]
    fn the_openapi_directories_are_sorted_and_clean() {
        let directories: Vec<_> = KUBERNETES_1_20_2.openapi.lines().collect();
        assert!(directories.is_sorted() && directories.len() > 50);
        assert!(directories.iter().all(|line| line.trim() == *line && !line.is_empty() && !line.contains(',')));
    }

    #[test]
    fn the_version_is_set_in_both_copies() {
        let variables = KUBERNETES_1_20_2.version_variables();
        assert_eq!(variables.len(), 10);
        let name = "k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitMinor";
        assert!(variables.contains(&(name.to_owned(), "20".to_owned())), "{variables:?}");
    }

    #[test]
    fn the_series_is_applied_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("f"), "1\n").unwrap();
        let mut packaging = FileTree::new();
        let mut add = |name: &str, text: &str| {
            packaging.insert(&format!("debian/patches/{name}"), Entry::file(text.as_bytes(), 0o644)).unwrap();
        };
        add("series", "# comment\nsecond\n\nfirst\n");
        add("first", "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-2\n+3\n--- /dev/null\n+++ b/d/g\n@@ -0,0 +1 @@\n+new\n");
        add("second", "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-1\n+2\n");
        apply_patches(&store, &packaging, &source).unwrap();
        assert_eq!(fs::read_to_string(source.join("f")).unwrap(), "3\n");
        assert_eq!(fs::read_to_string(source.join("d/g")).unwrap(), "new\n");

        let error = apply_patches(&store, &packaging, &source).unwrap_err();
        assert_eq!(format!("{error:#}"), "applying debian/patches/second: hunk 1 of f does not match the file");
    }

    #[test]
    fn another_release_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut upstream = FileTree::new();
        let text = "if [[ 'tag: v1.20.3' =~ tag ]]; then\n";
        upstream.insert("kubernetes-1.20.3/hack/lib/version.sh", Entry::file(text.as_bytes(), 0o755)).unwrap();
        let error = KUBERNETES_1_20_2.check_release(&store, &upstream).unwrap_err();
        assert_eq!(error.to_string(), "hack/lib/version.sh of the source does not name the tag v1.20.2");
    }
}
