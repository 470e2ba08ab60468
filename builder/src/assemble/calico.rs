// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calico's own manifest, as the user brings it, set to this cluster: the pod network, the address of a node, how packets
//! travel between nodes, and where the node can be written to. Only the two documents that say so are written anew, from
//! their parsed form; all others reach the node byte for byte.

mod tree;
mod versions;

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, Result};
use profiles::Cluster;
use profiles::node::NetworkPlugin;
use profiles::schema::{Encapsulation, FileInput};
use profiles::version::Version;

use self::tree::{Node, TreeError, Value};
use super::Bench;
use crate::error::Failure;

/// Where a node finds the manifests that are applied to the cluster.
const MANIFESTS: &str = "/opt/imgbuild/manifests/";
/// Where Calico's manifest puts what it makes.
const NAMESPACE: &str = "kube-system";
/// The DaemonSet, and the container in it.
const NODE: &str = "calico-node";
/// The ConfigMap.
const CONFIG: &str = "calico-config";
/// The variable that says which daemon carries routes; it comes from the ConfigMap, unless somebody changed that.
const BACKEND: &str = "CALICO_NETWORKING_BACKEND";
/// The key of the ConfigMap with it.
const BACKEND_KEY: &str = "calico_backend";
/// Where kubelet looks for volume plugins by default: read-only on our root.
const VENDOR_PLUGINS: &str = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec";
/// Where it looks on our nodes: `volumePluginDir`, rendered by `profiles`.
const PLUGINS: &str = "/var/lib/kubelet/volume-plugins";
/// The largest manifest that is read, in bytes; Calico's has 0.8 MB.
const LARGEST: u64 = 16 << 20;
/// What to do where a manifest cannot be used.
const HINT: &str = "bring manifests/calico.yaml of a Calico release (not the operator's), or use `plugin = \"manifest\"`, \
                    which takes manifests as they are";

/// What a cluster wants of Calico.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Addresses of pods, IPv4, `10.200.0.0/16`.
    pub pod_subnet: String,
    /// How packets of pods travel between nodes.
    pub encapsulation: Encapsulation,
    /// `IP_AUTODETECTION_METHOD`.
    pub ip_autodetection: String,
    /// MTU of pod interfaces and tunnels; `None`: what the manifest says, which is to find out.
    pub mtu: Option<u32>,
    /// Version of the cluster.
    pub kubernetes: Version,
}

impl Settings {
    /// Those of `cluster`, if its pod network is Calico.
    pub fn of(cluster: &Cluster) -> Option<Self> {
        let network = &cluster.network;
        // Validation refuses every other family.
        let pod_subnet = network.pod_subnets.iter().find(|net| net.addr().is_ipv4())?.to_string();
        let calico = network.calico.clone().unwrap_or_default();
        (network.plugin == NetworkPlugin::Calico).then_some(Self {
            pod_subnet,
            encapsulation: calico.encapsulation,
            ip_autodetection: calico.ip_autodetection,
            mtu: network.mtu,
            kubernetes: cluster.kubernetes.version,
        })
    }
}

/// A manifest that is set to a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configured {
    /// Its text.
    pub manifest: String,
    /// What its user should know.
    pub warnings: Vec<String>,
}

/// Manifests that are not used as they are, by their place on the node.
pub type Manifests = BTreeMap<String, Configured>;

/// The manifests of what is built on `bench`.
///
/// # Errors
/// As [`manifests`].
pub fn of(bench: &Bench<'_>) -> Result<Manifests> {
    manifests(bench.cluster, |file| {
        let found = bench.sources.files.iter().find(|(to, ..)| *to == file.to);
        let (.., object) = found.with_context(|| format!("input `{}` is not in the store", file.name))?;
        read(bench.store.open_object(object)?).map(Some)
    })
}

/// What of a file is worth reading: with more than [`LARGEST`] bytes it is refused.
///
/// # Errors
/// If it cannot be read.
pub fn read(file: impl Read) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut content).context("reading a manifest")?;
    Ok(content)
}

/// The manifests of `cluster` that are not used as they are, by their place on the node. `read` gives the content of an
/// input, or `None` if it is not there yet.
///
/// # Errors
/// As [`configure`]; if `read` fails; if nothing or several of what is there has the DaemonSet.
pub fn manifests(cluster: &Cluster, read: impl Fn(&FileInput) -> Result<Option<Vec<u8>>>) -> Result<Manifests> {
    let Some(settings) = Settings::of(cluster) else { return Ok(BTreeMap::new()) };
    let (mut configured, mut looked_in, mut absent) = (BTreeMap::new(), Vec::new(), false);
    for file in cluster.files().filter(|file| file.to.starts_with(MANIFESTS)) {
        let Some(content) = read(file)? else {
            absent = true;
            continue;
        };
        looked_in.push(file.path.as_str());
        if content.len() as u64 > LARGEST {
            let message = format!("{} has more than {} MiB, and so is no manifest", file.path, LARGEST >> 20);
            return Err(Failure::user(message).hint("see `path` and `to` of that input").into());
        }
        // Other manifests are none of our business, whatever is in them.
        let Ok(text) = String::from_utf8(content) else { continue };
        if text.contains(NODE) {
            let done = configure(&text, &settings).map_err(|problems| {
                let problems = problems.iter().map(|problem| format!("\n  {}: {problem}", file.path));
                let message =
                    format!("Calico's manifest cannot be set to this cluster:{}", problems.collect::<String>());
                Failure::user(message).hint(HINT)
            })?;
            if let Some(done) = done {
                configured.insert(file.to.clone(), (file.path.as_str(), done));
            }
        }
    }
    if configured.len() > 1 {
        let paths: Vec<&str> = configured.values().map(|(path, _)| *path).collect();
        let message = format!("several manifests have a DaemonSet `{NODE}`: {}", paths.join(", "));
        return Err(Failure::user(message).hint("keep the input with the manifest of one Calico").into());
    }
    if configured.is_empty() && !absent {
        let places = if looked_in.is_empty() { "there is none".to_owned() } else { looked_in.join(", ") };
        let message =
            format!("no manifest below {MANIFESTS} has a DaemonSet `{NODE}` ({places}), and `plugin` is \"calico\"");
        return Err(Failure::user(message).hint(HINT).into());
    }
    Ok(configured.into_iter().map(|(to, (_, done))| (to, done)).collect())
}

/// Sets `manifest` to `settings`. `None` if it has no DaemonSet of that name: then it is another part of Calico, or none.
///
/// # Errors
/// Everything that stands in the way, each with its line.
pub fn configure(manifest: &str, settings: &Settings) -> Result<Option<Configured>, Vec<String>> {
    let mut problems = Vec::new();
    let mut documents = Vec::new();
    for (first_line, text) in split(manifest) {
        match tree::parse(text) {
            Ok(root) => documents.push(Document { first_line, text, root, changed: false }),
            Err(error) => problems.push(shifted(&error, first_line)),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    if !documents.iter().any(|document| document.is("DaemonSet", NODE)) {
        return Ok(None);
    }
    let mut image = None;
    let mut change = |kind: &str, name: &str, edit: &mut dyn FnMut(&mut Node) -> Vec<TreeError>| match the_one(
        &mut documents,
        kind,
        name,
    ) {
        Ok(document) => problems.extend(document.change(edit)),
        Err(problem) => problems.push(problem),
    };
    change("DaemonSet", NODE, &mut |root: &mut Node| {
        image = container(root).ok().and_then(|node| node.get("image")?.scalar().map(str::to_owned));
        daemon_set(root, settings)
    });
    change("ConfigMap", CONFIG, &mut |root: &mut Node| config_map(root, settings));
    let mut text = String::new();
    for document in &documents {
        match document.written() {
            Ok(written) => text += &written,
            Err(error) => problems.push(shifted(&error, document.first_line)),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let warnings = image.and_then(|image| versions::untested(&image, settings.kubernetes)).into_iter().collect();
    Ok(Some(Configured { manifest: text, warnings }))
}

/// A document of a manifest.
struct Document<'a> {
    /// Its place in the file, from 1.
    first_line: usize,
    /// With the line `---` that begins it.
    text: &'a str,
    /// Parsed; `None` if there are only comments.
    root: Option<Node>,
    changed: bool,
}

impl Document<'_> {
    fn field(&self, path: &[&str]) -> Option<&str> {
        path.iter().try_fold(self.root.as_ref()?, |node, key| node.get(key))?.scalar()
    }

    fn is(&self, kind: &str, name: &str) -> bool {
        self.field(&["kind"]) == Some(kind) && self.field(&["metadata", "name"]) == Some(name)
    }

    fn change(&mut self, edit: &mut dyn FnMut(&mut Node) -> Vec<TreeError>) -> Vec<String> {
        self.changed = true;
        let errors = self.root.as_mut().map(edit).unwrap_or_default();
        errors.iter().map(|error| shifted(error, self.first_line)).collect()
    }

    fn written(&self) -> Result<String, TreeError> {
        match &self.root {
            Some(root) if self.changed => Ok(format!("---\n{}", tree::write(root)?)),
            _ => Ok(self.text.to_owned()),
        }
    }
}

/// Lines of a document are counted from where it begins.
fn shifted(error: &TreeError, first_line: usize) -> String {
    format!("line {}: {}", first_line + error.line.max(1) - 1, error.what)
}

/// The documents with the line each begins in. A line `---` begins one wherever it stands, also in what looks like a
/// string: YAML 1.2, section 9.1.2.
fn split(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut begin, mut first_line, mut at) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marks =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marks && at > begin {
            documents.push((first_line, &text[begin..at]));
            (begin, first_line) = (at, index + 1);
        }
        at += line.len();
    }
    documents.push((first_line, &text[begin..]));
    documents
}

/// The only document of that kind and name, which is in Calico's namespace.
fn the_one<'d, 't>(documents: &'d mut [Document<'t>], kind: &str, name: &str) -> Result<&'d mut Document<'t>, String> {
    let what = format!("{kind} `{name}` in namespace {NAMESPACE}");
    let named: Vec<usize> = (0..documents.len()).filter(|index| documents[*index].is(kind, name)).collect();
    match named[..] {
        [] => Err(format!("there is no {what} in any of its {} documents", documents.len())),
        [only] => {
            let document = &mut documents[only];
            match document.field(&["metadata", "namespace"]) {
                Some(NAMESPACE) => Ok(document),
                other => {
                    let other = other.unwrap_or("none");
                    Err(format!("line {}: this must be {what}, and its namespace is {other}", document.first_line))
                }
            }
        }
        [first, second, ..] => Err(format!(
            "line {}: a second {what}; the first begins in line {}",
            documents[second].first_line, documents[first].first_line
        )),
    }
}

/// The variables, probes and volumes of the DaemonSet.
fn daemon_set(root: &mut Node, settings: &Settings) -> Vec<TreeError> {
    let mut errors = Vec::new();
    match container(root) {
        Ok(container) => {
            errors.extend(variables(container, settings).err());
            if settings.encapsulation == Encapsulation::Vxlan {
                errors.extend(
                    ["livenessProbe", "readinessProbe"]
                        .into_iter()
                        .filter_map(|probe| without_bird(container, probe).err()),
                );
            }
        }
        Err(error) => errors.push(error),
    }
    errors.extend(volumes(root).err());
    errors
}

/// The container that does the work.
fn container(root: &mut Node) -> Result<&mut Node, TreeError> {
    let containers = at(root, &["spec", "template", "spec", "containers"])?;
    let line = containers.line;
    let found = elements(containers)?.iter_mut().find(|one| one.get("name").and_then(Node::scalar) == Some(NODE));
    let container = found.ok_or_else(|| error(line, format!("none of these containers is `{NODE}`")))?;
    own(container)?;
    Ok(container)
}

fn variables(container: &mut Node, settings: &Settings) -> Result<(), TreeError> {
    let (ipip, vxlan) = match settings.encapsulation {
        // Not `CrossSubnet`: all nodes are in one subnet, and packets with addresses of pods would travel in it as they are.
        Encapsulation::Vxlan => ("Never", "Always"),
        Encapsulation::Ipip => ("Always", "Never"),
        Encapsulation::None => ("Never", "Never"),
    };
    let env = at(container, &["env"])?;
    let from_config =
        |one: &Node| one.get("name").and_then(Node::scalar) == Some(BACKEND) && one.get("value").is_none();
    if !env.elements().iter().any(from_config) {
        set_variable(env, BACKEND, backend(settings))?;
    }
    set_variable(env, "IP", "autodetect")?;
    set_variable(env, "IP_AUTODETECTION_METHOD", &settings.ip_autodetection)?;
    set_variable(env, "CALICO_IPV4POOL_CIDR", &settings.pod_subnet)?;
    set_variable(env, "CALICO_IPV4POOL_IPIP", ipip)?;
    set_variable(env, "CALICO_IPV4POOL_VXLAN", vxlan)
}

/// BGP carries routes where packets find their way by them alone. VXLAN needs none of it: without BIRD, UDP port 4789 is all
/// that must pass between nodes, as in `calico-vxlan.yaml` of Calico's releases.
fn backend(settings: &Settings) -> &'static str {
    if settings.encapsulation == Encapsulation::Vxlan { "vxlan" } else { "bird" }
}

/// Sets an environment variable to a plain value; the last one of a name would win, so only one is left.
fn set_variable(env: &mut Node, name: &str, value: &str) -> Result<(), TreeError> {
    let elements = elements(env)?;
    let is_it = |one: &Node| one.get("name").and_then(Node::scalar) == Some(name);
    for element in elements.iter().filter(|one| is_it(one) || matches!(one.value, Value::Alias(_))) {
        own(element)?;
    }
    let variable = mapping([("name", name), ("value", value)]);
    let Some(place) = elements.iter().position(is_it) else {
        elements.push(variable);
        return Ok(());
    };
    elements.retain(|one| !is_it(one));
    elements.insert(place, variable);
    Ok(())
}

/// Takes the question after BIRD, which does not run, out of a probe: without that, no pod of Calico would be alive.
fn without_bird(container: &mut Node, probe: &str) -> Result<(), TreeError> {
    if container.get(probe).is_none() {
        return Ok(());
    }
    let command = at(container, &[probe, "exec", "command"])?;
    let line = command.line;
    let elements = elements(command)?;
    // Newer Calico spells its options with two dashes.
    elements.retain(|one| {
        !one.scalar().is_some_and(|word| {
            ["bird-live", "bird-ready"].contains(&word.trim_start_matches('-')) && word.starts_with('-')
        })
    });
    let left = |part: &str| elements.iter().any(|one| one.scalar().is_some_and(|word| word.contains(part)));
    if left("bird") || !left("felix") {
        let what = format!(
            "`{probe}` does not ask `-felix-…` and `-bird-…` as Calico's own does, and BIRD does not run with VXLAN"
        );
        return Err(error(line, what));
    }
    Ok(())
}

/// Moves volumes from where kubelet looks for plugins by default, which cannot be written, to where ours does. Older
/// Calico installs a plugin with the container `flexvol-driver`, and does not start where it cannot.
fn volumes(root: &mut Node) -> Result<(), TreeError> {
    let pod = at(root, &["spec", "template", "spec"])?;
    if pod.get("volumes").is_none() {
        return Ok(());
    }
    for volume in elements(at(pod, &["volumes"])?)? {
        let path = volume.get("hostPath").and_then(|host| host.get("path")).and_then(Node::scalar);
        let Some(rest) = path.and_then(|path| path.strip_prefix(VENDOR_PLUGINS)) else { continue };
        if rest.is_empty() || rest.starts_with('/') {
            let moved = Value::Text(format!("{PLUGINS}{rest}"));
            at(volume, &["hostPath", "path"])?.value = moved;
        }
    }
    Ok(())
}

fn config_map(root: &mut Node, settings: &Settings) -> Vec<TreeError> {
    let mut set = || -> Result<(), TreeError> {
        at(root, &["data", BACKEND_KEY])?.value = Value::Text(backend(settings).to_owned());
        if let Some(mtu) = settings.mtu {
            at(root, &["data", "veth_mtu"])?.value = Value::Text(mtu.to_string());
        }
        Ok(())
    };
    set().err().into_iter().collect()
}

/// The node at `path` below `node`, to be changed.
fn at<'n>(node: &'n mut Node, path: &[&str]) -> Result<&'n mut Node, TreeError> {
    let mut here = node;
    for (depth, key) in path.iter().enumerate() {
        own(here)?;
        let line = here.line;
        here =
            here.get_mut(key).ok_or_else(|| error(line, format!("there is no `{}` here", path[..=depth].join("."))))?;
    }
    own(here)?;
    Ok(here)
}

fn elements(node: &mut Node) -> Result<&mut Vec<Node>, TreeError> {
    match &mut node.value {
        Value::Sequence(elements) => Ok(elements),
        _ => Err(error(node.line, "this must be a list")),
    }
}

/// Fails where the content of `node` stands somewhere else as well, or comes from there.
fn own(node: &Node) -> Result<(), TreeError> {
    let shared = node.anchor.is_some() || matches!(node.value, Value::Alias(_)) || node.get("<<").is_some();
    if shared {
        let what = "anchors, aliases and `<<` share this with another place, which would change as well: write it out";
        return Err(error(node.line, what));
    }
    Ok(())
}

fn mapping<const N: usize>(entries: [(&str, &str); N]) -> Node {
    let entries = entries.map(|(key, value)| (Node::new(Value::Bare(key.to_owned())), Node::text(value)));
    Node::new(Value::Mapping(entries.into()))
}

fn error(line: usize, what: impl Into<String>) -> TreeError {
    TreeError { line, what: what.into() }
}

/// For tests/fuzz: reads a manifest as Calico's.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    for (_, document) in split(text) {
        tree::fuzz(document);
    }
}
