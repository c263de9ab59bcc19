"""The mapped file: everything that more than one process of a run may read.

Layout, all fields aligned, what different CPUs write in different cache lines:

    header          one page    magic, shape, the phase of the run, the ticket counter
    per pCPU        1 KiB       doorbell | arrived | wake-up list | statistics
    per vCPU        4 KiB       PI descriptor (64 bytes, bit-exact) | struct kvm_vcpu | timer
    per vCPU        one page    virtual-APIC page (SDM 29.1.1)
    per process     a ring      head | tail, dropped | 32-byte event records
    and launcher    a ring      head, open step | tail, dropped | 64-byte steps, if in order

The file lies in the shared-memory file system in a 0700 directory of the run's own
(`multiprocessing.shared_memory` would destroy the segment when any process of 3.11 exits).
Every word that two processes write is changed with a locked instruction; `atomicshm` issues it,
and only this room names it.
"""

import errno
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from atomicshm import AtomicU32, AtomicU64, AtomicView, fence

from emulator.events import RECORD_BYTES
from emulator.hardware.apicv import PAGE_BYTES, VIRR, VISR, VPPR, ApicPage
from emulator.hardware.vectors import BIT, OTHERS
from emulator.machine.errors import HostError
from emulator.order import ORDER_BYTES

MAGIC: Final = 0x31424C5249500001  # "PIRLB1", layout 1
PAGE: Final = 4096
PCPU_BYTES: Final = 1024
VCPU_BYTES: Final = 4096
RING_HEADER_BYTES: Final = 128

# header
H_MAGIC, H_PCPUS, H_VCPUS, H_DEVICES, H_RING, H_ORDER = 0, 8, 16, 24, 32, 40
H_PHASE: Final = 64
H_T0: Final = 128  # CLOCK_MONOTONIC ns at which load due times start
H_TICKET: Final = 192  # tickets taken, see `ordered`
H_APICV_INHIBITED: Final = 256  # 1 while the host's VMs may not use APICv

# per pCPU
P_RUNG: Final = 0  # vectors sent to this pCPU: written by senders before they send
P_ARRIVED: Final = 64  # vectors it has taken off its socket
P_BUSY: Final = 72  # 1 while it handles a host interrupt
P_LIST_LOCK: Final = 128
P_LIST: Final = 136  # four u64: vCPUs that blocked here, bit v = vCPU v
P_IDLE: Final = 176  # 1 while it has nothing to run
P_POSTING: Final = 180  # 1 + the vCPU it is posting to, see `audit`
P_STATS: Final = 192  # u64 each, see Stat
STATS_MAX: Final = 96

# per vCPU: line 0 is the PI descriptor
V_CONTROL: Final = 32
V_MODE: Final = 64
V_CPU: Final = 68
V_REQUESTS: Final = 128
V_TASK_STATE: Final = 132
V_WAITER: Final = 136
V_PREEMPTED: Final = 140
V_TIMER_PENDING: Final = 144
V_HAS_PI_SENDER: Final = 148
V_MP_STATE: Final = 152
V_PRE_PCPU: Final = 156
V_TASK_CPU: Final = 160  # the pCPU whose run queue the thread is on
V_HOME: Final = 164  # the pCPU that has its stack
V_CLAIM: Final = 168  # who may run the thread, if it floats: see `scheduler`
V_FINISHED: Final = 172  # 1: the thread has ended
V_TIMER_LOAD: Final = 176  # the load that the guest's TSC deadline is for
V_APICV_OFF: Final = 180  # 1: !apicv_active, see `inhibition`
V_TSCDEADLINE: Final = 192
V_SCHED_INS: Final = 200  # times loaded
V_HARVESTS: Final = 208  # times PIR has been taken: the watchdog's sign of life
V_SW_TIMER: Final = 216  # its deadline on the housekeeping pCPU, see `housekeeping`
V_GUEST_WORD: Final = 224  # a word of guest memory, that its other vCPUs may read
V_HV_DEADLINE: Final = 232  # the preemption timer of a vCPU that is on no pCPU, 0 = off
V_MERGES: Final = 240  # times the software VIRR has been merged, likewise
V_VIRR: Final = 256  # 32 bytes VIRR, 32 bytes VISR: what SharedApicPage.write_back() wrote
V_SOFT_VIRR: Final = 320  # 32 bytes: set by senders while APICv is off, merged by the owner

V_SAVE: Final = 512  # its guest, while it is on no pCPU: see LiveCpu.hand_over()
V_SAVE_BYTES: Final = 3584

VCPUS_LIMIT: Final = 256  # four list words

# phases of a run
PHASE_SETUP: Final = 0
PHASE_LOAD: Final = 1
PHASE_DRAIN: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How many of each; `ring_records` and `order_records` (or 0) are powers of two."""

    pcpus: int
    vcpus: int
    devices: int
    ring_records: int
    order_records: int = 0

    @property
    def processes(self) -> int:
        return self.pcpus + self.devices

    @property
    def pcpu_base(self) -> int:
        return PAGE

    @property
    def vcpu_base(self) -> int:
        return self.pcpu_base + self.pcpus * PCPU_BYTES

    @property
    def page_base(self) -> int:
        end = self.vcpu_base + self.vcpus * VCPU_BYTES
        return (end + PAGE - 1) // PAGE * PAGE

    @property
    def ring_base(self) -> int:
        return self.page_base + self.vcpus * PAGE_BYTES

    @property
    def ring_bytes(self) -> int:
        return RING_HEADER_BYTES + self.ring_records * RECORD_BYTES

    @property
    def order_base(self) -> int:
        return self.ring_base + self.processes * self.ring_bytes

    @property
    def order_bytes(self) -> int:
        return RING_HEADER_BYTES + self.order_records * ORDER_BYTES if self.order_records else 0

    @property
    def size(self) -> int:
        return self.order_base + (self.processes + 1) * self.order_bytes


class SharedApicPage(ApicPage):
    """A vCPU's virtual-APIC page in the mapped file, some of it held by the pCPU that runs it.

    Between load and put only that pCPU touches VISR, VIRR and VPPR (invariant I7), as a processor
    may keep them: here as integers, because each bit operation on shared memory costs as much as a
    step.  `write_back()` puts them where the next pCPU and the launcher read them.
    """

    __slots__ = ("_at", "_buffer", "_written", "virr", "visr", "vppr")

    def __init__(self, memory: "Memory", vcpu: int) -> None:
        base = memory.shape.page_base + vcpu * PAGE_BYTES
        super().__init__(memory.buffer[base : base + PAGE_BYTES])
        self._buffer = memory.buffer
        self._at = memory.vcpu(vcpu, V_VIRR)
        self.read_back()

    def read_back(self) -> None:
        """Take over what the pCPU that ran the vCPU last wrote back."""
        at = self._at
        self.virr = int.from_bytes(self._buffer[at : at + 32], "little")
        self.visr = int.from_bytes(self._buffer[at + 32 : at + 64], "little")
        self.vppr: int = self.words[VPPR >> 2]
        self._written = (self.virr, self.visr, self.vppr)

    def write_back(self) -> None:
        """Publish VISR, VIRR and VPPR if they have changed."""
        now = (self.virr, self.visr, self.vppr)
        if now == self._written:
            return
        self._written = now
        at = self._at
        self._buffer[at : at + 32] = self.virr.to_bytes(32, "little")
        self._buffer[at + 32 : at + 64] = self.visr.to_bytes(32, "little")
        self.words[VPPR >> 2] = self.vppr

    def set_bit(self, base: int, vector: int) -> None:
        if base == VIRR:
            self.virr |= 1 << vector
        else:
            self.visr |= 1 << vector

    def clear_bit(self, base: int, vector: int) -> None:
        if base == VIRR:
            self.virr &= ~(1 << vector)
        else:
            self.visr &= ~(1 << vector)

    def test_bit(self, base: int, vector: int) -> bool:
        return self.bits(base) >> vector & 1 == 1

    def or_bits(self, base: int, bits256: int) -> None:
        if base == VIRR:
            self.virr |= bits256
        else:
            self.visr |= bits256

    def bits(self, base: int) -> int:
        return self.virr if base == VIRR else self.visr

    def top(self, base: int) -> int:
        length = (self.virr if base == VIRR else self.visr).bit_length()
        return length - 1 if length else 0

    def take(self, vector: int) -> int:
        self.visr |= BIT[vector]
        virr = self.virr = self.virr & OTHERS[vector]
        return virr.bit_length() - 1 if virr else 0

    def retire(self, vector: int) -> int:
        visr = self.visr = self.visr & OTHERS[vector]
        return visr.bit_length() - 1 if visr else 0

    def read32(self, offset: int) -> int:
        base = offset & ~0x7F
        if base in (VISR, VIRR) and not offset & 15:
            return self.bits(base) >> 2 * (offset - base) & 0xFFFF_FFFF
        return self.vppr if offset == VPPR else super().read32(offset)

    def write32(self, offset: int, value: int) -> None:
        if offset == VPPR:
            self.vppr = value & 0xFFFF_FFFF
        else:
            super().write32(offset, value)


class Memory:
    """The mapping of one process.  Opened by path; the launcher creates the file."""

    def __init__(self, fd: int, shape: Shape) -> None:
        self.shape = shape
        self._map = mmap.mmap(fd, shape.size)
        self.buffer = memoryview(self._map)
        self.view = AtomicView(self._map)

    @classmethod
    def create(cls, path: Path, shape: Shape) -> "Memory":
        """Create and zero the file.  HostError if the file system cannot hold it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(fd, 0, shape.size)
            memory = cls(fd, shape)
        except OSError as error:
            path.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
                raise
            free = os.statvfs(path.parent)
            raise HostError(
                f"{path.parent}: the run needs {shape.size >> 10} KiB of shared memory, "
                f"{free.f_bavail * free.f_frsize >> 10} KiB are free there; "
                "use fewer pCPUs or vCPUs, or enlarge it (mount -o remount,size=… /dev/shm)"
            ) from error
        finally:
            os.close(fd)
        store = memory.view.store_u64
        for offset, value in (
            (H_PCPUS, shape.pcpus),
            (H_VCPUS, shape.vcpus),
            (H_DEVICES, shape.devices),
            (H_RING, shape.ring_records),
            (H_ORDER, shape.order_records),
            (H_MAGIC, MAGIC),
        ):
            store(offset, value)
        return memory

    @classmethod
    def open(cls, path: Path) -> "Memory":
        """Map an existing file.  ValueError if it is not one of ours."""
        fd = os.open(path, os.O_RDWR)
        try:
            head = os.pread(fd, 48, 0)
            words = [int.from_bytes(head[i : i + 8], "little") for i in range(0, 48, 8)]
            if len(head) < 48 or words[0] != MAGIC:
                raise ValueError(f"{path}: not a pirlab memory file of this version")
            _, pcpus, vcpus, devices, ring, order = words
            shape = Shape(
                pcpus=pcpus, vcpus=vcpus, devices=devices, ring_records=ring, order_records=order
            )
            return cls(fd, shape)
        finally:
            os.close(fd)

    def u32(self, offset: int) -> AtomicU32:
        return self.view.cell_u32(offset)

    def u64(self, offset: int) -> AtomicU64:
        return self.view.cell_u64(offset)

    def pcpu(self, pcpu: int, field: int) -> int:
        """The offset of a pCPU's field (P_…)."""
        return self.shape.pcpu_base + pcpu * PCPU_BYTES + field

    def vcpu(self, vcpu: int, field: int) -> int:
        """The offset of a vCPU's field (V_…); field 0 is its PI descriptor."""
        return self.shape.vcpu_base + vcpu * VCPU_BYTES + field

    def ring(self, process: int) -> int:
        """The offset of a process's ring; pCPUs first, then devices."""
        return self.shape.ring_base + process * self.shape.ring_bytes

    def order_ring(self, process: int) -> int:
        """The offset of a process's ring of steps, the launcher's last, if there are any."""
        return self.shape.order_base + process * self.shape.order_bytes

    def virr(self, vcpu: int) -> int:
        """A vCPU's VIRR as last written back, 256 bits."""
        at = self.vcpu(vcpu, V_VIRR)
        return int.from_bytes(self.buffer[at : at + 32], "little")

    def announced(self, vcpu: int) -> int:
        """PIR and the software VIRR: what was posted and not yet merged into VIRR, 256 bits.

        A look, not atomic across words.
        """
        pir, soft = self.vcpu(vcpu, 0), self.vcpu(vcpu, V_SOFT_VIRR)
        return int.from_bytes(self.buffer[pir : pir + 32], "little") | int.from_bytes(
            self.buffer[soft : soft + 32], "little"
        )

    def phase(self) -> int:
        return self.view.load_u32(H_PHASE)

    def set_phase(self, phase: int) -> None:
        self.view.store_u32(H_PHASE, phase)


class PiDesc:
    """One PI descriptor in the mapped file: each method is one locked instruction or one load."""

    __slots__ = (
        "_control",
        "_exchange0",
        "_exchange1",
        "_exchange2",
        "_exchange3",
        "_load0",
        "_load1",
        "_load2",
        "_load3",
        "_pir",
        "clear_control",
        "control",
        "set_control",
        "set_pir",
    )  # fmt: skip

    def __init__(self, memory: Memory, vcpu: int) -> None:
        base = memory.vcpu(vcpu, 0)
        assert base % 64 == 0
        self._pir = [memory.u64(base + 8 * i) for i in range(4)]
        self._load0, self._load1, self._load2, self._load3 = (c.load for c in self._pir)
        self._exchange0, self._exchange1, self._exchange2, self._exchange3 = (
            cell.exchange for cell in self._pir
        )
        self._control = memory.u64(base + V_CONTROL)
        self.set_pir = [cell.fetch_or for cell in self._pir]  # [word](mask) -> old word
        self.control = self._control.load
        self.set_control = self._control.fetch_or  # (mask) -> old control word
        self.clear_control = self._control.fetch_and

    def harvest(self) -> int:
        """Read all four words, exchange each non-zero one with 0: what was found, 256 bits."""
        found = self._exchange0(0) if self._load0() else 0
        if self._load1():
            found |= self._exchange1(0) << 64
        if self._load2():
            found |= self._exchange2(0) << 128
        if self._load3():
            found |= self._exchange3(0) << 192
        return found

    def pir(self) -> int:
        """A look at PIR, not atomic across words."""
        return sum(cell.load() << 64 * i for i, cell in enumerate(self._pir))

    def update_control(self, keep: int, value: int) -> int:
        """The compare-exchange loop: control := control & keep | value; the word it wrote."""
        cas = self._control.cas
        old = self.control()
        while True:
            new = old & keep | value
            found = cas(old, new)
            if found == old:
                return new
            old = found

    def set_on_unless_sn(self, urgent: bool) -> int:
        """A hardware sender's decision in one exchange: ON := 1 if ON = 0 and (SN = 0 or urgent).

        The control word as it was.
        """
        cas = self._control.cas
        old = self.control()
        while not old & 1 and (urgent or not old & 2):
            found = cas(old, old | 1)
            if found == old:
                break
            old = found
        return old


smp_mb = fence
"""A full barrier (sequentially consistent fence)."""
