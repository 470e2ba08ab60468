// SPDX-License-Identifier: MIT OR Apache-2.0

//! Boot menus of a PXE folder: scripts of iPXE (ipxe.org/scripting, ipxe.org/cmd) and a configuration of GRUB (its
//! manual, "Network"). A machine that is known by its MAC address goes on by itself; any other one waits for somebody,
//! and boots its disk when nobody comes.

use std::fmt::Write;

use anyhow::Result;

use super::esp::kernel_options;
use super::pxe::{INITRAMFS, KERNEL};
use crate::error::Failure;

/// Seconds until a known machine is installed, or boots its disk.
const KNOWN_SECONDS: u32 = 5;
/// Seconds until an unknown one boots its disk.
const UNKNOWN_SECONDS: u32 = 60;

/// A node in the menus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its name.
    pub(super) name: String,
    /// MAC address, lower case with colons, if the cluster file has it.
    pub(super) mac: Option<String>,
    /// Archives to load after the initramfs, to be installed.
    pub(super) install: Vec<String>,
    /// And to run from memory, if it may.
    pub(super) diskless: Option<Vec<String>>,
}

/// What a machine can be told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    Install,
    Diskless,
}

impl Variant {
    const ALL: [Self; 2] = [Self::Install, Self::Diskless];

    fn word(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Diskless => "diskless",
        }
    }

    /// The archives to load; `None`: the node cannot be run so.
    fn archives(self, node: &Entry) -> Option<&[String]> {
        match self {
            Self::Install => Some(&node.install),
            Self::Diskless => node.diskless.as_deref(),
        }
    }

    /// All that a node can be told to do.
    fn of(node: &Entry) -> impl Iterator<Item = (Self, &[String])> {
        Self::ALL.into_iter().filter_map(|variant| Some((variant, variant.archives(node)?)))
    }

    fn title(self, node: &str) -> String {
        match self {
            Self::Install => format!("Install {node} on this machine"),
            Self::Diskless => format!("Run {node} from memory, without a disk"),
        }
    }
}

/// The menus of a folder.
#[derive(Debug)]
pub(super) struct Menus<'a> {
    cluster: &'a str,
    digest: &'a str,
    kernel_args: &'a [String],
    nodes: &'a [Entry],
}

impl<'a> Menus<'a> {
    /// Of a medium with this SHA-256.
    ///
    /// # Errors
    /// Kernel arguments that a menu would understand otherwise than they are meant: all of them.
    pub(super) fn new(
        cluster: &'a str,
        digest: &'a str,
        kernel_args: &'a [String],
        nodes: &'a [Entry],
    ) -> Result<Self> {
        // Quotes, backslashes and dollars mean something in both languages, && and || end a command of iPXE.
        let bad = |arg: &&String| arg.contains(['\'', '"', '\\', '$']) || ["&&", "||"].contains(&arg.as_str());
        let bad: Vec<String> = kernel_args.iter().filter(bad).map(|arg| format!("{arg:?}")).collect();
        if !bad.is_empty() {
            let message = format!("`[os] kernel_args` has what cannot stand in a boot menu: {}", bad.join(", "));
            return Err(Failure::user(message)
                .hint("leave out quotes, backslashes and `$`, or use another output")
                .into());
        }
        Ok(Self { cluster, digest, kernel_args, nodes })
    }

    /// Name and text of every file.
    pub(super) fn files(&self) -> Result<Vec<(String, String)>> {
        let mut files = vec![
            ("boot.ipxe".to_owned(), self.ipxe()),
            ("grub.cfg".to_owned(), self.grub()?),
            // Where GRUB as distributions build it for networks looks.
            ("grub/grub.cfg".to_owned(), "source /grub.cfg\n".to_owned()),
        ];
        for node in self.nodes {
            files.push((format!("nodes/{}.ipxe", node.name), self.node_ipxe(node)?));
            if let Some(mac) = &node.mac {
                files.push((format!("mac/{}.ipxe", mac.replace(':', "-")), self.known_ipxe(node)));
            }
        }
        Ok(files)
    }

    fn options(&self, variant: Variant, node: &str) -> Result<String> {
        let own = format!("imgbuild.medium={} imgbuild.{}={node}", self.digest, variant.word());
        kernel_options(&own, self.kernel_args)
    }

    /// The menu: first the script for this very machine, if there is one.
    fn ipxe(&self) -> String {
        let mut text = format!(
            "#!ipxe\n\
             # Cluster {cluster}. A machine with a script below mac/ does what that says; of any other one, somebody decides.\n\
             # An exit code other than 0 has firmware try the next device, which is the disk.\n\
             chain --autofree mac/${{netX/mac:hexhyp}}.ipxe && exit 1 ||\n\
             :menu\n\
             menu {cluster}: ${{netX/mac}} is no MAC address of the cluster file\n",
            cluster = self.cluster
        );
        let mut actions = String::new();
        for variant in Variant::ALL {
            for Entry { name, .. } in self.nodes.iter().filter(|node| variant.archives(node).is_some()) {
                let word = variant.word();
                _ = writeln!(text, "item {word}-{name} {}", variant.title(name));
                _ = writeln!(
                    actions,
                    ":{word}-{name}\nset variant {word}\nchain --autofree nodes/{name}.ipxe || goto menu"
                );
            }
        }
        _ = write!(
            text,
            "item local Boot from the local disk\n\
             choose --default local --timeout {} target || goto local\n\
             goto ${{target}}\n\
             {actions}\
             :local\n\
             exit 1\n",
            UNKNOWN_SECONDS * 1000
        );
        text
    }

    /// What a known machine does.
    fn known_ipxe(&self, node: &Entry) -> String {
        let name = &node.name;
        let mut text = format!("#!ipxe\nmenu {}: this machine is {name}\n", self.cluster);
        for (variant, _) in Variant::of(node) {
            _ = writeln!(text, "item {} {}", variant.word(), variant.title(name));
        }
        _ = write!(
            text,
            "item local Boot from the local disk\n\
             choose --default install --timeout {} variant || goto local\n\
             iseq ${{variant}} local && goto local ||\n\
             chain --autofree ../nodes/{name}.ipxe || goto failed\n\
             :local\n\
             exit 0\n\
             :failed\n\
             echo Loading failed. Trying again in 30 seconds; press a key for a shell.\n\
             prompt --timeout 30000 && shell ||\n\
             reboot\n",
            KNOWN_SECONDS * 1000
        );
        text
    }

    /// Loads and boots a node, in the variant that `variant` says.
    fn node_ipxe(&self, node: &Entry) -> Result<String> {
        let words: Vec<&str> = Variant::of(node).map(|(variant, _)| variant.word()).collect();
        let words = words.join(" or ");
        let mut text = format!("#!ipxe\n# Loads {}. ${{variant}} is {words}.\ngoto ${{variant}}\n", node.name);
        for (variant, archives) in Variant::of(node) {
            // Names without folders: the kernel's EFI stub asks iPXE for each, in this order (`initrd=`); newer
            // versions of iPXE hand over all at once, and it looks no further.
            let archives: Vec<(String, &str)> = archives.iter().map(|path| (file_name(path), path.as_str())).collect();
            let names: String = archives.iter().map(|(name, _)| format!(" initrd={name}")).collect();
            let options = self.options(variant, &node.name)?;
            _ = write!(
                text,
                ":{}\n\
                 imgfree\n\
                 kernel --name {KERNEL} ../{KERNEL} initrd={INITRAMFS}{names} {options} || exit 1\n\
                 initrd --name {INITRAMFS} ../{INITRAMFS} || exit 1\n",
                variant.word()
            );
            for (name, path) in archives {
                _ = writeln!(text, "initrd --name {name} ../{path} || exit 1");
            }
            text += "boot || exit 1\n";
        }
        Ok(text)
    }

    fn grub(&self) -> Result<String> {
        let mut text = format!(
            "# Cluster {}. Set imgbuild to where this folder is, if that is not the server that GRUB came from.\n\
             insmod http\n\
             if [ -z \"$imgbuild\" ]; then set imgbuild=\"(http,$net_default_server)\"; fi\n\
             set default=local\n\
             set timeout={UNKNOWN_SECONDS}\n",
            self.cluster
        );
        for node in self.nodes {
            if let Some(mac) = &node.mac {
                _ = writeln!(
                    text,
                    "if [ \"$net_default_mac\" = \"{mac}\" ]; then set default=install-{}; set timeout={KNOWN_SECONDS}; fi",
                    node.name
                );
            }
        }
        for variant in Variant::ALL {
            for node in self.nodes {
                let Some(archives) = variant.archives(node) else { continue };
                let name = &node.name;
                let options = self.options(variant, name)?;
                let options: Vec<String> = options.split_whitespace().map(|option| format!("'{option}'")).collect();
                let archives: String = archives.iter().map(|path| format!(" \"$imgbuild\"/{path}")).collect();
                _ = write!(
                    text,
                    "menuentry '{}' --id {}-{name} {{\n    \
                     linux \"$imgbuild\"/{KERNEL} {}\n    \
                     initrd \"$imgbuild\"/{INITRAMFS}{archives}\n}}\n",
                    variant.title(name),
                    variant.word(),
                    options.join(" ")
                );
            }
        }
        text += "menuentry 'Boot from the local disk' --id local {\n    exit 1\n}\n";
        Ok(text)
    }
}

fn file_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::error::{hint, kind};
    use crate::image::testing::{text, tool_ok};

    fn nodes() -> Vec<Entry> {
        // etcd-1 cannot run from memory.
        let node = |name: &str, mac: Option<&str>, kind: &str| Entry {
            name: name.into(),
            mac: mac.map(str::to_owned),
            install: vec![format!("medium-{kind}.cpio"), "blocks.cpio".into(), format!("nodes/{name}.cpio")],
            diskless: (kind != "etcd").then(|| vec![format!("medium-{kind}.cpio"), format!("nodes/{name}.cpio")]),
        };
        vec![node("etcd-1", Some("52:54:00:77:00:0b"), "etcd"), node("master-1", None, "pods")]
    }

    fn files() -> Vec<(String, String)> {
        Menus::new("lab", "d1ge57", &["quiet".into()], &nodes()).unwrap().files().unwrap()
    }

    fn file(name: &str) -> String {
        files().into_iter().find(|(found, _)| found == name).unwrap().1
    }

    #[test]
    fn a_node_loads_its_archives_in_order() {
        let script = file("nodes/etcd-1.ipxe");
        let install = ":install\n\
            imgfree\n\
            kernel --name vmlinuz ../vmlinuz initrd=initramfs.cpio.zst initrd=medium-etcd.cpio initrd=blocks.cpio \
            initrd=etcd-1.cpio imgbuild.medium=d1ge57 imgbuild.install=etcd-1 console=tty0 console=ttyS0,115200 quiet || exit 1\n\
            initrd --name initramfs.cpio.zst ../initramfs.cpio.zst || exit 1\n\
            initrd --name medium-etcd.cpio ../medium-etcd.cpio || exit 1\n\
            initrd --name blocks.cpio ../blocks.cpio || exit 1\n\
            initrd --name etcd-1.cpio ../nodes/etcd-1.cpio || exit 1\n\
            boot || exit 1\n";
        assert!(script.contains(install), "{script}");
        let script = file("nodes/master-1.ipxe");
        assert!(script.contains("imgbuild.diskless=master-1"), "{script}");
        assert!(!script[script.find(":diskless").unwrap()..].contains("blocks"), "{script}");
    }

    #[test]
    fn a_member_of_etcd_cannot_be_told_to_run_from_memory() {
        let menus: String = files().into_iter().map(|(_, text)| text).collect();
        assert!(menus.contains("Run master-1 from memory"), "{menus}");
        for offered in ["Run etcd-1 from memory", "diskless-etcd-1", "diskless=etcd-1"] {
            assert!(!menus.contains(offered), "{menus}");
        }
        assert!(!file("mac/52-54-00-77-00-0b.ipxe").contains("diskless"));
    }

    #[test]
    fn only_known_machines_go_on_by_themselves() {
        let names: Vec<String> = files().into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "boot.ipxe",
                "grub.cfg",
                "grub/grub.cfg",
                "nodes/etcd-1.ipxe",
                "mac/52-54-00-77-00-0b.ipxe",
                "nodes/master-1.ipxe"
            ]
        );
        assert!(file("mac/52-54-00-77-00-0b.ipxe").contains("choose --default install --timeout 5000 variant"));
        assert!(file("boot.ipxe").contains("choose --default local --timeout 60000 target"));
        let grub = file("grub.cfg");
        assert!(grub.contains("set default=local\nset timeout=60\n"), "{grub}");
        let known =
            "if [ \"$net_default_mac\" = \"52:54:00:77:00:0b\" ]; then set default=install-etcd-1; set timeout=5; fi";
        assert!(grub.contains(known), "{grub}");
    }

    /// Every label that a script jumps to is in it, and every script that it chains is a file of the folder.
    #[test]
    fn scripts_lead_somewhere() {
        let files = files();
        let names: BTreeSet<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
        for (name, script) in files.iter().filter(|(name, _)| name.ends_with(".ipxe")) {
            assert!(script.starts_with("#!ipxe\n"), "{name}");
            let labels: BTreeSet<&str> = script.lines().filter_map(|line| line.strip_prefix(':')).collect();
            let words: Vec<&str> = script.split_whitespace().collect();
            let after = |command: &str| -> Vec<&str> {
                words.windows(2).filter(|pair| pair[0] == command).map(|pair| pair[1]).collect()
            };
            for label in after("goto") {
                let wanted: Vec<&str> = match label {
                    // What the comment at its begin says.
                    "${variant}" if script.contains("install or diskless.") => vec!["install", "diskless"],
                    "${variant}" => vec!["install"],
                    "${target}" => after("item"),
                    label => vec![label],
                };
                assert!(wanted.iter().all(|label| labels.contains(label)), "{name}: {label}");
            }
            for target in after("--autofree").into_iter().filter(|target| !target.contains("${")) {
                let target = target.strip_prefix("../").unwrap_or(target);
                assert!(names.contains(target), "{name}: {target}");
            }
        }
    }

    #[test]
    fn grub_understands_its_configuration() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["grub.cfg", "grub/grub.cfg"] {
            let path = dir.path().join("grub.cfg");
            std::fs::write(&path, file(name)).unwrap();
            tool_ok("grub-script-check", "grub-common", &[text(&path)]);
        }
    }

    #[test]
    fn arguments_that_a_menu_would_change_are_refused() {
        let nodes = nodes();
        let arguments = ["a=$b", "ok", "&&", "c='d'"].map(String::from);
        let error = Menus::new("lab", "0", &arguments, &nodes).unwrap_err();
        assert_eq!(kind(&error).exit_code(), 1);
        assert!(error.to_string().ends_with(r#"boot menu: "a=$b", "&&", "c='d'""#), "{error}");
        assert!(hint(&error).is_some());
    }
}
