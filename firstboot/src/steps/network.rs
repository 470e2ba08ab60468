// SPDX-License-Identifier: MIT OR Apache-2.0
//! The node's address on an interface, and on no other machine's. systemd-networkd configures it; a network card may turn
//! up seconds late.
//!
//! The other machine is asked for after the address is there: networkd may have configured it before firstboot runs, from
//! the file of an earlier boot, and the probe (crate::arp) needs the carrier that the address tells of. It is asked as
//! long as the node is not converged: nothing on this node was told to anybody before.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;

use super::services;
use crate::arp::Interface;
use crate::bundle::Origin;
use crate::context::{Cx, Poll};
use crate::engine::{State, Step};
use crate::failure::Failure;
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

/// Refuses a machine with several network cards of which the profile names none: the planned file matches all of them, and
/// systemd-networkd would give each the node's address. The file is there from the second boot on, so this is asked each
/// time, before anything else.
fn refuse_several_cards(cx: &Cx<'_>) -> Result<()> {
    let node = &cx.profile().node;
    if node.mac.is_some() || node.interface.is_some() {
        return Ok(());
    }
    let Ok(entries) = std::fs::read_dir(cx.path("/sys/class/net")) else { return Ok(()) };
    let mut cards: Vec<_> = entries
        .flatten()
        // Only real cards have a device; bridges, tunnels and ends of containers' cables do not.
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| Interface::named(&cx.root, &entry.file_name().to_string_lossy()))
        .map(|card| format!("{} {}", card.name, card.mac))
        .collect();
    if cards.len() < 2 {
        return Ok(());
    }
    cards.sort();
    Err(Failure::preflight(
        format!(
            "this machine has {} network cards ({}), and its profile does not say which one gets {}: all of them would",
            cards.len(),
            cards.join(", "),
            node.address
        ),
        format!(
            "give `mac = \"…\"` or `interface = \"…\"` for the node {} in the cluster file, and build its seed again",
            node.name
        ),
    )
    .into())
}

/// Refuses an address that another machine uses: two machines with one seed would take turns being the node.
fn refuse_a_taken_address(cx: &Cx<'_>) -> Result<()> {
    // IPv6 does this in the kernel: the address then never becomes usable.
    let IpAddr::V4(address) = cx.profile().node.address.addr() else { return Ok(()) };
    let Some(interface) = Interface::of_node(&cx.root, &cx.profile().node) else {
        cx.log(&format!("did not ask whether {address} is taken: it is not clear on which network card it is"));
        return Ok(());
    };
    let Some(owner) = cx.host.address_owner(&interface, address)? else { return Ok(()) };
    Err(Failure::preflight(
        format!(
            "address {address} is already used by the machine with MAC {owner} (seen on {}): two machines have this \
             seed, or somebody took the address",
            interface.name
        ),
        "switch the other machine off, or give it another address; this one goes on by itself",
    )
    .into())
}

impl Step for Network {
    fn id(&self) -> &'static str {
        "network"
    }

    fn title(&self) -> &'static str {
        "bringing up the network"
    }

    fn check(&self, cx: &Cx<'_>) -> Result<State> {
        let own = cx.plan.origin == Origin::Image;
        if own {
            refuse_several_cards(cx)?;
        }
        let address = cx.profile().node.address;
        if !cx.host.has_address(address.addr()) {
            return Ok(State::Needed(format!("{address} is on no interface; {}", interfaces(cx))));
        }
        if own && !services::is_enabled(cx, UNIT)? {
            return Ok(State::Needed(format!("{UNIT} is not enabled")));
        }
        refuse_a_taken_address(cx)?;
        Ok(State::Done)
    }

    fn apply(&self, cx: &Cx<'_>) -> Result<()> {
        let address = cx.profile().node.address;
        let mac = cx.profile().node.mac.as_deref().unwrap_or("the only Ethernet card");
        let hint = match cx.plan.origin {
            Origin::Image => {
                services::enable(cx, UNIT)?;
                if services::is_active(cx, UNIT)? {
                    // A restart reads new files and keeps addresses that are still wanted.
                    cx.run(&Command::new("systemctl", ["restart", UNIT]))?;
                } else {
                    cx.run(&Command::new("systemctl", ["start", UNIT]))?;
                }
                format!("check the cable, and that {mac} is this machine's (see `networkctl status`)")
            }
            // Whoever installed the host configured its network: it may be slower than we are, and is never changed.
            Origin::Bundle => {
                format!("give this machine the address {address}; firstboot changes no network of a host")
            }
        };
        cx.wait_for(
            &format!("{address} on a network interface"),
            Duration::from_secs(180),
            Duration::from_millis(500),
            &hint,
            || {
                let up = cx.host.has_address(address.addr());
                Ok(if up { Poll::Ready(()) } else { Poll::Pending(interfaces(cx)) })
            },
        )
    }

    // `verify` is the check: it asks for the address's owner.

    fn fingerprint(&self, cx: &Cx<'_>) -> String {
        cx.plan.digest_of(&CONFIG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::converge;
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

    #[test]
    fn a_hosts_network_is_only_looked_at() {
        let mut lab = Lab::new();
        lab.plan.origin = Origin::Bundle;
        for name in ["enp1s0", "enp2s0"] {
            lab.write(&format!("/sys/class/net/{name}/device/vendor"), "");
        }
        converge(&lab.cx(), &[Box::new(Network)]).unwrap();
        lab.host.addresses.borrow_mut().clear();
        let (_, failure) = converge(&lab.cx(), &[Box::new(Network)]).unwrap_err();
        assert_eq!(failure.exit, Exit::Deadline);
        assert!(failure.hint.starts_with("give this machine the address 10.0.2.15/24"), "{}", failure.hint);
        assert_eq!(lab.runner.take_trace(), [""; 0], "networkd is not asked, enabled or started");
    }

    #[test]
    fn several_cards_are_refused_unless_the_profile_names_one() {
        let mut lab = Lab::new();
        let card = |lab: &Lab, name: &str, number: u8, real: bool| {
            let mac = format!("52:54:00:00:00:0{number}\n");
            for (file, text) in [("type", "1\n"), ("address", &mac), ("ifindex", &format!("{number}\n"))] {
                lab.write(&format!("/sys/class/net/{name}/{file}"), text);
            }
            if real {
                lab.write(&format!("/sys/class/net/{name}/device/vendor"), "");
            }
        };
        card(&lab, "enp1s0", 1, true);
        card(&lab, "cni0", 2, false);
        assert_eq!(Network.check(&lab.cx()).unwrap(), State::Done);
        card(&lab, "enp2s0", 3, true);
        let (_, failure) = converge(&lab.cx(), &[Box::new(Network)]).unwrap_err();
        assert_eq!(failure.exit.code(), 20);
        insta::assert_snapshot!(failure.reason, @"this machine has 2 network cards (enp1s0 52:54:00:00:00:01, enp2s0 52:54:00:00:00:03), and its profile does not say which one gets 10.0.2.15/24: all of them would");
        assert!(failure.hint.contains("`interface = \"…\"` for the node master-1"), "{}", failure.hint);
        assert!(!lab.runner.take_trace().iter().any(|line| line.contains("start")), "networkd has read the file");
        lab.plan.profile.node.mac = Some("52:54:00:00:00:03".into());
        assert_eq!(Network.check(&lab.cx()).unwrap(), State::Done);
        lab.plan.profile.node.mac = None;
        lab.plan.profile.node.interface = Some("enp1s0".into());
        assert_eq!(Network.check(&lab.cx()).unwrap(), State::Done);
    }

    #[test]
    fn an_address_of_another_machine_is_refused() {
        let lab = Lab::new();
        for (file, text) in
            [("type", "1\n"), ("address", "52:54:00:12:34:56\n"), ("ifindex", "2\n"), ("device/vendor", "")]
        {
            lab.write(&format!("/sys/class/net/enp0s2/{file}"), text);
        }
        converge(&lab.cx(), &[Box::new(Network)]).unwrap();
        let other = "52:54:00:aa:bb:cc".parse().unwrap();
        lab.host.address_owners.borrow_mut().insert([10, 0, 2, 15].into(), other);
        let (_, failure) = converge(&lab.cx(), &[Box::new(Network)]).unwrap_err();
        assert_eq!(failure.exit.code(), 20);
        insta::assert_snapshot!(failure.reason, @"address 10.0.2.15 is already used by the machine with MAC 52:54:00:aa:bb:cc (seen on enp0s2): two machines have this seed, or somebody took the address");
        // The same when this step is what configures the address.
        lab.host.addresses.borrow_mut().clear();
        assert_eq!(converge(&lab.cx(), &[Box::new(Network)]).unwrap_err().1.exit.code(), 40);
    }
}
