"""APICv that comes and goes: who says so, what the vCPU changes, and interrupts without it.

Pure protocol text.  Reached only where `Kvm.apicv_inhibit_ns` is set.  A sender to a vCPU without
APICv sets a bit of its software VIRR (`deliver`); the vCPU merges that (`sync`) and injects by VM
entry.  PIR goes on filling up meanwhile: a sender may have looked before the change, and the IOMMU
does not look at all.
Kernel: __kvm_set_or_clear_apicv_inhibit(), kvm_vcpu_update_apicv(), kvm_check_and_inject_events(),
arch/x86/kvm/x86.c; vmx_refresh_apicv_exec_ctrl(), vmx.c; apic_set_eoi(), lapic.c.
"""

from emulator.hardware.vectors import EXITING_GUEST_MODE, IN_GUEST_MODE, RESCHEDULE_VECTOR
from emulator.kvm.cpu import Cpu
from emulator.kvm.params import B20, KVM_REQ_APICV_UPDATE, KVM_REQ_EVENT
from emulator.kvm.sync import vmx_sync_pir_to_irr


def kvm_set_or_clear_apicv_inhibit(cpu: Cpu, inhibit: bool, vcpus: int) -> None:
    """A reason against APICv has come or gone: tell vCPUs 0 to `vcpus` - 1.  Kernel: same name.

    kvm_make_all_cpus_request(): who is in guest mode is kicked, who sleeps is let sleep
    (KVM_REQUEST_NO_WAKEUP).  The reason is stored before the requests that make others read it.
    """
    cpu.store_apicv_inhibited(inhibit)
    vcpu = 0
    while vcpu < vcpus:
        cpu.make_request(vcpu, KVM_REQ_APICV_UPDATE)
        found = cpu.cmpxchg_mode(vcpu, IN_GUEST_MODE, EXITING_GUEST_MODE)
        if found == IN_GUEST_MODE:
            dest = cpu.load_vcpu_cpu(vcpu)
            cpu.send_ipi(dest, RESCHEDULE_VECTOR, vcpu)
        vcpu = vcpu + 1


def kvm_service_requests(cpu: Cpu, vcpu: int) -> None:
    """The requests at the head of vcpu_enter_guest(); APICV_UPDATE may ask for EVENT."""
    if cpu.check_request(vcpu, KVM_REQ_APICV_UPDATE):
        kvm_vcpu_update_apicv(cpu, vcpu)
    if cpu.check_request(vcpu, KVM_REQ_EVENT):
        kvm_check_and_inject_events(cpu, vcpu)


def kvm_vcpu_update_apicv(cpu: Cpu, vcpu: int) -> None:
    """Make the vCPU's APICv what the VM says it is.  Kernel: same name."""
    activate = not cpu.apicv_inhibited()
    if cpu.apicv_active(vcpu) == activate:
        return
    cpu.store_apicv_active(vcpu, activate)
    cpu.refresh_apicv_exec_ctrl(vcpu, activate)
    if activate:
        # RVI is written by the sync before the next entry; SVI by nobody else (B20): without it
        # the EOI of the handler that is running would end nothing.
        if B20 not in cpu.kvm.bugs:
            vector = cpu.find_highest_visr(vcpu)
            cpu.set_svi(vector)
        return
    # What RVI would have delivered must be injected now, and nobody has requested it.
    cpu.make_request(vcpu, KVM_REQ_EVENT)


def kvm_check_and_inject_events(cpu: Cpu, vcpu: int) -> None:
    """Without APICv: inject the highest vector above PPR, or wait for the guest to take it.

    Kernel: same name; TPR is 0 in every guest of this model, so PPR is the class in service.
    """
    if cpu.apicv_active(vcpu):
        return  # RVI does it
    vector = vmx_sync_pir_to_irr(cpu, vcpu)
    if vector < 0:
        return
    in_service = cpu.find_highest_visr(vcpu)
    if in_service >= 0 and vector >> 4 <= in_service >> 4:
        return  # its EOI exits, and requests EVENT
    # An entry that did not take place may have left a vector to inject: it goes first.
    if cpu.interrupt_injected(vcpu):
        cpu.enable_irq_window(vcpu)
    elif cpu.interrupt_allowed(vcpu):
        cpu.inject_irq(vcpu, vector)
    else:
        cpu.enable_irq_window(vcpu)


def handle_interrupt_window(cpu: Cpu, vcpu: int) -> None:
    """The guest can take an interrupt now.  Kernel: same name, vmx.c."""
    cpu.disable_irq_window(vcpu)
    cpu.make_request(vcpu, KVM_REQ_EVENT)


def kvm_lapic_set_eoi(cpu: Cpu, vcpu: int) -> None:
    """The guest's EOI exited: end what is in service, look for what waited.  Kernel: same name."""
    vector = cpu.find_highest_visr(vcpu)
    if vector >= 0:
        cpu.clear_visr(vcpu, vector)
    cpu.make_request(vcpu, KVM_REQ_EVENT)
