// SPDX-License-Identifier: MIT OR Apache-2.0
//! No swap, now and after reboots: kubelet refuses to run with it.

use anyhow::Result;

use crate::context::Cx;
use crate::engine::{State, Step};
use crate::runner::Command;

/// Swap units, those that systemd makes from GPT types included, all hang on this target.
const MASK: &str = "/etc/systemd/system/swap.target";

pub(super) struct Swap;

impl Step for Swap {
    fn id(&self) -> &'static str {
        "swap"
    }

    fn title(&self) -> &'static str {
        "turning swap off"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        let swaps = std::fs::read_to_string(cx.path("/proc/swaps")).unwrap_or_default();
        if let Some(device) = swaps.lines().nth(1).and_then(|line| line.split_whitespace().next()) {
            return Ok(State::Needed(format!("{device} is in use")));
        }
        match std::fs::read_link(cx.path(MASK)) {
            Ok(target) if target == std::path::Path::new("/dev/null") => Ok(State::Done),
            _ => Ok(State::Needed("swap.target is not masked".to_owned())),
        }
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        crate::files::link_atomic(&cx.path(MASK), "/dev/null")?;
        cx.run(&Command::new("systemctl", ["daemon-reload"]))?;
        cx.run(&Command::new("swapoff", ["-a"]))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Lab;

    #[test]
    fn masks_and_turns_off() {
        let lab = Lab::new();
        let cx = lab.cx();
        assert_eq!(Swap.check(&cx).unwrap(), State::Needed("swap.target is not masked".into()));
        Swap.apply(&cx).unwrap();
        assert_eq!(Swap.check(&cx).unwrap(), State::Done);
        lab.write("/proc/swaps", "Filename Type Size Used Priority\n/dev/vda9 partition 1 0 -2\n");
        assert_eq!(Swap.check(&cx).unwrap(), State::Needed("/dev/vda9 is in use".into()));
    }
}
