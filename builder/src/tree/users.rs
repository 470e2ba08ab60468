// SPDX-License-Identifier: MIT OR Apache-2.0

//! Users and groups of an image, as data: base-passwd's master files, then `sysusers.d` snippets, then the four files in
//! `/etc`. Nobody gets a password.
//!
//! Sources: passwd(5), group(5), shadow(5), gshadow(5), sysusers.d(5).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

use super::{Entry, FileTree};

/// Where ids are taken from when a snippet leaves them open: below Debian's dynamic system range's usual use, downward.
/// The snippets in `rootfs-overlays` fix the ids of the users that own data, so that those never move.
const DYNAMIC: std::ops::RangeInclusive<u32> = 500..=899;

/// The group that may read `/etc/shadow`.
const SHADOW: &str = "shadow";

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
    /// Comment.
    pub gecos: String,
    /// Home folder.
    pub home: String,
    /// Shell.
    pub shell: String,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Group id.
    pub gid: u32,
    /// Names of its members.
    pub members: Vec<String>,
}

/// All users and groups of an image, in the order they were added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// Users.
    pub users: Vec<User>,
    /// Groups.
    pub groups: Vec<Group>,
}

impl Users {
    /// From the text of a passwd and a group file; what they say of passwords is ignored.
    pub fn parse(passwd: &str, group: &str) -> Result<Self> {
        let mut out = Self::default();
        for line in passwd.lines().filter(|line| !line.is_empty()) {
            let fields: Vec<&str> = line.split(':').collect();
            let &[name, _, uid, gid, gecos, home, shell] = fields.as_slice() else {
                bail!("`{line}` is not a line of a passwd file");
            };
            let number = |text: &str| text.parse::<u32>().with_context(|| format!("reading passwd line `{line}`"));
            out.users.push(User {
                name: name.into(),
                uid: number(uid)?,
                gid: number(gid)?,
                gecos: gecos.into(),
                home: home.into(),
                shell: shell.into(),
            });
        }
        for line in group.lines().filter(|line| !line.is_empty()) {
            let fields: Vec<&str> = line.split(':').collect();
            let &[name, _, gid, members] = fields.as_slice() else { bail!("`{line}` is not a line of a group file") };
            let gid = gid.parse().with_context(|| format!("reading group line `{line}`"))?;
            let members = members.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            out.groups.push(Group { name: name.into(), gid, members });
        }
        Ok(out)
    }

    /// The user of this name.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name)
    }
    /// The group of this name.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// Does what systemd-sysusers would do with these snippets: file name to text.
    ///
    /// Lines with fixed ids are carried out first, so that an open id never takes one of them; otherwise files go by
    /// name and lines by place, groups before users before memberships.
    ///
    /// # Errors
    /// All lines that cannot be read, an id that is taken, no free id left.
    pub fn sysusers(&mut self, snippets: &BTreeMap<String, String>) -> Result<()> {
        let mut lines = Vec::new();
        let mut problems = Vec::new();
        for (file, text) in snippets {
            for (number, text) in text.lines().enumerate() {
                match parse_line(text) {
                    Ok(Some(line)) => lines.push((line, file, number + 1)),
                    Ok(None) => {}
                    Err(error) => problems.push(format!("{file}:{}: {error}", number + 1)),
                }
            }
        }
        if !problems.is_empty() {
            bail!("cannot read sysusers.d:\n  {}", problems.join("\n  "));
        }
        lines.sort_by_key(|(line, ..)| line.rank());
        for (line, file, number) in &lines {
            self.apply(line).with_context(|| format!("carrying out {file}:{number}"))?;
        }
        Ok(())
    }

    fn apply(&mut self, line: &Line) -> Result<()> {
        match line {
            Line::Group { name, gid } => self.add_group(name, *gid).map(drop),
            Line::User { name, uid, group, gecos, home, shell } => {
                if self.user(name).is_some() {
                    return Ok(());
                }
                let gid = match group {
                    Some(PrimaryGroup::Id(gid)) => *gid,
                    Some(PrimaryGroup::Name(group)) => self.add_group(group, None)?,
                    None => self.add_group(name, *uid)?,
                };
                let uid = match uid {
                    Some(uid) => *uid,
                    // A user and its group have the same number if they can.
                    None if DYNAMIC.contains(&gid) && !self.users.iter().any(|user| user.uid == gid) => gid,
                    None => self.free_id()?,
                };
                if let Some(other) = self.users.iter().find(|user| user.uid == uid) {
                    bail!("user id {uid} for {name} is already that of {}", other.name);
                }
                let [gecos, home, shell] = [gecos, home, shell].map(Clone::clone);
                self.users.push(User { name: name.clone(), uid, gid, gecos, home, shell });
                Ok(())
            }
            Line::Member { user, group } => {
                self.add_group(group, None)?;
                if let Some(group) = self.groups.iter_mut().find(|g| g.name == *group)
                    && !group.members.contains(user)
                {
                    group.members.push(user.clone());
                }
                Ok(())
            }
        }
    }

    fn add_group(&mut self, name: &str, gid: Option<u32>) -> Result<u32> {
        if let Some(group) = self.group(name) {
            return Ok(group.gid);
        }
        let gid = match gid {
            Some(gid) => gid,
            None => self.free_id()?,
        };
        if let Some(other) = self.groups.iter().find(|group| group.gid == gid) {
            bail!("group id {gid} for {name} is already that of {}", other.name);
        }
        self.groups.push(Group { name: name.into(), gid, members: Vec::new() });
        Ok(gid)
    }

    fn free_id(&self) -> Result<u32> {
        let taken = |id: &u32| {
            self.users.iter().any(|user| user.uid == *id) || self.groups.iter().any(|group| group.gid == *id)
        };
        DYNAMIC.rev().find(|id| !taken(id)).context("no system id is free")
    }

    /// Writes `/etc/passwd`, `group`, `shadow` and `gshadow`, with the modes and owners they need. Every password is
    /// locked; an empty date of the last change means that passwords don't age (shadow(5)).
    pub fn write(&self, tree: &mut FileTree) -> Result<()> {
        let [mut passwd, mut shadow, mut group, mut gshadow] = [const { String::new() }; 4];
        for User { name, uid, gid, gecos, home, shell } in &self.users {
            // Writing to a string cannot fail.
            let _ = writeln!(passwd, "{name}:x:{uid}:{gid}:{gecos}:{home}:{shell}");
            let _ = writeln!(shadow, "{name}:*:::::::");
        }
        for Group { name, gid, members } in &self.groups {
            let members = members.join(",");
            let _ = writeln!(group, "{name}:x:{gid}:{members}");
            let _ = writeln!(gshadow, "{name}:*::{members}");
        }
        let owner = self.group(SHADOW).map_or(0, |group| group.gid);
        tree.insert("etc/passwd", Entry::file(passwd.into_bytes(), 0o644))?;
        tree.insert("etc/group", Entry::file(group.into_bytes(), 0o644))?;
        for (path, text) in [("etc/shadow", shadow), ("etc/gshadow", gshadow)] {
            tree.insert(path, Entry { gid: owner, ..Entry::file(text.into_bytes(), 0o640) })?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum PrimaryGroup {
    Id(u32),
    Name(String),
}

/// A line of sysusers.d(5).
#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Group { name: String, gid: Option<u32> },
    User { name: String, uid: Option<u32>, group: Option<PrimaryGroup>, gecos: String, home: String, shell: String },
    Member { user: String, group: String },
}

impl Line {
    fn rank(&self) -> u8 {
        match self {
            Self::Group { gid: Some(_), .. } => 0,
            Self::User { uid: Some(_), .. } => 1,
            Self::Group { .. } => 2,
            Self::User { .. } => 3,
            Self::Member { .. } => 4,
        }
    }
}

/// Splits at blanks; double and single quotes keep blanks.
fn words(line: &str) -> Result<Vec<String>> {
    let mut out = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let (word, tail) = match first {
            '"' | '\'' => rest[1..].split_once(first).context("a quote is not closed")?,
            _ => rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len())),
        };
        out.push(word.to_owned());
        rest = tail.trim_start();
    }
    Ok(out)
}

fn clean_field(text: &str) -> Result<String> {
    if text.contains([':', '\n', '\0']) {
        bail!("`{}` has a character that passwd files cannot hold", text.escape_default());
    }
    Ok(text.to_owned())
}

fn clean_name(name: &str) -> Result<String> {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let rest = name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    if !first || !rest || name.len() > 31 {
        bail!("`{}` is not a name of a user or group", name.escape_default());
    }
    Ok(name.to_owned())
}

fn parse_line(line: &str) -> Result<Option<Line>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let words = words(line)?;
    let word = |at: usize| words.get(at).map(String::as_str).filter(|word| *word != "-" && !word.is_empty());
    let name = word(1);
    let name = || name.context("a name is missing");
    let id = |text: &str| text.parse::<u32>().ok().with_context(|| format!("`{text}` is not an id"));
    Ok(Some(match words[0].as_str() {
        "g" => Line::Group {
            name: clean_name(name()?)?,
            gid: word(2).filter(|w| !w.starts_with('/')).map(id).transpose()?,
        },
        "u" | "u!" => {
            let (uid, group) = match word(2).filter(|word| !word.starts_with('/')) {
                None => (None, None),
                Some(text) => match text.split_once(':') {
                    None => (Some(id(text)?), None),
                    Some((uid, group)) => {
                        let uid = if uid == "-" { None } else { Some(id(uid)?) };
                        let group = match id(group) {
                            Ok(gid) => PrimaryGroup::Id(gid),
                            Err(_) => PrimaryGroup::Name(clean_name(group)?),
                        };
                        (uid, Some(group))
                    }
                },
            };
            let name = clean_name(name()?)?;
            let shell = if uid == Some(0) { "/bin/bash" } else { "/usr/sbin/nologin" };
            Line::User {
                name,
                uid,
                group,
                gecos: clean_field(word(3).unwrap_or(""))?,
                home: clean_field(word(4).unwrap_or("/"))?,
                shell: clean_field(word(5).unwrap_or(shell))?,
            }
        }
        "m" => Line::Member { user: clean_name(name()?)?, group: clean_name(word(2).context("a group is missing")?)? },
        // The ranges of open ids are ours to choose.
        "r" => return Ok(None),
        other => bail!("`{}` is not a type of line", other.escape_default()),
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::proptest;

    use super::{Users, parse_line};
    use crate::store::Store;
    use crate::tree::FileTree;

    fn snippets(texts: &[(&str, &str)]) -> BTreeMap<String, String> {
        texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn master_files_and_snippets() {
        let mut users =
            Users::parse("root:*:0:0:root:/root:/bin/bash\n", "root:*:0:\nshadow:*:42:\n\ntty:*:5:x,y\n").unwrap();
        let texts = [
            ("b.conf", "# x\n\nu messagebus - \"System Message Bus\"\ng open -\nu root 0 - /root /bin/sh\n"),
            ("a.conf", "u etcd 899 \"etcd store\" /var/lib/etcd\nm etcd tty\nu web 33:tty - - /bin/false\n"),
        ];
        users.sysusers(&snippets(&texts)).unwrap();
        let mut tree = FileTree::new();
        users.write(&mut tree).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let text = |path: &str| tree.text(&store, path).unwrap().unwrap();
        insta::assert_snapshot!(text("etc/passwd"), @r"
        root:x:0:0:root:/root:/bin/bash
        etcd:x:899:899:etcd store:/var/lib/etcd:/usr/sbin/nologin
        web:x:33:5::/:/bin/false
        messagebus:x:897:897:System Message Bus:/:/usr/sbin/nologin
        ");
        insta::assert_snapshot!(text("etc/group"), @r"
        root:x:0:
        shadow:x:42:
        tty:x:5:x,y,etcd
        etcd:x:899:
        open:x:898:
        messagebus:x:897:
        ");
        assert!(text("etc/shadow").lines().all(|line| line.ends_with(":*:::::::")));
        let shadow = tree.get("etc/shadow").unwrap();
        assert_eq!((shadow.mode, shadow.gid), (0o640, 42));
    }

    #[test]
    fn problems_are_told_together() {
        let error = Users::default()
            .sysusers(&snippets(&[("a", "u\nx y\nu a b\nu x:y 1\n"), ("b", "u ok 1 \"open\n")]))
            .unwrap_err()
            .to_string();
        assert_eq!(error.lines().count(), 6, "{error}");
        let error = Users::default().sysusers(&snippets(&[("a", "u one 7\nu two 7:9\n")])).unwrap_err();
        assert_eq!(format!("{error:#}"), "carrying out a:2: user id 7 for two is already that of one");
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in "[ugmr!]{0,2} ?\\PC*", passwd: String) {
            let _ = parse_line(&line);
            let _ = Users::parse(&passwd, &passwd);
            let _ = Users::default().sysusers(&snippets(&[("x", &line)]));
        }
    }
}
