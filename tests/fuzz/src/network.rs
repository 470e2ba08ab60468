// SPDX-License-Identifier: MIT OR Apache-2.0

//! What comes over a network: DHCP, TFTP and HTTP to `imgbuild serve`; VRRP and ARP to a node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use firstboot::vrrp;

/// Gives `data` to each of them.
pub fn run(data: &[u8]) {
    imgbuild::fuzz::network(data);
    firstboot::fuzz::arp(data);
    for from in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        if let Some(advert) = vrrp::parse(from, data) {
            assert!(advert.vrid != 0 && !advert.addresses.is_empty(), "{advert:?}");
        }
    }
}

/// What the target begins with.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut dhcp = vec![0; 236];
    dhcp[..3].copy_from_slice(&[1, 1, 6]);
    dhcp.extend([99, 130, 83, 99, 53, 1, 1, 93, 2, 0, 7, 97, 3, 0, 1, 2, 77, 4]);
    dhcp.extend(b"iPXE");
    dhcp.extend([0, 60, 9]);
    dhcp.extend(b"PXEClient\xff");
    let mut inform = dhcp.clone();
    inform[242] = 3;
    let tftp = b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x0064\0timeout\x003\0".to_vec();
    let http = b"GET /a%20b?c HTTP/1.1\r\nHost: x\r\nRange: bytes=1-5\r\nConnection: close\r\n\r\n".to_vec();
    let absolute = b"HEAD http://h/boot.ipxe HTTP/1.0\r\nRange: bytes=-5\r\nConnection: keep-alive\r\n\r\n".to_vec();
    let mut vrrp4 = vec![0x45, 0, 0, 32, 0, 0, 0, 0, 255, 112, 0, 0, 10, 0, 0, 1, 224, 0, 0, 18];
    vrrp4.extend([0x31, 51, 100, 1, 0, 100, 0, 0, 10, 0, 0, 9]);
    let vrrp6 = [&[0x31, 51, 100, 1, 0, 100, 0, 0][..], &[0xfe; 16]].concat();
    let arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1];
    vec![dhcp, inform, tftp, http, absolute, vrrp4, vrrp6, arp]
}
