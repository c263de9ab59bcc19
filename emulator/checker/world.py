"""The pretend world: actors over a simulated memory, and every move each of them can make.

A global state is one integer: the number of the memory, then the node of each field (a program
that may be under way) in `NODE_BITS` bits.  What a program can do depends on (memory, node) alone,
so its moves are worked out once for each such pair and kept as differences between states; `search`
adds them up and runs no protocol text.

Actors: a vCPU's thread with its guest, the interrupt handler of each pCPU, senders, devices, the
scheduler, store buffers.  A move is *voluntary* if nothing obliges it (a guest's choice, a new post,
a preemption); a state with no other move is at rest.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from emulator.checker import memory as slot
from emulator.checker.automaton import DONE, MAX_NODES, Automaton, Node
from emulator.checker.memory import PENDING_BIT, PENDING_VECTOR, Memory, initial_memory, layout_of
from emulator.checker.model_cpu import ModelCpu
from emulator.checker.scenario import Claim, Scenario
from emulator.hardware.cpu import NOTIFICATION, Kind
from emulator.hardware.vectors import (
    FIRST_DEVICE_VECTOR,
    LOCAL_TIMER_VECTOR,
    MSR_TSC_DEADLINE,
    POSTED_INTR_VECTOR,
    POSTED_INTR_WAKEUP_VECTOR,
    ExitReason,
)
from emulator.kvm.params import TaskState

NODE_BITS: Final = MAX_NODES.bit_length() - 1
NODE_MASK: Final = MAX_NODES - 1
SETTLE_MAX: Final = 100  # fused steps after one step: more is a loop without a step

PID_SECTION: Final = frozenset(
    {"vmx_vcpu_pi_put", "vmx_vcpu_pi_load", "pi_pre_block", "pi_post_block"}
)
_SLEEPING = TaskState.SLEEPING.value


class Field(NamedTuple):
    """One program that may be under way.  `index` is its vCPU or, for "irq", its pCPU."""

    kind: str
    index: int


class Look(NamedTuple):
    """A call that went with a step: only its own pCPU could have changed what it saw."""

    op: str
    args: tuple[Any, ...]
    result: Any


class Move(NamedTuple):
    """One step of one actor, from one state."""

    delta: int
    voluntary: bool
    actor: str
    pcpu: int
    op: str
    args: tuple[Any, ...]
    result: Any
    before: int  # the node that did it, DONE if no text did
    after: int
    looks: tuple[Look, ...]
    fault: tuple[Claim, str] | None


class _Choice(NamedTuple):
    """One outcome of a step that has several; `changes` are (slot, value)."""

    op: str
    args: tuple[Any, ...]
    result: Any
    voluntary: bool
    changes: tuple[tuple[int, Any], ...]
    advances: bool = True


Entry = tuple[bool, tuple[int, ...]]  # (something here is obliged to happen, differences)


class World:
    """One scenario's actors and memory.  Not to be shared between searches."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.layout = layout_of(scenario)
        self.cpu = ModelCpu(scenario, self.layout)
        self.automaton = Automaton(scenario.kvm)
        vcpus = range(len(scenario.pins))
        self.fields = (
            *(Field("thread", v) for v in vcpus),
            *(Field("preempt", v) for v in vcpus if scenario.bounds.preempt or len(vcpus) > 1),
            *(Field("irq", p) for p in range(scenario.hosts)),
            *(Field("remote", v) for v in vcpus if scenario.bounds.remote),
            *(Field("device", v) for v in vcpus if scenario.bounds.device),
        )
        self.memory_shift = NODE_BITS * len(self.fields)
        self.memories: list[Memory] = []
        self.owing = bytearray()  # by memory: a post is owed to a vCPU that could take it
        self.tables: list[dict[int, Entry]] = [{} for _ in range(len(self.fields) + 1)]
        self.fault: tuple[int, Claim, str] | None = None  # set by compute(): (delta, claim, text)
        self._numbers: dict[Memory, int] = {}
        self._lazy = frozenset({"preempt_disable"} if scenario.bounds.preempt else ())
        self._private, self._own = self._private_steps()
        self._place = {f: i * NODE_BITS for i, f in enumerate(self.fields)}

    def _private_steps(self) -> tuple[frozenset[str], frozenset[str]]:
        """Steps on what no other actor of this scenario writes: fused with the step before.

        The first set anywhere, the second when a thread looks at its own vCPU.  ModelCpu asserts
        that nobody writes after all.
        """
        anywhere: set[str] = set()
        if not self.cpu.requesters:
            anywhere |= {"request_pending", "check_request"}
        if not self.cpu.timers:
            anywhere |= {"timer_pending", "timer_pending_clear"}
        if not self.scenario.bounds.plug:
            anywhere.add("load_has_pi_sender")
        # vcpu->cpu is written by the thread alone.  Whether a waiter is registered makes no
        # difference to a waker as long as the task is RUNNING, and it is until after that.
        own = {"load_vcpu_cpu", "prepare_to_rcuwait"}
        if not self.cpu.kickers:
            own.add("load_mode")
        return frozenset(anywhere), frozenset(own)

    # -- states ---------------------------------------------------------------------------------

    def initial(self) -> int:
        """The state in which every thread that has a pCPU is about to call vcpu_run()."""
        memory = initial_memory(self.scenario, self.layout)
        state = 0
        for i, field in enumerate(self.fields):
            if field.kind == "thread":
                self.cpu.m = list(memory)
                self.cpu.c = self.scenario.pins[field.index]
                self.cpu.me = field.index
                start = self.automaton.entry("vcpu_run", field.index)
                node = self._settle(start, [])
                memory = tuple(self.cpu.m)
                state |= node << (i * NODE_BITS)
        return self._intern(memory) << self.memory_shift | state

    def memory_of(self, state: int) -> Memory:
        return self.memories[state >> self.memory_shift]

    def nodes_of(self, state: int) -> dict[Field, Node]:
        """Where each program that is under way stands."""
        found = {}
        for i, field in enumerate(self.fields):
            node = self.automaton.nodes[state >> (i * NODE_BITS) & NODE_MASK]
            if node is not None:
                found[field] = node
        return found

    def moves(self, state: int) -> list[Move]:
        """Everything that can happen in `state`."""
        memory = state >> self.memory_shift
        found = list(self._environment(memory))
        for i in range(len(self.fields)):
            found += self._program(i, memory, state >> (i * NODE_BITS) & NODE_MASK)
        return found

    def compute(self, table: int, key: int) -> Entry:
        """Fill in what field `table` (the last: the surroundings) can do at `key`."""
        memory, node = key >> NODE_BITS, key & NODE_MASK
        if table == len(self.fields):
            moves = list(self._environment(memory))
        else:
            moves = list(self._program(table, memory, node))
        for move in moves:
            if move.fault is not None and move.fault[0] in self.scenario.claims:
                self.fault = (move.delta, *move.fault)
        obliged = any(not move.voluntary for move in moves)
        entry = (obliged, tuple(dict.fromkeys(m.delta for m in moves if m.delta)))
        self.tables[table][key] = entry
        return entry

    # -- moves ----------------------------------------------------------------------------------

    def _thaw(self, memory: int, pcpu: int, thread: int) -> None:
        self.cpu.m = list(self.memories[memory])
        self.cpu.c = pcpu
        self.cpu.me = thread
        self.cpu.fault = None

    def _program(self, i: int, memory: int, node: int) -> Iterator[Move]:
        """What the program in field `i` can do next."""
        kind, index = self.fields[i]
        m = self.memories[memory]
        match kind:
            case "thread" | "preempt":
                v = self.layout.vcpus[index]
                if node == DONE or (kind == "thread" and m[v + slot.PREEMPTING]):
                    return
                pcpu = m[v + slot.ON_CPU]
                if pcpu >= 0 and m[self.layout.pcpus[pcpu] + slot.IN_IRQ]:
                    return
                yield from self._step(i, memory, node, pcpu, index)
            case "irq":
                if node != DONE:
                    yield from self._step(i, memory, node, index, -1)
                elif m[self.layout.pcpus[index] + slot.IN_IRQ]:
                    self._thaw(memory, index, -1)
                    self.cpu.m[self.layout.pcpus[index] + slot.IN_IRQ] = 0
                    delta = self._delta(memory, self.cpu.m, ())
                    yield Move(delta, False, f"irq{index}", index, "iret", (), None, 0, 0, (), None)
            case _:
                pcpu = self.layout.hosts + index
                if node != DONE:
                    yield from self._step(i, memory, node, pcpu, -1)
                elif m[self.layout.vcpus[index] + self._budget(kind)]:
                    yield self._begin(i, memory, pcpu)

    @staticmethod
    def _budget(kind: str) -> int:
        return slot.LEFT_REMOTE if kind == "remote" else slot.LEFT_DEVICE

    def _sender(self, kind: str, vcpu: int) -> int:
        scenario, entry = self.scenario, self.automaton.entry
        if kind == "remote":
            vector = scenario.vectors[0]
            return entry("vmx_deliver_posted_interrupt", vcpu, vector)
        return entry("vtd_post", vcpu, scenario.device_vector, scenario.urgent)

    def _begin(self, i: int, memory: int, pcpu: int) -> Move:
        """A sender decides to post once more."""
        field = self.fields[i]
        self._thaw(memory, pcpu, -1)
        self.cpu.m[self.layout.vcpus[field.index] + self._budget(field.kind)] -= 1
        looks: list[Look] = []
        after = self._settle(self._sender(field.kind, field.index), looks)
        delta = self._delta(memory, self.cpu.m, ((field, DONE, after),))
        return Move(
            delta, True, actor_name(field), pcpu, "begin", (), None, DONE, after, tuple(looks), None
        )

    def _step(
        self, i: int, memory: int, node: int, pcpu: int, thread: int, *, new: bool = False
    ) -> Iterator[Move]:
        """The step at `node`, with the looks that precede it and those that follow it."""
        field, cpu = self.fields[i], self.cpu
        self._thaw(memory, pcpu, thread)
        looks: list[Look] = []
        at = node
        while (stands := self._node(at)).kind is Kind.LOOK:
            at = self._call(at, stands, looks)
        if stands.op in ("non_root_event", "context_switch"):
            guest = stands.op == "non_root_event"
            choices = self._guest(thread, pcpu) if guest else self._switch_in(thread, pcpu)
            for choice in choices:
                self._thaw(memory, pcpu, thread)
                for where, value in choice.changes:
                    cpu.m[where] = value
                if choice.op == "deliver":
                    cpu.deliver(thread)
                if stands.op == "context_switch":
                    cpu.c = choice.result
                self._guest_claims(choice, thread, pcpu)
                after, fused = at, list(looks)
                if choice.advances:
                    after = self._settle(self._after(at, stands.op, choice.result), fused)
                yield self._move(field, memory, node, after, choice, at, fused)
            return
        if cpu.blocked(stands.op, stands.args):
            return
        if new:
            cpu.m[self.layout.vcpus[field.index] + self._budget(field.kind)] -= 1
        result = getattr(cpu, stands.op)(*stands.args)
        after = self._settle(self.automaton.next(at, result), looks)
        choice = _Choice(stands.op, stands.args, result, new, ())
        yield self._move(field, memory, DONE if new else node, after, choice, at, looks)

    def _after(self, at: int, op: str, result: Any) -> int:
        """context_switch() returns nothing to the text; where it returns is the world's affair."""
        return self.automaton.next(at, None if op == "context_switch" else result)

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
        cpu = self.cpu
        for _ in range(SETTLE_MAX):
            node = self.automaton.nodes[at]
            if node is None:
                return at
            if node.kind is Kind.LOOK or node.kind is Kind.TRACE:
                if node.op in self._lazy:
                    return at
            elif node.op == "context_switch":
                self._switch_out(node.args[0])
                return at
            elif not (
                node.op in self._private or (node.op in self._own and node.args[0] == cpu.me)
            ) or cpu.blocked(node.op, node.args):
                return at
            at = self._call(at, node, looks)
        raise AssertionError(f"a loop without a step at {self._node(at)}")

    def _switch_out(self, vcpu: int) -> None:
        """The thread leaves its pCPU: a switch drains the store buffer, the idle task takes over.

        Not a step of its own: the thread was off the run queue or past its last word already, and
        what an idle pCPU can do is only more than before.
        """
        m, v = self.cpu.m, self.layout.vcpus[vcpu]
        if m[v + slot.ON_CPU] < 0:
            return
        p = self.layout.pcpus[m[v + slot.ON_CPU]]
        if m[p + slot.BUFFER]:
            return
        m[p + slot.CURRENT], m[p + slot.IRQS_OFF], m[v + slot.ON_CPU] = -1, 0, -1

    def _move(
        self,
        field: Field,
        memory: int,
        node: int,
        after: int,
        choice: _Choice,
        at: int,
        looks: list[Look],
    ) -> Move:
        if after == DONE:
            self._finished(field)
        pcpu = self.cpu.c
        fault = self.cpu.fault or self._disagreement(field, after)
        delta = self._delta(memory, self.cpu.m, ((field, node, after),))
        return Move(
            delta,
            choice.voluntary,
            actor_name(field),
            pcpu,
            choice.op,
            choice.args,
            choice.result,
            at,
            after,
            tuple(looks),
            fault,
        )

    def _finished(self, field: Field) -> None:
        if field.kind == "preempt":
            self.cpu.m[self.layout.vcpus[field.index] + slot.PREEMPTING] = 0
        elif field.kind == "irq":
            self.cpu.seen.add("an interrupt handler finished")
        else:
            self.cpu.seen.add(f"a {field.kind} sender finished")

    def _delta(
        self, memory: int, m: list[Any], changed: tuple[tuple[Field, int, int], ...]
    ) -> int:
        delta = (self._intern(tuple(m)) - memory) << self.memory_shift
        for field, node, after in changed:
            delta += (after - node) << self._place[field]
        return delta

    def _intern(self, m: Memory) -> int:
        number = self._numbers.get(m)
        if number is None:
            number = self._numbers[m] = len(self.memories)
            self.memories.append(m)
            self.owing.append(self._owes(m))
        return number

    # -- choices --------------------------------------------------------------------------------

    def _guest(self, vcpu: int, pcpu: int) -> list[_Choice]:
        """What can happen in non-root mode, by the hardware's priorities (SDM vol. 3, 29.2.2).

        A virtual interrupt comes first, then the local APIC's highest vector, then, if there is
        neither, whatever the guest likes.
        """
        m, v, p = self.cpu.m, self.layout.vcpus[vcpu], self.layout.pcpus[pcpu]
        found: list[_Choice] = []
        if m[v + slot.RVI] and m[v + slot.GUEST_IF]:
            vector = self.scenario.vectors[m[v + slot.RVI] - 1]
            found.append(_Choice("deliver", (vcpu, vector), None, False, (), advances=False))
        out = (p + slot.NONROOT, 0)
        if bits := m[p + slot.PENDING]:
            vector = PENDING_VECTOR[1 << (bits.bit_length() - 1)]
            taken = (p + slot.PENDING, bits & ~PENDING_BIT[vector])
            if vector == POSTED_INTR_VECTOR:
                found.append(self._event(vcpu, NOTIFICATION, (taken,), voluntary=False))
            else:
                changes = (taken, out, (p + slot.EXIT_VECTOR, vector))
                found.append(self._event(vcpu, ExitReason.EXTERNAL_INTERRUPT, changes, voluntary=False))
        if found and self.scenario.priority:
            return found[:1]
        found += [
            self._event(vcpu, reason, (out,), voluntary=True)
            for reason in (ExitReason.HLT, ExitReason.VMCALL)
        ]
        for vector, changes, voluntary in self._host_interrupts(pcpu):
            changes = (*changes, out, (p + slot.EXIT_VECTOR, vector))
            found.append(
                self._event(vcpu, ExitReason.EXTERNAL_INTERRUPT, changes, voluntary=voluntary)
            )
        if left := m[v + slot.LEFT_FASTPATH]:
            changes = (out, (v + slot.LEFT_FASTPATH, left - 1), (v + slot.HV_TIMER, 1))
            found.append(self._event(vcpu, ExitReason.PREEMPTION_TIMER, changes, voluntary=True))
        if left := m[v + slot.LEFT_TIMER]:
            for deadline in (1, 2):
                write = (p + slot.EXIT_MSR, (MSR_TSC_DEADLINE, deadline))
                changes = (out, (v + slot.LEFT_TIMER, left - 1), write)
                found.append(self._event(vcpu, ExitReason.MSR_WRITE, changes, voluntary=True))
        if m[v + slot.HV_TIMER]:
            found.append(
                self._event(vcpu, ExitReason.PREEMPTION_TIMER, (out,), voluntary=False)
            )
        if self.scenario.guest_masks:
            changes = (out, (v + slot.GUEST_IF, 0))
            found.append(self._event(vcpu, ExitReason.HLT, changes, voluntary=True))
        return found

    @staticmethod
    def _event(
        vcpu: int, result: int, changes: tuple[tuple[int, Any], ...], *, voluntary: bool
    ) -> _Choice:
        return _Choice("non_root_event", (vcpu,), int(result), voluntary, changes)

    def _guest_claims(self, choice: _Choice, vcpu: int, pcpu: int) -> None:
        if choice.op == "non_root_event" and choice.result == NOTIFICATION:
            self.cpu.seen.add("the processor took a notification")
            p = self.layout.pcpus[pcpu]
            meant = self.cpu.m[p + slot.MEANT]
            if meant and not meant & 1 << vcpu:
                text = f"vCPU {vcpu} consumed a notification that was meant for another"
                self.cpu.broken(Claim.OWN_NOTIFICATION, text)
            self.cpu.m[p + slot.MEANT] = 0

    def _host_interrupts(self, pcpu: int) -> Iterator[tuple[int, tuple[tuple[int, Any], ...], bool]]:
        """(vector, changes, voluntary) of the interrupts of this host that `pcpu` can get."""
        m = self.cpu.m
        for vcpu, v in enumerate(self.layout.vcpus):
            if self.scenario.pins[vcpu] == pcpu and (left := m[v + slot.LEFT_IRQ]):
                yield FIRST_DEVICE_VECTOR + vcpu, ((v + slot.LEFT_IRQ, left - 1),), True
        if any(m[v + slot.SW_TIMER] == 1 + pcpu for v in self.layout.vcpus):
            yield LOCAL_TIMER_VECTOR, (), False

    def _switch_in(self, vcpu: int, pcpu: int) -> list[_Choice]:
        """Where the scheduler can run the thread; off its pCPU first, if a store buffer held it."""
        m, v = self.cpu.m, self.layout.vcpus[vcpu]
        if pcpu >= 0:
            p = self.layout.pcpus[pcpu]
            if m[p + slot.BUFFER]:
                return []
            off = ((p + slot.CURRENT, -1), (p + slot.IRQS_OFF, 0), (v + slot.ON_CPU, -1))
            return [_Choice("context_switch", (vcpu,), -1, False, off, advances=False)]
        if m[v + slot.STATE] == _SLEEPING:
            return []
        found = []
        for target in range(self.layout.hosts):
            p = self.layout.pcpus[target]
            if m[p + slot.CURRENT] >= 0 or m[p + slot.IN_IRQ]:
                continue
            on = ((p + slot.CURRENT, vcpu), (p + slot.IRQS_OFF, 1), (v + slot.ON_CPU, target))
            moved = target != m[v + slot.CPU]
            if moved and not (left := m[slot.LEFT_MIGRATE]):
                continue
            changes = (*on, (slot.LEFT_MIGRATE, left - 1)) if moved else on
            found.append(_Choice("context_switch", (vcpu,), target, moved, changes))
        return found

    # -- what no program does: interrupts arrive, threads are preempted, buffers drain --------------

    def _environment(self, memory: int) -> Iterator[Move]:
        m = self.memories[memory]
        for pcpu in range(self.layout.hosts):
            p = self.layout.pcpus[pcpu]
            if m[p + slot.BUFFER]:
                self._thaw(memory, pcpu, -1)
                (where, value), *_ = m[p + slot.BUFFER]
                self.cpu.drain(pcpu)
                args = (self._name_of(where), value)
                delta = self._delta(memory, self.cpu.m, ())
                yield Move(
                    delta, False, f"sb{pcpu}", pcpu, "drain", args, None, DONE, DONE, (), None
                )
            if not (m[p + slot.IN_IRQ] or m[p + slot.IRQS_OFF] or m[p + slot.NONROOT]):
                yield from self._interrupts(memory, pcpu)
        if m[slot.LEFT_PREEMPT]:
            for vcpu in range(len(self.layout.vcpus)):
                yield from self._preempt(memory, vcpu)

    def _interrupts(self, memory: int, pcpu: int) -> Iterator[Move]:
        """Each vector that a pCPU in root mode with interrupts on can be given now."""
        p = self.layout.pcpus[pcpu]
        self._thaw(memory, pcpu, -1)
        bits = self.cpu.m[p + slot.PENDING]
        offers = list(self._host_interrupts(pcpu))
        for vector, bit in PENDING_BIT.items():
            if bits & bit:
                offers.append((vector, ((p + slot.PENDING, bits & ~bit),), False))
        for vector, changes, voluntary in offers:
            self._thaw(memory, pcpu, -1)
            for where, value in changes:
                self.cpu.m[where] = value
            self.cpu.m[p + slot.IN_IRQ] = 1
            if vector == POSTED_INTR_VECTOR:
                self.cpu.m[p + slot.MEANT] = 0
                self.cpu.seen.add("a notification arrived in root mode")
                if Claim.COST in self.scenario.claims:
                    self.cpu.m[slot.WASTED] += 1
            looks: list[Look] = []
            after = self._settle(self.automaton.entry("do_irq", vector), looks)
            field = Field("irq", pcpu)
            if after == DONE:
                self._finished(field)
            delta = self._delta(memory, self.cpu.m, ((field, DONE, after),))
            name = f"host{pcpu}" if vector in PENDING_BIT else f"irq{pcpu}"
            yield Move(
                *(delta, voluntary, name, pcpu, "interrupt", (vector,), None, DONE, after),
                *(tuple(looks), self.cpu.fault),
            )

    def _preempt(self, memory: int, vcpu: int) -> Iterator[Move]:
        """The scheduler takes the pCPU from a thread that runs with interrupts and preemption on."""
        m, v = self.memories[memory], self.layout.vcpus[vcpu]
        pcpu = m[v + slot.ON_CPU]
        if pcpu < 0 or m[v + slot.PREEMPTING]:
            return
        p = self.layout.pcpus[pcpu]
        if any(m[p + s] for s in (slot.IN_IRQ, slot.IRQS_OFF, slot.NONROOT, slot.PREEMPT_COUNT)):
            return
        self._thaw(memory, pcpu, vcpu)
        self.cpu.m[slot.LEFT_PREEMPT] -= 1
        self.cpu.m[v + slot.PREEMPTING] = 1
        after = self._settle(self.automaton.entry("preempt_schedule", vcpu), [])
        delta = self._delta(memory, self.cpu.m, ((Field("preempt", vcpu), DONE, after),))
        yield Move(delta, True, "sched", pcpu, "preempt", (vcpu,), None, DONE, after, (), None)

    def _name_of(self, where: int) -> str:
        names = {slot.MODE: "mode", slot.CPU: "cpu", slot.STATE: "state"}
        return names[(where - slot.MACHINE_SLOTS) % slot.VCPU_SLOTS]

    # -- claims about one memory ----------------------------------------------------------------

    def _owes(self, m: Memory) -> bool:
        """A vCPU has not been given a post, or a timer, that it could take, and is not on its way.

        A thread that waits for its turn on a busy pCPU is on its way: that is the scheduler's.
        """
        for v in self.layout.vcpus:
            owed = m[v + slot.OWED] or m[v + slot.DEADLINE] or m[v + slot.TIMER_PENDING]
            queued = m[v + slot.ON_CPU] < 0 and m[v + slot.STATE] != _SLEEPING
            if owed and m[v + slot.GUEST_IF] and not queued:
                return True
        return False

    def _disagreement(self, field: Field, after: int) -> tuple[Claim, str] | None:
        """S4 and S5, after a step of a thread."""
        if field.kind not in ("thread", "preempt"):
            return None
        m, vcpu = self.cpu.m, field.index
        v = self.layout.vcpus[vcpu]
        pcpu = m[v + slot.ON_CPU]
        if m[v + slot.SN] and pcpu >= 0 and m[self.layout.pcpus[pcpu] + slot.NONROOT]:
            return (Claim.SN_CLEAR_IN_GUEST, f"vCPU {vcpu} is in the guest with SN = 1")
        node = self.automaton.nodes[after]
        if node is not None and not PID_SECTION.isdisjoint(node.functions):
            return None
        hosts = range(self.layout.hosts)
        listed = {p for p in hosts if m[self.layout.pcpus[p] + slot.LIST] & 1 << vcpu}
        armed = m[v + slot.NV] == POSTED_INTR_WAKEUP_VECTOR
        if listed != ({m[v + slot.NDST]} if armed else set()):
            text = f"vCPU {vcpu}: NV = {m[v + slot.NV]:#x}, NDST = {m[v + slot.NDST]}, on the list"
            return (Claim.LIST_AGREES, f"{text} of pCPUs {sorted(listed)}")
        return None


def actor_name(field: Field) -> str:
    """As counterexamples name it."""
    return f"{'vcpu' if field.kind in ('thread', 'preempt') else field.kind}{field.index}"
