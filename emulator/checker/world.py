"""The pretend world: actors over a simulated memory, and every move each of them can make.

A global state is one integer: the memory's slots, then for each part that runs a program the node it
stands at.  A step reads and writes few slots.  The world works out a move once for all states that
agree on these (the slots are found by watching the step), and keeps it as a difference between
states; `search` looks it up and adds, and runs no protocol text.

Parts: a vCPU's thread with its guest, the scheduler's hook in it (preemption), the interrupt handler
of each pCPU, senders, devices; and, without a program, what surrounds a pCPU (vectors that arrive, a
store buffer that drains) and the scheduler.  A move is *voluntary* if nothing obliges it to come (a
guest's choice, a new post, a preemption); a state with no other move is at rest.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from emulator.checker import memory as slot
from emulator.checker.automaton import DONE, MAX_NODES, Automaton, Node
from emulator.checker.choices import (
    Choice,
    Interrupt,
    guest_events,
    preemptible,
    root_interrupts,
    switched_off,
    switches,
)
from emulator.checker.memory import BUFFERED, Layout, Touched, initial_memory
from emulator.checker.model_cpu import ModelCpu
from emulator.checker.scenario import Claim, Scenario
from emulator.hardware.cpu import NOTIFICATION, Kind
from emulator.hardware.vectors import POSTED_INTR_VECTOR, POSTED_INTR_WAKEUP_VECTOR
from emulator.kvm.params import TaskState

NODE_BITS: Final = MAX_NODES.bit_length() - 1
SETTLE_MAX: Final = 100  # fused steps after one step: more is a loop without a step
PID_SECTION: Final = frozenset(
    {"vmx_vcpu_pi_put", "vmx_vcpu_pi_load", "pi_pre_block", "pi_post_block"}
)
_SLEEPING = TaskState.SLEEPING.value

Entry = tuple[bool, tuple[int, ...]]  # (something here is obliged to happen, differences)


class Part(NamedTuple):
    """Something that can move.  `index` is its vCPU; for "irq" and "pcpu", its pCPU."""

    kind: str
    index: int


class Look(NamedTuple):
    """A call that went with a step: only its own pCPU could have changed what it saw."""

    op: str
    args: tuple[Any, ...]
    result: Any


class Move(NamedTuple):
    """One step of one actor, from one state.  `node` is where its text stood, if it was text."""

    delta: int
    voluntary: bool
    actor: str
    pcpu: int
    op: str
    args: tuple[Any, ...]
    result: Any
    node: Node | None = None
    looks: tuple[Look, ...] = ()
    fault: tuple[Claim, str] | None = None


class World:
    """One scenario's actors and memory."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.layout = Layout(scenario)
        self.cpu = ModelCpu(scenario, self.layout)
        self.automaton = Automaton(scenario.kvm)
        vcpus, bounds = range(len(scenario.pins)), scenario.bounds
        programs = (
            *(Part("thread", v) for v in vcpus),
            *(Part("preempt", v) for v in vcpus if bounds.preempt or len(vcpus) > 1),
            *(Part("irq", p) for p in range(scenario.hosts)),
            *(Part("remote", v) for v in vcpus if bounds.remote),
            *(Part("device", v) for v in vcpus if bounds.device),
        )
        self.parts = (
            *programs,
            *(Part("pcpu", p) for p in range(scenario.hosts)),
            *(Part("sched", v) for v in vcpus if bounds.preempt),
        )
        self._place = {p: self.layout.bits + i * NODE_BITS for i, p in enumerate(programs)}
        self._memory_mask = (1 << self.layout.bits) - 1
        # What `search` looks up, by part: the table, the masks by node, and the node's place.
        self.tables: list[dict[int, Entry]] = [{} for _ in self.parts]
        self.masks = [[self._node_mask(part)] * MAX_NODES for part in self.parts]
        self.places = [self._place.get(part, 0) for part in self.parts]
        self.node_limits = [MAX_NODES - 1 if p in self._place else 0 for p in self.parts]
        self.fault: tuple[int, Claim, str] | None = None  # left by compute(): (delta, claim, text)
        self._touched: set[int] = set()
        self._lazy = frozenset({"preempt_disable"} if bounds.preempt else ())
        self._private, self._own = self._private_steps()
        self.owed_mask = sum(
            self.layout.masks[v + where]
            for v in self.layout.vcpus
            for where in (slot.OWED, slot.DEADLINE, slot.TIMER_PENDING)
        )

    def _node_mask(self, part: Part) -> int:
        return (MAX_NODES - 1) << self._place[part] if part in self._place else 0

    def _private_steps(self) -> tuple[frozenset[str], frozenset[str]]:
        """Steps on what no other actor of this scenario writes: fused with the step before.

        The first set anywhere, the second when a thread looks at its own vCPU.  ModelCpu asserts
        that nobody writes after all.
        """
        anywhere: set[str] = set()
        if not self.cpu.requesters:
            anywhere.add("request_pending")
        if not self.cpu.timers:
            anywhere |= {"timer_pending", "timer_pending_clear"}
        if not self.scenario.bounds.plug:
            anywhere.add("load_has_pi_sender")
        # vcpu->cpu is written by the thread alone.  Whether a waiter is registered makes no
        # difference to a waker as long as the task is RUNNING, and it is until after that.
        return frozenset(anywhere), frozenset({"load_vcpu_cpu", "prepare_to_rcuwait"})

    # -- states ---------------------------------------------------------------------------------

    def initial(self) -> int:
        """The state in which every thread that has a pCPU is about to call vcpu_run()."""
        self.cpu.m = initial_memory(self.scenario, self.layout)
        nodes = 0
        for part, place in self._place.items():
            if part.kind == "thread":
                self.cpu.c, self.cpu.me = self.scenario.pins[part.index], part.index
                nodes |= self._settle(self.automaton.entry("vcpu_run", part.index), []) << place
        return self.layout.pack(self.cpu.m) | nodes

    def nodes(self, state: int) -> dict[Part, Node]:
        """Where each program that is under way stands."""
        found = {}
        for part, place in self._place.items():
            node = self.automaton.nodes[state >> place & MAX_NODES - 1]
            if node is not None:
                found[part] = node
        return found

    def moves(self, state: int) -> list[Move]:
        """Everything that can happen in `state`."""
        return [move for part in self.parts for move in self._moves(part, state)]

    def compute(self, i: int, state: int) -> Entry:
        """Work out what part `i` can do in `state`, for it and for all states that agree."""
        self._touched = set()
        moves = list(self._moves(self.parts[i], state))
        for move in moves:
            if move.fault is not None and move.fault[0] in self.scenario.claims:
                self.fault = (move.delta, *move.fault)
        obliged = any(not move.voluntary for move in moves)
        entry = (obliged, tuple(dict.fromkeys(m.delta for m in moves if m.delta)))
        masks, node = self.masks[i], state >> self.places[i] & self.node_limits[i]
        for where in self._touched:
            masks[node] |= self.layout.masks[where]
        self.tables[i][state & masks[node]] = entry
        return entry

    def owes(self, state: int) -> bool:
        """A vCPU has not been given a post, or a timer, that it could take.

        Not if its thread waits for its turn on a busy pCPU: that is the scheduler's affair.
        """
        m = self.layout.unpack(state)
        for v in self.layout.vcpus:
            owed = m[v + slot.OWED] or m[v + slot.DEADLINE] or m[v + slot.TIMER_PENDING]
            queued = m[v + slot.ON_CPU] < 0 and m[v + slot.STATE] != _SLEEPING
            if owed and m[v + slot.GUEST_IF] and not queued:
                return True
        return False

    # -- moves ----------------------------------------------------------------------------------

    def _thaw(self, state: int, pcpu: int = 0, thread: int = -1) -> Touched:
        m = self.cpu.m = self.layout.unpack(state)
        m.touched = self._touched
        self.cpu.c, self.cpu.me, self.cpu.fault = pcpu, thread, None
        return m

    def _delta(self, state: int) -> int:
        return self.layout.pack(self.cpu.m) - (state & self._memory_mask)

    def _moves(self, part: Part, state: int) -> Iterator[Move]:
        """What `part` can do in `state`."""
        kind, index = part
        node = state >> self._place[part] & MAX_NODES - 1 if part in self._place else DONE
        m = self._thaw(state)
        match kind:
            case "thread" | "preempt" if node != DONE:
                v = self.layout.vcpus[index]
                if kind == "thread" and m[v + slot.PREEMPTING]:
                    return
                pcpu = m[v + slot.ON_CPU]
                if pcpu < 0 or not m[self.layout.pcpus[pcpu] + slot.IN_IRQ]:
                    yield from self._step(part, state, node, pcpu, index)
            case "irq" if node != DONE:
                yield from self._step(part, state, node, index, -1)
            case "irq" if m[self.layout.pcpus[index] + slot.IN_IRQ]:
                m[self.layout.pcpus[index] + slot.IN_IRQ] = 0
                yield Move(self._delta(state), False, f"irq{index}", index, "iret", (), None)
            case "remote" | "device" if node != DONE:
                yield from self._step(part, state, node, self.layout.hosts + index, -1)
            case "remote" | "device":
                yield from self._begin(part, state)
            case "pcpu":
                yield from self._drain(state, index)
                m = self._thaw(state)
                for interrupt in root_interrupts(self.scenario, self.layout, m, index):
                    yield self._interrupt(state, index, interrupt)
            case "sched" if preemptible(self.layout, m, index):
                yield self._preempt(state, index)

    def _begin(self, part: Part, state: int) -> Iterator[Move]:
        """A sender posts once more, if it likes."""
        pcpu = self.layout.hosts + part.index
        m = self._thaw(state, pcpu)
        remote = part.kind == "remote"
        left = slot.LEFT_REMOTE if remote else slot.LEFT_DEVICE
        if not m[self.layout.vcpus[part.index] + left]:
            return
        m[self.layout.vcpus[part.index] + left] -= 1
        scenario = self.scenario
        call: tuple[Any, ...] = ("vtd_post", part.index, scenario.device_vector, scenario.urgent)
        if remote:
            call = ("vmx_deliver_posted_interrupt", part.index, scenario.remote_vector)
        yield self._started(part, state, Move(0, True, _actor(part), pcpu, "call", call, None))

    def _started(self, part: Part, state: int, move: Move) -> Move:
        """`move`, with the program that it starts in `part`."""
        looks: list[Look] = []
        function, *args = move.args
        after = self._settle(self.automaton.entry(function, *args), looks)
        delta = self._delta(state) + (after << self._place[part])
        return move._replace(delta=delta, looks=tuple(looks), fault=self.cpu.fault)

    def _drain(self, state: int, pcpu: int) -> Iterator[Move]:
        m = self._thaw(state, pcpu)
        if self.cpu.tso and m[self.layout.pcpus[pcpu] + slot.FIRST]:
            where, value = self.cpu.drain(pcpu)
            vcpu, field = divmod(where - slot.MACHINE_SLOTS, slot.VCPU_SLOTS)
            name = ("mode", "cpu", "state")[BUFFERED.index(field)]
            args = (vcpu, name, value)
            yield Move(self._delta(state), False, f"sb{pcpu}", pcpu, "drain", args, None)

    def _interrupt(self, state: int, pcpu: int, interrupt: Interrupt) -> Move:
        """A pCPU in root mode takes a vector and is about to run its handler."""
        m = self._thaw(state, pcpu)
        p = self.layout.pcpus[pcpu]
        for where, value in interrupt.changes:
            m[where] = value
        m[p + slot.IN_IRQ] = 1
        own = interrupt.vector in slot.PENDING_BIT
        if interrupt.vector == POSTED_INTR_VECTOR:
            m[p + slot.MEANT] = 0
            self.cpu.seen.add("a notification arrived in root mode")
            if Claim.COST in self.scenario.claims:
                m[slot.WASTED] += 1
        move = Move(
            *(0, interrupt.voluntary, f"{'host' if own else 'irq'}{pcpu}", pcpu),
            *("interrupt", ("do_irq", interrupt.vector), None),
        )
        return self._started(Part("irq", pcpu), state, move)

    def _preempt(self, state: int, vcpu: int) -> Move:
        """The scheduler takes the pCPU from a thread."""
        pcpu = self._thaw(state)[self.layout.vcpus[vcpu] + slot.ON_CPU]
        m = self._thaw(state, pcpu, vcpu)
        m[slot.LEFT_PREEMPT] -= 1
        m[self.layout.vcpus[vcpu] + slot.PREEMPTING] = 1
        move = Move(0, True, "sched", pcpu, "preempt", ("preempt_schedule", vcpu), None)
        return self._started(Part("preempt", vcpu), state, move)

    # -- programs -------------------------------------------------------------------------------

    def _step(
        self, part: Part, state: int, node: int, pcpu: int, thread: int
    ) -> Iterator[Move]:
        """The step at `node`, with the looks that precede it and those that follow it."""
        m = self._thaw(state, pcpu, thread)
        before: list[Look] = []
        at = node
        while (stands := self._node(at)).kind is Kind.LOOK:
            at = self._call(at, stands, before)
        if stands.op == "non_root_event":
            choices = guest_events(self.scenario, self.layout, m, thread)
        elif stands.op == "context_switch":
            choices = switches(self.layout, m, thread)
        elif self.cpu.blocked(stands.op, stands.args):
            choices = []
        else:
            choices = [Choice(stands.op, stands.args, None, False, ())]
        for choice in choices:
            self._thaw(state, pcpu, thread)
            for look in before:
                getattr(self.cpu, look.op)(*look.args)
            result = self._apply(choice)
            after, looks = at, list(before)
            if choice.advances:
                told = None if choice.op == "context_switch" else result
                after = self._settle(self.automaton.next(at, told), looks)
            self._after(part, node, after, choice)
            yield Move(
                self._delta(state) + ((after - node) << self._place[part]),
                *(choice.voluntary, _actor(part), self.cpu.c, choice.op, choice.args, result),
                *(stands, tuple(looks), self.cpu.fault),
            )

    def _apply(self, choice: Choice) -> Any:
        """Do it to the memory; the result."""
        m = self.cpu.m
        for where, value in choice.changes:
            m[where] = value
        match choice.op:
            case "deliver":
                self.cpu.deliver(choice.args[0])
            case "context_switch":
                self.cpu.c = choice.result if choice.result >= 0 else self.cpu.c
            case "non_root_event":
                if choice.result == NOTIFICATION:
                    self.cpu.took_notification(choice.args[0])
            case _:
                return getattr(self.cpu, choice.op)(*choice.args)
        return choice.result

    def _node(self, at: int) -> Node:
        node = self.automaton.nodes[at]
        assert node is not None
        return node

    def _call(self, at: int, node: Node, looks: list[Look]) -> int:
        result = getattr(self.cpu, node.op)(*node.args)
        looks.append(Look(node.op, node.args, result))
        return self.automaton.next(at, result)

    def _settle(self, at: int, looks: list[Look]) -> int:
        """Do all that goes with the step just done; the node of the next step of its own."""
        for _ in range(SETTLE_MAX):
            node = self.automaton.nodes[at]
            if node is None:
                return at
            if node.op == "context_switch":
                self._switch_off(node.args[0])
                return at
            looking = node.kind is Kind.LOOK or node.kind is Kind.TRACE
            if node.op in self._lazy or not (looking or self._is_private(node)):
                return at
            at = self._call(at, node, looks)
        raise AssertionError(f"a loop without a step at {self._node(at)}")

    def _is_private(self, node: Node) -> bool:
        """Nobody else could see this step or change what it sees, and nothing holds it up."""
        mine = node.op in self._private or (node.op in self._own and node.args[0] == self.cpu.me)
        # The entry's last look at the mode.  A kick is all that could have changed it.
        last_look = node.op == "load_mode" and node.functions[-1] == "kvm_vcpu_exit_request"
        return (mine or (last_look and not self.cpu.kickers)) and not self.cpu.blocked(
            node.op, node.args
        )

    def _switch_off(self, vcpu: int) -> None:
        """The thread leaves its pCPU as soon as the store buffer lets it.

        Not a step of its own: it can only make more possible, and nobody can prevent it.
        """
        m = self.cpu.m
        pcpu = m[self.layout.vcpus[vcpu] + slot.ON_CPU]
        if pcpu >= 0 and not m[self.layout.pcpus[pcpu] + slot.FIRST]:
            for where, value in switched_off(self.layout, vcpu, pcpu):
                m[where] = value

    def _after(self, part: Part, node: int, after: int, choice: Choice) -> None:
        """What else a step does: a program's end, claims on the descriptor."""
        m = self.cpu.m
        if after == DONE:
            if part.kind == "preempt":
                m[self.layout.vcpus[part.index] + slot.PREEMPTING] = 0
            self.cpu.seen.add(f"the {part.kind} program finished")
        if part.kind in ("thread", "preempt") and self.cpu.fault is None:
            self.cpu.fault = self._disagreement(part.index, node, after, choice)

    def _disagreement(
        self, vcpu: int, node: int, after: int, choice: Choice
    ) -> tuple[Claim, str] | None:
        """S5 at a VM entry; S4 where a thread leaves the text that keeps the descriptor right."""
        m, v = self.cpu.m, self.layout.vcpus[vcpu]
        if choice.op == "vm_entry" and m[v + slot.SN]:
            return (Claim.SN_CLEAR_IN_GUEST, f"vCPU {vcpu} enters the guest with SN = 1")
        was, now = self.automaton.nodes[node], self.automaton.nodes[after]
        if was is None or PID_SECTION.isdisjoint(was.functions):
            return None
        if now is not None and not PID_SECTION.isdisjoint(now.functions):
            return None
        hosts = range(self.layout.hosts)
        listed = {p for p in hosts if m[self.layout.pcpus[p] + slot.LIST] & 1 << vcpu}
        armed = m[v + slot.NV] == POSTED_INTR_WAKEUP_VECTOR
        if listed != ({m[v + slot.NDST]} if armed else set()):
            text = f"vCPU {vcpu}: NV = {m[v + slot.NV]:#x}, NDST = {m[v + slot.NDST]}, on the list"
            return (Claim.LIST_AGREES, f"{text} of pCPUs {sorted(listed)}")
        return None


def _actor(part: Part) -> str:
    return f"{'vcpu' if part.kind in ('thread', 'preempt') else part.kind}{part.index}"
