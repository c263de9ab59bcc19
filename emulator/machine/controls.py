"""What of the hardware a vCPU gets: its VM-execution controls, and who may write its descriptor.

Before: a config's `kvm:`.  Next: `processor.add_vcpu()` puts the controls into each VMCS.
Kernel: setup_vmcs_config(), vmx_update_msr_bitmap_x2apic(), arch/x86/kvm/vmx/vmx.c.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from emulator.config.model import Cell, Load
from emulator.hardware.vectors import (
    MSR_TSC_DEADLINE,
    MSR_X2APIC_EOI,
    MSR_X2APIC_ICR,
    MSR_X2APIC_SELF_IPI,
)
from emulator.hardware.vmcs import Controls
from emulator.kvm.params import Kvm

APICV: Final = Controls(
    external_interrupt_exiting=True,
    process_posted_interrupts=True,
    hlt_exiting=True,
    use_tpr_shadow=True,
    activate_secondary_controls=True,
    virtualize_x2apic_mode=True,
    apic_register_virtualization=True,
    virtual_interrupt_delivery=True,
    acknowledge_interrupt_on_exit=True,
)
"""A guest with x2APIC and APICv."""


def kvm_controls(kvm: Kvm) -> Controls:
    """`APICV` under these axes: kvm_hlt_in_guest() and enable_ipiv."""
    return replace(APICV, hlt_exiting=not kvm.exitless_timer, ipi_virtualization=kvm.enable_ipiv)


def without_apicv(controls: Controls) -> Controls:
    """The same while APICv is inhibited.  Kernel: vmx_refresh_apicv_exec_ctrl()."""
    return replace(
        controls,
        process_posted_interrupts=False,
        apic_register_virtualization=False,
        virtual_interrupt_delivery=False,
        ipi_virtualization=False,
    )


MSRS_WITHOUT_APICV: Final = frozenset(
    {MSR_TSC_DEADLINE, MSR_X2APIC_ICR, MSR_X2APIC_EOI, MSR_X2APIC_SELF_IPI}
)
"""Whose WRMSR exits while APICv is inhibited."""


def intercepted_msrs(kvm: Kvm) -> frozenset[int]:
    """Whose WRMSR exits.  With IPI virtualization the guest owns its ICR."""
    return frozenset({MSR_TSC_DEADLINE} if kvm.enable_ipiv else {MSR_TSC_DEADLINE, MSR_X2APIC_ICR})


def vcpus_with_pi_sender(cell: Cell, loads: Iterable[Load]) -> set[int]:
    """Whose descriptors hardware can write once the devices of `loads` are assigned.

    Assignment is to a VM: all its vCPUs count, and a device in remapped mode counts too, because
    its entry may be changed at any time (vmx_can_use_vtd_pi()).
    """
    if cell.kvm.enable_ipiv:
        return {vcpu.index for vcpu in cell.vcpus}
    if not cell.kvm.irq_bypass:
        return set()
    targets = {target for load in loads if load.device is not None for target in load.targets}
    vms = {cell.vcpus[target].vm for target in targets}
    return {vcpu.index for vcpu in cell.vcpus if vcpu.vm in vms}
