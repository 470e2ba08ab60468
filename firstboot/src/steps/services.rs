// SPDX-License-Identifier: MIT OR Apache-2.0
//! systemd units, through systemctl.

use anyhow::Result;

use crate::context::Cx;
use crate::runner::Command;

/// Whether `unit` runs.
pub(super) fn is_active(cx: &Cx<'_>, unit: &str) -> Result<bool> {
    Ok(cx.try_run(&Command::new("systemctl", ["is-active", "--quiet", unit]))?.success())
}

/// Whether `unit` starts at boot.
pub(super) fn is_enabled(cx: &Cx<'_>, unit: &str) -> Result<bool> {
    Ok(cx.try_run(&Command::new("systemctl", ["is-enabled", "--quiet", unit]))?.success())
}

/// Lets `unit` start at every boot.
pub(super) fn enable(cx: &Cx<'_>, unit: &str) -> Result<()> {
    cx.run(&Command::new("systemctl", ["enable", "--quiet", unit]))?;
    Ok(())
}

/// Starts `unit`, again if it runs, without waiting: the caller waits, and says for what.
pub(super) fn restart(cx: &Cx<'_>, unit: &str) -> Result<()> {
    // After a crash loop systemd refuses to start it: an attempt of ours is a new reason to try.
    let _ = cx.try_run(&Command::new("systemctl", ["reset-failed", unit]))?;
    cx.run(&Command::new("systemctl", ["restart", "--no-block", unit]))?;
    Ok(())
}

/// Makes a running `unit` read its configuration again, without stopping it.
pub(super) fn reload(cx: &Cx<'_>, unit: &str) -> Result<()> {
    cx.run(&Command::new("systemctl", ["reload", unit]))?;
    Ok(())
}

/// Stops `unit` and waits for its end.
pub(super) fn stop(cx: &Cx<'_>, unit: &str) -> Result<()> {
    cx.run(&Command::new("systemctl", ["stop", unit]))?;
    Ok(())
}

/// What systemd says about a unit that does not come up, in few words.
pub(super) fn state(cx: &Cx<'_>, unit: &str) -> String {
    let command = Command::new("systemctl", ["show", "--property=ActiveState,SubState,Result", "--value", unit]);
    match cx.runner.run(&command, None, &mut |_| {}) {
        Ok(output) if output.success() => {
            format!("{unit} is {}", output.stdout.split_whitespace().collect::<Vec<_>>().join("/"))
        }
        _ => format!("{unit} is unknown to systemd"),
    }
}

/// Enables `unit` and starts it; restarts it if it runs with an older configuration.
pub(super) fn bring_up(cx: &Cx<'_>, unit: &str, changed: bool) -> Result<()> {
    enable(cx, unit)?;
    if changed {
        return restart(cx, unit);
    }
    let _ = cx.try_run(&Command::new("systemctl", ["reset-failed", unit]))?;
    cx.run(&Command::new("systemctl", ["start", "--no-block", unit]))?;
    Ok(())
}
