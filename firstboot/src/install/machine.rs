// SPDX-License-Identifier: MIT OR Apache-2.0
//! By what a machine is known, and which node of a medium it is.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use profiles::medium::{Machine, Medium, MediumNode};

use super::request::Which;

/// What this machine says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// MAC addresses of its network cards, lower case.
    pub macs: BTreeSet<String>,
    /// Serial number of the system, SMBIOS type 1.
    pub serial: Option<String>,
    /// Asset tag of the chassis, SMBIOS type 3.
    pub asset_tag: Option<String>,
}

impl Facts {
    /// Reads `sys`, which is `/sys`. Only cards count, no interfaces that a program made.
    pub fn read(sys: &Path) -> Self {
        let text = |path: &Path| {
            let text = fs::read_to_string(path).ok()?.trim().to_owned();
            (!text.is_empty()).then_some(text)
        };
        let cards = fs::read_dir(sys.join("class/net")).into_iter().flatten().flatten();
        let macs = cards
            .filter(|card| card.path().join("device").exists())
            .filter_map(|card| Some(text(&card.path().join("address"))?.to_ascii_lowercase()))
            .collect();
        let dmi = sys.join("class/dmi/id");
        Self { macs, serial: text(&dmi.join("product_serial")), asset_tag: text(&dmi.join("chassis_asset_tag")) }
    }

    /// Whether this is the machine: everything that is given must fit, and something must be given.
    pub fn fit(&self, machine: &Machine) -> bool {
        let same = |wanted: &Option<String>, own: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| own.as_deref().map(str::trim) == Some(wanted.trim()))
        };
        *machine != Machine::default()
            && machine.mac.as_ref().is_none_or(|mac| self.macs.contains(mac))
            && same(&machine.serial, &self.serial)
            && same(&machine.asset_tag, &self.asset_tag)
    }

    /// In one line.
    pub fn show(&self) -> String {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
        let macs: Vec<&str> = self.macs.iter().map(String::as_str).collect();
        let macs = if macs.is_empty() { "none (no driver for its network cards?)".to_owned() } else { macs.join(", ") };
        format!("mac {macs}; serial {}; asset tag {}", or_none(&self.serial), or_none(&self.asset_tag))
    }
}

fn wants(machine: &Machine) -> String {
    let given = [("mac", &machine.mac), ("serial", &machine.serial), ("asset tag", &machine.asset_tag)];
    let given: Vec<String> =
        given.iter().filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?))).collect();
    if given.is_empty() { "says nothing of its machine".to_owned() } else { given.join(", ") }
}

/// What a person who chose `node` by its name should know: the machine is not the one of the cluster file.
pub fn doubt(node: &MediumNode, facts: &Facts) -> Option<String> {
    let fits = node.machine == Machine::default() || facts.fit(&node.machine);
    let wanted = wants(&node.machine);
    (!fits).then(|| {
        format!("the cluster file says {wanted} of {}: going on, as it was chosen by name, but look twice", node.name)
    })
}

/// The node that is meant. A name counts whatever the machine is: a person chose it.
pub fn choose<'m>(medium: &'m Medium, which: &Which, facts: &Facts) -> Result<&'m MediumNode> {
    match which {
        Which::Named(name) => medium.nodes.iter().find(|node| node.name == *name).with_context(|| {
            let names: Vec<&str> = medium.nodes.iter().map(|node| node.name.as_str()).collect();
            format!("the medium has no node `{name}`; it has {}", names.join(", "))
        }),
        Which::Auto => {
            let fitting: Vec<&MediumNode> = medium.nodes.iter().filter(|node| facts.fit(&node.machine)).collect();
            match fitting.as_slice() {
                [node] => Ok(node),
                [] => bail!("this machine is no node of the medium\n{}", list(medium, facts)),
                several => {
                    let names: Vec<&str> = several.iter().map(|node| node.name.as_str()).collect();
                    bail!("this machine could be {}\n{}", names.join(" or "), list(medium, facts))
                }
            }
        }
    }
}

/// Everything a person needs to mend the cluster file.
fn list(medium: &Medium, facts: &Facts) -> String {
    let mut text = format!("  this machine: {}\n", facts.show());
    for node in &medium.nodes {
        let _ = writeln!(text, "  {}: {}", node.name, wants(&node.machine));
    }
    text += "write what this machine has into the cluster file (`mac` of a [[node]], or `serial` or `asset_tag` of its \
             [node.install]) and build the medium again, or choose the node by its name in the boot menu";
    text
}

/// Memory of the machine in bytes: `MemTotal` of `/proc/meminfo`.
pub fn memory(proc: &Path) -> Result<u64> {
    let text = fs::read_to_string(proc.join("meminfo")).context("reading /proc/meminfo")?;
    let kib: Option<u64> =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    Ok(kib.context("/proc/meminfo says no MemTotal")? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::testing::medium;

    fn facts(macs: &[&str], serial: Option<&str>) -> Facts {
        Facts {
            macs: macs.iter().map(|mac| (*mac).to_owned()).collect(),
            serial: serial.map(str::to_owned),
            asset_tag: None,
        }
    }

    fn machine(mac: Option<&str>, serial: Option<&str>) -> Machine {
        Machine { mac: mac.map(str::to_owned), serial: serial.map(str::to_owned), asset_tag: None }
    }

    #[test]
    fn the_machine_is_read_from_sysfs() {
        let sys = tempfile::tempdir().unwrap();
        for (name, mac, card) in [("eno1", "52:54:00:AA:00:01\n", true), ("lo", "00:00:00:00:00:00\n", false)] {
            let dir = sys.path().join("class/net").join(name);
            fs::create_dir_all(if card { dir.join("device") } else { dir.clone() }).unwrap();
            fs::write(dir.join("address"), mac).unwrap();
        }
        fs::create_dir_all(sys.path().join("class/dmi/id")).unwrap();
        fs::write(sys.path().join("class/dmi/id/product_serial"), "CN 1 \n").unwrap();
        fs::write(sys.path().join("class/dmi/id/chassis_asset_tag"), "\n").unwrap();
        assert_eq!(Facts::read(sys.path()), facts(&["52:54:00:aa:00:01"], Some("CN 1")));
        assert_eq!(Facts::read(&sys.path().join("nothing")), Facts::default());
    }

    #[test]
    fn everything_that_is_given_must_fit() {
        let own = facts(&["a", "b"], Some("S"));
        assert!(own.fit(&machine(Some("b"), None)) && own.fit(&machine(Some("a"), Some("S"))));
        assert!(own.fit(&machine(None, Some("S"))));
        assert!(!own.fit(&machine(Some("a"), Some("T"))) && !own.fit(&machine(Some("c"), Some("S"))));
        assert!(!own.fit(&Machine::default()), "nothing given fits nothing");
        assert!(!facts(&["a"], None).fit(&machine(None, Some("S"))));
    }

    #[test]
    fn auto_takes_the_one_node_and_else_says_everything() {
        let mut medium = medium(&["master-1", "worker-1"]);
        medium.nodes[0].machine = machine(Some("a"), None);
        medium.nodes[1].machine = machine(None, Some("S"));
        let auto = |facts: &Facts| choose(&medium, &Which::Auto, facts).map(|node| node.name.clone());
        assert_eq!(auto(&facts(&["a"], None)).unwrap(), "master-1");
        let error = auto(&facts(&["c"], None)).unwrap_err().to_string();
        for said in ["mac c; serial none", "master-1: mac a", "worker-1: serial S", "[node.install]"] {
            assert!(error.contains(said), "{error}");
        }
        let error = auto(&facts(&["a"], Some("S"))).unwrap_err().to_string();
        assert!(error.contains("could be master-1 or worker-1"), "{error}");
    }

    #[test]
    fn a_name_is_taken_as_it_is() {
        let mut medium = medium(&["master-1", "worker-1"]);
        medium.nodes[1].machine = machine(Some("a"), None);
        let named = |name: &str| choose(&medium, &Which::Named(name.into()), &facts(&["c"], None));
        let worker = named("worker-1").unwrap();
        assert!(doubt(worker, &facts(&["c"], None)).unwrap().contains("says mac a of worker-1"));
        assert_eq!(doubt(worker, &facts(&["a"], None)), None);
        assert_eq!(doubt(named("master-1").unwrap(), &facts(&["c"], None)), None);
        assert!(named("worker-2").unwrap_err().to_string().contains("it has master-1, worker-1"));
    }

    #[test]
    fn memory_is_read() {
        let proc = tempfile::tempdir().unwrap();
        assert!(memory(proc.path()).is_err());
        fs::write(proc.path().join("meminfo"), "MemTotal:        4000000 kB\nMemFree: 1 kB\n").unwrap();
        assert_eq!(memory(proc.path()).unwrap(), 4_096_000_000);
    }
}
