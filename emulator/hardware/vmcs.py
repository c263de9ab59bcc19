"""What a VMCS holds of interrupts: controls, guest state, and the fields of APIC virtualization.

Data that software writes in root operation and the processor reads at VM entry; `hardware/vmx`
is the processor.  `hardware/entry_checks` says which combinations VM entry refuses.
SDM vol. 3, 24.4 (guest state), 24.6 (controls), appendix B (encodings).
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from emulator.hardware.apicv import ApicPage, VirtualApic

BLOCKING_BY_STI: Final = 1  # guest interruptibility state, SDM table 24-3
BLOCKING_BY_MOV_SS: Final = 2

INFO_VALID: Final = 1 << 31  # VM-entry and VM-exit interruption information, SDM table 24-15
INFO_EXTERNAL_INTERRUPT: Final = 0 << 8
INFO_NMI: Final = 2 << 8
INFO_HARDWARE_EXCEPTION: Final = 3 << 8
INFO_TYPE_MASK: Final = 7 << 8


class Activity(IntEnum):
    """The guest's activity state, SDM 24.4.2.  MWAIT is never saved: a VM exit stores ACTIVE."""

    ACTIVE = 0
    HLT = 1
    SHUTDOWN = 2
    WAIT_FOR_SIPI = 3
    MWAIT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The VM-execution and VM-exit controls that matter to interrupts.  SDM 24.6, 24.7."""

    # pin-based
    external_interrupt_exiting: bool = False  # bit 0
    process_posted_interrupts: bool = False  # bit 7
    # primary
    interrupt_window_exiting: bool = False  # bit 2
    hlt_exiting: bool = False  # bit 7
    mwait_exiting: bool = False  # bit 10
    cr8_load_exiting: bool = False  # bit 19
    cr8_store_exiting: bool = False  # bit 20
    use_tpr_shadow: bool = False  # bit 21
    activate_secondary_controls: bool = False  # bit 31
    # secondary: each counts as 0 while bit 31 above is 0
    virtualize_apic_accesses: bool = False  # bit 0
    virtualize_x2apic_mode: bool = False  # bit 4
    apic_register_virtualization: bool = False  # bit 8
    virtual_interrupt_delivery: bool = False  # bit 9
    # tertiary
    ipi_virtualization: bool = False  # bit 4
    # VM-exit
    acknowledge_interrupt_on_exit: bool = False  # bit 15

    def in_force(self) -> "Controls":
        """The controls as the processor counts them."""
        if self.activate_secondary_controls:
            return self
        return replace(
            self,
            virtualize_apic_accesses=False,
            virtualize_x2apic_mode=False,
            apic_register_virtualization=False,
            virtual_interrupt_delivery=False,
            ipi_virtualization=False,
        )


class GuestState:
    """The part of the guest-state area that decides when an interrupt can get in.

    `interruptibility` is the VMCS field: BLOCKING_BY_STI | BLOCKING_BY_MOV_SS, each good for one
    instruction.
    """

    __slots__ = ("activity", "interrupt_flag", "interruptibility")

    def __init__(
        self,
        *,
        interrupt_flag: bool = True,
        interruptibility: int = 0,
        activity: Activity = Activity.ACTIVE,
    ) -> None:
        self.interrupt_flag = interrupt_flag
        self.interruptibility = interruptibility
        self.activity = activity

    def skip_instruction(self) -> None:
        """What a VMM does to the shadows when it moves the guest past an instruction that exited.

        A fault-like exit (HLT, WRMSR, VMCALL) has left them as they were before the instruction.
        KVM: skip_emulated_instruction(), which calls vmx_set_interrupt_shadow(vcpu, 0).
        """
        self.interruptibility = 0


class Vmcs:
    """One VMCS.  `rvi`, `svi`: the guest interrupt status field, good while the guest is out.

    `eoi_exit_bitmap` has 256 bits.  `msr_write_intercepts` and `msr_read_intercepts` are the MSR
    bitmaps.  `pid_pointer_last` is the table's last index, -1 if there is no table.
    Addresses are physical, in bytes; only `entry_checks` looks at them.
    """

    __slots__ = (
        "apic_access_addr",
        "apic_access_page",
        "controls",
        "entry_interruption_info",
        "eoi_exit_bitmap",
        "guest",
        "msr_read_intercepts",
        "msr_write_intercepts",
        "nv",
        "pi_desc_addr",
        "pid_pointer_addr",
        "pid_pointer_last",
        "rvi",
        "svi",
        "tpr_threshold",
        "vapic",
        "virtual_apic_addr",
    )

    def __init__(
        self, controls: Controls, page: ApicPage | None = None, guest: GuestState | None = None
    ) -> None:
        """`page` is the virtual-APIC page, one of its own without it."""
        self.controls = controls
        self.guest = guest or GuestState()
        self.vapic = VirtualApic(page or ApicPage())
        self.nv = 0  # posted-interrupt notification vector, encoding 0002
        self.rvi = 0  # guest interrupt status, 0810
        self.svi = 0
        self.eoi_exit_bitmap = 0  # 201C to 2022
        self.tpr_threshold = 0  # 401C
        self.entry_interruption_info = 0  # 4016: the event to inject at the next entry
        self.msr_read_intercepts: frozenset[int] = frozenset()
        self.msr_write_intercepts: frozenset[int] = frozenset()
        self.apic_access_page: ApicPage | None = None  # plain memory unless accesses are virtual
        self.pi_desc_addr = 0  # 2016
        self.virtual_apic_addr = 0  # 2012
        self.apic_access_addr = 0  # 2014
        self.pid_pointer_addr = 0  # 2042
        self.pid_pointer_last = -1  # 0008
