// SPDX-License-Identifier: MIT OR Apache-2.0

//! For tests/fuzz: parsers that nobody else may call. There with `--cfg fuzzing` alone, and no interface of anybody.
//! They panic where a property does not hold.

use crate::inputs::{deb, image_archive, registry, rpm, rpm_repository};
use crate::store::Store;
use crate::tree::{FileTree, layers, system};
use crate::{lock, output, serve, tree};

/// A package of Debian's.
pub fn package(data: &[u8]) {
    deb::archive::fuzz::package(data);
}

/// A tar archive, compressed or not: of a package, of a system, and as a bundle.
pub fn archive(data: &[u8]) {
    if let Some(archive) = deb::archive::fuzz::archives(data) {
        // Both follow links inside the tree.
        if let Ok(tree) = layers::plain(&archive) {
            for (path, _) in tree.iter() {
                tree.lookup(path);
            }
        }
        if let Ok(mut tree) = system::system(std::slice::from_ref(&archive)) {
            system::clean(&mut tree);
            let _ = system::keep_one_kernel(&mut tree, None);
        }
    }
    output::hybrid::fuzz(data);
    output::verify::fuzz(data);
}

/// An RPM package.
pub fn rpm_package(data: &[u8]) {
    rpm::fuzz(data);
}

/// A document of a repository of RPM packages.
pub fn repository(data: &[u8]) {
    rpm_repository::fuzz(data);
}

/// Files of an archive of container images.
pub fn images(store: &Store, files: FileTree) {
    image_archive::fuzz(store, files);
}

/// What a registry of images answers, and a file with credentials for it.
pub fn registry(data: &[u8]) {
    registry::fuzz(data);
}

/// A lock.
pub fn lock_text(text: &str) {
    lock::fuzz(text);
}

/// A Kubernetes manifest that is changed.
pub fn manifest(text: &str) {
    crate::manifest::fuzz(text);
}

/// A template of PAM's and a profile.
pub fn pam(text: &str) {
    tree::pam::fuzz(text);
}

/// A packet, or what comes over a connection, to each of the servers.
pub fn network(bytes: &[u8]) {
    serve::proxy::fuzz(bytes);
    serve::tftp::fuzz(bytes);
    serve::http::fuzz(bytes);
}
