"""Golden cases over two real processes: `pirlab conformance FILE --live`.

The groups pi_suite and pi_rules are run by a target pCPU and a sender process that share the PI
descriptor in a mapped file; notifications go over the fabric.  Steps, protocol text and
expectations are those of the run in memory (`conformance/bench`, `conformance/expectations`); here
stands only who does what:

    post              the sender, with locked instructions on the mapped descriptor
    phys_interrupt    the sender's message; the target is a CPU all the while and takes it
    every other step  the target

A notification that the next step takes leaves with its post; one that the case takes later leaves
then.  Of the launcher, machine and conformance this module alone knows both.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final, cast

from emulator.conformance import CaseResult, ConformanceError, Result
from emulator.conformance.bench import Bench, merged
from emulator.conformance.document import Case, load
from emulator.conformance.expectations import check_all
from emulator.conformance.runner import outcome_of
from emulator.conformance.words import known_keys, vector_of
from emulator.hardware.apicv import PAGE_BYTES, VIRR, VISR, VPPR, VTPR, VirtualApic
from emulator.hardware.bare import BareCpu, Sent
from emulator.hardware.pi_desc import DESCRIPTOR_BYTES
from emulator.machine.errors import RunBroken
from emulator.machine.suite import SENDER, TARGET, VCPU, Pair, SuiteCpu, enlist

GROUPS: Final = ("pi_suite", "pi_rules")
MODULE: Final = "emulator.suite"


def run_live(path: Path | str) -> Result:
    """Run the cases of `path` that two processes can run; the rest of the file is not looked at.

    `ConformanceError` if the file cannot be used or has no such case; `RunBroken` if a process
    dies or does not answer in time; `HostError` if there is no room for the mapped file.
    """
    cases = [case for case in load(path).cases if case.group in GROUPS]
    if not cases:
        raise ConformanceError(f"{path}: no case of a group that runs live: {', '.join(GROUPS)}")
    with Pair(MODULE) as pair:
        return Result([conduct(pair, case) for case in cases])


def conduct(pair: Pair, case: Case) -> CaseResult:
    """One case, step by step: each process does its part of a step before the next begins."""
    try:
        text = json.dumps([case.defaults, case.setup, case.steps, case.expect])
    except RecursionError:
        return CaseResult(case.id, ok=False, why="not understood: nested too deep")
    # The target first: what it lays down the sender finds.  Then the sender first: it may have a
    # vector to send that the target waits for.
    for pcpu in (TARGET, SENDER):
        if why := pair.ask(pcpu, ["case", text])[0]:
            return CaseResult(case.id, ok=False, why=why)
    sent: list[int] = []
    for i in range(len(case.steps)):
        for pcpu in (SENDER, TARGET):
            why, new = pair.ask(pcpu, ["step", i])
            if why:
                return CaseResult(case.id, ok=False, why=why)
            sent += new
    why, _ = pair.ask(TARGET, ["expect", sent])
    return CaseResult(case.id, ok=not why, why=why)


# -- in the two processes ------------------------------------------------------------------------


class LiveBench(Bench):
    """A case's state, with the local APIC and the processor of a real pCPU process.

    The target's also lies in the mapped file (`lay_down`); the sender's guest never runs.
    """

    def __init__(self, state: dict[str, Any], cpu: SuiteCpu) -> None:
        super().__init__(state)
        plain, self.lapic, self.processor = self.lapic, cpu.lapic, cpu.lp
        self.lapic.irr, self.lapic.isr, self.lapic.tpr = plain.irr, plain.isr, plain.tpr
        self.lapic.send = plain.send
        # Of its `cpu` a bench wants the steps of `Cpu`, and what was counted under these names.
        self.cpu = cast("BareCpu", cpu)
        self._live = cpu
        at = cpu.memory.vcpu(VCPU, 0)
        self._mapped = cpu.memory.buffer[at : at + DESCRIPTOR_BYTES]
        cpu.idt = self.interrupt

    def lay_down(self) -> None:
        """Put descriptor and virtual-APIC page into the mapped file, before anybody else looks."""
        self._mapped[:] = self.descriptor
        page, plain = self._live.words[VCPU].page, self.vmcs.vapic.page
        page.mem[:] = bytes(PAGE_BYTES)
        for register in (VTPR, VPPR):
            page.write32(register, plain.read32(register))
        for base in (VISR, VIRR):
            page.or_bits(base, plain.bits(base))
        self.vmcs.vapic = VirtualApic(page)

    def read_descriptor(self) -> None:
        """What lies in the mapped file now."""
        self.descriptor = bytearray(self._mapped)

    def take(self) -> None:
        """Vectors have come: posted-interrupt processing, exits, the guest's handlers."""
        self.boundary()
        self.run_handlers()


class Half:
    """One process's part of a case."""

    def __init__(self, cpu: SuiteCpu) -> None:
        self.cpu = cpu
        self._bench: LiveBench | None = None
        self._steps: list[Any] = []
        self._expect: dict[str, Any] = {}
        self._out = -1  # the vector that has left ahead of the step that takes it

    def take(self) -> None:
        if self._bench is not None:
            self._bench.take()

    def obey(self, order: Any) -> tuple[str, list[int]]:
        """Do it.  Why it could not be done, else ""; and the vectors that a text has sent."""
        before = len(self.cpu.sent)
        match order:
            case ["case", text]:
                self.cpu.await_quiet()  # nothing of the last case may come into this one
                self._bench, self.cpu, before = None, self.cpu.renewed(), 0
                why = outcome_of("", lambda: self._begin(*json.loads(text))).why
            case ["step", int(i)]:
                part = self._send_part if self.cpu.pcpu == SENDER else self._target_part
                why = outcome_of("", lambda: part(i)).why
            case ["expect", sent]:
                why = outcome_of("", lambda: self._check(sent)).why
            case _:
                raise AssertionError(f"unknown order {order!r}")
        return why, [ipi.vector for ipi in self.cpu.sent[before:]]

    def _begin(self, defaults: Any, setup: Any, steps: list[Any], expect: Any) -> None:
        bench = LiveBench(merged(defaults, setup), self.cpu)
        if self.cpu.pcpu == TARGET:
            bench.lay_down()
        self._bench, self._steps, self._expect, self._out = bench, steps, expect, -1

    def _send_part(self, i: int) -> None:
        """Posts and sends."""
        assert self._bench is not None
        step = self._steps[i]
        match op_of(step):
            case "post":
                before = len(self.cpu.sent)
                self._bench.read_descriptor()
                self._bench.step(step)
                # Only now, behind the last vector of the step: a target that is as fast as its
                # sender would clear ON in between, and the case says that ON stays.
                due = self._arrival(i + 1)
                if Sent(TARGET, due, VCPU) in self.cpu.sent[before:]:
                    self.cpu.let_out(due)
                    self._out = due
            case "phys_interrupt":
                known_keys("phys_interrupt", step, ("op", "vector"))
                vector = vector_of(step.get("vector"))
                if self._out != vector:
                    self.cpu.let_out(vector)
                self._out = -1

    def _target_part(self, i: int) -> None:
        """Everything else, and what comes of a message."""
        assert self._bench is not None
        match op_of(self._steps[i]):
            case "post":
                pass
            case "phys_interrupt":
                self.cpu.await_vector(self._arrival(i), self.take)
            case _:
                self._bench.step(self._steps[i])

    def _arrival(self, i: int) -> int:
        """The vector that comes with step `i`, -1 if none does."""
        if i >= len(self._steps) or op_of(self._steps[i]) != "phys_interrupt":
            return -1
        return vector_of(self._steps[i].get("vector"))

    def _check(self, sent: list[int]) -> None:
        """The expectations, on the target's state and the mapped descriptor."""
        assert self._bench is not None
        self.cpu.sent = [Sent(TARGET, vector, VCPU) for vector in sent]
        self._bench.read_descriptor()
        check_all(self._bench, self._expect)


def op_of(step: Any) -> Any:
    """What a step is, None if it is no step at all."""
    return step.get("op") if isinstance(step, dict) else None


def main() -> int:
    """One process of the pair; its exit status."""
    runtime, pcpu, launcher = sys.argv[1:]
    half = Half(enlist(runtime, int(pcpu), int(launcher)))
    fabric = half.cpu.fabric
    try:
        while (order := half.cpu.next_order(half.take)) is not None:
            fabric.report(["answer", int(pcpu), half.obey(order)])
    except RunBroken as error:
        sys.stderr.write(f"{error}\n")
        return 1
    fabric.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
