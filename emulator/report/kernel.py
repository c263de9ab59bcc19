"""What KVM people read: rows of /proc/interrupts, and the table of `perf kvm stat report`.

Before: `measure/exits`, and the counters that each pCPU left.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from emulator.measure.exits import ExitTimes

# The kernel's short names and words (arch/x86/kernel/irq.c, arch_show_interrupts).
ROWS: Final = (
    ("LOC", "irq_loc", "Local timer interrupts"),
    ("RES", "irq_res", "Rescheduling interrupts"),
    ("PIN", "irq_pin", "Posted-interrupt notification event"),
    ("NPI", "irq_npi", "Nested posted-interrupt event"),
    ("PIW", "irq_piw", "Posted-interrupt wakeup event"),
    ("DEV", "irq_device", "Device interrupts in remapped mode"),
)


def interrupts_text(pcpus: Sequence[Mapping[str, Any]]) -> str:
    """Host interrupts per pCPU, as /proc/interrupts has them; ends in a newline."""
    lines = ["     " + "".join(f"{f'CPU{i}':>11}" for i in range(len(pcpus)))]
    for name, key, words in ROWS:
        counts = "".join(f"{pcpu.get(key, 0):>11}" for pcpu in pcpus)
        lines.append(f"{name:>4}:{counts}   {words}")
    return "\n".join(lines) + "\n"


def exits_text(exits: Sequence[ExitTimes]) -> str:
    """The columns of `perf kvm stat report`; ends in a newline."""
    samples = sum(each.samples for each in exits)
    total = sum(each.total_ns for each in exits)
    header = (
        f"{'VM-EXIT':>22} {'Samples':>9} {'Samples%':>9} {'Time%':>8} "
        f"{'Min Time':>11} {'Max Time':>11} {'Avg time':>11}"
    )
    lines = ["Analyze events for all VMs, all VCPUs:", "", header, ""]
    lines += (
        f"{each.reason:>22} {each.samples:>9} {each.samples / samples:>9.2%} "
        f"{each.total_ns / total:>8.2%} {each.min_ns / 1e3:>9.2f}us "
        f"{each.max_ns / 1e3:>9.2f}us {each.mean_ns / 1e3:>9.2f}us"
        for each in exits
    )
    lines += ["", f"Total Samples:{samples}, Total events handled time:{total / 1e3:.2f}us."]
    return "\n".join(lines) + "\n"
