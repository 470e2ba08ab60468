// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every file the profile renders, and the secrets, with owner and mode.

use anyhow::{Result, ensure};

use crate::context::{Cx, below};
use crate::engine::{State, Step};
use crate::files;
use crate::journal::Progress;
use crate::node::{Kind, Owners, difference};

pub(super) struct Files;

impl Step for Files {
    fn id(&self) -> &'static str {
        "files"
    }

    fn title(&self) -> &'static str {
        "writing configuration and keys"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        Ok(match different(cx)?.as_slice() {
            // The files may be there without systemd having read them.
            [] if cx.progress(self.id()) == Progress::Interrupted => State::Needed("was interrupted".to_owned()),
            [] => State::Done,
            [one] => State::Needed(one.clone()),
            [first, rest @ ..] => State::Needed(format!("{first}, and {} more", rest.len())),
        })
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        let owners = Owners::of_node(&cx.root);
        for file in &cx.plan.files {
            if difference(&cx.root, owners.as_ref(), file)?.is_none() {
                continue;
            }
            let path = below(&cx.root, &file.path);
            match &file.kind {
                Kind::File(content) => {
                    let owner = owners.as_ref().map(|owners| owners.find(&file.owner)).transpose()?;
                    files::write_atomic(&path, content, file.mode, owner)?;
                }
                Kind::Link(target) => files::link_atomic(&path, target)?,
            }
            cx.log(&format!("wrote {}", file.path));
        }
        if cx.plan.files.iter().any(|file| file.path.starts_with("/etc/systemd/system/")) {
            cx.run(&crate::runner::Command::new("systemctl", ["daemon-reload"]))?;
        }
        Ok(())
    }

    fn verify(&self, cx: &Cx<'_>) -> Result<()> {
        let different = different(cx)?;
        ensure!(different.is_empty(), "{}", different.join(", "));
        Ok(())
    }
}

/// Planned files that are not so on the disk, and how.
fn different(cx: &Cx<'_>) -> Result<Vec<String>> {
    let owners = Owners::of_node(&cx.root);
    let mut different = Vec::new();
    for file in &cx.plan.files {
        if let Some(how) = difference(&cx.root, owners.as_ref(), file)? {
            different.push(format!("{} {how}", file.path));
        }
    }
    Ok(different)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::converge;
    use crate::node::PlannedFile;
    use crate::runner::Output;
    use crate::testing::{Lab, planned};

    #[test]
    fn writes_only_what_differs() {
        let mut lab = Lab::new();
        lab.plan.files = vec![
            planned("/etc/hosts", 0o644, "127.0.0.1 localhost\n"),
            planned("/etc/systemd/system/kubelet.service.d/10-kubeadm.conf", 0o644, "[Service]\n"),
            PlannedFile {
                kind: Kind::Link("../usr/share/zoneinfo/UTC".into()),
                ..planned("/etc/localtime", 0o644, "")
            },
        ];
        let cx = lab.cx();
        let needed = Files.check(&cx).unwrap();
        assert_eq!(needed, State::Needed("/etc/hosts is missing, and 2 more".into()));
        Files.apply(&cx).unwrap();
        assert_eq!(Files.check(&cx).unwrap(), State::Done);
        assert_eq!(lab.runner.take_trace(), ["systemctl daemon-reload"]);
        lab.write("/etc/hosts", "changed by hand");
        assert_eq!(Files.check(&cx).unwrap(), State::Needed("/etc/hosts has other content".into()));
    }

    #[test]
    fn systemd_reads_units_even_if_the_first_attempt_only_wrote_them() {
        let mut lab = Lab::new();
        lab.plan.files = vec![planned("/etc/systemd/system/etcd.service", 0o644, "[Service]\n")];
        let mut reloads = 0;
        lab.runner.on("systemctl daemon-reload", move |_| {
            reloads += 1;
            Output { status: i32::from(reloads == 1), ..Output::default() }
        });
        converge(&lab.cx(), &[Box::new(Files)]).unwrap();
        assert_eq!(lab.runner.take_trace(), ["systemctl daemon-reload"; 2]);
    }
}
