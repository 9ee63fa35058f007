"""Print the sockets on which a command and all that it starts listen.

    python tools/sockets.py [--unresolved] COMMAND ...

The command runs in network, host name and mount namespaces of its own (Linux), where the host's
name stands for 10.9.9.1, which is no loopback address, or for nothing with --unresolved. Where the
name stands for 127.0.0.1, as on many desktops, a socket on the host's own address would pass for
one on the loopback interface. One line for each address and process, without the port numbers:
``ADDRESS PROCESS``; the exit code is the command's. A system that refuses namespaces ends it
with code 77.
"""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ADDRESS, NAME = "10.9.9.1", "quadriga-host"
REFUSED = 77
POLL_SECONDS = 0.1

# The interface needs a peer to be up. $0 is the hosts file.
SET_UP = f"""
set -e
mount --bind "$0" /etc/hosts
hostname {NAME}
ip link set lo up
ip link add outside type veth peer name peer
ip link set peer up
ip address add {ADDRESS}/24 dev outside
ip link set outside up
"""
ENTER = ["unshare", "--map-root-user", "--user", "--net", "--uts", "--mount"]


def listening() -> dict[str, str]:
    """Return the address of every listening socket of this network namespace, by inode."""
    found = {}
    for table, wanted in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path("/proc/net", table).read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            if words[3] == wanted:
                found[words[9]] = _address(words[1].partition(":")[0])
    return found


def _address(text: str) -> str:
    """Read an address as the kernel shows it: words of four bytes, each with the last first."""
    data = b"".join(bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8))
    return str(ipaddress.ip_address(data))


def owners(root: psutil.Process) -> dict[str, str]:
    """Return which process of a family holds each socket, by inode."""
    found = {}
    for process in (root, *root.children(recursive=True)):
        try:
            rank = process.environ().get("RANK")
            for entry in Path("/proc", str(process.pid), "fd").iterdir():
                target = os.readlink(entry)
                if target.startswith("socket:["):
                    found[target[8:-1]] = "launcher" if rank is None else f"rank {rank}"
        except (psutil.Error, OSError):  # it has ended meanwhile
            continue
    return found


def watch(command: list[str]) -> int:
    """Run a command, print where it listens, and return its exit code."""
    seen: dict[str, tuple[str, str]] = {}
    process = subprocess.Popen(command, stdout=sys.stderr)
    family = psutil.Process(process.pid)
    while process.poll() is None:
        sockets = {inode: address for inode, address in listening().items() if inode not in seen}
        held = owners(family) if sockets and family.is_running() else {}
        for inode, address in sockets.items():
            seen[inode] = (address, held.get(inode, "unknown"))
        time.sleep(POLL_SECONDS)
    for line in sorted(f"{address}  {owner}" for address, owner in seen.values()):
        print(line)
    return process.returncode


def main() -> int:
    """Enter the namespaces, or watch where they are entered."""
    words = sys.argv[1:]
    if words[:1] == ["--inside"]:
        return watch(words[1:])
    resolves = words[:1] != ["--unresolved"]
    with tempfile.NamedTemporaryFile("w", prefix="hosts-") as hosts:
        print("127.0.0.1 localhost", f"{ADDRESS} {NAME}" if resolves else "", sep="\n", file=hosts)
        hosts.flush()
        tried = subprocess.run(
            [*ENTER, "bash", "-c", SET_UP, hosts.name], capture_output=True, text=True
        )
        if tried.returncode:
            print(f"no namespaces here: {tried.stderr.strip()}", file=sys.stderr)
            return REFUSED
        inside = [sys.executable, __file__, "--inside", *(words if resolves else words[1:])]
        run = [*ENTER, "bash", "-c", f'{SET_UP} exec "$@"', hosts.name, *inside]
        return subprocess.run(run).returncode


if __name__ == "__main__":
    sys.exit(main())
