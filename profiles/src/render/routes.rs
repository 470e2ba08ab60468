// SPDX-License-Identifier: MIT OR Apache-2.0
//! The plugin `bridge`: what looks for nodes that the cluster file did not have yet when this node's image was built.
//! Those that it had are in network.rs.

use super::{NodeFile, PAYLOAD_BIN, ini, line, text};

/// kubelet wants it: before kubelet there is nobody to ask, and no pod to reach.
pub(super) const TIMER: &str = "imgbuild-routes.timer";
const SERVICE: &str = "imgbuild-routes.service";

pub(super) fn files() -> Vec<NodeFile> {
    let unit = |name: &str, content: String| text(&format!("/etc/systemd/system/{name}"), content);
    vec![unit(SERVICE, service()), unit(TIMER, timer())]
}

fn service() -> String {
    ini(&[
        (
            "Unit",
            vec![
                line("Description", "Routes to the pods of nodes that were added later"),
                line("ConditionPathExists", "/etc/kubernetes/kubelet.conf"),
                line("After", "systemd-networkd.service"),
            ],
        ),
        (
            "Service",
            vec![
                line("Type", "oneshot"),
                line("ExecStart", format!("{PAYLOAD_BIN}/firstboot routes")),
                // No API server answered: not a fault of this node, and the timer asks again.
                line("SuccessExitStatus", "40"),
                line("TimeoutStartSec", "300"),
                line("Nice", "10"),
                // It runs once a minute for years. systemd's `Starting` and `Finished` are of level info.
                line("SyslogLevel", "notice"),
                line("LogLevelMax", "notice"),
            ],
        ),
    ])
}

fn timer() -> String {
    ini(&[
        ("Unit", vec![line("Description", "A look once a minute for nodes that were added")]),
        (
            "Timer",
            vec![
                line("OnActiveSec", "20"),
                // After its end, not its start: on a slow machine it takes its time.
                line("OnUnitInactiveSec", "60"),
                line("AccuracySec", "10"),
            ],
        ),
    ])
}
