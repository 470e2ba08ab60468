// SPDX-License-Identifier: MIT OR Apache-2.0
//! kubelet, running now and after every reboot. kubeadm has started it; from here on systemd does.

use std::time::Duration;

use anyhow::Result;

use super::services;
use crate::context::{Cx, Poll};
use crate::engine::{State, Step};

const UNIT: &str = "kubelet";

pub(super) struct Kubelet;

impl Step for Kubelet {
    fn id(&self) -> &'static str {
        UNIT
    }

    fn title(&self) -> &'static str {
        "enabling kubelet"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        let enabled = services::is_enabled(cx, UNIT)?;
        Ok(if enabled && services::is_active(cx, UNIT)? {
            State::Done
        } else {
            State::Needed(if enabled { "not running" } else { "not enabled" }.to_owned())
        })
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        services::bring_up(cx, UNIT, false)?;
        let hint = "look at `journalctl -u kubelet`";
        cx.wait_for("kubelet to run", Duration::from_secs(120), Duration::from_millis(500), hint, || {
            let runs = services::is_active(cx, UNIT)?;
            Ok(if runs { Poll::Ready(()) } else { Poll::Pending(services::state(cx, UNIT)) })
        })
    }
}
