// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernel modules of the initramfs: which exist, which this machine needs, loading them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::fnmatch;
use crate::console::Console;

/// One line of `modules.list`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name; its file is `<name>.ko`.
    pub name: String,
    /// Modules it needs.
    pub needs: Vec<String>,
    /// Whether it is loaded on every machine.
    pub always: bool,
    /// Devices it drives: patterns of `modalias`.
    pub aliases: Vec<String>,
}

/// Reads `modules.list`: `name<TAB>dep1,dep2 or -<TAB>always or match<TAB>aliases`.
pub fn parse(text: &str) -> Result<Vec<Module>> {
    let mut modules: Vec<Module> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.split('\t');
        let (Some(name), Some(needs), Some(when)) = (fields.next(), fields.next(), fields.next()) else {
            bail!("modules.list line {}: fewer than three fields", index + 1);
        };
        let always = match when {
            "always" => true,
            "match" => false,
            _ => bail!("modules.list line {}: `{when}` is neither always nor match", index + 1),
        };
        let needs: Vec<String> =
            needs.split(',').filter(|need| !matches!(*need, "-" | "")).map(str::to_owned).collect();
        for need in &needs {
            if !modules.iter().any(|module| module.name == *need) {
                bail!("modules.list line {}: `{name}` needs `{need}`, which is not listed before it", index + 1);
            }
        }
        let aliases = fields.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        modules.push(Module { name: name.to_owned(), needs, always, aliases });
    }
    Ok(modules)
}

/// The modules of this initramfs and which of them are loaded.
#[derive(Debug)]
pub struct Modules {
    dir: PathBuf,
    modules: Vec<Module>,
    index: BTreeMap<String, usize>,
    tried: BTreeSet<usize>,
}

impl Modules {
    /// Reads `modules.list` in `dir`. A kernel with everything built in has none.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("modules.list");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let modules = parse(&text)?;
        let index = modules.iter().enumerate().map(|(at, module)| (module.name.clone(), at)).collect();
        Ok(Self { dir: dir.to_owned(), modules, index, tried: BTreeSet::new() })
    }

    /// Loads what every machine needs.
    pub fn load_always(&mut self, console: &Console) {
        let wanted: Vec<_> = (0..self.modules.len()).filter(|at| self.modules[*at].always).collect();
        self.load(&wanted, console);
    }

    /// Loads what the devices of this machine ask for; says whether anything was new.
    pub fn load_matching(&mut self, console: &Console) -> bool {
        let modaliases = modaliases(Path::new("/sys/devices"));
        let wanted = self.matching(&modaliases);
        self.load(&wanted, console);
        !wanted.is_empty()
    }

    /// Modules not tried yet that drive one of the devices.
    fn matching(&self, modaliases: &BTreeSet<String>) -> Vec<usize> {
        let drives = |module: &Module| {
            module
                .aliases
                .iter()
                .any(|alias| modaliases.iter().any(|modalias| fnmatch::matches(alias.as_bytes(), modalias.as_bytes())))
        };
        (0..self.modules.len()).filter(|at| !self.tried.contains(at) && drives(&self.modules[*at])).collect()
    }

    fn load(&mut self, wanted: &[usize], console: &Console) {
        for at in wanted {
            for module in self.with_needs(*at) {
                if self.tried.insert(module)
                    && let Err(error) = insert(&self.dir, &self.modules[module].name)
                {
                    // The machine may boot without it; if not, what is missing will be said.
                    console.line(&format!("module {error:#}"));
                }
            }
        }
    }

    /// The module after everything it needs. The order of the list makes one pass enough.
    fn with_needs(&self, at: usize) -> BTreeSet<usize> {
        let mut all = BTreeSet::from([at]);
        let mut open = vec![at];
        while let Some(module) = open.pop() {
            for need in self.modules[module].needs.iter().filter_map(|need| self.index.get(need)) {
                if all.insert(*need) {
                    open.push(*need);
                }
            }
        }
        all
    }
}

fn insert(dir: &Path, name: &str) -> Result<()> {
    let path = dir.join(format!("{name}.ko"));
    let file = File::open(&path).with_context(|| format!("{name}: opening {}", path.display()))?;
    match rustix::system::finit_module(&file, c"", 0) {
        // Loaded already.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{name}: the kernel refuses it")),
    }
}

/// All `modalias` values below `dir`.
fn modaliases(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                // Links lead to other devices, which are visited as what they are.
                Ok(kind) if kind.is_dir() => open.push(entry.path()),
                Ok(kind) if kind.is_file() && entry.file_name() == "modalias" => {
                    if let Ok(text) = fs::read_to_string(entry.path()) {
                        found.insert(text.trim_end().to_owned());
                    }
                }
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "overlay\t-\talways\t\nvirtio\t-\tmatch\t\nvirtio_ring\tvirtio\tmatch\t\n\
                        virtio_blk\tvirtio,virtio_ring\tmatch\tvirtio:d00000002v* virtio:d0000000Av*\n\
                        nvme\t-\tmatch\tpci:v*d*sv*sd*bc01sc08i02*\n";

    fn modules() -> (tempfile::TempDir, Modules) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("modules.list"), LIST).unwrap();
        let modules = Modules::read(dir.path()).unwrap();
        (dir, modules)
    }

    #[test]
    fn lines_are_understood_or_refused() {
        let list = parse(LIST).unwrap();
        assert_eq!(list.len(), 5);
        assert!(list[0].always && list[0].needs.is_empty());
        assert_eq!(list[3].needs, ["virtio", "virtio_ring"]);
        assert_eq!(list[3].aliases.len(), 2);
        assert!(parse("a\t-\n").unwrap_err().to_string().contains("line 1"));
        assert!(parse("a\t-\tsometimes\t\n").is_err());
        assert!(parse("a\tb\tmatch\t\nb\t-\tmatch\t\n").unwrap_err().to_string().contains("`b`"));
    }

    #[test]
    fn devices_choose_modules_and_what_they_need() {
        let (_dir, modules) = modules();
        let devices = BTreeSet::from(["virtio:d00000002v00001AF4".to_owned(), "acpi:PNP0103:".to_owned()]);
        assert_eq!(modules.matching(&devices), [3]);
        assert_eq!(modules.with_needs(3), BTreeSet::from([1, 2, 3]));
    }

    #[test]
    fn modaliases_are_found_without_following_links() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("pci0000:00/0000:00:03.0/virtio0");
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("modalias"), "virtio:d00000002v00001AF4\n").unwrap();
        std::os::unix::fs::symlink("..", device.join("subsystem")).unwrap();
        assert_eq!(modaliases(dir.path()), BTreeSet::from(["virtio:d00000002v00001AF4".to_owned()]));
    }

    #[test]
    fn a_module_that_cannot_be_loaded_is_tried_once_and_told() {
        let (_dir, mut modules) = modules();
        let console = Console::new(Vec::new(), Box::new(std::io::sink()));
        modules.load(&[3], &console);
        assert_eq!(modules.tried, BTreeSet::from([1, 2, 3]));
        assert!(modules.matching(&BTreeSet::from(["virtio:d00000002v1".to_owned()])).is_empty());
    }
}
