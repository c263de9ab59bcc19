"""What is left in the mapped file when nobody writes any more: the account's last column.

Before: `cluster` has stopped the pCPUs.  Next: `measure` balances it against the events.
"""

from typing import Any

from emulator.hardware.vectors import ExitReason
from emulator.machine.memory import P_ARRIVED, P_RUNG, P_STATS, Memory
from emulator.machine.stats import Stat
from emulator.machine.words import VcpuWords


def end_state(
    memory: Memory, words: list[VcpuWords], blocked: list[bool], irr: dict[int, list[int]]
) -> dict[str, Any]:
    """`counters.json`: per pCPU its statistics, per vCPU what is pending, the fabric's count.

    `blocked`: which vCPUs slept when the drain was over, empty if nobody looked; `irr`: the
    vectors that each pCPU's local APIC was left with.
    """
    load = memory.view.load_u64
    pcpus, sent, arrived = [], 0, 0
    for pcpu in range(memory.shape.pcpus):
        base = memory.pcpu(pcpu, P_STATS)
        exits = {str(int(reason)): n for reason in ExitReason if (n := load(base + 8 * reason))}
        stats = {s.name.lower(): load(base + 8 * s) for s in Stat}
        pcpus.append({"exits": exits, **stats, "irr_pending": irr.get(pcpu, [])})
        sent += load(memory.pcpu(pcpu, P_RUNG))
        arrived += load(memory.pcpu(pcpu, P_ARRIVED))
    vcpus = []
    for vcpu, one in enumerate(words):
        control = one.desc.control()
        vcpus.append(
            {
                "pir_pending": bits(memory.announced(vcpu)),
                "virr_pending": bits(memory.virr(vcpu)),
                "on": control & 1,
                "sn": control >> 1 & 1,
                "blocked": blocked[vcpu] if blocked else False,
            }
        )
    return {"pcpus": pcpus, "vcpus": vcpus, "sent": sent, "arrived": arrived, "in_flight": 0}


def bits(value: int) -> list[int]:
    """The vectors in a 256-bit set."""
    return [v for v in range(256) if value >> v & 1]
