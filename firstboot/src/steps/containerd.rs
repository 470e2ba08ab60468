// SPDX-License-Identifier: MIT OR Apache-2.0
//! containerd, running with the planned configuration and answering.

use std::time::Duration;

use anyhow::Result;

use super::services;
use crate::context::{Cx, Poll};
use crate::engine::{State, Step};
use crate::journal::Progress;
use crate::runner::Command;

/// Its unit.
pub(super) const UNIT: &str = "containerd";
const CONFIG: [&str; 2] = ["/etc/containerd/", "/etc/systemd/system/containerd.service"];

pub(super) struct Containerd;

/// Waits until containerd answers.
pub(super) fn wait(cx: &Cx<'_>) -> Result<()> {
    let hint = "look at `journalctl -u containerd`";
    cx.wait_for("containerd to answer", Duration::from_secs(180), Duration::from_millis(500), hint, || {
        Ok(if answers(cx)? { Poll::Ready(()) } else { Poll::Pending(services::state(cx, UNIT)) })
    })
}

fn answers(cx: &Cx<'_>) -> Result<bool> {
    Ok(cx.try_run(&Command::new("ctr", ["--connect-timeout=5s", "version"]).timeout(30))?.success())
}

impl Step for Containerd {
    fn id(&self) -> &'static str {
        UNIT
    }

    fn title(&self) -> &'static str {
        "starting containerd"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        if cx.progress(self.id()) != Progress::Done(self.fingerprint(cx)) {
            return Ok(State::Needed("not started with this configuration yet".to_owned()));
        }
        let runs = services::is_enabled(cx, UNIT)? && services::is_active(cx, UNIT)? && answers(cx)?;
        Ok(if runs { State::Done } else { State::Needed("not running".to_owned()) })
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        let same = cx.journal.borrow().last_done(self.id()) == Some(self.fingerprint(cx));
        services::bring_up(cx, UNIT, !same)?;
        wait(cx)
    }

    fn verify(&self, _: &Cx<'_>) -> Result<()> {
        Ok(()) // apply ends with its answer
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        cx.plan.digest_of(&CONFIG)
    }
}
