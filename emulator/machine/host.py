"""What a run needs of its host, and whether it is there.

Before: `session` has a resolved cell.  Next: `cluster` starts it.
"""

import os
import resource
import tempfile
from pathlib import Path
from typing import Final

from emulator.config.model import Cell, Via
from emulator.machine.errors import HostError
from emulator.machine.memory import VCPUS_LIMIT

RUNTIME_PREFIX: Final = "pirlab-"
RINGING_GUESTS: Final = frozenset({"ring", "ping-pong"})


def runtime_root() -> Path:
    """Where mapped files and sockets live: the shared-memory file system."""
    shm = Path("/dev/shm")  # noqa: S108  a directory of our own, mode 0700, is made there
    return shm if os.access(shm, os.W_OK) else Path(tempfile.gettempdir())


def traffic(cell: Cell) -> dict[int, set[int]]:
    """Which pCPU will send vectors to which, as far as the config tells."""
    pairs: dict[int, set[int]] = {pcpu: set() for pcpu in range(cell.pcpus)}
    where = {v.index: v.pcpu for v in cell.vcpus}
    for load in cell.loads:
        if load.via is Via.SELF_IPI:
            continue
        sources = load.on_pcpus if load.vcpu is None else (where[load.vcpu],)
        for source in sources:
            pairs[source] |= {where[target] for target in load.targets}
    for vcpu in cell.vcpus:
        if vcpu.guest in RINGING_GUESTS:
            peers = [v for v in cell.vcpus if v.vm == vcpu.vm]
            pairs[vcpu.pcpu].add(peers[(vcpu.number + 1) % len(peers)].pcpu)
    return pairs


def check_host(cell: Cell) -> None:
    """Is this host able to run the cell?  HostError if not; raises the soft limit on files."""
    if len(cell.vcpus) > VCPUS_LIMIT:
        raise HostError(f"{len(cell.vcpus)} vCPUs: a run has {VCPUS_LIMIT} at most")
    incoming: dict[int, int] = {}
    pairs = traffic(cell)
    for peers in pairs.values():
        for peer in peers:
            incoming[peer] = incoming.get(peer, 0) + 1
    # A connection costs its sender two descriptors (socket, mailbox) and its receiver one.
    per_pcpu = max(3 * len(pairs[p]) + 2 * incoming.get(p, 0) for p in pairs) + 48
    launcher = 4 * (cell.pcpus + len(cell.devices)) + 64
    needed = max(per_pcpu, launcher)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise HostError(
            f"the run needs {needed} file descriptors in one process and the limit is {hard}; "
            "raise it (ulimit -Hn) or use fewer pCPUs"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def abandoned() -> list[Path]:
    """Runtime directories of this user whose launcher is gone: nobody else will remove them."""
    found = []
    for path in sorted(runtime_root().glob(f"{RUNTIME_PREFIX}{os.getuid()}-*")):
        try:
            launcher = int((path / "owner").read_text(encoding="utf-8").split("\n")[0])
        except (OSError, ValueError):
            continue  # being made, or being removed, by a run that lives
        if not Path(f"/proc/{launcher}").exists():
            found.append(path)
    return found
