// SPDX-License-Identifier: MIT OR Apache-2.0
//! containerd and crictl. The sections of containerd's configuration changed names between version 2 (containerd 1.x)
//! and version 3 (containerd 2.x).

use serde::Serialize;

use super::{CONTAINERD_SOCKET, Context, NodeFile, RenderError, enabled, ini, line, text};
use crate::node::NetworkPlugin;
use crate::yaml;

const CONFIG: &str = "/etc/containerd/config.toml";
const CRICTL: &str = "/etc/crictl.yaml";
/// CNI plugins of the payload.
const PAYLOAD_CNI: &str = "/opt/imgbuild/cni/bin";
/// Where network plugins that run as pods put theirs, whatever the runtime is told.
const CNI_BIN: &str = "/opt/cni/bin";
/// The unit that makes it writable; systemd wants this name for that path.
const CNI_MOUNT: &str = "opt-cni-bin.mount";
/// What is written there. Not below /var/lib/cni, which older `kubeadm reset` empties; tmpfiles.d makes its directories.
const CNI_FILES: &str = "/var/lib/cni-bin";
const CNI_CONF: &str = "/etc/cni/net.d";
const SNAPSHOTTER: &str = "overlayfs";

#[derive(Serialize)]
struct Config {
    version: u32,
    oom_score: i32,
    plugins: Plugins,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Plugins {
    V2(PluginsV2),
    V3(PluginsV3),
}

#[derive(Serialize)]
struct PluginsV2 {
    #[serde(rename = "io.containerd.grpc.v1.cri")]
    cri: CriV2,
    #[serde(rename = "io.containerd.internal.v1.opt")]
    opt: Opt,
}

#[derive(Serialize)]
struct CriV2 {
    sandbox_image: String,
    containerd: RuntimesV2,
    cni: Cni,
}

#[derive(Serialize)]
struct RuntimesV2 {
    snapshotter: &'static str,
    default_runtime_name: &'static str,
    runtimes: Runtimes,
}

#[derive(Serialize)]
struct PluginsV3 {
    #[serde(rename = "io.containerd.cri.v1.images")]
    images: ImagesV3,
    #[serde(rename = "io.containerd.cri.v1.runtime")]
    runtime: RuntimeV3,
    #[serde(rename = "io.containerd.internal.v1.opt")]
    opt: Opt,
}

#[derive(Serialize)]
struct ImagesV3 {
    snapshotter: &'static str,
    pinned_images: PinnedImages,
}

#[derive(Serialize)]
struct PinnedImages {
    sandbox: String,
}

#[derive(Serialize)]
struct RuntimeV3 {
    containerd: RuntimesV3,
    cni: Cni,
}

#[derive(Serialize)]
struct RuntimesV3 {
    default_runtime_name: &'static str,
    runtimes: Runtimes,
}

#[derive(Serialize)]
struct Runtimes {
    runc: Runc,
}

#[derive(Serialize)]
struct Runc {
    runtime_type: &'static str,
    options: RuncOptions,
}

#[derive(Serialize)]
struct RuncOptions {
    #[serde(rename = "SystemdCgroup")]
    systemd_cgroup: bool,
}

#[derive(Serialize)]
struct Cni {
    #[serde(skip_serializing_if = "Option::is_none")]
    bin_dir: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bin_dirs: Option<[&'static str; 1]>,
    conf_dir: &'static str,
}

/// containerd creates this directory at start; its default, /opt/containerd, is on the read-only root.
#[derive(Serialize)]
struct Opt {
    path: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Crictl {
    runtime_endpoint: String,
    image_endpoint: String,
    timeout: u32,
}

pub(super) fn files(c: &Context<'_>) -> Result<Vec<NodeFile>, RenderError> {
    let toml =
        toml::to_string(&config(c)).map_err(|error| RenderError::Format { file: CONFIG, reason: error.to_string() })?;
    let endpoint = format!("unix://{CONTAINERD_SOCKET}");
    let crictl = Crictl { runtime_endpoint: endpoint.clone(), image_endpoint: endpoint, timeout: 60 };
    let mut files = vec![
        text(CONFIG, toml),
        text(CRICTL, yaml::to_string(&crictl).map_err(RenderError::yaml(CRICTL))?),
        enabled("containerd.service", "/usr/lib/systemd/system"),
    ];
    if installs_plugins(c) {
        files.push(text(&format!("/etc/systemd/system/{CNI_MOUNT}"), cni_mount()));
        let wants = vec![line("Requires", CNI_MOUNT), line("After", CNI_MOUNT)];
        files.push(text("/etc/systemd/system/containerd.service.d/10-cni.conf", ini(&[("Unit", wants)])));
    }
    Ok(files)
}

/// Whether the pod network brings CNI plugins of its own to the node.
fn installs_plugins(c: &Context<'_>) -> bool {
    match c.profile.network.plugin {
        NetworkPlugin::Bridge => false,
        NetworkPlugin::Calico | NetworkPlugin::Manifest => true,
    }
}

/// The payload's plugins, and over them what pods install: a network plugin goes with the `portmap` and `loopback` that it
/// was tested with. The same for every containerd, of which older ones look into one directory only. The root is read-only
/// and has the empty directory.
fn cni_mount() -> String {
    ini(&[
        (
            "Unit",
            vec![
                line("Description", "CNI plugins of the payload and of the pod network"),
                line("DefaultDependencies", "no"),
                line("RequiresMountsFor", format!("{PAYLOAD_CNI} {CNI_FILES}")),
                // By default it would be before local-fs.target, and that is before the directories are made.
                line("After", "systemd-tmpfiles-setup.service"),
                line("Conflicts", "umount.target"),
                line("Before", "umount.target"),
            ],
        ),
        (
            "Mount",
            vec![
                line("What", "overlay"),
                line("Where", CNI_BIN),
                line("Type", "overlay"),
                line("Options", format!("lowerdir={PAYLOAD_CNI},upperdir={CNI_FILES}/files,workdir={CNI_FILES}/work")),
            ],
        ),
    ])
}

fn config(c: &Context<'_>) -> Config {
    let sandbox = c.profile.kubernetes.pause_image.clone();
    let opt = Opt { path: "/var/lib/containerd/opt" };
    let runtimes = Runtimes {
        // kubelet's cgroupDriver is systemd: two drivers on one node would fight over the same processes.
        runc: Runc { runtime_type: "io.containerd.runc.v2", options: RuncOptions { systemd_cgroup: true } },
    };
    let many = c.containerd.has_cni_bin_dirs();
    let bin = if installs_plugins(c) { CNI_BIN } else { PAYLOAD_CNI };
    let cni = Cni { bin_dir: (!many).then_some(bin), bin_dirs: many.then_some([bin]), conf_dir: CNI_CONF };
    let default_runtime_name = "runc";
    let (version, plugins) = if c.containerd.has_config_v3() {
        let plugins = PluginsV3 {
            images: ImagesV3 { snapshotter: SNAPSHOTTER, pinned_images: PinnedImages { sandbox } },
            runtime: RuntimeV3 { containerd: RuntimesV3 { default_runtime_name, runtimes }, cni },
            opt,
        };
        (3, Plugins::V3(plugins))
    } else {
        let containerd = RuntimesV2 { snapshotter: SNAPSHOTTER, default_runtime_name, runtimes };
        (2, Plugins::V2(PluginsV2 { cri: CriV2 { sandbox_image: sandbox, containerd, cni }, opt }))
    };
    // Under memory pressure the kernel must not choose what everything else runs in.
    Config { version, oom_score: -999, plugins }
}
