"""The watchdog: announced work that nobody is on the way to.

It looks at the mapped file only, from the launcher, a few times a second.  A vCPU with a vector in
PIR that has not been taken for `run.watchdog`, with no message on its way to its pCPU and that
pCPU in no interrupt handler, has lost an interrupt: asleep, a wake-up (invariant I4 of the
protocol); awake, a notification (I2, I3).
"""

from dataclasses import dataclass
from time import monotonic_ns

from emulator.config.model import Cell
from emulator.events import LAUNCHER, RECORD, Event
from emulator.kvm.params import TaskState
from emulator.machine.memory import P_ARRIVED, P_BUSY, P_RUNG, V_HARVESTS, V_MERGES, Memory
from emulator.machine.words import all_words


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One vCPU that has lost an interrupt."""

    vcpu: int
    vectors: tuple[int, ...]
    invariant: str  # "lost-wakeup" | "lost-interrupt"
    text: str
    for_ns: int

    def records(self) -> list[bytes]:
        """As events, one a vector."""
        now = monotonic_ns()
        awake = int(self.invariant == "lost-interrupt")
        return [
            RECORD.pack(now, self.for_ns, awake, Event.LOST, vector, LAUNCHER, self.vcpu, 0)
            for vector in self.vectors
        ]


class Watchdog:
    """Call `look()` regularly."""

    def __init__(self, memory: Memory, cell: Cell) -> None:
        self._memory = memory
        self._cell = cell
        self._words = all_words(memory)
        self._limit_ns = cell.run.watchdog_ns
        self._since: dict[int, tuple[int, int]] = {}  # vcpu: (harvests, since)

    def look(self) -> list[Loss]:
        """Vectors that have waited longer than the limit."""
        return self._stuck(self._limit_ns)

    def overdue(self) -> list[Loss]:
        """At the end of the drain: whatever is stuck, however recently it got so."""
        return self._stuck(0)

    def asleep(self, vcpu: int) -> bool:
        """The thread is off its pCPU and only a wake-up brings it back."""
        words = self._words[vcpu]
        return words.waiter.load() != 0 and words.task_state.load() == TaskState.SLEEPING

    def pending(self, vcpu: int) -> int:
        """PIR | software VIRR | VIRR, 256 bits."""
        return self._memory.announced(vcpu) | self._memory.virr(vcpu)

    def _stuck(self, limit_ns: int) -> list[Loss]:
        now = monotonic_ns()
        losses = []
        for vcpu in self._cell.vcpus:
            since = self._waiting_since(vcpu.index, now)
            if since and now - since >= limit_ns and not self._on_the_way(vcpu.index):
                losses.append(self._loss(vcpu.index, now - since))
        return losses

    def _waiting_since(self, vcpu: int, now: int) -> int:
        """Since when this vCPU has had work that it has not taken; 0: it has none."""
        load = self._memory.view.load_u64
        pir, announced = self._words[vcpu].desc.pir(), self._memory.announced(vcpu)
        if not (announced or (self.asleep(vcpu) and self._memory.virr(vcpu))):
            self._since.pop(vcpu, None)
            return 0
        life = load(self._memory.vcpu(vcpu, V_HARVESTS if pir else V_MERGES))
        known = self._since.get(vcpu)
        if known is None or known[0] != life:
            self._since[vcpu] = (life, now)
            return now
        return known[1]

    def _on_the_way(self, vcpu: int) -> bool:
        """A message is under way to the vCPU's pCPU, or that is in an interrupt handler."""
        load, pcpu = self._memory.view.load_u64, self._words[vcpu].cpu.load()
        rung = load(self._memory.pcpu(pcpu, P_RUNG))
        arrived = load(self._memory.pcpu(pcpu, P_ARRIVED))
        return rung != arrived or load(self._memory.pcpu(pcpu, P_BUSY)) != 0

    def _loss(self, vcpu: int, for_ns: int) -> Loss:
        words = self._words[vcpu]
        pir = words.desc.pir()
        control = words.desc.control()
        vectors = tuple(v for v in range(256) if (pir or self.pending(vcpu)) >> v & 1)
        asleep = self.asleep(vcpu)
        name = self._cell.vcpus[vcpu].name
        named = ", ".join(f"{v:#x}" for v in vectors)
        return Loss(
            vcpu=vcpu,
            vectors=vectors,
            invariant="lost-wakeup" if asleep else "lost-interrupt",
            text=(
                f"vCPU {name} is {'asleep' if asleep else 'awake'} with PIR {{{named}}}, "
                f"ON={control & 1}, SN={control >> 1 & 1}, and nobody is on the way to it, "
                f"for {for_ns / 1e6:.0f} ms"
            ),
            for_ns=for_ns,
        )
