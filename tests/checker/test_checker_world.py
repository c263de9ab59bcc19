"""The world's shortcuts change nothing: looked-up moves, fused steps, packed states."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.checker.memory import Layout, Touched, initial_memory
from emulator.checker.programs import Programs
from emulator.checker.scenario import Bounds, MemoryModel, Scenario
from emulator.checker.search import explore
from emulator.checker.world import World
from emulator.kvm.params import Bug, Notify, PidScheme

SC, TSO = MemoryModel.SC, MemoryModel.TSO


def scenario(memory=SC, rule=Notify.KVM_V5_18, bugs=(), **bounds):
    axes = {"bounds": Bounds(**bounds), "memory": memory, "rule": rule, "bugs": frozenset(bugs)}
    if "device" in bounds:
        axes |= {"pid_scheme": PidScheme.SN_ON_PUT, "assigned": True}
    return Scenario(name="test", question="", **axes)


@pytest.mark.parametrize(
    "asked",
    [
        scenario(remote=1, fastpath=1),
        scenario(memory=TSO, remote=1),
        scenario(rule=Notify.KVM_V4_11, irq=1, fastpath=1),
        scenario(device=1, preempt=1),
    ],
    ids=str,
)
def test_a_looked_up_move_is_the_move_worked_out_afresh(asked):
    world = World(asked)
    found = explore(world)

    for state in list(found.parents)[::7]:
        looked_up = {d for i in range(len(world.parts)) for d in world.entry(i, state)[1]}
        assert looked_up == {move.delta for move in world.moves(state) if move.delta}


@pytest.mark.parametrize(
    ("asked", "loses"),
    [
        (scenario(remote=1, irq=1), False),
        (scenario(rule=Notify.KVM_V5_8, remote=1, irq=1), True),
        (scenario(memory=TSO, remote=1), False),
        (scenario(memory=TSO, remote=1, bugs=[Bug.NO_ENTRY_FENCE]), True),
        (scenario(device=1, preempt=1), False),
        (scenario(device=1, preempt=1, bugs=[Bug.B12]), True),
    ],
    ids=str,
)
def test_fusing_private_steps_changes_no_verdict(asked, loses, monkeypatch):
    fused = explore(World(asked))
    monkeypatch.setattr(Programs, "_is_private", lambda *_: False)
    apart = explore(World(asked))

    assert apart.states > fused.states
    assert (fused.broken is not None) is loses
    assert (apart.broken is not None) is loses


@given(st.data())
def test_packing_a_memory_loses_nothing(data):
    layout = Layout(scenario(remote=1))
    state = data.draw(st.integers(0, (1 << layout.bits) - 1))

    assert layout.pack(layout.unpack(state)) == state


def test_a_value_too_large_for_its_slot_is_refused():
    layout = Layout(scenario(remote=1))
    memory = initial_memory(scenario(remote=1), layout)
    memory[0] = 16

    with pytest.raises(AssertionError, match="slot 0 cannot hold 16"):
        layout.pack(memory)


def test_a_store_buffers_entry_says_where_and_what():
    layout = Layout(scenario(remote=1))
    where = layout.vcpus[0] + 7  # vcpu->mode

    assert layout.location(layout.store(where, 1)) == (where, 1)


def test_a_memory_remembers_what_was_touched():
    memory = Touched([1, 2, 3])
    memory[1] = memory[0]

    assert memory.peek(2) == 3
    assert memory.touched == {0, 1}


def test_a_second_vcpu_of_a_pcpu_waits_for_its_turn():
    asked = Scenario(name="", question="", bounds=Bounds(), pins=(0, 0), hosts=1)
    world = World(asked)
    waiting = world.nodes(world.initial())

    assert {part.kind for part in waiting} == {"thread", "preempt"}
    assert explore(world).broken is None
