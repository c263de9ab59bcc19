"""The pretend world: actors over a simulated memory, and every move each of them can make.

A global state is one integer: the memory's slots, then the node that each program stands at.  A
step reads and writes few slots.  The world works out a move once for all states that agree on these
(found by watching the step), and keeps it as a difference between states; `search` looks it up and
adds, and runs no protocol text.

A move is *voluntary* if nothing obliges it to come: a guest's choice, a new post, a preemption.  A
state without any other move is at rest.
"""

from collections.abc import Iterator
from typing import Any, Final

from emulator.checker import memory as slot
from emulator.checker.automaton import DONE, MAX_NODES, Node
from emulator.checker.choices import (
    Choice,
    Interrupt,
    left,
    preemptible,
    root_interrupts,
)
from emulator.checker.claims import Claim, Sometimes
from emulator.checker.memory import BUFFERED, RETIRED, Layout, Touched, initial_memory
from emulator.checker.moves import Entry, Move, Part
from emulator.checker.programs import Programs
from emulator.checker.scenario import Scenario
from emulator.hardware.vectors import POSTED_INTR_VECTOR, POSTED_INTR_WAKEUP_VECTOR
from emulator.kvm.params import TaskState

NODE_BITS: Final = MAX_NODES.bit_length() - 1
NODE_LIMIT: Final = MAX_NODES - 1
PID_SECTION: Final = frozenset(
    {"vmx_vcpu_pi_put", "vmx_vcpu_pi_load", "pi_pre_block", "pi_post_block"}
)
_SLEEPING = TaskState.SLEEPING.value
_STORE_NAMES: Final = ("mode", "cpu", "state")  # as memory.BUFFERED


class World:
    """One scenario's actors and memory."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.layout = Layout(scenario)
        self.programs = Programs(scenario, self.layout)
        self.cpu = self.programs.cpu
        vcpus, bounds = range(len(scenario.pins)), scenario.bounds
        running = (
            *(Part("thread", v) for v in vcpus),
            *(Part("preempt", v) for v in vcpus if bounds.preempt or len(vcpus) > 1),
            *(Part("irq", p) for p in range(scenario.hosts)),
            *(Part("remote", v) for v in vcpus if bounds.remote),
            *(Part("device", v) for v in vcpus if bounds.device),
            *(Part("plug", v) for v in vcpus if bounds.plug),
        )
        self.parts = (
            *running,
            *(Part("pcpu", p) for p in range(scenario.hosts)),
            *(Part("sched", v) for v in vcpus if bounds.preempt),
        )
        self.place = {p: self.layout.bits + i * NODE_BITS for i, p in enumerate(running)}
        # What `search` looks up, by part: the table, the masks by node, and the node's place.
        self.tables: list[dict[int, Entry]] = [{} for _ in self.parts]
        self.masks = [[self._node_mask(part)] * MAX_NODES for part in self.parts]
        self.places = [self.place.get(part, 0) for part in self.parts]
        self.limits = [NODE_LIMIT if part in self.place else 0 for part in self.parts]
        self.owed_mask = self.layout.mask_of(slot.OWED, slot.DEADLINE, slot.TIMER_PENDING)
        self.fault: tuple[int, Claim, str] | None = None  # left by compute(): (delta, claim, text)
        self._memory_mask = (1 << self.layout.bits) - 1
        self._touched: set[int] = set()

    def _node_mask(self, part: Part) -> int:
        return NODE_LIMIT << self.place[part] if part in self.place else 0

    # -- states ---------------------------------------------------------------------------------

    def initial(self) -> int:
        """Every thread that has a pCPU is about to call vcpu_run(), the others to be scheduled."""
        memory = initial_memory(self.scenario, self.layout)
        nodes = 0
        for part, place in self.place.items():
            vcpu = self.cpu.me = part.number
            if part.kind == "thread":
                self.cpu.m, self.cpu.c = memory, self.scenario.pins[vcpu]
                nodes |= self.programs.start("vcpu_run", vcpu)[0] << place
            elif part.kind == "preempt" and memory[self._v(vcpu) + slot.PREEMPTING]:
                self.cpu.m = initial_memory(self.scenario, self.layout)
                nodes |= self._queued(vcpu) << place
        return self.layout.pack(memory) | nodes

    def _queued(self, vcpu: int) -> int:
        """The node at which a preempted thread waits to be scheduled."""
        programs = self.programs
        at, looks = programs.start("preempt_schedule", vcpu)
        while (node := programs.node(at)).op != "context_switch":
            choice = Choice(node.op, node.args, None, False, ())
            at = programs.after(at, choice, programs.apply(choice), list(looks))
        return at

    def nodes(self, state: int) -> dict[Part, Node]:
        """Where each program that is under way stands."""
        found = {}
        for part, place in self.place.items():
            node = self.programs.automaton.nodes[state >> place & NODE_LIMIT]
            if node is not None:
                found[part] = node
        return found

    def moves(self, state: int) -> list[Move]:
        """Everything that can happen in `state`."""
        return [move for part in self.parts for move in self._moves(part, state)]

    def touched_by(self, state: int, move: Move) -> frozenset[int]:
        """The slots that the part which makes `move` looked at or changed, to make it."""
        self._touched = set()
        for _ in self._moves(move.part, state):
            pass
        return frozenset(self._touched)

    def compute(self, i: int, state: int) -> Entry:
        """Work out what part `i` can do in `state`, for it and for all states that agree."""
        self._touched = set()
        moves = list(self._moves(self.parts[i], state))
        going = [m.delta for m in moves if not self._is_fault(m)]
        obliged = any(not move.voluntary for move in moves)
        entry = (obliged, tuple(dict.fromkeys(delta for delta in going if delta)))
        masks, node = self.masks[i], state >> self.places[i] & self.limits[i]
        for where in self._touched:
            masks[node] |= self.layout.masks[where]
        self.tables[i][state & masks[node]] = entry
        return entry

    def entry(self, i: int, state: int) -> Entry:
        """What part `i` can do in `state`; `search` has the same written out, for speed."""
        masks = self.masks[i]
        known = self.tables[i].get(state & masks[state >> self.places[i] & self.limits[i]])
        return self.compute(i, state) if known is None else known

    def _is_fault(self, move: Move) -> bool:
        """Keep a broken claim for the search; the world does not go on behind it."""
        if move.fault is None or move.fault[0] not in self.scenario.claims:
            return False
        self.fault = (move.delta, *move.fault)
        return True

    def owes(self, state: int) -> list[int]:
        """The vCPUs that have not been given a post, or a timer, that they could take.

        Not one whose thread waits for its turn on a busy pCPU: that is the scheduler's affair.
        """
        m = self.layout.unpack(state)
        found = []
        for vcpu, v in enumerate(self.layout.vcpus):
            owed = m[v + slot.OWED] or m[v + slot.DEADLINE] or m[v + slot.TIMER_PENDING]
            queued = m[v + slot.ON_CPU] < 0 and m[v + slot.STATE] != _SLEEPING
            if owed and m[v + slot.GUEST_IF] and not queued:
                found.append(vcpu)
        return found

    # -- moves ----------------------------------------------------------------------------------

    def _v(self, vcpu: int) -> int:
        return self.layout.vcpus[vcpu]

    def _thaw(self, state: int, pcpu: int = 0, thread: int = -1) -> Touched:
        m = self.cpu.m = self.layout.unpack(state)
        m.touched = self._touched
        self.cpu.c, self.cpu.me, self.cpu.fault = pcpu, thread, None
        self.cpu.call = self._v(pcpu - self.layout.hosts) if pcpu >= self.layout.hosts else -1
        return m

    def _delta(self, state: int) -> int:
        return self.layout.pack(self.cpu.m) - (state & self._memory_mask)

    def _moves(self, part: Part, state: int) -> Iterator[Move]:
        """What `part` can do in `state`."""
        kind, number = part
        node = state >> self.place[part] & NODE_LIMIT if part in self.place else DONE
        m = self._thaw(state)
        match kind:
            case "thread" | "preempt" if node != DONE:
                if kind == "thread" and m[self._v(number) + slot.PREEMPTING]:
                    return
                pcpu = m[self._v(number) + slot.ON_CPU]
                if pcpu < 0 or not m[self.layout.pcpus[pcpu] + slot.IN_IRQ]:
                    yield from self._step(part, state, node, pcpu, number)
            case "irq" if node != DONE:
                yield from self._step(part, state, node, number, -1)
            case "irq" if m[self.layout.pcpus[number] + slot.IN_IRQ]:
                m[self.layout.pcpus[number] + slot.IN_IRQ] = 0
                delta = self._delta(state)
                yield Move(delta, False, part.actor, number, "iret", (), part=part)
            case "remote" | "device" | "plug" if node != DONE:
                yield from self._step(part, state, node, self.layout.hosts + number, -1)
            case "remote" | "device":
                yield from self._send(part, state)
            case "plug":
                yield from self._plug(part, state)
            case "pcpu":
                yield from self._drain(part, state)
                m = self._thaw(state)
                for interrupt in root_interrupts(self.scenario, self.layout, m, number):
                    yield self._interrupt(part, state, interrupt)
                yield from self._irq_retires(part, state)
            case "sched" if preemptible(self.layout, m, number):
                yield self._preempt(part, state)

    def _step(self, part: Part, state: int, node: int, pcpu: int, thread: int) -> Iterator[Move]:
        """The step at `node`, with the looks that precede it and those that follow it."""
        programs = self.programs
        self._thaw(state, pcpu, thread)
        at, _ = programs.reach_step(node)
        stands = programs.node(at)
        for choice in programs.choices(stands):
            self._thaw(state, pcpu, thread)
            _, looks = programs.reach_step(node)
            result = programs.apply(choice)
            after = programs.after(at, choice, result, looks)
            if after == DONE:
                self._finished(part)
            if self.cpu.fault is None:
                self.cpu.fault = self._disagreement(part, node, after, choice)
            yield Move(
                self._delta(state) + ((after - node) << self.place[part]),
                *(choice.voluntary, part.actor, self.cpu.c, choice.op, choice.args, result),
                *(stands, tuple(looks), self.cpu.fault, part, choice.vmcs),
            )

    def _finished(self, part: Part) -> None:
        if part.kind == "preempt":
            self.cpu.m[self._v(part.number) + slot.PREEMPTING] = 0
        self.cpu.seen.add(Sometimes(f"the {part.kind} program finished"))

    def _started(self, part: Part, state: int, move: Move) -> Move:
        """`move`, with the program that it starts in `part`."""
        function, *args = move.args
        after, looks = self.programs.start(function, *args)
        if after == DONE:
            self._finished(part)
        delta = self._delta(state) + (after << self.place[part])
        return move._replace(delta=delta, looks=looks, fault=self.cpu.fault)

    def _send(self, part: Part, state: int) -> Iterator[Move]:
        """A sender whose last call is over returns; then it posts once more, or never again."""
        scenario, pcpu = self.scenario, self.layout.hosts + part.number
        v = self._v(part.number)
        call: tuple[Any, ...]
        if part.kind == "remote":
            budget, calling = v + slot.LEFT_REMOTE, v + slot.CALL_REMOTE
            call = ("vmx_deliver_posted_interrupt", part.number, scenario.remote_vector)
        else:
            budget, calling = v + slot.LEFT_DEVICE, v + slot.CALL_DEVICE
            call = ("vtd_post", part.number, scenario.device_vector, scenario.urgent)
        move = Move(0, True, part.actor, pcpu, "call", call, part=part)
        m = self._thaw(state, pcpu)
        if m[calling]:
            m[calling] = 0
            yield move._replace(delta=self._delta(state), voluntary=False, op="return", args=())
        elif (count := left(m, budget)) and (part.kind == "remote" or m[slot.ASSIGNED]):
            m[calling], m[budget] = 1, count - 1
            yield self._started(part, state, move)
            if scenario.early_ends:
                yield self._retire(state, budget, move._replace(op="retire", args=()))

    def _irq_retires(self, part: Part, state: int) -> Iterator[Move]:
        m = self._thaw(state)
        for vcpu, v in enumerate(self.layout.vcpus):
            here = self.scenario.early_ends and self.scenario.pins[vcpu] == part.number
            if here and left(m, v + slot.LEFT_IRQ):
                who = (f"irq{part.number}", part.number, "retire", (vcpu,))
                move = Move(0, True, *who, part=part)
                yield self._retire(state, v + slot.LEFT_IRQ, move)

    def _retire(self, state: int, budget: int, move: Move) -> Move:
        self._thaw(state)[budget] |= RETIRED
        return move._replace(delta=self._delta(state))

    def _plug(self, part: Part, state: int) -> Iterator[Move]:
        """The VM is given the device, or loses it."""
        pcpu = self.layout.hosts + part.number
        m = self._thaw(state, pcpu)
        if not m[slot.LEFT_PLUG]:
            return
        m[slot.LEFT_PLUG] -= 1
        if not m[slot.ASSIGNED]:
            m[slot.ASSIGNED] = 1
            call = ("vmx_pi_start_assignment", part.number)
            yield self._started(
                part, state, Move(0, True, part.actor, pcpu, "assign", call, part=part)
            )
        elif not any(m[v + slot.CALL_DEVICE] or m[v + slot.OWED] for v in self.layout.vcpus):
            # Only a quiet device is taken away: see the limits in `verdict`.
            m[slot.ASSIGNED] = 0
            yield Move(self._delta(state), True, part.actor, pcpu, "unassign", (), part=part)

    def _drain(self, part: Part, state: int) -> Iterator[Move]:
        pcpu = part.number
        m = self._thaw(state, pcpu)
        if self.cpu.tso and m[self.layout.pcpus[pcpu] + slot.FIRST]:
            where, value = self.cpu.drain(pcpu)
            vcpu, field = divmod(where - slot.MACHINE_SLOTS, slot.VCPU_SLOTS)
            args = (vcpu, _STORE_NAMES[BUFFERED.index(field)], value)
            yield Move(self._delta(state), False, f"sb{pcpu}", pcpu, "drain", args, part=part)

    def _interrupt(self, part: Part, state: int, interrupt: Interrupt) -> Move:
        """A pCPU in root mode takes a vector and is about to run its handler."""
        pcpu = part.number
        m = self._thaw(state, pcpu)
        p = self.layout.pcpus[pcpu]
        for where, value in interrupt.changes:
            m[where] = value
        m[p + slot.IN_IRQ] = 1
        if interrupt.vector == POSTED_INTR_VECTOR:
            self.cpu.wasted_notification()
        name = "host" if interrupt.vector in slot.PENDING_BIT else "irq"
        args = ("do_irq", interrupt.vector)
        move = Move(0, interrupt.voluntary, f"{name}{pcpu}", pcpu, "interrupt", args, part=part)
        return self._started(Part("irq", pcpu), state, move)

    def _preempt(self, part: Part, state: int) -> Move:
        """The scheduler takes the pCPU from a thread."""
        vcpu = part.number
        pcpu = self._thaw(state)[self._v(vcpu) + slot.ON_CPU]
        m = self._thaw(state, pcpu, vcpu)
        m[slot.LEFT_PREEMPT] -= 1
        m[self._v(vcpu) + slot.PREEMPTING] = 1
        move = Move(0, True, "sched", pcpu, "preempt", ("preempt_schedule", vcpu), part=part)
        return self._started(Part("preempt", vcpu), state, move)

    def _disagreement(
        self, part: Part, node: int, after: int, choice: Choice
    ) -> tuple[Claim, str] | None:
        """S5 at a VM entry; S4 where a thread leaves the text that keeps the descriptor right."""
        if part.kind not in ("thread", "preempt"):
            return None
        m, vcpu, v = self.cpu.m, part.number, self._v(part.number)
        if choice.op == "vm_entry" and m[v + slot.SN]:
            return (Claim.SN_IS_CLEAR_IN_THE_GUEST, f"vCPU {vcpu} enters the guest with SN = 1")
        nodes = self.programs.automaton.nodes
        if not (_keeps_pid(nodes[node]) and not _keeps_pid(nodes[after])):
            return None
        hosts = range(self.layout.hosts)
        listed = {p for p in hosts if m[self.layout.pcpus[p] + slot.LIST] & 1 << vcpu}
        armed = m[v + slot.NV] == POSTED_INTR_WAKEUP_VECTOR
        if listed == ({m[v + slot.NDST]} if armed else set()):
            return None
        text = f"vCPU {vcpu}: NV = {m[v + slot.NV]:#x}, NDST = {m[v + slot.NDST]}"
        where = ", ".join(f"the list of pCPU {p}" for p in sorted(listed)) or "no list"
        return (Claim.LIST_AGREES_WITH_NV, f"{text}, and it is on {where}")


def _keeps_pid(node: Node | None) -> bool:
    return node is not None and not PID_SECTION.isdisjoint(node.functions)
