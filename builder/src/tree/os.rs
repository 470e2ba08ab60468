// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packages to a root filesystem that boots: what maintainer scripts would have done, done to the tree. Runs nothing.
//! docs/os-layer.md names, for each line here, the package whose script it stands for.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use super::layers::{Package, merge};
use super::modules::Modules;
use super::users::Users;
use super::{Entry, FileTree, Kind, alternatives, depmod, overlay, pam};
use crate::store::Store;

/// What decides about a root filesystem besides its packages.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Names of overlays, in the order they are put on: `common`, then the distribution's, then roles'.
    pub overlays: Vec<String>,
    /// Files of the cluster file's author, put on last.
    pub extra: FileTree,
    /// Declared alternatives: link to target.
    pub alternatives: BTreeMap<String, String>,
}

/// A root filesystem.
#[derive(Debug)]
pub struct Os {
    /// Its files, the kernel included.
    pub tree: FileTree,
    /// Its users; `etcd` owns files of the seed.
    pub users: Users,
    /// The modules of its one kernel.
    pub modules: Modules,
}

/// Directories that must be there on a read-only root: mount points, and what packages' scripts make.
/// Path, mode, user, group. A user or group that no package of the image wants is left out with its directory.
const DIRS: &[(&str, u16, &str, &str)] = &[
    ("boot", 0o755, "root", "root"),
    ("dev", 0o755, "root", "root"),
    ("efi", 0o755, "root", "root"),
    ("etc", 0o755, "root", "root"),
    ("etc/opt", 0o755, "root", "root"),
    ("home", 0o755, "root", "root"),
    ("media", 0o755, "root", "root"),
    ("mnt", 0o755, "root", "root"),
    ("opt", 0o755, "root", "root"),
    // Network plugins that run as pods install theirs here; the node mounts something writable on it.
    ("opt/cni/bin", 0o755, "root", "root"),
    ("opt/imgbuild", 0o755, "root", "root"),
    ("proc", 0o555, "root", "root"),
    ("root", 0o700, "root", "root"),
    ("run", 0o755, "root", "root"),
    ("srv", 0o755, "root", "root"),
    ("sys", 0o555, "root", "root"),
    ("tmp", 0o1777, "root", "root"),
    ("usr/local", 0o755, "root", "root"),
    ("usr/local/bin", 0o755, "root", "root"),
    ("usr/local/sbin", 0o755, "root", "root"),
    // The controller manager mounts it from the host; it cannot be made on a read-only root.
    ("usr/libexec/kubernetes/kubelet-plugins/volume/exec", 0o755, "root", "root"),
    ("var", 0o755, "root", "root"),
    ("var/cache", 0o755, "root", "root"),
    ("var/lib", 0o755, "root", "root"),
    ("var/lib/dbus", 0o755, "root", "root"),
    ("var/lib/haproxy", 0o755, "haproxy", "haproxy"),
    ("var/lib/etcd", 0o700, "etcd", "etcd"),
    ("var/lib/imgbuild", 0o700, "root", "root"),
    ("var/lib/private", 0o700, "root", "root"),
    ("var/local", 0o755, "root", "root"),
    ("var/log", 0o755, "root", "root"),
    ("var/log/journal", 0o2755, "root", "systemd-journal"),
    ("var/log/private", 0o700, "root", "root"),
    ("var/mail", 0o2775, "root", "mail"),
    ("var/opt", 0o755, "root", "root"),
    ("var/spool", 0o755, "root", "root"),
    ("var/tmp", 0o1777, "root", "root"),
];

/// Files that are there with these contents unless a package or overlay has them. Path, mode, group, text.
const FILES: &[(&str, u16, &str, &str)] = &[
    ("etc/environment", 0o644, "root", ""),
    ("etc/fstab", 0o644, "root", "# Mounts are made by the initramfs; see the kernel command line.\n"),
    // Empty, not absent: systemd fills it in, and does not take the boot for the first one of an unconfigured system.
    ("etc/machine-id", 0o444, "root", ""),
    ("etc/modules", 0o644, "root", ""),
    ("etc/resolv.conf", 0o644, "root", ""),
    ("etc/security/opasswd", 0o600, "root", ""),
    ("etc/subgid", 0o644, "root", ""),
    ("etc/subuid", 0o644, "root", ""),
    ("etc/timezone", 0o644, "root", "Etc/UTC\n"),
    ("var/log/btmp", 0o660, "utmp", ""),
    ("var/log/faillog", 0o644, "root", ""),
    ("var/log/lastlog", 0o664, "utmp", ""),
    ("var/log/wtmp", 0o664, "utmp", ""),
];

/// Copies that base-files' and debianutils' scripts make: template to file.
const COPIES: &[(&str, &str)] = &[
    ("usr/share/base-files/dot.bashrc", "root/.bashrc"),
    ("usr/share/base-files/dot.profile", "root/.profile"),
    ("usr/share/base-files/motd", "etc/motd"),
    ("usr/share/base-files/profile", "etc/profile"),
    ("usr/share/debianutils/shells", "etc/shells"),
    ("usr/share/libc-bin/nsswitch.conf", "etc/nsswitch.conf"),
];

/// Links unless a package or overlay has something there. Link, target.
const LINKS: &[(&str, &str)] = &[
    ("etc/localtime", "/usr/share/zoneinfo/Etc/UTC"),
    ("etc/mtab", "../proc/self/mounts"),
    ("etc/os-release", "../usr/lib/os-release"),
    ("var/lib/dbus/machine-id", "/etc/machine-id"),
    ("var/lock", "/run/lock"),
    ("var/run", "/run"),
    ("var/spool/mail", "../mail"),
];

/// Owners and modes that scripts set on files of packages: `dpkg-statoverride`, `chown`. Path, mode, user, group.
const OVERRIDES: &[(&str, u16, &str, &str)] =
    &[("usr/lib/dbus-1.0/dbus-daemon-launch-helper", 0o4754, "root", "messagebus")];

/// Capabilities that scripts set with setcap(8): path, and the bits of the permitted and effective sets
/// (capabilities(7)).
const CAPABILITIES: &[(&str, u32)] = &[("usr/bin/ping", 1 << CAP_NET_RAW)];
const CAP_NET_RAW: u32 = 13;

/// Not wanted on a node, beyond what [`super::layers::PRUNED`] leaves out: sources of databases that are not built.
const REMOVED: &[&str] = &["usr/lib/udev/hwdb.d", "usr/share/base-files", "usr/lib/systemd/catalog"];

/// Plugins whose libraries their package only recommends; by the end of the path, as folders differ by architecture.
const UNLOADABLE: &[&str] = &["/tc/q_atm.so"];

/// Makes the root filesystem.
///
/// # Errors
/// Conflicting packages, a link that leads nowhere, no kernel or several, modules that cannot be indexed.
pub fn assemble(store: &Store, packages: &[Package<'_>], options: &Options) -> Result<Os> {
    finish(store, merge(packages)?, options)
}

/// Makes the root filesystem of a tree that has all files of its packages, such as a vendor's.
///
/// # Errors
/// As [`assemble`].
pub fn finish(store: &Store, mut tree: FileTree, options: &Options) -> Result<Os> {
    for name in &options.overlays {
        tree.overlay(overlay::overlay(name)?).with_context(|| format!("putting on overlay {name}"))?;
    }
    tree.overlay(options.extra.clone()).context("putting on the cluster file's files")?;
    let users = users(store, &tree)?;
    users.write(&mut tree)?;
    directories(&mut tree, &users)?;
    capabilities(&mut tree);
    files(&mut tree, &users)?;
    shells(store, &mut tree)?;
    pam::write(store, &mut tree).context("writing PAM's common files")?;
    alternatives::link(&mut tree, &options.alternatives)?;
    drop_dead_wants(&mut tree);
    remove(&mut tree);
    let dead = dead_commands(&tree);
    if !dead.is_empty() {
        let dead: Vec<String> = dead.iter().map(|(path, target)| format!("/{path} -> {target}")).collect();
        bail!("commands of packages that are links to nothing:\n  {}", dead.join("\n  "));
    }
    let mut kernels = depmod::depmod(store, &mut tree)?;
    match kernels.len() {
        1 => Ok(Os { tree, users, modules: kernels.remove(0) }),
        0 => bail!("no kernel modules in any package: is the kernel's package among the inputs?"),
        _ => {
            let names: Vec<&str> = kernels.iter().map(|modules| modules.version.as_str()).collect();
            bail!("modules of several kernels: {}; one kernel is wanted", names.join(", "))
        }
    }
}

fn remove(tree: &mut FileTree) {
    let unloadable = |path: &&str| UNLOADABLE.iter().any(|end| path.ends_with(end));
    let mut gone: Vec<String> = tree.iter().map(|(path, _)| path).filter(unloadable).map(str::to_owned).collect();
    gone.extend(REMOVED.iter().map(|path| (*path).to_owned()));
    for path in gone {
        tree.remove(&path);
    }
}

/// The users that a vendor's system has, or else base-passwd's master files; then every `sysusers.d` snippet.
fn users(store: &Store, tree: &FileTree) -> Result<Users> {
    let text = |name: &str| {
        let own = tree.text(store, &format!("etc/{name}"))?;
        anyhow::Ok(match own {
            Some(text) => text,
            None => tree.text(store, &format!("usr/share/base-passwd/{name}.master"))?.unwrap_or_default(),
        })
    };
    let mut users = Users::parse(&text("passwd")?, &text("group")?).context("reading the users of the root")?;
    let mut snippets = BTreeMap::new();
    // A file in /etc hides one of the same name in /usr/lib (sysusers.d(5)).
    for folder in ["usr/lib/sysusers.d", "etc/sysusers.d"] {
        for (path, _) in tree.below(folder) {
            if let (Some(name), Some(text)) = (path.rsplit('/').next(), tree.text(store, path)?)
                && name.ends_with(".conf")
            {
                snippets.insert(name.to_owned(), text);
            }
        }
    }
    users.sysusers(&snippets)?;
    if users.user("root").is_none_or(|root| root.uid != 0) {
        bail!("there is no user root: neither base-passwd nor a sysusers.d snippet has one");
    }
    Ok(users)
}

/// User and group ids by name, if both exist.
fn ids(users: &Users, user: &str, group: &str) -> Option<(u32, u32)> {
    Some((users.user(user)?.uid, users.group(group)?.gid))
}

fn directories(tree: &mut FileTree, users: &Users) -> Result<()> {
    for (path, mode, user, group) in DIRS {
        let Some((uid, gid)) = ids(users, user, group) else { continue };
        // Where a vendor has a link to another directory, as from /var/mail, that one will do.
        if tree.lookup(path).is_some_and(|(real, entry)| real != *path && entry.kind == Kind::Dir) {
            continue;
        }
        tree.ensure_dir(path, *mode)?;
        if let Some(entry) = tree.get_mut(path) {
            (entry.mode, entry.uid, entry.gid) = (*mode, uid, gid);
        }
    }
    for (path, mode, user, group) in OVERRIDES {
        if let (Some((uid, gid)), Some(entry)) = (ids(users, user, group), tree.get_mut(path)) {
            (entry.mode, entry.uid, entry.gid) = (*mode, uid, gid);
        }
    }
    Ok(())
}

/// The extended attribute `security.capability` of a program that gets `permitted` when it is executed: revision 2,
/// effective flag, permitted and inheritable sets in two words each (`struct vfs_cap_data` of linux/capability.h).
fn capability(permitted: u32) -> Vec<u8> {
    let words = [0x0200_0001, permitted, 0, 0, 0];
    words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect()
}

fn capabilities(tree: &mut FileTree) {
    for (path, permitted) in CAPABILITIES {
        if let Some(entry @ Entry { kind: Kind::File(_), .. }) = tree.get_mut(path) {
            entry.mode &= 0o777;
            entry.xattrs.insert("security.capability".into(), capability(*permitted));
        }
    }
}

fn files(tree: &mut FileTree, users: &Users) -> Result<()> {
    for (from, to) in COPIES {
        if let Some((_, entry)) = tree.lookup(from)
            && tree.get(to).is_none()
        {
            let copy = entry.clone();
            tree.insert(to, copy)?;
        }
    }
    for (path, mode, group, text) in FILES {
        if tree.get(path).is_none() {
            let gid = users.group(group).map_or(0, |group| group.gid);
            tree.insert(path, Entry { gid, ..Entry::file(text.as_bytes(), *mode) })?;
        }
    }
    // Without them systemd would rebuild caches on the first boot: it compares them with the time of /usr, and all
    // times are clamped to the same epoch (systemd-update-done.service(8)).
    for path in ["etc/.updated", "var/.updated"] {
        tree.insert(path, Entry { mtime: u32::MAX, ..Entry::file(*b"", 0o644) })?;
    }
    for (link, target) in LINKS {
        if tree.get(link).is_none() {
            tree.insert(link, Entry::symlink(*target))?;
        }
    }
    // C.UTF-8 is built into glibc; UTC needs no file either, but a link to nothing irritates.
    if tree.lookup("etc/localtime").is_none() {
        tree.remove("etc/localtime");
    }
    Ok(())
}

/// The shells that packages declare in `usr/share/debianutils/shells.d`, which a trigger adds to `/etc/shells`.
fn shells(store: &Store, tree: &mut FileTree) -> Result<()> {
    let mut text = tree.text(store, "etc/shells")?.unwrap_or_default();
    let paths: Vec<String> = tree.below("usr/share/debianutils/shells.d").map(|(path, _)| path.to_owned()).collect();
    for path in paths {
        for shell in tree.text(store, &path)?.unwrap_or_default().lines().filter(|line| line.starts_with('/')) {
            // Both names of a shell on a merged system.
            let other = shell.strip_prefix("/usr").map_or_else(|| format!("/usr{shell}"), str::to_owned);
            for name in [shell, &other] {
                if !text.lines().any(|line| line == name) {
                    text.push_str(name);
                    text.push('\n');
                }
            }
        }
    }
    if !text.is_empty() {
        tree.insert("etc/shells", Entry::file(text.into_bytes(), 0o644))?;
    }
    Ok(())
}

/// Removes links in `*.wants` and `*.requires` to units that no package has: an overlay enables a unit wherever its
/// package is. The same goes for further names of units.
fn drop_dead_wants(tree: &mut FileTree) {
    let dead: Vec<String> = ["usr/lib/systemd/system", "etc/systemd/system"]
        .iter()
        .flat_map(|folder| tree.below(folder))
        .filter(|(path, entry)| {
            matches!(&entry.kind, Kind::Symlink(target) if target != "/dev/null") && tree.lookup(path).is_none()
        })
        .map(|(path, _)| path.to_owned())
        .collect();
    for path in dead {
        tracing::debug!("leaving out /{path}: there is no such unit");
        tree.remove(&path);
    }
}

/// Links in the search path that lead nowhere, with their targets; what lies in the payload or appears at run time is not
/// looked at.
pub(super) fn dead_commands(tree: &FileTree) -> Vec<(String, String)> {
    let elsewhere = ["opt/imgbuild/", "run/", "proc/", "dev/", "etc/alternatives/"];
    let mut dead = Vec::new();
    for folder in ["usr/bin", "usr/sbin"] {
        for (path, entry) in tree.below(folder) {
            if let Kind::Symlink(target) = &entry.kind
                && let Some(end) = tree.resolve(path)
                && tree.get(&end).is_none()
                && !elsewhere.iter().any(|top| end.starts_with(top))
            {
                dead.push((path.to_owned(), target.clone()));
            }
        }
    }
    dead
}

#[cfg(test)]
mod tests {
    use super::{Options, assemble, capability, dead_commands, drop_dead_wants, shells};
    use crate::store::Store;
    use crate::tree::{Entry, FileTree};

    #[test]
    fn capabilities_as_setcap_writes_them() {
        // getfattr -n security.capability -e hex on a file after setcap cap_net_raw+ep.
        let hex: String = capability(1 << 13).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "0100000200200000000000000000000000000000");
    }

    #[test]
    fn links_to_units_and_commands() {
        let mut tree = FileTree::new();
        let units = "usr/lib/systemd/system";
        for (path, target) in [("a.wants/x.service", "../x.service"), ("a.wants/y.service", "../y.service")] {
            tree.insert(&format!("{units}/{path}"), Entry::symlink(target)).unwrap();
        }
        tree.insert(&format!("{units}/x.service"), Entry::file(*b"", 0o644)).unwrap();
        tree.insert("etc/systemd/system/z.service", Entry::symlink("/dev/null")).unwrap();
        tree.insert("usr/bin/kubectl", Entry::symlink("/opt/imgbuild/bin/kubectl")).unwrap();
        tree.insert("usr/sbin/gone", Entry::symlink("nothing")).unwrap();
        drop_dead_wants(&mut tree);
        assert!(tree.get(&format!("{units}/a.wants/x.service")).is_some());
        assert!(tree.get(&format!("{units}/a.wants/y.service")).is_none());
        assert!(tree.get("etc/systemd/system/z.service").is_some());
        assert_eq!(dead_commands(&tree), [("usr/sbin/gone".to_owned(), "nothing".to_owned())]);
    }

    #[test]
    fn shells_under_both_names() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut tree = FileTree::new();
        tree.insert("etc/shells", Entry::file(*b"# shells\n/bin/sh\n", 0o644)).unwrap();
        tree.insert("usr/share/debianutils/shells.d/bash", Entry::file(*b"/bin/bash\n", 0o644)).unwrap();
        shells(&store, &mut tree).unwrap();
        assert_eq!(tree.text(&store, "etc/shells").unwrap().unwrap(), "# shells\n/bin/sh\n/bin/bash\n/usr/bin/bash\n");
    }

    #[test]
    fn an_image_needs_root_and_a_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut options = Options { overlays: vec!["common".into()], ..Options::default() };
        assert!(assemble(&store, &[], &options).unwrap_err().to_string().contains("no user root"));
        options.extra.insert("etc/sysusers.d/root.conf", Entry::file(*b"u root 0", 0o644)).unwrap();
        assert!(assemble(&store, &[], &options).unwrap_err().to_string().contains("no kernel modules"));
    }
}
