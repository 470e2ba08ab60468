// SPDX-License-Identifier: MIT OR Apache-2.0

//! The tree of the initramfs: the static firstboot as `/init`, and the closure of the kernel modules it takes to find
//! and mount the root. See docs/contracts.md, section 5.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use profiles::signing::KEY_FILE;

use super::modules::{Modules, decompressed, load_order};
use super::{Content, Entry, FileTree, Kind};
use crate::store::Store;

/// Modules that firstboot always loads; without the mandatory ones no root can be mounted.
const ALWAYS: &[(&str, bool)] = &[
    ("squashfs", true),
    ("overlay", true),
    ("ext4", true),
    ("loop", false),
    ("vfat", true),
    ("nls_cp437", false),
    ("nls_ascii", false),
    ("nls_iso8859_1", false),
    ("nls_utf8", false),
    ("isofs", false),
    ("efivarfs", false),
    ("crc32c_generic", false),
    ("virtio_pci", false),
    ("virtio_mmio", false),
    ("dm_verity", false),
];

/// Modules that are loaded when the hardware asks: storage, its buses, and a keyboard for the console.
const MATCHED: &[&str] = &[
    // Storage.
    "virtio_blk",
    "virtio_scsi",
    "nvme",
    "ahci",
    "ahci_platform",
    "ata_piix",
    "ata_generic",
    "sd_mod",
    "sr_mod",
    "sym53c8xx",
    "mptspi",
    "mptsas",
    "usb_storage",
    "uas",
    "megaraid_sas",
    "mpt3sas",
    "aacraid",
    "hpsa",
    "smartpqi",
    "isci",
    "hv_storvsc",
    "hv_vmbus",
    "vmw_pvscsi",
    "xen_blkfront",
    "mmc_block",
    "sdhci_pci",
    "sdhci_acpi",
    "vmd",
    // Buses.
    "xhci_pci",
    "xhci_hcd",
    "ehci_pci",
    "ohci_pci",
    "uhci_hcd",
    // Keyboard.
    "usbhid",
    "hid_generic",
    "i8042",
    "atkbd",
    "hyperv_keyboard",
    "hid_hyperv",
    "virtio_input",
];

/// Drivers of network cards, for an installer that tells machines by their MAC addresses: those of servers, of virtual machines,
/// and of Loongson's chipsets.
const NETWORK: &[&str] = &[
    "virtio_net",
    "vmxnet3",
    "hv_netvsc",
    "xen_netfront",
    "e1000",
    "e1000e",
    "igb",
    "igc",
    "ixgbe",
    "i40e",
    "ice",
    "bnxt_en",
    "tg3",
    "r8169",
    "mlx4_core",
    "mlx4_en",
    "mlx5_core",
    "be2net",
    "hns3",
    "txgbe",
    "ngbe",
    "dwmac_loongson",
    "stmmac_pci",
];

/// Modules without which an installer finds no medium.
const MEDIUM: &[&str] = &["isofs", "sr_mod", "usb_storage"];

/// What decides about the initramfs besides the kernel.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Whether it is that of an installation medium: with drivers of network cards, and sure to read the medium.
    pub installer: bool,
    /// The public key that must have signed the medium, as a file
    /// ([`PublicKey::to_file`](profiles::signing::PublicKey::to_file)).
    pub signing_key: Option<String>,
    /// Further modules to be loaded always; each must exist.
    pub always: Vec<String>,
    /// Further modules to be loaded when hardware asks; each must exist.
    pub matched: Vec<String>,
}

/// The kernel in a tree: its release and its image, in /boot or, as distributions do since some years, beside its modules.
///
/// # Errors
/// None, or several: then which.
pub fn kernel_image(tree: &FileTree) -> Result<(String, Content)> {
    let mut found: BTreeMap<&str, &Content> = BTreeMap::new();
    for (path, entry) in tree.below("boot").chain(tree.below("usr/lib/modules")) {
        let version = ["boot/vmlinuz-", "boot/vmlinux-"].iter().find_map(|prefix| path.strip_prefix(prefix));
        let beside = || {
            let (version, name) = path.strip_prefix("usr/lib/modules/")?.split_once('/')?;
            ["vmlinuz", "vmlinux"].contains(&name).then_some(version)
        };
        if let (Some(version), Kind::File(content)) = (version.or_else(beside), &entry.kind) {
            found.entry(version).or_insert(content);
        }
    }
    let mut kernels = found.into_iter();
    match (kernels.next(), kernels.next()) {
        (None, _) => bail!(
            "there is no kernel in the tree: neither /boot/vmlinuz-<release> nor /usr/lib/modules/<release>/vmlinuz"
        ),
        (Some((version, content)), None) => Ok((version.to_owned(), content.clone())),
        (Some((first, _)), Some((second, _))) => {
            let names: Vec<&str> = [first, second].into_iter().chain(kernels.map(|(version, _)| version)).collect();
            bail!("there are several kernels in the tree: {}; one is wanted", names.join(", "))
        }
    }
}

/// The tree of the initramfs. `init` is the static firstboot; `os` and `modules` come from [`super::os`].
///
/// # Errors
/// A mandatory module that is neither a file nor built in.
pub fn initramfs(
    store: &Store,
    os: &FileTree,
    modules: &Modules,
    init: Content,
    options: &Options,
) -> Result<FileTree> {
    let mut tree = FileTree::new();
    for dir in ["dev", "proc", "sys", "run", "sysroot"] {
        tree.insert(dir, Entry::dir(0o755))?;
    }
    tree.insert("dev/console", Entry::new(Kind::CharDevice { major: 5, minor: 1 }, 0o600))?;
    tree.insert("init", Entry::new(Kind::File(init), 0o755))?;
    // systemd tells an initramfs by this file.
    let release = os.text(store, "usr/lib/os-release")?.unwrap_or_default();
    tree.insert("etc/initrd-release", Entry::file(release.into_bytes(), 0o644))?;
    if let Some(key) = &options.signing_key {
        tree.insert(KEY_FILE, Entry::file(key.as_bytes(), 0o644))?;
    }
    let picked = pick(modules, options)?;
    let mut list = String::new();
    for (at, always) in &picked.order {
        let module = &modules.modules[*at];
        let path = format!("{}/{}", modules.folder(), module.path);
        let content = os.content(&path).with_context(|| format!("/{path} is not in the tree"))?;
        let content = if path.ends_with(".ko") {
            content.clone()
        } else {
            let open = decompressed(store, &path, content).with_context(|| format!("decompressing /{path}"))?;
            Content::Bytes(Arc::from(open.read_at(0, open.len())?))
        };
        tree.insert(&format!("lib/modules/{}.ko", module.name), Entry::new(Kind::File(content), 0o644))?;
        let needs: Vec<&str> = picked.needs[at].iter().map(|need| modules.modules[*need].name.as_str()).collect();
        let needs = if needs.is_empty() { "-".to_owned() } else { needs.join(",") };
        // Writing to a string cannot fail.
        let _ = writeln!(
            list,
            "{}\t{needs}\t{}\t{}",
            module.name,
            if *always { "always" } else { "match" },
            module.aliases.join(" ")
        );
    }
    tree.insert("lib/modules/modules.list", Entry::file(list.into_bytes(), 0o644))?;
    Ok(tree)
}

/// What was picked.
struct Picked {
    /// Modules in load order, and whether they are always loaded.
    order: Vec<(usize, bool)>,
    /// What each needs directly: soft dependencies, then symbols.
    needs: BTreeMap<usize, Vec<usize>>,
}

fn pick(modules: &Modules, options: &Options) -> Result<Picked> {
    // Soft cycles are broken below; hard ones are an error.
    load_order(&modules.modules)?;
    let mut wanted: Vec<(&str, bool, bool)> = ALWAYS.iter().map(|(name, must)| (*name, true, *must)).collect();
    wanted.extend(MATCHED.iter().map(|name| (*name, false, false)));
    if options.installer {
        wanted.extend(NETWORK.iter().map(|name| (*name, false, false)));
        wanted.extend(MEDIUM.iter().map(|name| (*name, false, true)));
    }
    wanted.extend(options.always.iter().map(|name| (name.as_str(), true, true)));
    wanted.extend(options.matched.iter().map(|name| (name.as_str(), false, true)));
    let mut missing = Vec::new();
    let mut always: BTreeSet<usize> = BTreeSet::new();
    let mut all: BTreeSet<usize> = BTreeSet::new();
    for (name, load, must) in wanted {
        match modules.find(name) {
            Some(at) => {
                let together = with_dependencies(modules, at);
                if load {
                    always.extend(&together);
                }
                all.extend(together);
            }
            None if must && !modules.is_builtin(name) => missing.push(name),
            None => {}
        }
    }
    if !missing.is_empty() {
        bail!("kernel {} lacks modules that every node needs: {}", modules.version, missing.join(", "));
    }
    let needs: BTreeMap<usize, Vec<usize>> = all.iter().map(|at| (*at, needs(modules, *at))).collect();
    let mut order = Vec::with_capacity(all.len());
    let mut seen = BTreeSet::new();
    for at in &all {
        visit(&needs, *at, &mut seen, &mut |at| order.push((at, always.contains(&at))));
    }
    Ok(Picked { order, needs })
}

/// Modules to be loaded before this one if they can be. Named by module or, as ext4 names `crc32c`, by alias.
fn soft(modules: &Modules, at: usize) -> Vec<usize> {
    let mut out = Vec::new();
    for name in modules.modules[at].soft_before() {
        match modules.find(name) {
            Some(found) => out.push(found),
            None => {
                let named = |alias: &String| alias.replace('-', "_") == name.replace('-', "_");
                let all = modules.modules.iter().enumerate();
                out.extend(all.filter(|(_, module)| module.aliases.iter().any(named)).map(|(at, _)| at));
            }
        }
    }
    out
}

/// A module with everything it needs, soft dependencies and theirs too.
fn with_dependencies(modules: &Modules, at: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut todo = vec![at];
    while let Some(at) = todo.pop() {
        if found.insert(at) {
            todo.extend(modules.modules[at].needs.iter().map(|need| *need as usize));
            todo.extend(soft(modules, at));
        }
    }
    found
}

/// What a module needs directly. A soft dependency that leads back to the module is left out, so that there is an order.
fn needs(modules: &Modules, at: usize) -> Vec<usize> {
    let mut out: Vec<usize> = Vec::new();
    let before = soft(modules, at).into_iter().filter(|soft| !with_dependencies(modules, *soft).contains(&at));
    for need in before.chain(modules.modules[at].needs.iter().map(|need| *need as usize)) {
        if !out.contains(&need) {
            out.push(need);
        }
    }
    out
}

/// Depth first: what is needed comes first.
fn visit(needs: &BTreeMap<usize, Vec<usize>>, at: usize, seen: &mut BTreeSet<usize>, each: &mut impl FnMut(usize)) {
    if !seen.insert(at) {
        return;
    }
    for need in needs.get(&at).into_iter().flatten() {
        visit(needs, *need, seen, each);
    }
    each(at);
}

#[cfg(test)]
mod tests {
    use super::{Options, kernel_image, pick};
    use crate::tree::modules::{Module, Modules};
    use crate::tree::{Entry, FileTree};

    fn module(name: &str, needs: &[u32], soft: &str) -> Module {
        Module { name: name.into(), needs: needs.into(), softdeps: vec![soft.into()], ..Module::default() }
    }

    fn modules() -> Modules {
        let mut modules = vec![
            module("ext4", &[1], "pre: crc32c"),
            module("jbd2", &[], "pre: ext4"),
            module("crc32c_generic", &[], ""),
            module("nvme", &[4], ""),
            module("nvme_core", &[], ""),
            module("unrelated", &[], ""),
        ];
        modules[2].aliases.push("crc32c".into());
        Modules {
            version: "6.1".into(),
            modules,
            exports: Default::default(),
            builtin: ["squashfs", "overlay", "vfat"].map(str::to_owned).to_vec(),
        }
    }

    #[test]
    fn closure_with_soft_dependencies_in_order() {
        let modules = modules();
        let picked = pick(&modules, &Options::default()).unwrap();
        let names: Vec<_> =
            picked.order.iter().map(|(at, always)| (modules.modules[*at].name.as_str(), *always)).collect();
        let want = [("crc32c_generic", true), ("jbd2", true), ("ext4", true), ("nvme_core", false), ("nvme", false)];
        assert_eq!(names, want);
        assert_eq!(picked.needs[&0], [2, 1]);
        assert_eq!(picked.needs[&1], [0_usize; 0], "jbd2 -> ext4 -> jbd2 has no order");
    }

    #[test]
    fn a_mandatory_module_that_is_nowhere() {
        let mut modules = modules();
        modules.builtin.clear();
        let error = pick(&modules, &Options::default()).err().unwrap().to_string();
        assert_eq!(error, "kernel 6.1 lacks modules that every node needs: squashfs, overlay, vfat");
    }

    #[test]
    fn an_installer_has_network_cards_and_reads_media() {
        let mut modules = modules();
        let missing = pick(&modules, &Options { installer: true, ..Options::default() }).err().unwrap().to_string();
        assert_eq!(missing, "kernel 6.1 lacks modules that every node needs: isofs, sr_mod, usb_storage");
        modules.builtin.extend(["isofs", "usb_storage"].map(str::to_owned));
        modules.modules.extend([module("sr_mod", &[7], ""), module("cdrom", &[], ""), module("igb", &[], "")]);
        let names = |installer| {
            let picked = pick(&modules, &Options { installer, ..Options::default() }).unwrap();
            let name = |(at, _): &(usize, bool)| modules.modules[*at].name.clone();
            picked.order.iter().map(name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(false), "crc32c_generic jbd2 ext4 nvme_core nvme cdrom sr_mod");
        assert_eq!(names(true), "crc32c_generic jbd2 ext4 nvme_core nvme cdrom sr_mod igb");
    }

    #[test]
    fn one_kernel_is_wanted() {
        let mut tree = FileTree::new();
        assert!(kernel_image(&tree).unwrap_err().to_string().contains("no kernel"));
        tree.insert("boot/vmlinuz-1", Entry::file(*b"k", 0o644)).unwrap();
        assert_eq!(kernel_image(&tree).unwrap().0, "1");
        tree.insert("boot/vmlinuz-2", Entry::file(*b"k", 0o644)).unwrap();
        assert!(kernel_image(&tree).unwrap_err().to_string().contains("1, 2"));
    }

    #[test]
    fn a_kernel_beside_its_modules() {
        let mut tree = FileTree::new();
        tree.insert("usr/lib/modules/7.2-loong64/vmlinuz", Entry::file(*b"k", 0o644)).unwrap();
        tree.insert("usr/lib/modules/7.2-loong64/kernel/vmlinux", Entry::file(*b"no", 0o644)).unwrap();
        assert_eq!(kernel_image(&tree).unwrap().0, "7.2-loong64");
        // Some distributions have it in both places.
        tree.insert("boot/vmlinuz-7.2-loong64", Entry::file(*b"k", 0o644)).unwrap();
        assert_eq!(kernel_image(&tree).unwrap().0, "7.2-loong64");
    }
}
