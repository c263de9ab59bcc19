"""Two CPUs, one sends IPIs, one halts: every IPI must get through, whenever it comes.

Both guests run under a small VMM: APIC-write exits of the sender are posted by the software rule,
a halter that exits at HLT blocks until there is work in PIR or RVI.  The halter gets a different
number of instructions before each of the sender's, so that IPIs land at every point of its loop.
Linux: tools/testing/selftests/kvm/x86/xapic_ipi_test.c.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from emulator.conformance.agents import software_post
from emulator.conformance.bench import Bench, merged
from emulator.conformance.document import Case
from emulator.conformance.words import MismatchError, NotUnderstoodError, check, known_keys, number
from emulator.hardware import instructions, pi_desc
from emulator.hardware.access import EOI
from emulator.hardware.apicv import VICR_HIGH, VICR_LOW, VPPR, VTPR
from emulator.hardware.bare import BareCpu
from emulator.hardware.vectors import ExitReason
from emulator.hardware.vmcs import Activity

IPIS_PER_SECOND: Final = 100  # the suite counts wall time, this model IPIs
SECONDS_MAX: Final = 10
PATIENCE: Final = 2_000  # instructions of the halter within which an IPI must show its effect
OFFSETS: Final = 13  # the halter's lead over the sender goes through 0..12 instructions

Counts = Counter[str]


class Side(Bench):
    """One CPU, its guest's loop, and the counters that both guests share."""

    def __init__(self, case: Case, index: int, loop: list[str], counts: Counts, hlt: bool) -> None:
        controls = {
            "process_posted_interrupts": 1,
            "acknowledge_interrupt_on_exit": 1,
            "virtualize_x2apic_mode": 0,
            "virtualize_apic_accesses": 1,
            "apic_register_virtualization": 1,
            "hlt_exiting": int(hlt),
        }
        super().__init__(merged(case.defaults, {"controls": controls, "guest": {"if": 0}}))
        self.index = index
        self.loop = loop
        self.counts = counts
        self.blocked = False
        self.program = self._program()
        self.wanted: Counts | None = None  # what the sender waits for: counters before its IPI

    # -- the guest ------------------------------------------------------------------------------

    def interrupt(self, vector: int) -> None:
        super().interrupt(vector)
        self.counts["ipis_received"] += 1

    def run_handlers(self) -> None:
        """The suite's handler: any value written to the EOI register is an EOI."""
        while self.handlers and not self.processor.in_root:
            self.handlers.pop()
            self.retire(instructions.xapic_write(self.processor, EOI, 77))
            self.retire(instructions.iret(self.processor))

    def _program(self) -> Iterator[None]:
        """The loop, for ever; it yields after each instruction."""
        while True:
            for sentence in self.loop:
                for words in sentence.split(";"):
                    yield from self._words(words.strip())

    def _words(self, words: str) -> Iterator[None]:
        if words in ("STI", "HLT", "CLI", "NOP"):
            self.guest({"op": "guest", "insn": words.lower()})
        elif found := re.fullmatch(r"(\w+) \+= (\d+)", words):
            self.counts[found[1]] += int(found[2])
            self._nop()
        elif found := re.fullmatch(r"ICR2 = dest ?<< ?(\d+)", words):
            self._store(VICR_HIGH, (1 - self.index) << int(found[1]))
        elif found := re.fullmatch(r"ICR = (0x[0-9a-fA-F]+|\d+)", words):
            self.wanted = Counter(self.counts)
            self._store(VICR_LOW, int(found[1], 0))
        elif words == "record TPR and PPR":
            page = self.vmcs.vapic.page
            if page.read32(VTPR) != page.read32(VPPR):
                raise MismatchError("PPR is not TPR outside of a handler")
            self._nop()
        elif words.startswith("spin until "):
            yield from self._spin(words)
        else:
            raise NotUnderstoodError(f"unknown words {words!r} in loop")
        yield

    def _spin(self, words: str) -> Iterator[None]:
        names = [name for name in ("received", "wake", "hlt") if name in words]
        if not names or self.wanted is None:
            raise NotUnderstoodError(f"unknown words {words!r} in loop")
        known = {"received": "ipis_received", "wake": "wake_count", "hlt": "hlt_count"}
        while any(self.counts[known[name]] == self.wanted[known[name]] for name in names):
            self._nop()
            yield

    def _nop(self) -> None:
        self.guest({"op": "guest", "insn": "nop"})

    def _store(self, offset: int, value: int) -> None:
        step = {"op": "guest", "insn": "xapic_write", "offset": offset, "value": value}
        self.guest(step)

    # -- its VMM --------------------------------------------------------------------------------

    def turn(self) -> None:
        """One instruction, or one thing that the VMM does."""
        if self.processor.in_root:
            self._host()
        else:
            self.boundary()
            self.run_handlers()
            if not self.processor.in_root and self.vmcs.guest.activity is Activity.ACTIVE:
                next(self.program)

    def _host(self) -> None:
        if self.lapic.pending():  # the notification has come in root mode: a host interrupt
            self.lapic.acknowledge()
            self.lapic.eoi()
        if self.exits and self.exits[-1].reason is ExitReason.APIC_WRITE:
            self._send()
        elif self.exits and self.exits[-1].reason is ExitReason.HLT:
            if not (pi_desc.read_pir(self.descriptor) or self.vmcs.rvi):
                self.blocked = True
                return
        elif self.exits:
            raise MismatchError(f"unexpected exit {self.exits[-1].reason.name}")
        self.blocked = False
        self.sync_pir_to_rvi()
        self.vm_entry()

    def sync_pir_to_rvi(self) -> None:
        self.processor.vmcs = self.vmcs
        self.cpu.pi_clear_on(self.index)
        highest = self.cpu.pi_harvest(self.index)
        self.vmcs.rvi = max(self.vmcs.rvi, highest)

    def _send(self) -> None:
        page = self.vmcs.vapic.page
        target = page.read32(VICR_HIGH) >> 24
        vector = page.read32(VICR_LOW) & 0xFF
        software_post(self.cpu, target, vector, nv=self.vmcs.nv, pcpu=target)

    def waits(self) -> bool:
        """Halted in the guest or blocked in the host."""
        return self.blocked or self.vmcs.guest.activity is Activity.HLT


def run_liveness(case: Case) -> None:
    """The case with HLT exiting off and on."""
    known_keys("setup", case.setup, ("cpus", "run_seconds"))
    known_keys("expect", case.expect, ("per_ipi", "end"))
    for hlt in (False, True):
        _run(case, hlt=hlt)


def _run(case: Case, *, hlt: bool) -> None:
    counts: Counts = Counter()
    sides = [
        Side(case, i, _loop(case, i), counts, hlt) for i in range(number(case.setup.get("cpus", 2)))
    ]
    if len(sides) != 2:
        raise NotUnderstoodError(f"{len(sides)} CPUs")
    descriptors = [side.descriptor for side in sides]
    lapics = [side.lapic for side in sides]
    for side in sides:
        side.cpu = BareCpu(descriptors, side.processor, current=side.index, lapics=lapics)
    senders = [side for side in sides if any("ICR =" in words for words in side.loop)]
    if len(senders) != 1:
        raise NotUnderstoodError("not exactly one loop sends")
    sender = senders[0]
    halter = sides[1 - sender.index]
    seconds = min(number(case.setup.get("run_seconds", 1)), SECONDS_MAX)
    for i in range(IPIS_PER_SECOND * seconds):
        for _ in range(i % OFFSETS):
            halter.turn()
        before = Counter(counts)
        _one_ipi(sender, halter, counts)
        _check_ipi(case.expect.get("per_ipi", {}), before, counts)
    for _ in range(PATIENCE):
        if halter.waits():
            break
        halter.turn()
    _check_end(case.expect.get("end", {}), halter, counts, hlt=hlt)


def _loop(case: Case, index: int) -> list[str]:
    loops = [step["loop"] for step in case.steps if step.get("cpu") == index]
    if len(loops) != 1 or not isinstance(loops[0], list):
        raise NotUnderstoodError(f"not exactly one loop for CPU {index}")
    return [str(words) for words in loops[0]]


def _one_ipi(sender: Side, halter: Side, counts: Counts) -> None:
    """Until the sender has sent once more and seen the effect."""
    sent = counts["ipis_sent"]
    for _ in range(PATIENCE):
        sender.turn()
        if counts["ipis_sent"] > sent and _moved(sender.wanted, counts):
            return
        halter.turn()
    state = "blocked" if halter.blocked else halter.vmcs.guest.activity.name
    raise MismatchError(f"IPI {sent + 1} is lost: after {PATIENCE} instructions halter is {state}")


def _moved(before: Counts | None, counts: Counts) -> bool:
    names = ("ipis_received", "wake_count", "hlt_count")
    return before is not None and all(counts[name] > before[name] for name in names)


def _check_ipi(expected: Any, before: Counts, counts: Counts) -> None:
    for name, words in expected.items():
        found = re.fullmatch(r"\+(\d+) at least|moved", str(words))
        if found is None:
            raise NotUnderstoodError(f"per_ipi {name}: {words!r}")
        if counts[name] - before[name] < int(found[1] or 1):
            raise MismatchError(f"per_ipi {name}: expected {words}, got {counts - before}")


def _check_end(expected: Any, halter: Side, counts: Counts, *, hlt: bool) -> None:
    for name, words in expected.items():
        if not re.fullmatch(r"equals the halt-exit statistic when HLT exiting is on", str(words)):
            raise NotUnderstoodError(f"end {name}: {words!r}")
        exits = sum(exit_.reason is ExitReason.HLT for exit_ in halter.exits)
        check(f"end {name} against exits", exits, counts[name] if hlt else 0)
