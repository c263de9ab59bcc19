"""The nursery: a process that forks the run's processes, and outlives nobody.

It preloads what they need (pyzmq, atomicshm, msgpack, the protocol) and holds no ZeroMQ context:
contexts do not survive a fork.  It tells the launcher of every exit.  When the launcher is gone,
however it went, it kills the run's processes, removes the run's sockets and shared memory, and
marks the run directory.  When the nursery itself is killed the kernel kills its children
(PR_SET_PDEATHSIG) and the launcher cleans up.

    python -m emulator.machine.nursery RUNTIME RUN_DIR FD
"""

import contextlib
import ctypes
import gc
import os
import select
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Final

import msgpack
import setproctitle

from emulator.config.model import Cell, from_plain
from emulator.machine.device import device_main
from emulator.machine.linker import link_text
from emulator.machine.memory import Memory
from emulator.machine.pcpu import cpu_class, pcpu_main

PR_SET_PDEATHSIG: Final = 1
PR_SET_TIMERSLACK: Final = 29


def main() -> None:
    """Fork everything, then watch."""
    runtime, run_dir, fd = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's business
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link = socket.socket(fileno=fd)
    cell = from_plain(Cell, msgpack.unpackb(Path(runtime, "cell").read_bytes()))
    memory = Memory.open(Path(runtime, "memory"))
    setproctitle.setproctitle(f"pirlab nursery ({cell.name})")
    libc = ctypes.CDLL(None)
    link_text(cpu_class(cell), cell.kvm)  # once for all pCPUs
    gc.collect()
    gc.freeze()
    gc.disable()
    children: dict[int, str] = {}
    parent = os.getpid()
    for role, count in (("pcpu", cell.pcpus), ("device", len(cell.devices))):
        for index in range(count):
            pid = os.fork()
            if pid == 0:
                die_with(parent)
                link.close()
                os._exit(child(libc, memory, cell, runtime, run_dir, role, index))
            children[pid] = f"{role}{index}"
    with contextlib.suppress(OSError):  # the launcher may be gone by now: watch() sees that
        link.send(msgpack.packb(["started", [[name, pid] for pid, name in children.items()]]))
    watch(link, children)
    if children:  # the launcher went away first
        bury(children)
        with contextlib.suppress(OSError):
            (run_dir / "status").write_text("died: the launcher was killed\n", encoding="utf-8")
        shutil.rmtree(runtime, ignore_errors=True)


def child(
    libc: ctypes.CDLL, memory: Memory, cell: Cell, runtime: str, run_dir: Path, role: str,
    index: int,
) -> int:  # fmt: skip
    """One process of the run; its exit status."""
    status = 1
    try:
        libc.prctl(PR_SET_TIMERSLACK, 1)
        setproctitle.setproctitle(f"pirlab {role} {index} ({cell.name})")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        log = os.open(run_dir / "log" / f"{role}{index}.log", flags, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        main_of = pcpu_main if role == "pcpu" else device_main
        status = main_of(memory, cell, runtime, index)
    except Exception:  # noqa: BLE001  the last line of defence: it goes to the log, and the run ends
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    return status


def die_with(parent: int) -> None:
    """End this process when process `parent` ends, or now if it has."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before we could ask to be told
        os._exit(1)


def watch(link: socket.socket, children: dict[int, str]) -> None:
    """Report exits until all have exited, or the launcher is gone."""
    wake, alarm = os.pipe()
    os.set_blocking(alarm, False)
    signal.set_wakeup_fd(alarm)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while children:
        reap(link, children)
        if not children:
            return
        ready, _, _ = select.select([link.fileno(), wake], [], [], 1.0)
        if wake in ready:
            os.read(wake, 512)
        if link.fileno() in ready and hung_up(link):
            return


def hung_up(link: socket.socket) -> bool:
    """Is nobody at the other end?  A reset: it went with something of ours unread."""
    try:
        return not link.recv(64)
    except ConnectionResetError:
        return True


def reap(link: socket.socket, children: dict[int, str]) -> None:
    """Collect exits without waiting."""
    for pid in list(children):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            name = children.pop(pid)
            with contextlib.suppress(OSError):
                link.send(msgpack.packb(["exit", name, pid, os.waitstatus_to_exitcode(status)]))


def bury(children: dict[int, str]) -> None:
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in children:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
