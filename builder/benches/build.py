#!/usr/bin/python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Measures imgbuild beside mmdebstrap + mksquashfs and mkosi + mksquashfs, in one run on one machine.

Prints a Markdown table of medians and of ratios to imgbuild's cold build. All sides take the same packages, those of
the cluster file, from the mirror this machine is configured for, and compress with zstd at the same level. Every side
has its packages downloaded before the clock starts. Only imgbuild's side goes on to the payload, the initramfs and
the disk: its numbers are for the whole bootable node.

  cold     the store has every input and the compiled Kubernetes; all other step outputs are gone
  warm     the same build again
  second   another node of the same cluster

Memory is the largest single process (ru_maxrss), which is kind to the peers: they are many processes.
The runs of all sides alternate, so that a busy machine disturbs all of them alike. Needs root, as the peers do.
Packages: mmdebstrap squashfs-tools, and mkosi (bookworm-backports has 24) with bubblewrap and apt-utils.
"""

import argparse
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Failure(Exception):
    """Something a person can act on."""


def sources():
    """The Debian suites this machine is configured for, as deb822 stanzas: [{field: value}]."""
    stanzas = []
    files = [*pathlib.Path("/etc/apt/sources.list.d").glob("*"), pathlib.Path("/etc/apt/sources.list")]
    for path in sorted(file for file in files if file.is_file()):
        if path.suffix == ".sources":
            for block in re.split(r"\n\s*\n", path.read_text()):
                lines = [line for line in block.splitlines() if not line.startswith("#")]
                fields = dict(re.findall(r"^(\S+):\s*(.*)$", "\n".join(lines), re.M))
                if "deb" in fields.get("Types", "").split():
                    stanzas.append(fields)
        elif path.suffix == ".list":
            for line in path.read_text().splitlines():
                if match := re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)", line):
                    stanzas.append(dict(zip(("URIs", "Suites", "Components"), match.groups())))
    return stanzas


def mirror(suite):
    """The base URL this machine takes `suite` from."""
    for stanza in sources():
        if suite in stanza["Suites"].split() and "main" in stanza.get("Components", "").split():
            return stanza["URIs"].split()[0].rstrip("/")
    raise Failure(f"this machine's package sources have no suite {suite}; run this on Debian with it configured")


def need(program, package):
    if not shutil.which(program):
        raise Failure(f"{program} is missing; install the Debian package {package}")


def measure(argv, stdin="", env=None):
    """Runs a command; gives wall seconds, CPU seconds and peak memory in MB, of it and all it waited for."""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryFile("w+") as feed:
        feed.write(stdin)
        feed.seek(0)
        child = subprocess.Popen(argv, stdin=feed, stdout=log, stderr=subprocess.STDOUT, env=env)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - start
        if child.returncode:
            log.seek(0)
            raise Failure(f"{' '.join(map(str, argv))} exits {child.returncode}:\n{log.read()[-3000:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def both(first, second):
    """Two commands one after the other, as one measurement."""
    return first[0] + second[0], first[1] + second[1], max(first[2], second[2])


class Imgbuild:
    """imgbuild itself: three measurements a round."""

    names = ("imgbuild, cold", "imgbuild, warm", "imgbuild, second node")

    def __init__(self, options, scratch):
        self.binary, self.scratch = options.imgbuild, scratch
        if not self.binary.exists():
            raise Failure(f"{self.binary} is missing; run `cargo build --release`")
        # A copy of the cluster with a second node, so that this leaves nothing beside the user's.
        self.cluster = scratch / "cluster"
        shutil.copytree(options.cluster, self.cluster, ignore=shutil.ignore_patterns("secrets"))
        with (self.cluster / "cluster.toml").open("a") as file:
            file.write('\n[[node]]\nname = "bench-2"\nroles = ["worker"]\naddress = "10.0.2.16"\n')
        # Objects are immutable: hard links make the copy cost nothing.
        self.store = scratch / "store"
        source = options.store
        self.build("master-1", store=source)
        shutil.copytree(source, self.store, copy_function=os.link, ignore=shutil.ignore_patterns("partial", "work"))

    def build(self, node, store=None):
        argv = [self.binary, "build", "--cluster", self.cluster, "--profile", node, "--quiet"]
        argv += ["--out", self.scratch / "out", "--store", store or self.store]
        return measure(argv + ([] if store else ["--offline"]))

    def forget_steps(self):
        """Only the compiled programs stay: the peers get theirs compiled, too."""
        for record in (self.store / "steps").iterdir():
            if '"kube-apiserver"' not in record.read_text(errors="replace"):
                record.unlink()

    def round(self):
        self.forget_steps()
        yield self.names[0], self.build("master-1")
        yield self.names[1], self.build("master-1")
        yield self.names[2], self.build("bench-2")


class Mmdebstrap:
    """mmdebstrap makes a folder, mksquashfs packs it."""

    def __init__(self, options, scratch):
        need("mmdebstrap", "mmdebstrap")
        need("mksquashfs", "squashfs-tools")
        version = subprocess.run(["mmdebstrap", "--version"], capture_output=True, text=True, check=True).stdout
        self.name = f"{version.strip()} + mksquashfs"
        self.options, self.scratch = options, scratch
        self.cache = scratch / "mmdebstrap-cache"
        self.cache.mkdir()
        self.suites = "".join(
            f"deb {mirror(suite)} {suite} main\n" for suite in options.suites
        )
        self.run(["--customize-hook=sync-out /var/cache/apt/archives " + str(self.cache)])

    def run(self, hooks):
        root, image = self.scratch / "mmdebstrap-root", self.scratch / "mmdebstrap.squashfs"
        shutil.rmtree(root, ignore_errors=True)
        image.unlink(missing_ok=True)
        argv = ["mmdebstrap", "--quiet", "--mode=root", "--variant=essential", "--architectures=amd64"]
        argv += ["--skip=download/empty", "--skip=essential/unlink"] + hooks
        argv += ["--include=" + ",".join(self.options.packages), self.options.suites[0], root, "-"]
        made = measure(argv, stdin=self.suites)
        return both(made, mksquashfs(root, image, self.options))

    def round(self):
        yield self.name, self.run(["--setup-hook=mkdir -p \"$1\"/var/cache/apt/archives",
                                   f"--setup-hook=sync-in {self.cache} /var/cache/apt/archives"])


class Mkosi:
    """mkosi makes a folder, mksquashfs packs it: mkosi's own disk output needs a newer systemd than bookworm has."""

    def __init__(self, options, scratch):
        self.argv = options.mkosi.split()
        need(self.argv[0], "mkosi")
        need("bwrap", "bubblewrap")
        need("apt-ftparchive", "apt-utils")
        need("mksquashfs", "squashfs-tools")
        version = subprocess.run([*self.argv, "--version"], capture_output=True, text=True, check=True).stdout
        self.name = f"{version.strip()} + mksquashfs"
        self.options, self.scratch = options, scratch
        # mkosi reads configuration from this folder, and is to find none.
        (scratch / "mkosi").mkdir()
        # mkosi's own list has archives that few mirrors carry, of debug symbols for one.
        apt = scratch / "mkosi-tree/etc/apt/sources.list.d"
        apt.mkdir(parents=True)
        (apt / "mkosi.sources").write_text("".join(
            f"Types: deb\nURIs: {mirror(suite)}\nSuites: {suite}\nComponents: main\n"
            "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n" for suite in options.suites
        ))
        self.run([])

    def run(self, more):
        folder, image = self.scratch / "mkosi", self.scratch / "mkosi.squashfs"
        image.unlink(missing_ok=True)
        argv = [*self.argv, "--directory", folder, "--force", "--distribution=debian", "--format=directory"]
        argv += [f"--release={self.options.suites[0]}", f"--mirror={mirror(self.options.suites[0])}"]
        argv += ["--architecture=x86-64", "--bootable=no", "--with-network=no"]
        argv += [f"--package-manager-tree={self.scratch / 'mkosi-tree'}"]
        argv += [f"--package-cache-dir={self.scratch / 'mkosi-cache'}", "--output=root"] + more
        argv += [f"--package={package}" for package in self.options.packages]
        (self.scratch / "mkosi-cache").mkdir(exist_ok=True)
        made = measure([*argv, "build"])
        return both(made, mksquashfs(folder / "root", image, self.options))

    def round(self):
        yield self.name, self.run(["--cache-only=always"])


def mksquashfs(root, image, options):
    argv = ["mksquashfs", root, image, "-noappend", "-quiet", "-no-progress", "-comp", "zstd", "-b", "256K"]
    return measure(argv + ["-Xcompression-level", str(options.level)])


def table(results, reference):
    base = reference and [statistics.median(run[i] for run in results[reference]) for i in range(3)]
    yield "| what | wall | CPU | peak memory | wall / cold | runs |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, runs in results.items():
        wall, cpu, memory = (statistics.median(run[i] for run in runs) for i in range(3))
        ratio = f"{wall / base[0]:.2f}" if base else "-"
        yield f"| {name} | {wall:.1f} s | {cpu:.1f} s | {memory:.0f} MB | {ratio} | {len(runs)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    store = pathlib.Path(os.environ.get("IMGBUILD_STORE") or cache / "imgbuild")
    parser.add_argument("--runs", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--imgbuild", type=pathlib.Path, default=ROOT / "target/release/imgbuild", metavar="FILE")
    parser.add_argument("--cluster", type=pathlib.Path, default=ROOT / "profiles/lab", metavar="DIR")
    parser.add_argument("--store", type=pathlib.Path, default=store, metavar="DIR", help="filled if it is not")
    parser.add_argument("--scratch", type=pathlib.Path, metavar="DIR", help="beside the store, for hard links")
    parser.add_argument("--mkosi", default="mkosi", metavar="COMMAND")
    parser.add_argument("--only", default="imgbuild,mmdebstrap,mkosi", metavar="SIDES")
    parser.add_argument("--packages", metavar="LIST", help="instead of the cluster file's, separated by commas")
    parser.add_argument("--suites", metavar="LIST", help="instead of the cluster file's, separated by commas")
    parser.add_argument("--level", type=int, default=7, help="zstd level of mksquashfs (default 7, as imgbuild's)")
    options = parser.parse_args()

    if not options.packages or not options.suites:
        cluster = tomllib.loads((options.cluster / "cluster.toml").read_text())
        options.packages = options.packages or ",".join(cluster["os"]["packages"])
        deb = next(source for source in cluster["input"] if source["kind"] == "deb")
        options.suites = options.suites or ",".join(deb["suites"])
    options.packages, options.suites = options.packages.split(","), options.suites.split(",")

    scratch = options.scratch or options.store.parent / "imgbuild-bench"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    known = {"imgbuild": Imgbuild, "mmdebstrap": Mmdebstrap, "mkosi": Mkosi}
    results = {}
    try:
        sides = []
        for name in options.only.split(","):
            print(f"preparing {name}", file=sys.stderr)
            sides.append(known[name](options, scratch))
        for number in range(options.runs):
            for side in sides:
                for name, result in side.round():
                    print(f"round {number + 1}: {name}: {result[0]:.1f} s", file=sys.stderr)
                    results.setdefault(name, []).append(result)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    reference = Imgbuild.names[0] if Imgbuild.names[0] in results else None
    print(f"{os.cpu_count()} cores, {len(options.packages)} packages named, zstd level {options.level}; medians\n")
    print("\n".join(table(results, reference)))


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"error: {failure}")
