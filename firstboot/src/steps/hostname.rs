// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's host name; `/etc/hostname` keeps it over boots and is one of the planned files.

use anyhow::Result;

use crate::context::Cx;
use crate::engine::{State, Step};

pub(super) struct Hostname;

impl Step for Hostname {
    fn id(&self) -> &'static str {
        "hostname"
    }

    fn title(&self) -> &'static str {
        "setting the host name"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        let found = cx.host.hostname();
        Ok(if found == cx.profile().node.name { State::Done } else { State::Needed(format!("it is `{found}`")) })
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        cx.host.set_hostname(&cx.profile().node.name)
    }
}
