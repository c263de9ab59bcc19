"""What VM entry refuses: the consistency of interrupt controls and fields.

Pure.  A violated rule makes VM entry fail with VMfailValid, VM-instruction error 7 ("VM entry with
invalid control fields"), before anything else happens; `hardware/vmx` trusts that it was asked.
SDM vol. 3, 26.2.1.1 (execution controls); asserted by kvm-unit-tests, vmx_controls_test.
"""

from typing import Final

from emulator.hardware.apicv import VTPR
from emulator.hardware.vmcs import Controls, Vmcs

VM_INSTRUCTION_ERROR: Final = 7
PHYSICAL_ADDRESS_WIDTH: Final = 46  # MAXPHYADDR, CPUID 80000008H


def violations(vmcs: Vmcs, width: int = PHYSICAL_ADDRESS_WIDTH) -> list[str]:
    """The rules that `vmcs` violates, each a sentence; an empty list: VM entry goes on.

    `width` is the physical-address width in bits.
    """
    controls = vmcs.controls.in_force()
    rules = _control_rules(controls) + _field_rules(vmcs, controls, width)
    return [sentence for holds, sentence in rules if not holds]


def _control_rules(c: Controls) -> list[tuple[bool, str]]:
    needs_shadow = (
        c.virtualize_x2apic_mode or c.apic_register_virtualization or c.virtual_interrupt_delivery
    )
    return [
        (
            not c.process_posted_interrupts or c.virtual_interrupt_delivery,
            "process posted interrupts needs virtual-interrupt delivery",
        ),
        (
            not c.process_posted_interrupts or c.acknowledge_interrupt_on_exit,
            "process posted interrupts needs acknowledge interrupt on exit",
        ),
        (
            not c.virtual_interrupt_delivery or c.external_interrupt_exiting,
            "virtual-interrupt delivery needs external-interrupt exiting",
        ),
        (
            c.use_tpr_shadow or not needs_shadow,
            "x2APIC mode, register virtualization and virtual-interrupt delivery need TPR shadow",
        ),
        (
            not (c.virtualize_x2apic_mode and c.virtualize_apic_accesses),
            "virtualize x2APIC mode and virtualize APIC accesses exclude each other",
        ),
    ]


def _field_rules(vmcs: Vmcs, c: Controls, width: int) -> list[tuple[bool, str]]:
    rules = []
    if c.process_posted_interrupts:
        rules += [
            (vmcs.nv >> 8 == 0, "notification vector: bits 15:8 must be 0"),
            (vmcs.pi_desc_addr & 0x3F == 0, "PI descriptor address: bits 5:0 must be 0"),
            (vmcs.pi_desc_addr >> width == 0, "PI descriptor address: beyond MAXPHYADDR"),
        ]
    if c.use_tpr_shadow:
        rules += _page_rules("virtual-APIC address", vmcs.virtual_apic_addr, width)
        if not c.virtual_interrupt_delivery:
            rules += _threshold_rules(vmcs, c)
    if c.virtualize_apic_accesses:
        rules += _page_rules("APIC-access address", vmcs.apic_access_addr, width)
    if c.ipi_virtualization:
        last_entry = vmcs.pid_pointer_addr + 8 * max(vmcs.pid_pointer_last, 0)
        rules += [
            (vmcs.pid_pointer_addr & 7 == 0, "PID-pointer table address: bits 2:0 must be 0"),
            (vmcs.pid_pointer_addr >> width == 0, "PID-pointer table: beyond MAXPHYADDR"),
            (last_entry >> width == 0, "PID-pointer table: last entry beyond MAXPHYADDR"),
        ]
    return rules


def _page_rules(name: str, address: int, width: int) -> list[tuple[bool, str]]:
    return [
        (address & 0xFFF == 0, f"{name}: bits 11:0 must be 0"),
        (address >> width == 0, f"{name}: beyond MAXPHYADDR"),
    ]


def _threshold_rules(vmcs: Vmcs, c: Controls) -> list[tuple[bool, str]]:
    threshold = vmcs.tpr_threshold
    vtpr_class = vmcs.vapic.page.read32(VTPR) >> 4 & 15
    return [
        (threshold >> 4 == 0, "TPR threshold: bits 31:4 must be 0"),
        (
            c.virtualize_apic_accesses or threshold & 15 <= vtpr_class,
            "TPR threshold: above the class of VTPR, APIC accesses not virtualized",
        ),
    ]
