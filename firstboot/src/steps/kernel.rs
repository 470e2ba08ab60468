// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernel modules and settings, from the planned files that also bring them back at every boot.

use anyhow::{Context, Result};

use crate::context::Cx;
use crate::engine::{State, Step};
use crate::node::NodePlan;
use crate::runner::Command;

const MODULES_DIR: &str = "/etc/modules-load.d/";
const SYSCTL_DIR: &str = "/etc/sysctl.d/";

pub(super) struct Modules;

pub(crate) fn planned_modules(cx: &Cx<'_>) -> Vec<String> {
    let lines = cx.plan.texts_below(MODULES_DIR).flat_map(|(_, text)| text.lines());
    lines.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])).map(str::to_owned).collect()
}

/// Whether a module is loaded or built in.
pub(crate) fn is_loaded(cx: &Cx<'_>, module: &str) -> bool {
    let name = module.replace('-', "_");
    if cx.path(&format!("/sys/module/{name}")).exists() {
        return true;
    }
    let release = std::fs::read_to_string(cx.path("/proc/sys/kernel/osrelease")).unwrap_or_default();
    let builtin = cx.path(&format!("/lib/modules/{}/modules.builtin", release.trim()));
    std::fs::read_to_string(builtin).unwrap_or_default().lines().any(|line| {
        let file = line.rsplit('/').next().unwrap_or_default();
        file.strip_suffix(".ko").is_some_and(|found| found.replace('-', "_") == name)
    })
}

/// Planned modules that are neither loaded nor built in.
pub(crate) fn missing_modules(cx: &Cx<'_>) -> Vec<String> {
    planned_modules(cx).into_iter().filter(|module| !is_loaded(cx, module)).collect()
}

impl Step for Modules {
    fn id(&self) -> &'static str {
        "modules"
    }

    fn title(&self) -> &'static str {
        "loading kernel modules"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        let missing = missing_modules(cx);
        Ok(if missing.is_empty() { State::Done } else { State::Needed(format!("missing {}", missing.join(", "))) })
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        for module in planned_modules(cx).iter().filter(|module| !is_loaded(cx, module)) {
            cx.run(&Command::new("modprobe", [module.as_str()]))?;
        }
        Ok(())
    }
}

pub(super) struct Sysctl;

/// Keys and values of the planned files, `net/ipv4/ip_forward` -> `1`; later lines win.
pub(crate) fn planned_settings(plan: &NodePlan) -> std::collections::BTreeMap<String, String> {
    let lines = plan.texts_below(SYSCTL_DIR).flat_map(|(_, text)| text.lines());
    lines
        .map(str::trim)
        .filter(|line| !line.starts_with(['#', ';']))
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (path_of(key.trim().trim_start_matches('-')), value.trim().to_owned()))
        .collect()
}

/// As sysctl.d(5): if the first separator is a slash, dots are part of names.
fn path_of(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'.' => key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
        _ => key.to_owned(),
    }
}

impl Step for Sysctl {
    fn id(&self) -> &'static str {
        "sysctl"
    }

    fn title(&self) -> &'static str {
        "setting kernel parameters"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        for (key, value) in planned_settings(cx.plan) {
            let found = std::fs::read_to_string(cx.path(&format!("/proc/sys/{key}")));
            let found = found.with_context(|| format!("reading /proc/sys/{key}: is its kernel module loaded?"))?;
            // Values of several numbers are separated by tabs.
            if !found.split_whitespace().eq(value.split_whitespace()) {
                return Ok(State::Needed(format!("{} is {}, not {value}", key.replace('/', "."), found.trim())));
            }
        }
        Ok(State::Done)
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        for (key, value) in planned_settings(cx.plan) {
            std::fs::write(cx.path(&format!("/proc/sys/{key}")), &value)
                .with_context(|| format!("setting {} to {value}", key.replace('/', ".")))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Lab, planned};

    fn lab() -> Lab {
        let mut lab = Lab::new();
        lab.plan.files = vec![
            planned("/etc/modules-load.d/kubernetes.conf", 0o644, "# why\noverlay\nbr_netfilter\nip-vs\n"),
            planned(
                "/etc/sysctl.d/90-kubernetes.conf",
                0o644,
                "net.ipv4.ip_forward = 1\n-net/ipv4/conf/eth0.1/rp_filter=0\n",
            ),
        ];
        lab
    }

    #[test]
    fn loads_what_is_neither_loaded_nor_built_in() {
        let lab = lab();
        lab.write("/sys/module/ip_vs/refcnt", "0");
        lab.write("/proc/sys/kernel/osrelease", "6.1.0-1-amd64\n");
        lab.write("/lib/modules/6.1.0-1-amd64/modules.builtin", "kernel/fs/overlayfs/overlay.ko\n");
        let cx = lab.cx();
        assert_eq!(Modules.check(&cx).unwrap(), State::Needed("missing br_netfilter".into()));
        Modules.apply(&cx).unwrap();
        assert_eq!(lab.runner.take_trace(), ["modprobe br_netfilter"]);
    }

    #[test]
    fn sets_what_differs() {
        let lab = lab();
        lab.write("/proc/sys/net/ipv4/ip_forward", "0\n");
        lab.write("/proc/sys/net/ipv4/conf/eth0.1/rp_filter", "0\n");
        let cx = lab.cx();
        assert_eq!(Sysctl.check(&cx).unwrap(), State::Needed("net.ipv4.ip_forward is 0, not 1".into()));
        Sysctl.apply(&cx).unwrap();
        assert_eq!(Sysctl.check(&cx).unwrap(), State::Done);
    }

    #[test]
    fn a_missing_key_names_the_likely_cause() {
        let error = Sysctl.check(&lab().cx()).unwrap_err();
        assert!(format!("{error:#}").contains("kernel module loaded?"));
    }
}
