"""The twin and its automata: lines survive, histories merge soundly, and unsound text is caught."""

import inspect

import pytest

from emulator.checker import lint, twin
from emulator.checker.automaton import DONE, Automaton
from emulator.checker.model_cpu import ModelCpu
from emulator.checker.scenario import Bounds, Scenario
from emulator.checker.search import explore
from emulator.checker.world import World
from emulator.kvm import sync
from emulator.kvm.cpu import Cpu
from emulator.kvm.params import Kvm


def walk(automaton, at, *results):
    for result in results:
        at = automaton.next(at, result)
    return at


def test_a_node_names_its_line_in_the_source():
    automaton = Automaton(Kvm())
    node = automaton.nodes[automaton.entry("vmx_sync_pir_to_irr", 0)]
    path, line = node.line.rsplit(":", 1)

    assert path == "emulator/kvm/sync.py"
    assert "cpu.pi_test_on(vcpu)" in inspect.getsource(sync).splitlines()[int(line) - 1]


def test_a_call_chain_is_part_of_the_local_state():
    automaton = Automaton(Kvm())
    alone = automaton.nodes[automaton.entry("vmx_sync_pir_to_irr", 0)]
    called = automaton.nodes[automaton.entry("kvm_cpu_has_interrupt", 0)]

    assert alone.functions == ("vmx_sync_pir_to_irr",)
    assert called.functions == ("kvm_cpu_has_interrupt", "vmx_sync_pir_to_irr")


def test_a_returned_program_is_done():
    automaton = Automaton(Kvm())
    start = automaton.entry("vmx_deliver_posted_interrupt", 0, 0x21)

    assert walk(automaton, start, True) == DONE


def test_histories_that_differ_in_dead_locals_only_merge():
    automaton = Automaton(Kvm())
    start = automaton.entry("kvm_vcpu_check_block", 0)
    clear = walk(automaton, start, False, -1, None)
    masked = walk(automaton, start, True, None, 33, 33, None, False)

    assert automaton.nodes[clear].op == "timer_pending"
    assert clear == masked


def stack_keeper(cpu):
    """`cpu.a() == cpu.b()` in the twin: what the lint exists to refuse."""
    if (yield ("load_mode", 0)) == (yield ("load_vcpu_cpu", 0)):
        yield ("smp_mb",)
    yield ("pi_set_on", 0)


def test_a_result_hidden_on_the_stack_is_caught_where_histories_merge():
    automaton = Automaton(Kvm(), {"stack_keeper": stack_keeper})
    start = automaton.entry("stack_keeper")
    assert automaton.next(start, 0) == automaton.next(start, 1)

    with pytest.raises(AssertionError, match="one local state, two futures"):
        walk(automaton, start, 0, 0)


def test_text_that_breaks_a_rule_gets_no_twin(monkeypatch):
    bad = "def f(cpu):\n    return cpu.load_mode(0) == cpu.load_vcpu_cpu(0)\n"
    monkeypatch.setattr(twin, "source_of", lambda _: (bad, "emulator/kvm/bad.py"))

    with pytest.raises(lint.ProtocolTextError, match=r"bad\.py:2: one-call"):
        twin.build_twin((sync,))


def test_exploring_replays_a_few_hundred_times_for_many_thousand_states():
    world = World(Scenario(name="", question="", bounds=Bounds(remote=1, irq=1, fastpath=1)))
    found = explore(world)

    assert found.states > 10_000
    assert world.programs.automaton.replays < 500


def test_the_model_has_every_method_of_cpu_with_the_same_arguments():
    for name in lint.KINDS:
        seam = list(inspect.signature(getattr(Cpu, name)).parameters)
        model = list(inspect.signature(getattr(ModelCpu, name)).parameters)
        assert model == seam, name
