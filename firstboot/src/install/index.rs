// SPDX-License-Identifier: MIT OR Apache-2.0
//! The index of a medium, read strictly: what it promises must hold before anything of it is used.

use anyhow::{Context, Result, ensure};
use profiles::medium::{Medium, MediumNode, SCHEMA};
use profiles::node::Architecture;
use serde::Deserialize;

use super::write::SECTOR;

/// An index of thirty nodes is some 100 KiB.
pub const INDEX_LIMIT: u64 = 16 << 20;

/// Reads an index whose SHA-256 is known to be right.
pub fn parse(bytes: &[u8]) -> Result<Medium> {
    /// What every version of an index has.
    #[derive(Deserialize)]
    struct Version {
        schema: u32,
    }
    let Version { schema } = serde_json::from_slice(bytes).context("the medium's index is not ours")?;
    ensure!(
        schema == SCHEMA,
        "the medium has an index of schema {schema}, this installer reads schema {SCHEMA}: boot the kernel and \
         initramfs that are on the medium itself"
    );
    let medium: Medium = serde_json::from_slice(bytes).context("understanding the medium's index")?;
    let own = Architecture::of_machine(std::env::consts::ARCH);
    ensure!(
        own == Some(medium.architecture),
        "the medium is for {:?}, this machine is {}",
        medium.architecture,
        std::env::consts::ARCH
    );
    for path in medium.files.keys() {
        ensure!(is_plain(path), "the medium's index has the path `{path}`, which is not plain");
    }
    let is_id = medium.cluster_id.len() == 32 && medium.cluster_id.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(is_id, "the medium's index has `{}` for a cluster's id", medium.cluster_id);
    for (index, node) in medium.nodes.iter().enumerate() {
        let twice = medium.nodes[..index].iter().any(|other| other.name == node.name);
        ensure!(!twice, "the medium's index has the node {} twice", node.name);
        check(node, &medium).with_context(|| format!("the medium's index is wrong about {}", node.name))?;
    }
    Ok(medium)
}

/// A relative path that leads nowhere else.
fn is_plain(path: &str) -> bool {
    !path.contains('\0') && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn check(node: &MediumNode, medium: &Medium) -> Result<()> {
    ensure!(is_plain(&node.name) && !node.name.contains('/') && node.name.len() <= 64, "its name is not a host name");
    for path in [&node.root, &node.payload] {
        ensure!(medium.files.contains_key(path), "`{path}` is not among the files");
    }
    // The protective MBR and the header of the table: what turns a marked disk into an installed one.
    let first = node.pieces.first().filter(|piece| piece.at == 0 && piece.len >= 2 * SECTOR as u64);
    ensure!(first.is_some(), "no piece holds the beginning of the disk");
    let mut end = 0;
    for piece in &node.pieces {
        let file = medium.files.get(&piece.file).with_context(|| format!("`{}` is not among the files", piece.file))?;
        let within = piece.offset.checked_add(piece.len).is_some_and(|end| end <= file.size);
        ensure!(within && piece.len > 0, "a piece is not in its file `{}`", piece.file);
        ensure!(piece.at >= end, "its pieces overlap or are not in order, at {}", piece.at);
        end = piece.at.checked_add(piece.len).context("a piece ends nowhere")?;
    }
    for range in &node.zero {
        end = end.max(range.at.checked_add(range.len).context("a range ends nowhere")?);
    }
    ensure!(end <= node.disk_size, "it writes up to {end}, behind the end of its disk of {} bytes", node.disk_size);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::testing::medium;

    fn parsed(edit: impl FnOnce(&mut serde_json::Value)) -> Result<Medium> {
        let mut value = serde_json::to_value(medium(&["master-1"])).unwrap();
        edit(&mut value);
        parse(&serde_json::to_vec(&value).unwrap())
    }

    #[test]
    fn a_good_index_is_read() {
        assert_eq!(parsed(|_| {}).unwrap(), medium(&["master-1"]));
    }

    #[test]
    fn what_does_not_hold_is_refused() {
        let other = if std::env::consts::ARCH == "x86_64" { "loong64" } else { "amd64" };
        type Edit = fn(&mut serde_json::Value);
        let cases: &[(&str, Edit)] = &[
            ("schema 2", |v| v["schema"] = 2.into()),
            ("unknown field", |v| v["nodes"][0]["bogus"] = 1.into()),
            ("not plain", |v| v["files"]["../x"] = v["files"]["root.squashfs"].clone()),
            ("for a cluster's id", |v| v["cluster_id"] = "x".into()),
            ("`nowhere` is not among", |v| v["nodes"][0]["root"] = "nowhere".into()),
            ("`nowhere` is not among", |v| v["nodes"][0]["pieces"][1]["file"] = "nowhere".into()),
            ("not in its file", |v| v["nodes"][0]["pieces"][1]["len"] = (1u64 << 40).into()),
            ("not in its file", |v| v["nodes"][0]["pieces"][1]["offset"] = u64::MAX.into()),
            ("overlap", |v| v["nodes"][0]["pieces"][1]["at"] = 1.into()),
            ("beginning of the disk", |v| v["nodes"][0]["pieces"][0]["at"] = 512.into()),
            ("behind the end", |v| v["nodes"][0]["disk_size"] = 4096.into()),
            ("ends nowhere", |v| v["nodes"][0]["zero"][0]["at"] = u64::MAX.into()),
            ("twice", |v| {
                let node = v["nodes"][0].clone();
                v["nodes"].as_array_mut().unwrap().push(node);
            }),
        ];
        for (said, edit) in cases {
            let error = format!("{:#}", parsed(edit).unwrap_err());
            assert!(error.contains(said), "{said}: {error}");
        }
        let error = parsed(|v| v["architecture"] = other.into()).unwrap_err().to_string();
        assert!(error.contains("this machine is"), "{error}");
        assert!(parse(b"{").is_err() && parse(b"[]").is_err());
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
