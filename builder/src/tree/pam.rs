// SPDX-License-Identifier: MIT OR Apache-2.0

//! Writes `/etc/pam.d/common-*` from the templates and profiles that packages bring, as pam-auth-update(8) does when
//! nobody changes the defaults.
//!
//! Source: pam-auth-update(8) and the specification it comes from, <https://wiki.ubuntu.com/PAMConfigFrameworkSpec>.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

use super::{Entry, FileTree};
use crate::store::Store;

const TEMPLATES: &str = "usr/share/pam";
const PROFILES: &str = "usr/share/pam-configs";
/// Template, type of its lines, and whether it is only for sessions that nobody sits at.
const FILES: [(&str, &str, bool); 5] = [
    ("common-auth", "auth", false),
    ("common-account", "account", false),
    ("common-password", "password", false),
    ("common-session", "session", false),
    ("common-session-noninteractive", "session", true),
];

/// A file of `usr/share/pam-configs`: field to value; a block's lines are joined by line ends.
type Profile = BTreeMap<String, String>;

/// Writes the files. Does nothing where there are no templates.
pub fn write(store: &Store, tree: &mut FileTree) -> Result<()> {
    let paths: Vec<String> = tree.below(PROFILES).map(|(path, _)| path.to_owned()).collect();
    let mut profiles = Vec::new();
    for path in paths {
        if let Some(text) = tree.text(store, &path)? {
            profiles.push(parse(&text).with_context(|| format!("reading /{path}"))?);
        }
    }
    profiles.retain(|profile| profile.get("Default").is_some_and(|default| default == "yes"));
    // By priority, the highest first; then by name.
    profiles.sort_by_key(|p| (std::cmp::Reverse(priority(p)), p.get("Name").cloned()));
    for (file, kind, unattended) in FILES {
        if let Some(template) = tree.text(store, &format!("{TEMPLATES}/{file}"))? {
            let text = render(&template, &profiles, kind, unattended);
            tree.insert(&format!("etc/pam.d/{file}"), Entry::file(text.into_bytes(), 0o644))?;
        }
    }
    Ok(())
}

fn priority(profile: &Profile) -> i64 {
    profile.get("Priority").and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// `Field: value` lines; lines that begin with a blank belong to the field before.
fn parse(text: &str) -> Result<Profile> {
    let mut out = Profile::new();
    let mut current = None;
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        if line.starts_with([' ', '\t']) {
            let field: &String = current.as_ref().context("the first line is a continuation")?;
            let value = out.entry(field.clone()).or_default();
            if !value.is_empty() {
                value.push('\n');
            }
            value.push_str(line.trim());
            continue;
        }
        let Some((field, value)) = line.split_once(':') else { bail!("`{line}` has no field name") };
        out.insert(field.trim().to_owned(), value.trim().to_owned());
        current = Some(field.trim().to_owned());
    }
    Ok(out)
}

/// Fills in the two blocks of a template.
fn render(template: &str, profiles: &[Profile], kind: &str, unattended: bool) -> String {
    let mut out = String::new();
    for line in template.lines() {
        // `$auth_primary`, `$session_nonint_additional` and so on.
        match line.strip_prefix('$').and_then(|name| name.rsplit('_').next()) {
            Some("primary") => block(&mut out, profiles, kind, "Primary", unattended),
            Some("additional") => block(&mut out, profiles, kind, "Additional", unattended),
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

fn block(out: &mut String, profiles: &[Profile], kind: &str, block: &str, unattended: bool) {
    let mut title = kind.to_owned();
    title[..1].make_ascii_uppercase();
    let interactive = |p: &Profile| p.get(&format!("{title}-Interactive-Only")).is_some_and(|only| only == "yes");
    let mut lines: Vec<&str> = Vec::new();
    for profile in profiles {
        if profile.get(&format!("{title}-Type")).is_none_or(|t| t != block) || unattended && interactive(profile) {
            continue;
        }
        // The first module of a stack asks for the password, the others take it over.
        let first = lines.is_empty().then(|| profile.get(&format!("{title}-Initial"))).flatten();
        lines.extend(first.or_else(|| profile.get(&title)).into_iter().flat_map(|text| text.lines()));
    }
    if lines.is_empty() && block == "Primary" {
        // pam-auth-update keeps the stack valid where only additional modules are.
        let _ = writeln!(out, "{kind}\t[default=1]\t\t\tpam_permit.so");
    }
    for (at, line) in lines.iter().enumerate() {
        // `end` is the number of lines to jump over: those that follow, and the denial after them.
        let line = line.replace("=end", &format!("={}", lines.len() - at));
        let _ = writeln!(out, "{kind}\t{line}");
    }
}

/// For tests/fuzz: a template and a profile.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    if let Ok(profile) = parse(text) {
        for (_, kind, unattended) in FILES {
            render(text, std::slice::from_ref(&profile), kind, unattended);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::proptest;

    use super::{parse, render};

    const UNIX: &str = "Name: Unix authentication\nDefault: yes\nPriority: 256\nAuth-Type: Primary\nAuth:\n\t\
        [success=end default=ignore]\tpam_unix.so try_first_pass\nAuth-Initial:\n\t\
        [success=end default=ignore]\tpam_unix.so\n";
    const OTHER: &str = "Name: Other\nDefault: yes\nPriority: 9\nAuth-Type: Primary\nAuth:\n \
        [success=end default=ignore] pam_other.so use_first_pass\nSession-Type: Additional\n\
        Session-Interactive-Only: yes\nSession:\n optional pam_other.so\n";
    const TEMPLATE: &str = "# here\n$x_primary\nx\trequisite\tpam_deny.so\n$x_additional\n# end\n";

    #[test]
    fn stacks_of_two() {
        let profiles = [parse(UNIX).unwrap(), parse(OTHER).unwrap()];
        insta::assert_snapshot!(render(TEMPLATE, &profiles, "auth", false), @r"
        # here
        auth	[success=2 default=ignore]	pam_unix.so
        auth	[success=1 default=ignore] pam_other.so use_first_pass
        x	requisite	pam_deny.so
        # end
        ");
        insta::assert_snapshot!(render(TEMPLATE, &profiles, "session", false), @r"
        # here
        session	[default=1]			pam_permit.so
        x	requisite	pam_deny.so
        session	optional pam_other.so
        # end
        ");
        let template = TEMPLATE.replace("$x_", "$session_nonint_");
        let unattended = render(&template, &profiles, "session", true);
        assert!(!unattended.contains("pam_other") && !unattended.contains('$'), "{unattended}");
    }

    proptest! {
        #[test]
        fn any_profile_is_read(text: String) {
            if let Ok(profile) = parse(&text) {
                render(&text, &[profile], "auth", false);
            }
        }
    }
}
