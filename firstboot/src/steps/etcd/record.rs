// SPDX-License-Identifier: MIT OR Apache-2.0
//! What this disk remembers of its member, and what etcd itself left on it.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::context::Cx;
use crate::files;

const RECORD: &str = "/var/lib/imgbuild/etcd.json";
const WAL: &str = "/var/lib/etcd/member/wal";
/// Its presence lets the unit start a member that has no data; /run, so that no reboot repeats a decision.
const FIRST_START: &str = "/run/imgbuild/etcd.env";
const JOIN_CONFIG: &str = "/run/imgbuild/etcd.yaml";
const CONFIG: &str = "/etc/etcd/etcd.yaml";

/// How far the member on this disk got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Stage {
    /// It saw all others without data and may start a new cluster with them.
    Agreed,
    /// It starts, or started, as a member of a cluster that ran already.
    Joining,
    /// It was healthy.
    Member,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Id of the cluster.
    pub cluster: String,
    pub stage: Stage,
}

/// What was recorded; a file that makes no sense counts as none, and thereby as no licence to start a cluster.
pub(super) fn read(cx: &Cx<'_>) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(cx.path(RECORD)).ok()?).ok()
}

/// Records `stage`, durably.
pub(super) fn write(cx: &Cx<'_>, stage: Stage) -> Result<()> {
    let record = Record { cluster: cx.profile().cluster.id.clone(), stage };
    let text = serde_json::to_vec(&record).context("encoding the state of etcd")?;
    files::write_atomic(&cx.path(RECORD), &text, 0o600, None)
}

/// Whether etcd ever started here. It makes its write-ahead log under another name and renames it, so the log is there
/// as a whole or not at all. `member/snap/db` says nothing: etcd makes it before it asks whether it may start.
pub(super) fn has_data(cx: &Cx<'_>) -> Result<bool> {
    let entries = match std::fs::read_dir(cx.path(WAL)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("reading {WAL}")),
    };
    for entry in entries {
        if entry.with_context(|| format!("reading {WAL}"))?.file_name().to_string_lossy().ends_with(".wal") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// How a member without data starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum First {
    /// A new cluster, with all others.
    New,
    /// A member of a running cluster; the value is etcd's `initial-cluster`.
    Existing(String),
}

/// Lets the unit start, and how.
pub(super) fn allow(cx: &Cx<'_>, first: &First) -> Result<()> {
    let config = match first {
        First::New => CONFIG,
        First::Existing(cluster) => {
            let rendered = cx.plan.text(CONFIG).with_context(|| format!("the plan has no {CONFIG}"))?;
            files::write_atomic(&cx.path(JOIN_CONFIG), joining(rendered, cluster)?.as_bytes(), 0o644, None)?;
            JOIN_CONFIG
        }
    };
    files::write_atomic(&cx.path(FIRST_START), format!("CONFIG={config}\n").as_bytes(), 0o644, None)
}

/// From now on the unit starts with data or not at all.
pub(super) fn forbid(cx: &Cx<'_>) -> Result<()> {
    files::remove(&cx.path(FIRST_START))?;
    files::remove(&cx.path(JOIN_CONFIG))
}

/// The rendered configuration, for a member that joins.
fn joining(rendered: &str, cluster: &str) -> Result<String> {
    let mut replaced = 0;
    let lines: Vec<_> = rendered
        .lines()
        .map(|line| {
            let new = if line.starts_with("initial-cluster:") {
                format!("initial-cluster: \"{cluster}\"")
            } else if line.starts_with("initial-cluster-state:") {
                "initial-cluster-state: existing".to_owned()
            } else {
                return line.to_owned();
            };
            replaced += 1;
            new
        })
        .collect();
    anyhow::ensure!(replaced == 2, "{CONFIG} has not one initial-cluster and one initial-cluster-state");
    Ok(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Lab;

    #[test]
    fn only_a_write_ahead_log_is_data() {
        let lab = Lab::new();
        assert!(!has_data(&lab.cx()).unwrap());
        // What an etcd leaves that was refused at its first start.
        lab.write("/var/lib/etcd/member/snap/db", "x");
        lab.write("/var/lib/etcd/member/wal.tmp/0000000000000000-0000000000000000.wal", "x");
        assert!(!has_data(&lab.cx()).unwrap());
        lab.write("/var/lib/etcd/member/wal/0000000000000000-0000000000000000.wal", "x");
        assert!(has_data(&lab.cx()).unwrap());
    }

    #[test]
    fn the_rendered_configuration_can_be_turned_into_one_that_joins() {
        let mut profile = crate::testing::profile();
        profile.peers = super::super::tests::peers();
        profile.node.name = "etcd-3".into();
        profile.node.roles = [profiles::node::Role::Etcd].into();
        profile.node.address = "10.77.0.13/24".parse().unwrap();
        let files = profiles::render::files(&profile).unwrap();
        let config = files.into_iter().find(|file| file.path == CONFIG).unwrap();
        let profiles::render::Content::Text(config) = config.content else { panic!("a link") };
        let joined = joining(&config, "etcd-1=https://10.77.0.11:2380,etcd-3=https://10.77.0.13:2380").unwrap();
        let read = |text: &str| serde_saphyr::from_str::<serde_json::Value>(text).unwrap();
        let (mut before, after) = (read(&config), read(&joined));
        before["initial-cluster"] = "etcd-1=https://10.77.0.11:2380,etcd-3=https://10.77.0.13:2380".into();
        before["initial-cluster-state"] = "existing".into();
        assert_eq!(before, after);
        assert!(joining("name: x\n", "").is_err());
    }

    #[test]
    fn a_torn_record_is_no_licence() {
        let lab = Lab::new();
        write(&lab.cx(), Stage::Agreed).unwrap();
        assert_eq!(read(&lab.cx()).unwrap().stage, Stage::Agreed);
        lab.write(RECORD, "{\"cluster\":\"0123");
        assert_eq!(read(&lab.cx()), None);
    }
}
