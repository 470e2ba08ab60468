# SPDX-License-Identifier: MIT OR Apache-2.0
# shellcheck shell=sh
#
# Sourced by scripts that unpack packages of a Debian suite which this machine is not configured for: apt with a state of its
# own, this machine's mirror and proxies, and nothing of this machine's packages. Signatures are verified by apt.
# IMGBUILD_MIRROR=URL is another mirror. The script that sources this defines `fail MESSAGE`.
#
#   open_private_apt FOLDER         uses that folder, which the script removes in the end
#   add_suite SUITE [OPTION]        one more suite, with an option of sources.list(5)
#   private_apt TOOL ARGUMENT...    runs apt-get or apt-cache

debian_keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# The base of the archive `debian` on this machine's mirror.
debian_mirror() {
    if [ -n "${IMGBUILD_MIRROR-}" ]; then
        echo "${IMGBUILD_MIRROR%/}"
        return
    fi
    # shellcheck disable=SC2016 # apt's variables
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sed -n 's|/*$||; \|/debian$|p' | head -n 1
}

open_private_apt() {
    private_apt_folder=$1
    debian_base=$(debian_mirror)
    [ -n "$debian_base" ] || fail "this machine's apt knows no Debian mirror: name one with IMGBUILD_MIRROR=URL"
    [ -r "$debian_keyring" ] || fail "$debian_keyring is missing: install debian-archive-keyring"
    mkdir -p "$1/state/lists/partial" "$1/cache/archives/partial"
    : >"$1/status"
    : >"$1/sources.list"
}

add_suite() {
    echo "deb [signed-by=$debian_keyring${2:+ $2}] $debian_base $1 main" >>"$private_apt_folder/sources.list"
}

private_apt() {
    private_tool=$1
    shift
    "$private_tool" -q -q \
        -o Dir::State="$private_apt_folder/state" -o Dir::State::status="$private_apt_folder/status" \
        -o Dir::Cache="$private_apt_folder/cache" \
        -o Dir::Etc::SourceList="$private_apt_folder/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
        -o APT::Architecture=amd64 -o APT::Architectures::=amd64 -o APT::Architectures::=loong64 \
        -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none -o Debug::NoLocking=true "$@"
}
