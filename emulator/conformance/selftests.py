"""Group kvm_selftests: what Linux's selftests do, told in sentences.

A case is one of four kinds, by what its steps look like: instructions in words ("do"), loops of
two CPUs ("loop", see `liveness`), ICR read-back rules ("write" and "read"), or the shared
vocabulary ("op").
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from emulator.conformance.bench import Bench, merged
from emulator.conformance.document import Case
from emulator.conformance.expectations import check_all, check_key
from emulator.conformance.liveness import run_liveness
from emulator.conformance.readback import run_readback
from emulator.conformance.words import (
    MismatchError,
    NotUnderstoodError,
    check,
    known_keys,
    vector_of,
    vector_set,
    vectors_in,
)
from emulator.hardware import instructions
from emulator.hardware.apicv import VIRR, VISR, VPPR, VTPR
from emulator.hardware.vectors import MSR_X2APIC_SELF_IPI, MSR_X2APIC_TPR, ExitReason
from emulator.hardware.vmcs import INFO_VALID
from emulator.hardware.vmx import Outcome

_VECTOR = r"(?P<vector>0x[0-9a-f]+|\d+)"
_HOST = r"(?:(?:the )?(?:host|kvm|vmm|software) )?"
_REGISTER = r"(?:TPR class|PPR class|CR8)"
_TOP = r"(?:the )?(?:top|highest)(?: vector| bit)?"
_NO_EOI = r"(?:no|without|not yet|before) (?:an )?EOI(?:ed)?(?: yet)?"
_OFF = r"(?:off|disabled|inactive|inhibited|deactivated)"
_ON = r"(?:on|enabled|active|activated)(?: again)?"

SEPARATOR: Final = re.compile(r"(?:[\s,;:.]|\band\b|\bthen\b)+")
CLAUSES: Final = [
    (re.compile(pattern, re.IGNORECASE), name)
    for pattern, name in (
        (rf"check (?P<what>{_REGISTER}(?: = {_REGISTER})*)", "agree"),
        (rf"self-?IPI (?:of )?(?:vector )?{_VECTOR}(?: with IF=(?P<flag>[01]))?", "self_ipi"),
        (rf"{_HOST}sets TPR class (?:to )?(?P<level>\d+)", "host_sets_tpr"),
        (r"(?:guest )?(?:writes|sets) CR8 ?(?:=|to)? ?(?P<level>\d+)", "set_cr8"),
        (r"wait \d+ [mun]?s", "wait"),
        (r"(?P<insn>STI|CLI|NOP|HLT|IRET)", "insn"),
        (rf"{_HOST}(?:guest )?EOIs?(?: of {_VECTOR}| {_VECTOR.replace('vector', 'v2')})?", "eoi"),
        (rf"(?:APICv (?:is )?{_OFF}|{_HOST}(?:inhibits?|deactivates?|disables?) APICv)", "off"),
        (rf"(?:APICv (?:is )?{_ON}|{_HOST}(?:re-?)?(?:activates?|enables?) APICv)", "on"),
        (rf"{_HOST}sets? SVI (?::?= ?|to )?{_TOP} (?:of|in) V?ISR", "svi_follows"),
        (rf"(?:vector )?{_VECTOR} (?:is )?(?:in service|delivered)", "serve"),
        (rf"{_NO_EOI}|(?:the )?handler (?:is )?entered", "in_handler"),
    )
]

_X2APIC: Final = {"virtualize_x2apic_mode": 1, "virtualize_apic_accesses": 0}
_XAPIC: Final = {"virtualize_x2apic_mode": 0, "virtualize_apic_accesses": 1}


def run_selftest(case: Case) -> None:
    """One case."""
    kinds = [set(step) if isinstance(step, dict) else set() for step in case.steps]
    if kinds and all("do" in kind for kind in kinds):
        for mode in (_X2APIC, _XAPIC):
            _run_sentences(case, mode)
    elif kinds and all("loop" in kind for kind in kinds):
        run_liveness(case)
    elif kinds and all({"write", "read"} <= kind for kind in kinds):
        run_readback(case)
    elif kinds and all("op" in kind for kind in kinds):
        bench = Bench(merged(case.defaults, case.setup))
        for step in case.steps:
            bench.step(step)
        check_all(bench, case.expect)
    else:
        raise NotUnderstoodError("steps of no known kind")


def _run_sentences(case: Case, mode: dict[str, int]) -> None:
    setup = dict(case.setup)
    controls = {"apic_register_virtualization": 1} | mode | setup.get("controls", {})
    guest = SentenceBench(merged(case.defaults, setup | {"controls": controls}))
    guest.vm_entry()
    for step in case.steps:
        guest.sentence(str(step["do"]))
        for key, expected in step.items():
            if key not in ("n", "do", "notes"):
                guest.check_after_step(key, expected)
    if not case.expect:
        raise NotUnderstoodError("the case expects nothing")
    for key, expected in case.expect.items():
        if key == "received_total":
            check(key, len(guest.delivered), expected)
        elif key in ("isr", "irr"):
            check_key(guest, f"v{key}", expected)
        else:
            check_key(guest, key, expected)


class SentenceBench(Bench):
    """A guest, and a host that can look at and change its virtual APIC between two instructions."""

    checked: int | None = None
    apicv = True

    def sentence(self, text: str) -> None:
        """Clause by clause.  A handler that a sentence leaves without EOI is not run to its end."""
        if re.search(_NO_EOI, text, re.IGNORECASE):
            self.handler_ends = False
        position = 0
        while position < len(text):
            skipped = SEPARATOR.match(text, position)
            position = skipped.end() if skipped else position
            if position == len(text):
                break
            for pattern, name in CLAUSES:
                found = pattern.match(text, position)
                if found:
                    clause: Callable[..., None] = getattr(self, f"do_{name}")
                    clause(**found.groupdict())
                    position = found.end()
                    break
            else:
                raise NotUnderstoodError(f"unknown words {text[position:]!r} in {text!r}")

    def run_insn(self, outcome: Outcome) -> None:
        """An instruction has executed.  An exit for a read of PPR is the host's to emulate."""
        self.retire(outcome)
        self.run_handlers()
        if self.processor.in_root:
            self.vm_entry()

    def do_agree(self, what: str) -> None:
        values = {name.strip(): self._read(name.strip().lower()) for name in what.split("=")}
        if len(set(values.values())) != 1:
            raise NotUnderstoodError(f"check: {values} differ")
        self.checked = next(iter(values.values()))

    def do_self_ipi(self, vector: str, flag: str | None) -> None:
        if flag is not None:
            check("IF", self.vmcs.guest.interrupt_flag, flag == "1")
        number = vector_of(vector)
        if not self.apicv:
            self.do_serve(vector)
        elif self.processor.controls.virtualize_apic_accesses:
            self.run_insn(instructions.xapic_write(self.processor, 0x300, 1 << 18 | number))
        else:
            self.run_insn(instructions.wrmsr(self.processor, MSR_X2APIC_SELF_IPI, number))

    def do_host_sets_tpr(self, level: str) -> None:
        def set_vtpr() -> None:
            self.vmcs.vapic.page.write32(VTPR, int(level) << 4)

        self._in_root(set_vtpr)

    def do_set_cr8(self, level: str) -> None:
        self.run_insn(instructions.mov_to_cr8(self.processor, int(level)))

    def do_wait(self) -> None:
        self.run_insn(instructions.nop(self.processor))

    def do_svi_follows(self) -> None:
        check("SVI", self.vmcs.vapic.svi, self.vmcs.vapic.page.top(VISR))  # `do_on` has set it

    def do_in_handler(self) -> None:
        if not self.vmcs.vapic.page.top(VISR):
            raise MismatchError("no vector is in service")

    def do_insn(self, insn: str) -> None:
        name = insn.lower()
        self.guest({"op": "guest", "insn": name})
        if name == "sti":
            self.do_wait()  # its shadow ends with the instruction after it

    def do_eoi(self, vector: str | None, v2: str | None) -> None:
        said = vector or v2
        top = self.vmcs.vapic.page.top(VISR)
        if said is not None:
            check("EOI of", top, vector_of(said))
        if self.apicv:
            self.run_insn(instructions.eoi(self.processor))
        else:
            self.vmcs.vapic.page.clear_bit(VISR, top)  # the host's emulation

    def do_off(self) -> None:
        """APICv goes off: the host emulates the APIC on the same page, SVI goes stale."""
        self.apicv = False
        self._in_root(lambda: self._use_delivery(on=False))

    def do_on(self) -> None:
        """APICv goes on: SVI and RVI must follow the page, or the first EOI is lost."""

        def turn_on() -> None:
            self._use_delivery(on=True)
            self.vmcs.svi = self.vmcs.vapic.page.top(VISR)
            self.vmcs.rvi = self.vmcs.vapic.page.top(VIRR)

        self.apicv = True
        self._in_root(turn_on)

    def _use_delivery(self, *, on: bool) -> None:
        self.vmcs.controls = replace(self.vmcs.controls, virtual_interrupt_delivery=on)

    def do_serve(self, vector: str) -> None:
        """The host delivers a vector by event injection; nobody EOIs it yet."""
        self.handler_ends = False

        def inject() -> None:
            self.vmcs.vapic.page.set_bit(VISR, vector_of(vector))
            self.vmcs.entry_interruption_info = INFO_VALID | vector_of(vector)

        self._in_root(inject)

    def _in_root(self, what: Callable[[], None]) -> None:
        self.processor.vm_exit(ExitReason.PREEMPTION_TIMER)
        what()
        self.vm_entry()

    def _read(self, name: str) -> int:
        """What the guest reads, by class."""
        p = self.processor
        paged = p.controls.virtualize_apic_accesses
        match name:
            case "cr8":
                self.run_insn(instructions.mov_from_cr8(p))
                return p.result
            case "tpr class" if paged:
                self.run_insn(instructions.xapic_read(p, VTPR))
            case "tpr class":
                self.run_insn(instructions.rdmsr(p, MSR_X2APIC_TPR))
            case _ if paged:
                p.result = self.vmcs.vapic.page.read32(VPPR)  # exit 44, and the host emulates
            case _:
                self.run_insn(instructions.rdmsr(p, 0x80A))
        return p.result >> 4

    def check_after_step(self, key: str, expected: Any) -> None:
        """A step's own expectations."""
        page = self.vmcs.vapic.page
        match key:
            case "expect":
                check("checked value", self.checked, expected)
            case "expect_received":
                check(key, len(self.delivered), expected)
            case "expect_ppr_class":
                check(key, self._read("ppr class"), expected)
            case "expect_tpr_class":
                check(key, self._read("tpr class"), expected)
            case "expect_cr8":
                check(key, self._read("cr8"), expected)
            case "expect_isr" | "expect_irr":
                bits = page.bits(VISR if key == "expect_isr" else VIRR)
                check(key, vectors_in(bits), vectors_in(vector_set(expected)))
            case _ if key.startswith("expect_"):
                known_keys("step", [key[7:]], ("svi", "rvi", "visr", "virr", "vtpr", "vppr"))
                check_key(self, key[7:], expected)
            case _:
                raise NotUnderstoodError(f"unknown key {key!r} in step")
