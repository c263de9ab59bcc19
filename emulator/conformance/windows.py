"""Groups interrupt_window and entry_checks: what VM entry does before the guest gets anywhere.

A guest here has a program with positions: interrupt-window cases ask at which instruction the exit
came.  Position n is the n-th instruction of `program`, its length is the end; a handler's first
instruction is called "db_handler_entry" (or "nmi_", "gp_", "0x51_").
"""

import re
from typing import Any, Final

from emulator.conformance.bench import Bench, execute, merged
from emulator.conformance.document import Case
from emulator.conformance.expectations import check_all, check_key
from emulator.conformance.words import NotUnderstoodError, check, number
from emulator.hardware import entry_checks, instructions
from emulator.hardware.vmcs import (
    INFO_EXTERNAL_INTERRUPT,
    INFO_HARDWARE_EXCEPTION,
    INFO_NMI,
    INFO_VALID,
    Activity,
)
from emulator.hardware.vmx import TRAP_LIKE

MNEMONICS: Final = {1: "db", 2: "nmi", 3: "bp", 4: "of", 6: "ud", 13: "gp", 14: "pf", 17: "ac"}
INSTRUCTIONS_MAX: Final = 1_000


class ProgramBench(Bench):
    """A bench whose guest runs a program.

    `pc` is a position, or (vector, n): instruction n of that vector's handler.
    """

    def __init__(self, state: dict[str, Any], program: list[Any], pc: int) -> None:
        super().__init__(state)
        self.program = program
        self.pc: int | tuple[int, int] = pc
        self.returns: list[int | tuple[int, int]] = []

    def interrupt(self, vector: int) -> None:
        self.delivered.append(vector)
        self.returns.append(self.pc)
        self.pc = (vector, 0)

    def run_handlers(self) -> None:
        """The program too: until it ends, waits, or the guest has exited."""
        for _ in range(INSTRUCTIONS_MAX):
            ended = isinstance(self.pc, int) and self.pc >= len(self.program)
            waits = self.vmcs.guest.activity is not Activity.ACTIVE
            if self.processor.in_root or ended or waits:
                return
            self._instruction()
        raise NotUnderstoodError(f"the program does not end in {INSTRUCTIONS_MAX} instructions")

    def _instruction(self) -> None:
        before = self.pc
        if isinstance(before, tuple):
            self._handler_instruction(*before)
            return
        self.pc = before + 1  # where an interrupt at the next boundary returns to
        insn = self.program[before]
        outcome = execute(self.processor, insn if isinstance(insn, dict) else {"insn": insn})
        if outcome is not None and outcome > 0 and outcome not in TRAP_LIKE:
            self.pc = before
        self.retire(outcome)

    def _handler_instruction(self, vector: int, n: int) -> None:
        """EOI and IRET; the handler of an exception has nothing to EOI."""
        if n == 0 and vector >= 32:
            self.pc = (vector, 1)
            self.retire(instructions.eoi(self.processor))
            return
        self.pc = self.returns.pop()
        # The frame's IF: set, if this handler was entered through an interrupt gate.
        flag = vector >= 32 or self.vmcs.guest.interrupt_flag
        self.retire(instructions.iret(self.processor, flag))

    def pc_name(self) -> int | str:
        """`pc` as cases write it."""
        if isinstance(self.pc, int):
            return self.pc
        vector, n = self.pc
        name = MNEMONICS.get(vector, f"{vector:#x}")
        return f"{name}_handler_entry" if n == 0 else f"{name}_handler+{n}"


def run_interrupt_window(case: Case) -> None:
    """A case with `setup.program`, and `exit_pc` among what it expects."""
    setup = dict(case.setup)
    program = setup.pop("program", [])
    if not isinstance(program, list):
        raise NotUnderstoodError("program is not a list")
    guest = dict(setup.get("guest", {}))
    pc = number(guest.pop("pc", 0))
    inject = guest.pop("inject", None)
    bench = ProgramBench(merged(case.defaults, setup | {"guest": guest}), program, pc)
    if inject is not None:
        bench.vmcs.entry_interruption_info = injection(inject)
    for step in case.steps:
        bench.step(step)
    for key, expected in case.expect.items():
        if key == "exit_pc":
            check("exit_pc", bench.pc_name(), expected)
        else:
            check_key(bench, key, expected)


def injection(words: Any) -> int:
    """VM-entry interruption information from words: "#DB (hardware exception, vector 1)"."""
    text = str(words).lower().replace("_", " ")
    found = re.search(r"vector\W+(0x[0-9a-f]+|\d+)", text)
    if found is None:
        raise NotUnderstoodError(f"inject: {words!r} names no vector")
    for kind, info in (
        ("hardware exception", INFO_HARDWARE_EXCEPTION),
        ("external interrupt", INFO_EXTERNAL_INTERRUPT),
        ("nmi", INFO_NMI),
    ):
        if kind in text:
            return INFO_VALID | info | int(found[1], 0)
    raise NotUnderstoodError(f"inject: {words!r} names no type of event")


def run_entry_checks(case: Case) -> None:
    """A case that asks whether VM entry refuses the VMCS.

    Only here: cases about events leave out what they are not about, and some of them would be
    refused (entry-pend-01: x2APIC mode without TPR shadow).
    """
    bench = Bench(merged(case.defaults, case.setup))
    for step in case.steps:
        if isinstance(step, dict) and step.get("op") == "vm_entry":
            bench.vm_entry_failed = entry_checks.violations(bench.vmcs)
            if bench.vm_entry_failed:
                continue  # VMfailValid: the VMM goes on behind VMLAUNCH
        bench.step(step)
    check_all(bench, case.expect)
