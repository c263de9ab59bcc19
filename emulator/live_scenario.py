"""The scenario that a live config corresponds to: `pirlab check configs/X.yaml`.

A config has many vCPUs, rates and seconds; a scenario has one vCPU and one or two posts from each
kind of sender that can reach it, in every order.  What the bounds do not hold is named, not dropped
in silence; a config of which nothing is left is refused.
"""

from dataclasses import dataclass
from typing import Any, Final

from emulator.checker import Bounds, MemoryModel, Scenario, Verdict
from emulator.config.model import Cell, Load, Via
from emulator.kvm.params import FastpathIcr, Kvm, Timer

FEW_KINDS: Final = 2  # so many kinds of senders at most may post twice each
RINGING_GUESTS: Final = frozenset({"ping-pong", "ring"})  # without a load, to a vCPU of their VM


class NoScenarioError(Exception):
    """The config has nothing that the checker's bounds hold; the message is one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Correspondence:
    """A scenario, and what of the config it leaves out."""

    scenario: Scenario
    left_out: tuple[str, ...]

    def to_json(self, verdict: Verdict) -> dict[str, Any]:
        """The verdict's object, with what was left out."""
        return {**verdict.to_json(), "left_out": list(self.left_out)}


def scenario_of(cell: Cell) -> Correspondence:
    """The scenario of the vCPU that the most kinds of senders post to.

    Raises NoScenarioError if nobody posts to any in a way that the checker knows.
    """
    left_out: list[str] = []
    reached = {vcpu.index: _senders(cell, vcpu.index, left_out) for vcpu in cell.vcpus}
    target = max(reached, key=lambda vcpu: len(reached[vcpu]))
    senders = reached[target]
    if not senders:
        raise NoScenarioError(
            f"{_name(cell)}: nobody posts to a vCPU from another vCPU, a host interrupt, a timer "
            "or a device, which is what the checker's bounds hold"
        )
    me = cell.vcpus[target]
    shared = any(v.pcpu == me.pcpu and v is not me for v in cell.vcpus)
    moving = me.floats or shared
    posts = 2 if len(senders) <= FEW_KINDS and not moving else 1
    late = any(load.assigned_at_ns for load in cell.loads)
    bounds = Bounds(
        **dict.fromkeys(senders, posts),
        preempt=int(moving),
        migrate=int(me.floats),
        plug=int(late and "device" in senders),
    )
    left_out += _simplified(cell, target, reached)
    scenario = Scenario(
        name=_name(cell),
        question=cell.question,
        bounds=bounds,
        rule=cell.kvm.rule,
        pid_scheme=cell.kvm.pid_scheme,
        entry_order=cell.kvm.entry_order,
        reentry_order=cell.kvm.reentry_order,
        timer=cell.kvm.timer,
        fastpath_tscdeadline=cell.kvm.fastpath_tscdeadline,
        fastpath_preemption_timer=cell.kvm.fastpath_preemption_timer,
        fastpath_hlt=cell.kvm.fastpath_hlt,
        bugs=cell.kvm.bugs,
        memory=MemoryModel.TSO,  # a live run's, on x86
        assigned=not late and (cell.kvm.enable_ipiv or cell.kvm.irq_bypass),
        urgent=any(load.urgent for load in cell.loads),
        ipi_virtualization=cell.kvm.enable_ipiv and "device" in senders,
    )
    return Correspondence(scenario=scenario, left_out=tuple(dict.fromkeys(left_out)))


def _name(cell: Cell) -> str:
    return f"{cell.name} ({cell.label})" if cell.label else cell.name


def _senders(cell: Cell, target: int, left_out: list[str]) -> set[str]:
    """The bounds that the loads on `target` come to."""
    me = cell.vcpus[target]
    peers = [v for v in cell.vcpus if v.vm == me.vm and v is not me]
    by_guests: set[str] = set()
    if any(v.guest in RINGING_GUESTS for v in peers):
        by_guests.add("device" if cell.kvm.enable_ipiv else "remote")
    loads = [load for load in cell.loads if target in load.targets]
    return by_guests | {kind for load in loads if (kind := _kind(cell, load, target, left_out))}


def _kind(cell: Cell, load: Load, target: int, left_out: list[str]) -> str:
    """Which of the bounds a load is to `target`, empty for none."""
    here = cell.vcpus[target].pcpu
    match load.via:
        case Via.SELF_IPI:
            left_out.append(f"load {load.name}: a self-IPI is virtualized, nothing is posted")
            return ""
        case Via.VT_D:
            return "device"
        case Via.HOST_IRQ:
            return "irq" if here in load.on_pcpus else "remote"
        case Via.TSC_DEADLINE:
            return _timer_kind(cell.kvm, load, left_out)
    if cell.kvm.enable_ipiv:
        return "device"
    if load.vcpu != target:
        assert load.vcpu is not None
        if cell.vcpus[load.vcpu].pcpu == here:
            left_out.append(f"load {load.name}: its sender is taken to be on another pCPU")
        return "remote"
    if cell.kvm.fastpath_icr is FastpathIcr.NONE:
        left_out.append(f"load {load.name}: an ICR write to itself outside the fastpath")
        return ""
    left_out.append(f"load {load.name}: an ICR write to itself is taken for a fastpath timer's")
    return "fastpath"


def _timer_kind(kvm: Kvm, load: Load, left_out: list[str]) -> str:
    if kvm.exitless_timer:
        left_out.append(f"load {load.name}: the housekeeping pCPU is taken for any other sender's")
        return "remote"
    return "timer" if kvm.timer is Timer.HRTIMER else "fastpath"


def _simplified(cell: Cell, target: int, reached: dict[int, set[str]]) -> list[str]:
    """What is in the config and not in the bounds."""
    found = ["rates, arrival times and the length of the run: every order is explored instead"]
    me = cell.vcpus[target]
    others = [v.name for v in cell.vcpus if reached[v.index] and v is not me]
    if others:
        shown = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if others[4:] else "")
        found.append(f"vCPUs other than {me.name} ({shown}): the same senders, or fewer")
    if cell.kvm.halt_poll_ns:
        found.append("halt polling: it only delays blocking")
    if any(load.switch_ns for load in cell.loads):
        found.append("remapping entries that change their format")
    if cell.kvm.apicv_inhibit_ns:
        found.append("APICv that comes and goes: here it is always active")
    return found
