// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every file the profile renders, and the secrets, with owner and mode.

use anyhow::Result;

use crate::context::{Cx, below};
use crate::engine::{State, Step};
use crate::files;
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
        let owners = Owners::of_node(&cx.root);
        let mut different = Vec::new();
        for file in &cx.plan.files {
            if let Some(how) = difference(&cx.root, owners.as_ref(), file)? {
                different.push(format!("{} {how}", file.path));
            }
        }
        Ok(match different.as_slice() {
            [] => State::Done,
            [one] => State::Needed(one.clone()),
            [first, rest @ ..] => State::Needed(format!("{first}, and {} more", rest.len())),
        })
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        let owners = Owners::of_node(&cx.root);
        let mut written = 0;
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
            written += 1;
        }
        if written > 0 && cx.plan.files.iter().any(|file| file.path.starts_with("/etc/systemd/system/")) {
            cx.run(&crate::runner::Command::new("systemctl", ["daemon-reload"]))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::PlannedFile;
    use crate::testing::Lab;

    #[test]
    fn writes_only_what_differs() {
        let mut lab = Lab::new();
        let file = |path: &str, text: &str| PlannedFile {
            path: path.into(),
            mode: 0o644,
            owner: "root".into(),
            kind: Kind::File(text.into()),
        };
        lab.plan.files = vec![
            file("/etc/hosts", "127.0.0.1 localhost\n"),
            file("/etc/systemd/system/kubelet.service.d/10-kubeadm.conf", "[Service]\n"),
            PlannedFile { kind: Kind::Link("../usr/share/zoneinfo/UTC".into()), ..file("/etc/localtime", "") },
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
}
