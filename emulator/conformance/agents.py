"""Who posts to a descriptor, and by which rule; each rule is text over `cpu`, a step per call.

Hardware's rules are `hardware/senders`.  Software's is here in its barest form, the one that
golden cases mean by "software": `kvm/deliver` has the hypervisor's, with modes and wake-ups.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any

from emulator.conformance.words import NotUnderstoodError, plain
from emulator.hardware.cpu import Cpu
from emulator.hardware.senders import PidPointerTable, ipi_virtualization, vtd_post


class Agent(Enum):
    """A sender."""

    SOFTWARE = "software"
    IOMMU = "iommu"
    IOMMU_URGENT = "iommu urgent"
    IPI_VIRTUALIZATION = "ipi virtualization"
    SUITE = "kvm-unit-tests"


_NAMES = {
    "software": Agent.SOFTWARE,
    "kvm": Agent.SOFTWARE,
    "cpu": Agent.SOFTWARE,
    "vmm": Agent.SOFTWARE,
    "iommu": Agent.IOMMU,
    "vtd": Agent.IOMMU,
    "device": Agent.IOMMU,
    "ipi": Agent.IPI_VIRTUALIZATION,
    "ipiv": Agent.IPI_VIRTUALIZATION,
    "kvmunittests": Agent.SUITE,
    "kut": Agent.SUITE,
    "suite": Agent.SUITE,
}


def agent_of(name: Any, urgent: Any = None) -> Agent:
    """The agent that a case calls `name`.  Urgency stands in the name or beside it."""
    word = plain(name)
    quiet = any(mark in word for mark in ("notur", "nonur", "urgent0", "urg0"))
    loud = "urg" in word and not quiet
    for end in ("hardware", "kernel", "sender", "agent"):
        word = word.replace(end, "")
    for start in sorted(_NAMES, key=len, reverse=True):
        if word.startswith(start):
            agent = _NAMES[start]
            wants_urgent = loud if urgent in (None, "") else bool(urgent)
            if agent is Agent.IOMMU and wants_urgent:
                return Agent.IOMMU_URGENT
            return agent
    raise NotUnderstoodError(f"unknown agent {name!r}")


def software_post(cpu: Cpu, vcpu: int, vector: int, nv: int, pcpu: int) -> None:
    """PIR bit was 0, then ON was 0: send `nv` to `pcpu`.  SN is not consulted."""
    if cpu.pi_test_and_set_pir(vcpu, vector):
        return  # whoever set the bit deals with ON
    if cpu.pi_test_and_set_on(vcpu):
        return
    cpu.send_ipi(pcpu, nv, vcpu)


def suite_post(cpu: Cpu, vcpu: int, vector: int, nv: int, pcpu: int) -> None:
    """As kvm-unit-tests does: whatever was set before, send."""
    cpu.pi_test_and_set_pir(vcpu, vector)
    cpu.pi_test_and_set_on(vcpu)
    cpu.send_ipi(pcpu, nv, vcpu)


def post_text(
    agent: Agent, vcpu: int, vector: int, nv: int, pcpu: int = 0
) -> Callable[[Cpu], object]:
    """The text by which `agent` posts `vector` to `vcpu`; `nv` and `pcpu` are for software."""
    match agent:
        case Agent.SOFTWARE:
            return lambda cpu: software_post(cpu, vcpu, vector, nv, pcpu)
        case Agent.SUITE:
            return lambda cpu: suite_post(cpu, vcpu, vector, nv, pcpu)
        case Agent.IOMMU:
            return lambda cpu: vtd_post(cpu, vcpu, vector, urgent=False)
        case Agent.IOMMU_URGENT:
            return lambda cpu: vtd_post(cpu, vcpu, vector, urgent=True)
        case Agent.IPI_VIRTUALIZATION:
            table = PidPointerTable.of_vcpus(vcpu + 1)
            return lambda cpu: ipi_virtualization(cpu, vector, vcpu, table)
