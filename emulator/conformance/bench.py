"""One processor, one vCPU, one descriptor, and the shared vocabulary of steps.

A guest without a program: it executes what the steps say, and handlers of the case's kind for what
is delivered.  The VMM around it does nothing but what the steps say, except that it moves the
guest past an instruction that has exited.
Next: `expectations` compares what came of it.
"""

from dataclasses import dataclass
from typing import Any, Final

from emulator.conformance.agents import agent_of, post_text
from emulator.conformance.words import (
    NotUnderstoodError,
    known_keys,
    number,
    switch,
    vector_of,
    vector_set,
)
from emulator.hardware import entry_checks, instructions, pi_desc
from emulator.hardware.apicv import VIRR, VISR, VPPR, VTPR
from emulator.hardware.bare import BareCpu
from emulator.hardware.cpu import NOTIFICATION, Control
from emulator.hardware.destinations import decode_icr, targets
from emulator.hardware.lapic import LocalApic
from emulator.hardware.posted import process_posted_interrupts
from emulator.hardware.vectors import ExitReason
from emulator.hardware.vmcs import (
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_STI,
    Activity,
    Controls,
    GuestState,
    Vmcs,
)
from emulator.hardware.vmx import TRAP_LIKE, LogicalProcessor, Outcome

SECTIONS: Final = ("controls", "vmcs", "vapic", "guest", "pid", "lapic", "handler")
HANDLERS: Final = ("eoi_iret", "record_only")
SETTLE_MAX: Final = 10_000  # boundaries after one step: a guest that never comes to rest is wrong

ACTIVITIES: Final = {
    "active": Activity.ACTIVE,
    "hlt": Activity.HLT,
    "mwait": Activity.MWAIT,
    "shutdown": Activity.SHUTDOWN,
    "wait_for_sipi": Activity.WAIT_FOR_SIPI,
}

_MEMBERS: Final = {
    "vmcs": (
        *("rvi", "svi", "nv", "tpr_threshold", "eoi_exit_bitmap", "pi_desc_addr"),
        *("virtual_apic_addr", "apic_access_addr", "pid_pointer_addr", "pid_pointer_last"),
    ),
    "vapic": ("vtpr", "vppr", "virr", "visr"),
    "guest": ("if", "blocking_by_sti", "blocking_by_mov_ss", "activity"),
    "pid": ("pir", "on", "sn", "nv", "ndst"),
    "lapic": ("irr", "isr", "tpr"),
}


@dataclass(frozen=True, slots=True)
class Exit:
    """One VM exit, as the VMM reads it."""

    reason: ExitReason
    qualification: int
    interruption_info: int


def merged(
    defaults: dict[str, Any], setup: dict[str, Any], extra: tuple[str, ...] = ()
) -> dict[str, Any]:
    """`setup` over `defaults`, section by section.  `extra` names guest members of one group."""
    known_keys("setup", setup, SECTIONS)
    state: dict[str, Any] = {}
    for section in SECTIONS:
        base, over = defaults.get(section, {}), setup.get(section, {})
        if section == "handler":
            state[section] = setup.get(section, defaults.get(section, "eoi_iret"))
            continue
        if not isinstance(base, dict) or not isinstance(over, dict):
            raise NotUnderstoodError(f"{section!r} in setup is not an object")
        state[section] = base | over
        if section != "controls":
            known_keys(section, state[section], _MEMBERS[section] + extra)
    if state["handler"] not in HANDLERS:
        raise NotUnderstoodError(f"unknown handler {state['handler']!r}")
    return state


def controls_of(values: dict[str, Any]) -> Controls:
    """Controls from the names of a case, which are those of `Controls`."""
    known_keys("controls", values, Controls.__dataclass_fields__)
    return Controls(**{name: switch(value) for name, value in values.items()})


def vmcs_of(state: dict[str, Any]) -> Vmcs:
    """The VMCS, with its virtual-APIC page and the guest's state."""
    guest = state["guest"]
    if guest.get("activity", "active") not in ACTIVITIES:
        raise NotUnderstoodError(f"unknown activity {guest['activity']!r}")
    shadows = (BLOCKING_BY_STI if switch(guest.get("blocking_by_sti", 0)) else 0) | (
        BLOCKING_BY_MOV_SS if switch(guest.get("blocking_by_mov_ss", 0)) else 0
    )
    vmcs = Vmcs(
        controls_of(state["controls"]),
        guest=GuestState(
            interrupt_flag=switch(guest.get("if", 1)),
            interruptibility=shadows,
            activity=ACTIVITIES[guest.get("activity", "active")],
        ),
    )
    for name, value in state["vmcs"].items():
        if name == "eoi_exit_bitmap":
            vmcs.eoi_exit_bitmap = vector_set(value)
        else:
            setattr(vmcs, name, number(value, MAXPHYADDR=entry_checks.PHYSICAL_ADDRESS_WIDTH))
    page, vapic = vmcs.vapic.page, state["vapic"]
    page.write32(VTPR, number(vapic.get("vtpr", 0)))
    page.write32(VPPR, number(vapic.get("vppr", 0)))
    page.or_bits(VIRR, vector_set(vapic.get("virr", [])))
    page.or_bits(VISR, vector_set(vapic.get("visr", [])))
    return vmcs


def descriptor_of(pid: dict[str, Any]) -> bytearray:
    """The 64 bytes."""
    descriptor = bytearray(pi_desc.DESCRIPTOR_BYTES)
    pi_desc.write_pir(descriptor, vector_set(pid.get("pir", [])))
    control = Control(
        on=switch(pid.get("on", 0)),
        sn=switch(pid.get("sn", 0)),
        nv=vector_of(pid.get("nv", 0)),
        ndst=number(pid.get("ndst", 0)),
    )
    pi_desc.write_control(descriptor, pi_desc.pack_control(control))
    return descriptor


class Bench:
    """The state of one case while its steps run.  `interrupt` is the guest's IDT."""

    def __init__(self, state: dict[str, Any]) -> None:
        """From `merged` sections."""
        lapic = LocalApic(send=self._own_message)
        lapic.irr = vector_set(state["lapic"].get("irr", []))
        lapic.isr = vector_set(state["lapic"].get("isr", []))
        lapic.tpr = number(state["lapic"].get("tpr", 0))
        self.lapic = lapic
        self.processor = LogicalProcessor(lapic, self)
        self.vmcs = vmcs_of(state)
        self.descriptor = descriptor_of(state["pid"])
        self.cpu = BareCpu([self.descriptor], self.processor)
        self.handler_ends = state["handler"] == "eoi_iret"
        self.handlers: list[int] = []  # per running handler: instructions it has still to execute
        self.delivered: list[int] = []
        self.exits: list[Exit] = []
        self.reads: list[int] = []
        self.gp_faults = 0
        self.pi_processings = 0
        self.physical_eois = 0
        self.vm_entry_failed: list[str] = []
        self._skip = False

    def _own_message(self, value: int) -> None:
        """A guest's ICR write has reached the physical APIC, which is the only one there is."""
        icr = decode_icr(value, self.lapic.mode)
        if targets([self.lapic], 0, icr):
            self.lapic.accept(icr.vector)

    # -- the guest's IDT and its handlers -------------------------------------------------------

    def interrupt(self, vector: int) -> None:
        self.delivered.append(vector)
        if self.handler_ends:
            self.handlers.append(2)  # EOI, IRET

    def run_handlers(self) -> None:
        """Until no handler runs, or the guest has exited."""
        while self.handlers and not self.processor.in_root:
            assert len(self.delivered) < SETTLE_MAX, "handlers without end"
            self.handlers[-1] -= 1
            if self.handlers[-1]:
                outcome = instructions.eoi(self.processor)
            else:
                self.handlers.pop()
                outcome = instructions.iret(self.processor)
            self.retire(outcome)

    # -- instructions and boundaries ------------------------------------------------------------

    def retire(self, outcome: Outcome) -> None:
        """What an instruction came to, and the boundary behind it."""
        if outcome == instructions.FAULT:
            self.gp_faults += 1
        elif outcome == instructions.IPI:
            self._ipi_virtualization()
        elif outcome is not None:
            self.record_exit()
            self._skip = outcome not in TRAP_LIKE
        self.boundary()

    def _ipi_virtualization(self) -> None:
        vector, target = self.processor.ipi
        if target == 0 and vector >= 16:  # virtual APIC ID 0 is the only one there is
            text = post_text(agent_of("ipi virtualization"), 0, vector, nv=0)
            text(self.cpu)
        else:
            self.processor.vm_exit(ExitReason.APIC_WRITE, 0x300)
            self.record_exit()

    def boundary(self) -> None:
        """Everything that may come at this boundary, posted-interrupt processing included."""
        while not self.processor.in_root:
            outcome = self.processor.boundary()
            if outcome is None:
                return
            if outcome == NOTIFICATION:
                self.pi_processings += 1
                process_posted_interrupts(self.cpu)
            else:
                self.record_exit()

    def record_exit(self) -> None:
        """The processor has just left non-root operation."""
        p = self.processor
        self.exits.append(
            Exit(ExitReason(p.exit_reason), p.exit_qualification, p.exit_interruption_info)
        )

    # -- the steps ------------------------------------------------------------------------------

    def step(self, step: Any) -> None:
        """One step of the shared vocabulary."""
        if not isinstance(step, dict):
            raise NotUnderstoodError(f"step {step!r} is not an object")
        match step.get("op"):
            case "vm_entry":
                known_keys("vm_entry", step, ("op",))
                self.vm_entry()
            case "guest":
                self.guest(step)
            case "phys_interrupt":
                known_keys("phys_interrupt", step, ("op", "vector"))
                self.lapic.accept(vector_of(step.get("vector")))
                self.boundary()
                self.run_handlers()
            case "post":
                self.post(step)
            case "host_eoi":
                known_keys("host_eoi", step, ("op",))
                self.host_eoi()
            case "sync_pir_to_rvi":
                known_keys("sync_pir_to_rvi", step, ("op",))
                self.sync_pir_to_rvi()
            case "unrelated_exit":
                known_keys("unrelated_exit", step, ("op",))
                self._in_non_root("unrelated_exit")
                self.processor.vm_exit(ExitReason.PREEMPTION_TIMER)
                self.record_exit()
            case op:
                raise NotUnderstoodError(f"unknown step {op!r}")

    def vm_entry(self) -> None:
        """VM entry, then run up to quiescence or exit."""
        if not self.processor.in_root:
            raise NotUnderstoodError("vm_entry: the guest is in non-root operation already")
        if self._skip:
            self.vmcs.guest.skip_instruction()
            self._skip = False
        if self.processor.vm_entry(self.vmcs) is not None:
            self.record_exit()
        self.boundary()
        self.run_handlers()

    def guest(self, step: dict[str, Any]) -> None:
        """One guest instruction, and the work that is pending after it."""
        self._in_non_root(f"guest {step.get('insn')}")
        if self.processor.guest.activity is not Activity.ACTIVE:
            activity = self.processor.guest.activity.name
            raise NotUnderstoodError(f"guest {step.get('insn')}: the guest waits in {activity}")
        reads = step.get("insn") in READS
        outcome = execute(self.processor, step)
        if reads and outcome is None:
            self.reads.append(self.processor.result)
        self.retire(outcome)
        self.run_handlers()

    def post(self, step: dict[str, Any]) -> None:
        """An agent posts; its notification is a step of its own."""
        known_keys("post", step, ("op", "vectors", "vector", "agent", "urgent", "urg"))
        agent = agent_of(step.get("agent", "software"), step.get("urgent", step.get("urg")))
        vectors = step.get("vectors", [step["vector"]] if "vector" in step else None)
        if not isinstance(vectors, list):
            raise NotUnderstoodError("post: no list of vectors")
        for vector in vectors:
            control = pi_desc.unpack_control(pi_desc.read_control(self.descriptor))
            text = post_text(agent, 0, vector_of(vector), control.nv, control.ndst)
            text(self.cpu)

    def host_eoi(self) -> None:
        """The host's handler ends.  What no exit has acknowledged, the host's IDT takes first."""
        if not self.lapic.isr and self.lapic.pending():
            self.lapic.acknowledge()
        self.physical_eois += 1
        self.lapic.eoi()

    def sync_pir_to_rvi(self) -> None:
        """VMM software in root operation: clear ON, PIR into VIRR, RVI := top of VIRR."""
        if not self.processor.in_root:
            raise NotUnderstoodError("sync_pir_to_rvi: the guest is in non-root operation")
        self.processor.vmcs = self.vmcs
        self.cpu.pi_clear_on(0)
        self.cpu.pi_harvest(0)
        self.vmcs.rvi = self.vmcs.vapic.page.top(VIRR)

    def _in_non_root(self, what: str) -> None:
        if self.processor.in_root:
            raise NotUnderstoodError(f"{what}: the guest is not in non-root operation")


READS: Final = ("mov_from_cr8", "rdmsr", "xapic_read")

_WITHOUT_OPERANDS: Final = {
    "nop": instructions.nop,
    "pause": instructions.nop,
    "sti": instructions.sti,
    "cli": instructions.cli,
    "mov_ss": instructions.mov_ss,
    "pop_ss": instructions.mov_ss,
    "hlt": instructions.hlt,
    "vmcall": instructions.vmcall,
    "eoi": instructions.eoi,
    "iret": instructions.iret,
    "mov_from_cr8": instructions.mov_from_cr8,
}


def execute(p: LogicalProcessor, step: dict[str, Any]) -> Outcome:
    """One instruction, named by `step["insn"]`."""
    insn = step.get("insn")
    if insn in _WITHOUT_OPERANDS:
        known_keys(insn, step, ("op", "insn"))
        return _WITHOUT_OPERANDS[insn](p)
    known_keys(str(insn), step, ("op", "insn", "value", "msr", "offset", "ecx"))
    match insn:
        case "mov_to_cr8":
            return instructions.mov_to_cr8(p, number(step.get("value")))
        case "wrmsr":
            return instructions.wrmsr(p, number(step.get("msr")), number(step.get("value")))
        case "rdmsr":
            return instructions.rdmsr(p, number(step.get("msr")))
        case "xapic_write":
            offset, value = number(step.get("offset")), number(step.get("value"))
            return instructions.xapic_write(p, _page_offset(offset), value)
        case "xapic_read":
            return instructions.xapic_read(p, _page_offset(number(step.get("offset"))))
        case "mwait":
            return instructions.mwait(p, number(step.get("ecx", 0)))
        case _:
            raise NotUnderstoodError(f"unknown instruction {insn!r}")


def _page_offset(offset: int) -> int:
    if not 0 <= offset < 0x1000 or offset % 4:
        raise NotUnderstoodError(f"{offset:#x} is not the offset of a dword on the page")
    return offset
