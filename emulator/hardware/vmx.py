"""The logical processor in VMX operation: VM entry, the boundary after each instruction, VM exit.

Pure, one pCPU's own.  It stops where the protocol begins: `boundary()` does steps 1 and 2 of
posted-interrupt processing and reports NOTIFICATION; its caller runs the text
(`posted.process_posted_interrupts`) and calls `boundary()` again.
Before: `hardware/lapic` presents vectors, `hardware/apicv` recognises virtual interrupts.
Next: the guest's IDT (`Idt`), or the VMM with an exit reason.  `hardware/instructions` is what
the guest executes in between.
SDM vol. 3, 25.2 (exits by event), 26.7 (after entry), 27.2 (exit information), 29.2.2, 29.6.
"""

from typing import Final, Protocol

from emulator.hardware.access import Access, msr_write_table
from emulator.hardware.apicv import VTPR
from emulator.hardware.cpu import NOTIFICATION
from emulator.hardware.lapic import ApicMode, LocalApic
from emulator.hardware.vectors import ExitReason
from emulator.hardware.vmcs import (
    INFO_EXTERNAL_INTERRUPT,
    INFO_HARDWARE_EXCEPTION,
    INFO_TYPE_MASK,
    INFO_VALID,
    Activity,
    Controls,
    GuestState,
    Vmcs,
)

Outcome = int | None
"""None: run on.  NOTIFICATION (0): posted-interrupt processing is due.  Above 0: an `ExitReason`;
the guest is out.  Below 0, from instructions only: `instructions.FAULT`, `instructions.IPI`."""

EXTERNAL_INTERRUPT: Final = int(ExitReason.EXTERNAL_INTERRUPT)
INTERRUPT_WINDOW: Final = int(ExitReason.INTERRUPT_WINDOW)
TPR_BELOW_THRESHOLD: Final = int(ExitReason.TPR_BELOW_THRESHOLD)

# Looking up an enumeration's member costs as much as a call: the boundary has its own names.
_ACTIVE: Final = Activity.ACTIVE
_DEAF: Final = (Activity.SHUTDOWN, Activity.WAIT_FOR_SIPI)
_WAIT_FOR_SIPI: Final = Activity.WAIT_FOR_SIPI
_MWAIT: Final = Activity.MWAIT

TRAP_LIKE: Final = frozenset(
    {ExitReason.TPR_BELOW_THRESHOLD, ExitReason.VIRTUALIZED_EOI, ExitReason.APIC_WRITE}
)
"""Instructions with these exits have completed: RIP is behind them.  With others it is on them."""


class Idt(Protocol):
    """The guest's interrupt descriptor table: whoever runs the guest's code."""

    def interrupt(self, vector: int) -> None:
        """Push a frame, go to the handler.  IF has been cleared: every gate is an interrupt gate.

        `GuestState` is the processor's business; the frame and the instruction pointer are not.
        """


class LogicalProcessor:
    """One pCPU's processor.

    `vmcs` is the current VMCS, not there before the first entry; `vapic` and `guest` are its.
    After an exit, `exit_reason`, `exit_qualification`, `exit_interruption_info` are what the VMM
    would VMREAD, `exit_msr` and `exit_value` what it finds in ECX and EDX:EAX.  `result` is what
    the guest's last read returned, `ipi` the (vector, virtual APIC ID) of the last IPI that IPI
    virtualization has to send.
    """

    __slots__ = (
        "_controls",
        "_mode",
        "controls",
        "exit_interruption_info",
        "exit_msr",
        "exit_qualification",
        "exit_reason",
        "exit_value",
        "guest",
        "idt",
        "in_root",
        "ipi",
        "lapic",
        "msr_writes",
        "result",
        "vapic",
        "vmcs",
    )

    vmcs: Vmcs

    def __init__(self, lapic: LocalApic, idt: Idt) -> None:
        self.lapic = lapic
        self.idt = idt
        self.in_root = True
        self._controls: Controls | None = None  # as written; `controls` is as in force
        self._mode: ApicMode | None = None
        self.msr_writes: tuple[Access, ...] = ()
        self.exit_reason = 0
        self.exit_qualification = 0
        self.exit_interruption_info = 0
        self.exit_msr = 0
        self.exit_value = 0
        self.result = 0
        self.ipi = (0, 0)

    # -- VM entry and VM exit -------------------------------------------------------------------

    def vm_entry(self, vmcs: Vmcs) -> Outcome:
        """VM entry, SDM 26.3 to 26.7, for a VMCS that `entry_checks` has nothing against.

        The descriptor is not read.  A boundary follows: call `boundary()` before the guest's first
        instruction.  The only outcome besides None is exit 43 (VID = 0).
        """
        assert self.in_root, "VM entry from non-root operation"
        if (
            vmcs.controls is not self._controls
            or vmcs is not self.vmcs
            or self.lapic.mode is not self._mode
        ):
            self._load(vmcs)
        self.in_root = False
        vapic = self.vapic
        if vapic.virtual_interrupt_delivery:
            vapic.rvi = vmcs.rvi
            vapic.svi = vmcs.svi
            vapic.eoi_exit_bitmap = vmcs.eoi_exit_bitmap
            vapic.ppr_and_evaluation()
        info = vmcs.entry_interruption_info
        if info and info & INFO_VALID:
            self._inject(vmcs)
        if vapic.virtual_interrupt_delivery:
            return None
        vapic.tpr_threshold = vmcs.tpr_threshold
        if (
            self.controls.use_tpr_shadow
            and self.controls.virtualize_apic_accesses
            and vapic.page.read32(VTPR) >> 4 & 15 < vmcs.tpr_threshold & 15
        ):
            return self.vm_exit(TPR_BELOW_THRESHOLD)  # SDM 26.7.7
        return None

    def vm_exit(self, reason: int, qualification: int = 0, interruption_info: int = 0) -> int:
        """VM exit, SDM 27: RVI and SVI go to the guest interrupt status, recognition is forgotten.

        PIR and ON stay as they are.  Also for exits that come from elsewhere (the VMX-preemption
        timer).  The reason.
        """
        assert not self.in_root, "VM exit from root operation"
        vmcs = self.vmcs
        vapic = self.vapic
        if self.controls.virtual_interrupt_delivery:
            vmcs.rvi = vapic.rvi
            vmcs.svi = vapic.svi
        vapic.recognised = False
        if self.guest.activity is _MWAIT:
            self.guest.activity = _ACTIVE
        self.in_root = True
        self.exit_reason = reason
        self.exit_qualification = qualification
        self.exit_interruption_info = interruption_info
        return reason

    # -- the boundary between two instructions ---------------------------------------------------

    def boundary(self) -> Outcome:
        """What may come between two guest instructions, highest priority first.  SDM table 6-2.

        An interrupt-window exit or a virtual interrupt beats an external interrupt, and delivery
        clears IF: after it nothing but an external interrupt can come (golden case pi-rule-22).
        Call it after VM entry, after each instruction, and when the local APIC has new vectors.
        """
        vapic = self.vapic
        lapic = self.lapic
        if not (vapic.recognised or lapic.irr or vapic.interrupt_window_exiting):
            return None
        guest = self.guest
        activity = guest.activity
        if (
            guest.interrupt_flag
            and not guest.interruptibility
            and (activity is _ACTIVE or activity not in _DEAF)
        ):
            if vapic.interrupt_window_exiting:
                return self.vm_exit(INTERRUPT_WINDOW)
            if vapic.recognised:
                # 29.2.2: through the guest's IDT; HLT and MWAIT end here.
                vector = vapic.deliver()
                guest.interrupt_flag = False
                guest.activity = _ACTIVE
                self.idt.interrupt(vector)
        if not lapic.irr or not lapic.pending() or activity is _WAIT_FOR_SIPI:
            return None
        return self._external_interrupt(lapic, guest)

    def _external_interrupt(self, lapic: LocalApic, guest: GuestState) -> Outcome:
        """The local APIC presents a vector in non-root operation.  SDM 25.2, 29.6 steps 1 and 2.

        With external-interrupt exiting, neither IF nor a shadow holds it back: the manual leaves
        the shadows to the implementation, this one does not look at them.
        """
        controls = self.controls
        if not controls.external_interrupt_exiting:
            if guest.interrupt_flag and not guest.interruptibility:
                vector = lapic.acknowledge()
                guest.interrupt_flag = False
                guest.activity = _ACTIVE
                self.idt.interrupt(vector)
            return None
        if not controls.acknowledge_interrupt_on_exit:
            # Posted-interrupt processing cannot be on (entry_checks): the vector stays in IRR.
            return self.vm_exit(EXTERNAL_INTERRUPT)
        vector = lapic.acknowledge()  # step 1
        if controls.process_posted_interrupts and vector == self.vmcs.nv & 0xFF:  # step 2
            if guest.activity is _MWAIT:
                # MWAIT ends with any notification, HLT only with what it delivers.
                guest.activity = _ACTIVE
            return NOTIFICATION
        info = INFO_VALID | INFO_EXTERNAL_INTERRUPT | vector
        return self.vm_exit(EXTERNAL_INTERRUPT, interruption_info=info)

    # -- inside VM entry -----------------------------------------------------------------------

    def _load(self, vmcs: Vmcs) -> None:
        """What stays from entry to entry of one VMCS, until software writes its controls."""
        self.vmcs = vmcs
        self.guest = vmcs.guest
        vapic = self.vapic = vmcs.vapic
        self._controls = vmcs.controls
        self._mode = self.lapic.mode
        controls = self.controls = vmcs.controls.in_force()
        x2apic = self.lapic.mode is ApicMode.X2APIC
        self.msr_writes = msr_write_table(controls, x2apic=x2apic)
        vapic.virtual_interrupt_delivery = controls.virtual_interrupt_delivery
        vapic.interrupt_window_exiting = controls.interrupt_window_exiting

    def _inject(self, vmcs: Vmcs) -> None:
        """Event injection, SDM 26.6: before any pending event, through the guest's IDT.

        Exceptions come through trap gates here, as in the suites, and leave IF alone.
        """
        info = vmcs.entry_interruption_info
        vmcs.entry_interruption_info = info & ~INFO_VALID
        guest = vmcs.guest
        guest.activity = _ACTIVE
        guest.interruptibility = 0
        if info & INFO_TYPE_MASK != INFO_HARDWARE_EXCEPTION:
            guest.interrupt_flag = False
        self.idt.interrupt(info & 0xFF)
