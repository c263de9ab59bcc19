"""States in words: what is in the memory, and what is wrong with it."""

from typing import Any

from emulator.checker import memory as slot
from emulator.checker.model_hardware import LIST_STEPS
from emulator.checker.world import World
from emulator.hardware.vectors import Mode
from emulator.kvm.params import TaskState


def loss(world: World, state: int) -> str:
    """What a state at rest in which a post is owed comes to, as on the mailing list."""
    if stuck := deadlock(world, state):
        return stuck
    vcpu = world.owes(state)[0]
    m, v = world.layout.unpack(state), world.layout.vcpus[vcpu]
    asleep = m[v + slot.STATE] == TaskState.SLEEPING.value
    where = "sleeps" if asleep else "is in the guest"
    kind = "lost wake-up" if asleep else "lost interrupt"
    outstanding = "no notification or wake-up outstanding" if asleep else "no vector pending"
    held = [f"PIR[{n}]" for n in _vectors(world, m[v + slot.PIR])]
    held += [f"VIRR[{n}]" for n in _vectors(world, m[v + slot.VIRR])]
    if m[v + slot.ON]:
        held.append("ON")
    if not held:
        gone = "a timer's interrupt" if not m[v + slot.OWED] else "a post"
        return f"lost interrupt: vCPU {vcpu} {where}, {gone} is nowhere to be found"
    names = " and ".join(filter(None, (", ".join(held[:-1]), held[-1])))
    return f"{kind}: vCPU {vcpu} {where}, {names} set, {outstanding}"


def deadlock(world: World, state: int) -> str:
    """Who waits for a lock in a state at rest; empty if nobody does."""
    m = world.layout.unpack(state)
    for part, node in world.nodes(state).items():
        if node.op in LIST_STEPS and m[world.layout.pcpus[node.args[0]] + slot.LOCK]:
            lock = f"the lock of pCPU {node.args[0]}'s wake-up list"
            return f"deadlock: {part.actor} waits for {lock}, which nobody will release"
    return ""


def summary(world: World, state: int, vcpu: int = 0) -> dict[str, Any]:
    """The descriptor and the mode of a vCPU, for the margin of a counterexample."""
    m, v = world.layout.unpack(state), world.layout.vcpus[vcpu]
    return {
        "pir": _vectors(world, m[v + slot.PIR]),
        "on": m[v + slot.ON],
        "sn": m[v + slot.SN],
        "nv": m[v + slot.NV],
        "ndst": m[v + slot.NDST],
        "mode": Mode(m[v + slot.MODE]).name,
        "virr": _vectors(world, m[v + slot.VIRR]),
        "state": TaskState(m[v + slot.STATE]).name,
        "on_cpu": m[v + slot.ON_CPU],
    }


def memory(world: World, state: int) -> dict[str, Any]:
    """All of a state that the processes of a live run could be asked about."""
    m = world.layout.unpack(state)
    return {
        "vcpus": [summary(world, state, vcpu) for vcpu in range(len(world.layout.vcpus))],
        "pcpus": [
            {
                "running": m[p + slot.RUNNING],
                "irqs_off": m[p + slot.IRQS_OFF],
                "non_root": int(m[p + slot.NONROOT] > 0),
                "pending": [
                    n for bit, n in slot.PENDING_VECTOR.items() if m[p + slot.PENDING] & bit
                ],
                "wakeup_list": [v for v in range(8) if m[p + slot.LIST] >> v & 1],
            }
            for p in world.layout.pcpus[: world.layout.hosts]
        ],
    }


def _vectors(world: World, bits: int) -> list[int]:
    return [vector for i, vector in enumerate(world.scenario.vectors) if bits >> i & 1]
