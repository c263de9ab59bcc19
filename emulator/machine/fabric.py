"""The fabric: notification vectors as ZeroMQ messages between processes.

One PULL socket bound per pCPU, one PUSH socket per (sender, destination).  A sender rings the
destination's doorbell word before it sends, so that a busy receiver looks at a word of shared
memory (0.05 us) and not at a socket (1.3-5 us): rung != arrived means something is on its way.

Message: a msgpack array, its version first:

    [1, vector, sender pCPU, vCPU meant, message id, send begin ns, load, due ns]

`vector` below 0 is a command to the process (CMD_…), with its argument in place of the vCPU.
Everything behind the vector is for the account: the receiving local APIC sees a vector.
"""

import os
import select
from collections.abc import Callable
from time import monotonic_ns
from typing import Any, Final

import msgpack
import zmq

from emulator.machine.errors import RunBroken
from emulator.machine.memory import P_RUNG, Memory

VERSION: Final = 1
CMD_STOP: Final = -1
CMD_HELLO: Final = -2
CMD_CONNECT: Final = -3
CMD_FLOOR: Final = -4
CMD_RUN: Final = -5
CMD_QUIT: Final = -6
PING: Final = -7

CONNECT_DEADLINE_NS: Final = 5_000_000_000

Message = list[Any]


def endpoint(runtime: str, fabric: str, name: str) -> str:
    """Where `name` (pcpu0, launcher) is reached.  tcp: the port stands in a file of that name."""
    if fabric == "ipc":
        return f"ipc://{runtime}/{name}"
    with open(f"{runtime}/{name}.port", encoding="ascii") as file:  # noqa: PTH123  hot start-up
        return f"tcp://127.0.0.1:{int(file.read())}"


def bind(socket: "zmq.Socket[bytes]", runtime: str, fabric: str, name: str) -> None:
    """Bind a receiver.  A second bind on a live ipc path would silently steal it: refuse."""
    if fabric == "ipc":
        path = f"{runtime}/{name}"
        if os.path.exists(path):  # noqa: PTH110
            raise RunBroken(f"{path}: already taken by another run")
        socket.bind(f"ipc://{path}")
        return
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    temporary = f"{runtime}/{name}.port.new"
    with open(temporary, "w", encoding="ascii") as file:  # noqa: PTH123
        file.write(str(port))
    os.rename(temporary, f"{runtime}/{name}.port")  # noqa: PTH104


def receiver(context: "zmq.Context[zmq.Socket[bytes]]") -> "zmq.Socket[bytes]":
    """A PULL socket without a high-water mark.

    Over ipc libzmq silently loses what is queued when a sender closes while the receiver is at
    its mark (zeromq/libzmq issue 4660).
    """
    socket = context.socket(zmq.PULL)
    socket.rcvhwm = 0
    socket.linger = 0
    return socket


class Fabric:
    """One process's ends: its own PULL socket, and PUSH sockets made when first needed."""

    def __init__(self, memory: Memory, runtime: str, fabric: str, name: str) -> None:
        self._runtime = runtime
        self._fabric = fabric
        self._memory = memory
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.pull = receiver(self.context)
        bind(self.pull, runtime, fabric, name)
        self._events: Callable[[int], int] = self.pull.getsockopt  # type: ignore[assignment]
        self._fd = self._events(zmq.FD)
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        self._poll = poll.poll
        self._emptied = False
        self._push: dict[int, zmq.Socket[bytes]] = {}
        self._ring: dict[int, Callable[[int], int]] = {}
        self._others: dict[str, zmq.Socket[bytes]] = {}
        self._packer = msgpack.Packer(autoreset=True)
        self.refused = 0

    def connect(self, pcpu: int) -> "zmq.Socket[bytes]":
        """Connect to a pCPU; the first send waits for it, at most CONNECT_DEADLINE_NS."""
        socket = self._new_push(f"pcpu{pcpu}")
        self._ring[pcpu] = self._memory.u64(self._memory.pcpu(pcpu, P_RUNG)).fetch_add
        self._push[pcpu] = socket
        return socket

    def connect_now(self, pcpu: int) -> None:
        """Connect and prove it with a message."""
        self.send(pcpu, (VERSION, CMD_HELLO, 0, 0, 0, 0, 0, 0))

    def _new_push(self, name: str) -> "zmq.Socket[bytes]":
        socket = self.context.socket(zmq.PUSH)
        socket.immediate = 1  # nothing queues for a peer that is not there
        socket.linger = 0
        socket.sndhwm = 0
        socket.connect(endpoint(self._runtime, self._fabric, name))
        return socket

    def send(self, pcpu: int, message: tuple[Any, ...]) -> None:
        """Ring the doorbell and send.  RunBroken if the transport will not take it."""
        socket = self._push.get(pcpu) or self.connect(pcpu)
        self._ring[pcpu](1)
        data = self._packer.pack(message)
        try:
            socket.send(data, zmq.DONTWAIT)
        except zmq.Again:
            self._send_late(socket, data, f"pcpu {pcpu}")

    def _send_late(self, socket: "zmq.Socket[bytes]", data: bytes, whom: str) -> None:
        """The first send on a new connection: try until it is up."""
        deadline = monotonic_ns() + CONNECT_DEADLINE_NS
        while monotonic_ns() < deadline:
            try:
                socket.send(data, zmq.DONTWAIT)
            except zmq.Again:
                os.sched_yield()
            else:
                return
        self.refused += 1
        raise RunBroken(f"{whom} does not take messages")

    def tell(self, name: str, message: Any) -> None:
        """A message to the launcher or to a device: no pCPU, no doorbell, no hurry."""
        socket = self._others.get(name)
        if socket is None:
            socket = self._others[name] = self._new_push(name)
        data = self._packer.pack(message)
        try:
            socket.send(data, zmq.DONTWAIT)
        except zmq.Again:
            self._send_late(socket, data, name)

    def report(self, message: list[Any]) -> None:
        """Tell the launcher something (start-up and results, never on the interrupt path)."""
        self.tell("launcher", [VERSION, *message])

    def receive(self) -> Message | None:
        """The next message, None if none is there.

        An empty look costs 0.5 us: the socket's descriptor says whether anything has happened
        since the last one.  It is edge-triggered, and silent after a message that left the queue
        empty unseen: then the socket itself is asked (2 us).
        """
        if self._emptied and not self._poll(0):
            return None
        if not self._events(zmq.EVENTS) & zmq.POLLIN:
            self._emptied = True
            return None
        self._emptied = False
        data = self.pull.recv(zmq.DONTWAIT)
        message: Message = msgpack.unpackb(data)
        assert message[0] == VERSION
        return message

    def wait(self, timeout_s: float) -> None:
        """Sleep until a message may be there.  Only after `receive()` has returned None."""
        assert self._emptied
        select.select([self._fd], [], [], timeout_s)

    def close(self) -> None:
        for socket in (self.pull, *self._others.values(), *self._push.values()):
            socket.close(0)
        self.context.term()
