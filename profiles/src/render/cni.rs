// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pod network of the plugin `bridge`: CNI's `bridge`, `host-local` and `portmap`. containerd brings up the loopback
//! interface of pods by itself.

use serde::Serialize;

use super::{Context, NodeFile, RenderError, text};

const PATH: &str = "/etc/cni/net.d/10-imgbuild.conflist";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfList {
    cni_version: &'static str,
    name: &'static str,
    plugins: (Bridge, PortMap),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bridge {
    r#type: &'static str,
    bridge: &'static str,
    is_gateway: bool,
    ip_masq: bool,
    hairpin_mode: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    ipam: HostLocal,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HostLocal {
    r#type: &'static str,
    ranges: [[Range; 1]; 1],
    routes: [Route; 1],
    data_dir: &'static str,
}

#[derive(Serialize)]
struct Range {
    subnet: String,
}

#[derive(Serialize)]
struct Route {
    dst: &'static str,
}

#[derive(Serialize)]
struct PortMap {
    r#type: &'static str,
    capabilities: Capabilities,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Capabilities {
    port_mappings: bool,
}

pub(super) fn file(c: &Context<'_>) -> Result<NodeFile, RenderError> {
    let subnet = c.profile.node.pod_subnet.ok_or(RenderError::Invalid("pod subnet of this node"))?;
    let list = ConfList {
        // containerd 1.6 and the plugins of 2021 understand it, and so do all later ones.
        cni_version: "0.4.0",
        name: "imgbuild",
        plugins: (
            Bridge {
                r#type: "bridge",
                bridge: "cni0",
                is_gateway: true,
                // masquerade.rs does what is needed of it.
                ip_masq: false,
                // A pod must reach itself through its own service.
                hairpin_mode: true,
                mtu: c.profile.network.mtu,
                ipam: HostLocal {
                    r#type: "host-local",
                    ranges: [[Range { subnet: subnet.to_string() }]],
                    routes: [Route { dst: if subnet.addr().is_ipv6() { "::/0" } else { "0.0.0.0/0" } }],
                    // No pod survives a reboot, so no lease may: after a power cut they would never be given back.
                    data_dir: "/run/cni/networks",
                },
            },
            PortMap { r#type: "portmap", capabilities: Capabilities { port_mappings: true } },
        ),
    };
    let json = serde_json::to_string_pretty(&list)
        .map_err(|error| RenderError::Format { file: PATH, reason: error.to_string() })?;
    Ok(text(PATH, json + "\n"))
}
