// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that are either the old or the new one, whenever the power goes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Numeric owner of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Owner {
    /// root:root.
    pub const ROOT: Owner = Owner { uid: 0, gid: 0 };
}

/// Writes `content` to a temporary name, fsyncs, gives it mode and owner, renames it over `path`, fsyncs the directory.
/// Missing parent directories appear with mode 0755.
pub fn write_atomic(path: &Path, content: &[u8], mode: u32, owner: Option<Owner>) -> Result<()> {
    let parent = path.parent().context("a file has a parent directory")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let temporary = temporary_name(path)?;
    let result = (|| -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Never readable by others, not even for a moment: the mode is there before the content.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode & 0o600).open(&temporary)?;
        if let Some(owner) = owner {
            std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))?;
        }
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(parent)?.sync_all()
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result.with_context(|| format!("writing {}", path.display()))
}

/// Replaces `path` by a symbolic link, atomically.
pub fn link_atomic(path: &Path, target: &str) -> Result<()> {
    let parent = path.parent().context("a link has a parent directory")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let temporary = temporary_name(path)?;
    let _ = fs::remove_file(&temporary);
    std::os::unix::fs::symlink(target, &temporary)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(parent)?.sync_all())
        .with_context(|| format!("linking {} to {target}", path.display()))
}

fn temporary_name(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().with_context(|| format!("{} has no file name", path.display()))?;
    Ok(path.with_file_name(format!(".{}.firstboot-new", name.to_string_lossy())))
}

/// What is different between the file at `path` and what it should be; `None` if nothing.
pub fn difference(path: &Path, content: &[u8], mode: u32, owner: Option<Owner>) -> Option<String> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Some("is missing".to_owned()) };
    if !meta.is_file() {
        return Some("is not a regular file".to_owned());
    }
    if meta.len() != content.len() as u64 || fs::read(path).ok().as_deref() != Some(content) {
        return Some("has other content".to_owned());
    }
    if meta.mode() & 0o7777 != mode {
        return Some(format!("has mode {:04o}, not {mode:04o}", meta.mode() & 0o7777));
    }
    match owner {
        Some(owner) if (meta.uid(), meta.gid()) != (owner.uid, owner.gid) => {
            Some(format!("belongs to {}:{}, not {}:{}", meta.uid(), meta.gid(), owner.uid, owner.gid))
        }
        _ => None,
    }
}

/// Finds `user:group` or `user` in the texts of `/etc/passwd` and `/etc/group`.
pub fn look_up_owner(passwd: &str, group: &str, owner: &str) -> Result<Owner> {
    let (user, group_name) = match owner.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (owner, None),
    };
    let field = |text: &str, name: &str, index: usize| -> Option<u32> {
        text.lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.first() == Some(&name))
            .and_then(|fields| fields.get(index)?.parse().ok())
    };
    if user == "root" && matches!(group_name, None | Some("root")) {
        return Ok(Owner::ROOT);
    }
    let Some(uid) = field(passwd, user, 2) else { bail!("user `{user}` is not in /etc/passwd") };
    let gid = match group_name {
        Some(name) => field(group, name, 2).with_context(|| format!("group `{name}` is not in /etc/group"))?,
        None => field(passwd, user, 3).with_context(|| format!("user `{user}` has no group"))?,
    };
    Ok(Owner { uid, gid })
}

/// Reads a whole file, but refuses one larger than `limit`: seeds come from media that anybody may have written.
pub fn read_limited(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
    }
    Ok(content)
}

/// Removes a file or a whole directory tree; what is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.with_context(|| format!("removing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_replaces_and_compares() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        write_atomic(&path, b"one", 0o600, None).unwrap();
        assert_eq!(difference(&path, b"one", 0o600, None), None);
        assert_eq!(difference(&path, b"one", 0o644, None).unwrap(), "has mode 0600, not 0644");
        write_atomic(&path, b"two", 0o644, None).unwrap();
        assert_eq!(difference(&path, b"one", 0o644, None).unwrap(), "has other content");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
        assert_eq!(difference(&dir.path().join("c"), b"", 0o644, None).unwrap(), "is missing");
    }

    #[test]
    fn a_left_over_temporary_file_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".f.firstboot-new"), "torn").unwrap();
        write_atomic(&dir.path().join("f"), b"whole", 0o644, None).unwrap();
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"whole");
    }

    #[test]
    fn owners_come_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\netcd:x:104:112::/var/lib/etcd:/bin/false\n";
        let group = "root:x:0:\netcd:x:112:\nadm:x:4:\n";
        assert_eq!(look_up_owner(passwd, group, "etcd").unwrap(), Owner { uid: 104, gid: 112 });
        assert_eq!(look_up_owner(passwd, group, "etcd:adm").unwrap(), Owner { uid: 104, gid: 4 });
        assert_eq!(look_up_owner("", "", "root:root").unwrap(), Owner::ROOT);
        assert!(look_up_owner(passwd, group, "haproxy").unwrap_err().to_string().contains("haproxy"));
    }

    #[test]
    fn large_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        fs::write(&path, [0; 11]).unwrap();
        assert_eq!(read_limited(&path, 11).unwrap().len(), 11);
        assert!(read_limited(&path, 10).is_err());
    }
}
