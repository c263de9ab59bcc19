"""What a vCPU's virtual APIC is while APICv is inhibited: the steps that `kvm/apicv` takes.

The software VIRR lies beside VIRR in the mapped file, because VIRR is the owner's alone
(`memory.SharedApicPage`).  Setting a bit is recorded as POST and merging it as SYNC, so that the
account balances as for PIR.  Before: `descriptors`.  Next: `timers`, `live`.
"""

from dataclasses import replace
from time import monotonic_ns
from typing import Any

from emulator.hardware.vmcs import INFO_VALID
from emulator.machine.controls import MSRS_WITHOUT_APICV, intercepted_msrs, without_apicv
from emulator.machine.descriptors import Descriptors
from emulator.machine.memory import H_APICV_INHIBITED, V_APICV_OFF, V_MERGES, V_SOFT_VIRR
from emulator.machine.processor import EOI


class Inhibition(Descriptors):
    """APICv that comes and goes, on one pCPU."""

    __slots__ = (
        "_apicv_off", "_controls_off", "_controls_window", "_inhibited", "_merges", "_msrs",
        "_soft_virr",
    )  # fmt: skip

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        memory = self.memory
        vcpus = range(memory.shape.vcpus)
        self._controls_off = without_apicv(self._controls)
        self._controls_window = replace(self._controls_off, interrupt_window_exiting=True)
        self._msrs = intercepted_msrs(self.cell.kvm)
        self._inhibited = memory.u32(H_APICV_INHIBITED)
        self._apicv_off = [memory.u32(memory.vcpu(vcpu, V_APICV_OFF)) for vcpu in vcpus]
        self._merges = [memory.u64(memory.vcpu(vcpu, V_MERGES)) for vcpu in vcpus]
        self._soft_virr = [
            [memory.u64(memory.vcpu(vcpu, V_SOFT_VIRR + 8 * i)) for i in range(4)] for vcpu in vcpus
        ]

    def apicv_inhibited(self) -> bool:
        inhibited = self._inhibited.load()
        if self.irqs_on:
            self._step()
        return inhibited != 0

    def store_apicv_inhibited(self, inhibited: bool) -> None:
        self._inhibited.store(inhibited)
        if self.irqs_on:
            self._step()

    def apicv_active(self, vcpu: int) -> bool:
        off = self._apicv_off[vcpu].load()
        if self.irqs_on:
            self._step()
        return off == 0

    def store_apicv_active(self, vcpu: int, active: bool) -> None:
        self._apicv_off[vcpu].store(not active)
        if self.irqs_on:
            self._step()

    # -- the software VIRR -------------------------------------------------------------------------

    def lapic_set_irr(self, vcpu: int, vector: int) -> bool:
        mask = 1 << (vector & 63)
        was = self._soft_virr[vcpu][vector >> 6].fetch_or(mask) & mask
        self.note_post(vcpu, vector, was)
        if self.irqs_on:
            self._step()
        return was != 0

    def lapic_merge_irr(self, vcpu: int) -> None:
        found = 0
        for i, word in enumerate(self._soft_virr[vcpu]):
            if word.load():
                found |= word.exchange(0) << 64 * i
        if found:
            page = self.words[vcpu].page
            before = page.virr
            page.virr = before | found
            self._merges[vcpu].fetch_add(1)
            self._note_syncs(monotonic_ns(), 0, vcpu, found, before)
        if self.irqs_on:
            self._step()

    # -- the VMCS and the virtual-APIC page --------------------------------------------------------

    def refresh_apicv_exec_ctrl(self, vcpu: int, active: bool) -> None:
        vmcs = self.vmcs[vcpu]
        vmcs.controls = self._controls if active else self._controls_off
        vmcs.msr_write_intercepts = self._msrs if active else MSRS_WITHOUT_APICV

    def find_highest_visr(self, vcpu: int) -> int:
        return self.words[vcpu].page.visr.bit_length() - 1

    def clear_visr(self, vcpu: int, vector: int) -> None:
        self.words[vcpu].page.visr &= ~(1 << vector)
        self.note((monotonic_ns(), 0, 0, EOI, vector, self.pcpu, vcpu, 0))

    def set_svi(self, vector: int) -> None:
        self.loaded.svi = max(vector, 0)

    def inject_irq(self, vcpu: int, vector: int) -> None:
        self.words[vcpu].page.take(vector)
        self.vmcs[vcpu].entry_interruption_info = INFO_VALID | vector

    def interrupt_injected(self, vcpu: int) -> bool:
        return self.vmcs[vcpu].entry_interruption_info & INFO_VALID != 0

    def enable_irq_window(self, vcpu: int) -> None:
        self.vmcs[vcpu].controls = self._controls_window

    def disable_irq_window(self, vcpu: int) -> None:
        self.vmcs[vcpu].controls = self._controls_off
