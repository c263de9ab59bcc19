"""How a program takes a step: the step itself, what precedes it and what goes with it.

`world` says whose turn it is and thaws the memory; this does the step to it.  A LOOK goes with the
step before, and so does a step on what no other actor of the scenario writes.
"""

from typing import Any, Final

from emulator.checker import memory as slot
from emulator.checker.automaton import WARN_ON, Automaton, Node
from emulator.checker.choices import Choice, guest_events, switched_off, switches
from emulator.checker.claims import Claim
from emulator.checker.memory import Layout
from emulator.checker.model_cpu import ModelCpu
from emulator.checker.moves import Look
from emulator.checker.scenario import Scenario
from emulator.hardware.cpu import NOTIFICATION, Kind

SETTLE_MAX: Final = 100  # fused steps after one step: more is a loop without a step


class Programs:
    """The automata of all programs, and the simulated memory that they step on."""

    def __init__(self, scenario: Scenario, layout: Layout) -> None:
        self.cpu = ModelCpu(scenario, layout)
        self.automaton = Automaton(scenario.kvm)
        self._scenario = scenario
        self._layout = layout
        # With preemption about, preempt_disable() goes with the step after it: the moment between
        # two passes of the run loop is one at which the thread can be preempted.
        self._lazy = frozenset({"preempt_disable"} if scenario.bounds.preempt else ())
        self._private, self._own = self._private_steps()

    def _private_steps(self) -> tuple[frozenset[str], frozenset[str]]:
        """Steps on what no other actor of this scenario writes.

        The first set anywhere, the second when a thread looks at its own vCPU.  ModelCpu asserts
        that nobody writes after all.
        """
        anywhere: set[str] = set()
        if not self.cpu.requesters:
            anywhere.add("request_pending")
        if not self.cpu.timers:
            anywhere |= {"timer_pending", "timer_pending_clear"}
        if not self._scenario.bounds.plug:
            anywhere.add("load_has_pi_sender")
        # vcpu->cpu is written by the thread alone.  Whether a waiter is registered makes no
        # difference to a waker as long as the task is RUNNING, and it is until after that.
        return frozenset(anywhere), frozenset({"load_vcpu_cpu", "prepare_to_rcuwait"})

    def node(self, at: int) -> Node:
        """The local state with number `at`, which is not DONE."""
        node = self.automaton.nodes[at]
        assert node is not None
        return node

    def start(self, function: str, *args: object) -> tuple[int, tuple[Look, ...]]:
        """(node, looks) of `function(cpu, *args)` at its first step."""
        looks: list[Look] = []
        at = self._settle(self.automaton.entry(function, *args), looks)
        return at, tuple(looks)

    def reach_step(self, at: int) -> tuple[int, list[Look]]:
        """Do the looks that the step at or after `at` has waited for with; where it is."""
        looks: list[Look] = []
        while (node := self.node(at)).kind is Kind.LOOK:
            at = self._call(at, node, looks)
        return at, looks

    def choices(self, node: Node) -> list[Choice]:
        """The outcomes of the step at `node`; none if something holds it up."""
        if node.op == "non_root_event":
            return guest_events(self._scenario, self._layout, self.cpu.m, node.args[0])
        if node.op == "context_switch":
            return switches(self._layout, self.cpu.m, node.args[0])
        if self.cpu.blocked(node.op, node.args):
            return []
        return [Choice(node.op, node.args, None, False, ())]

    def apply(self, choice: Choice) -> Any:
        """Do it to the memory; the result."""
        for where, value in choice.changes:
            self.cpu.m[where] = value
        match choice.op:
            case "compute":
                pass
            case "deliver":
                self.cpu.deliver(choice.args[0])
            case "context_switch":
                if choice.advances:
                    self.cpu.switched_in(choice.args[0], choice.result)
            case "non_root_event":
                if choice.result == NOTIFICATION:
                    self.cpu.took_notification(choice.args[0])
            case _:
                return getattr(self.cpu, choice.op)(*choice.args)
        return choice.result

    def after(self, at: int, choice: Choice, result: Any, looks: list[Look]) -> int:
        """The node of the next step, with what goes with this one done."""
        if not choice.advances:
            return at
        # context_switch() returns nothing to the text; where it returns is the world's affair.
        told = None if choice.op == "context_switch" else result
        return self._settle(self.automaton.next(at, told), looks)

    def _call(self, at: int, node: Node, looks: list[Look]) -> int:
        result = getattr(self.cpu, node.op)(*node.args)
        looks.append(Look(node.op, node.args, result))
        return self.automaton.next(at, result)

    def _settle(self, at: int, looks: list[Look]) -> int:
        for _ in range(SETTLE_MAX):
            node = self.automaton.nodes[at]
            if node is None:
                return at
            if node.op == WARN_ON:
                self.cpu.broken(Claim.NO_WARNING, f"the WARN_ON at {node.line} fires")
                return at
            if node.op == "context_switch":
                self._switch_off(node.args[0])
                return at
            looking = node.kind is Kind.LOOK or node.kind is Kind.TRACE
            if node.op in self._lazy or not (looking or self._is_private(node)):
                return at
            at = self._call(at, node, looks)
        raise AssertionError(f"a loop without a step at {self.node(at)}")

    def _is_private(self, node: Node) -> bool:
        """Nobody else could see this step or change what it sees, and nothing holds it up."""
        mine = node.op in self._private or (node.op in self._own and node.args[0] == self.cpu.me)
        # VT-d changes the descriptor in one read-modify-write of the cache line; the text has two
        # steps because IPI virtualization takes the bus lock twice.
        mine |= node.op == "pi_test_and_set_on_unless_sn" and not self._scenario.ipi_virtualization
        # The entry's last look at the mode: a kick is all that could have changed it.
        last_look = node.op == "load_mode" and node.functions[-1] == "kvm_vcpu_exit_request"
        if not mine and (self.cpu.kickers or not last_look):
            return False
        return not self.cpu.blocked(node.op, node.args)

    def _switch_off(self, vcpu: int) -> None:
        """The thread leaves its pCPU as soon as the store buffer lets it.

        Not a step of its own: it can only make more possible, and nobody can prevent it.
        """
        m = self.cpu.m
        pcpu = m[self._layout.vcpus[vcpu] + slot.ON_CPU]
        if pcpu >= 0 and not m[self._layout.pcpus[pcpu] + slot.FIRST]:
            for where, value in switched_off(self._layout, vcpu, pcpu):
                m[where] = value
