// SPDX-License-Identifier: MIT OR Apache-2.0
//! The node's address on an interface. systemd-networkd does it; a network card may turn up seconds late.

use std::time::Duration;

use anyhow::Result;

use super::services;
use crate::context::{Cx, Poll};
use crate::engine::{State, Step};
use crate::runner::Command;

const UNIT: &str = "systemd-networkd";
const CONFIG: [&str; 1] = ["/etc/systemd/network/"];

pub(super) struct Network;

/// Interfaces with their state, for a person who wonders.
fn interfaces(cx: &Cx<'_>) -> String {
    let Ok(entries) = std::fs::read_dir(cx.path("/sys/class/net")) else { return "no interfaces".to_owned() };
    let read = |name: &str, file: &str| {
        let text = std::fs::read_to_string(cx.path(&format!("/sys/class/net/{name}/{file}")));
        text.map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    let mut seen: Vec<_> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "lo")
        .map(|name| format!("{name} {} {}", read(&name, "address"), read(&name, "operstate")))
        .collect();
    seen.sort();
    if seen.is_empty() { "no network card seen".to_owned() } else { format!("seen: {}", seen.join(", ")) }
}

impl Step for Network {
    fn id(&self) -> &'static str {
        "network"
    }

    fn title(&self) -> &'static str {
        "bringing up the network"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        let address = cx.profile().node.address;
        if !cx.host.has_address(address.addr()) {
            return Ok(State::Needed(format!("{address} is on no interface; {}", interfaces(cx))));
        }
        if !services::is_enabled(cx, UNIT)? {
            return Ok(State::Needed(format!("{UNIT} is not enabled")));
        }
        Ok(State::Done)
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        services::enable(cx, UNIT)?;
        if services::is_active(cx, UNIT)? {
            // A restart reads new files and keeps addresses that are still wanted.
            cx.run(&Command::new("systemctl", ["restart", UNIT]))?;
        } else {
            cx.run(&Command::new("systemctl", ["start", UNIT]))?;
        }
        let address = cx.profile().node.address;
        let mac = cx.profile().node.mac.as_deref().unwrap_or("the only Ethernet card");
        cx.wait_for(
            &format!("{address} on a network interface"),
            Duration::from_secs(180),
            Duration::from_millis(500),
            &format!("check the cable, and that {mac} is this machine's (see `networkctl status`)"),
            || {
                let up = cx.host.has_address(address.addr());
                Ok(if up { Poll::Ready(()) } else { Poll::Pending(interfaces(cx)) })
            },
        )
    }

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        cx.plan.digest_of(&CONFIG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Exit, Failure};
    use crate::testing::Lab;

    #[test]
    fn waits_for_a_late_card_and_names_what_it_sees() {
        let lab = Lab::new();
        lab.host.addresses.borrow_mut().clear();
        lab.write("/sys/class/net/enp0s2/operstate", "down\n");
        lab.write("/sys/class/net/enp0s2/address", "52:54:00:12:34:56\n");
        let cx = lab.cx();
        let error = Network.apply(&cx).unwrap_err();
        let failure = Failure::from_error(&error, Exit::Internal, "");
        assert_eq!(failure.exit, Exit::Deadline);
        assert!(failure.reason.contains("10.0.2.15/24") && failure.reason.contains("enp0s2 52:54:00:12:34:56 down"));
        lab.host.addresses.borrow_mut().push("10.0.2.15".parse().unwrap());
        Network.apply(&cx).unwrap();
        assert_eq!(Network.check(&cx).unwrap(), State::Done);
    }
}
