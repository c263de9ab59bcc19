"""The pair that the elision rests on, asked of this host's hardware: mode and ON.

Two processes on the mapped file, in rounds.  The vCPU stores its mode and loads ON; the sender sets
ON and loads the mode.  If both read the old value, the sender only wakes a vCPU that is entering
the guest, and the guest never hears of it.  Program order forbids that; a store buffer does not.
The stores here are plain ones (`RELAXED`), the fence is the live run's `smp_mb()`.
The model's opinion of the same pair: scenario `entry-barrier`.
"""

import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, Final

import setproctitle
from atomicshm import RELAXED, RELEASE

from emulator.machine.errors import RunBroken
from emulator.machine.host import runtime_root
from emulator.machine.memory import V_CONTROL, V_MODE, Memory, Shape, smp_mb
from emulator.machine.nursery import die_with

SCHEMA: Final = "pirlab-litmus/1"
STUCK_S: Final = 20.0  # one has waited so long for the other: it is gone
LOOKS: Final = 20_000  # then let somebody else have the core, it may be the other
LATER: Final = tuple(range(2 * n) for n in range(8))
NEAR: Final = range(60)  # looks for the other before a round
BATCH: Final = 64  # rounds between two meetings, each with words of its own
H_VCPU: Final = 512  # u64 in the header's page: the round that the vCPU has come to
H_SENDER: Final = 576  # and the sender

OUTCOMES: Final = ("old, old", "old, new", "new, old", "new, new")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """`vcpu_fence`: smp_mb() between mode and ON.  `sender_locked`: ON set as KVM sets it."""

    name: str
    vcpu_fence: bool
    sender_locked: bool
    forbidden: bool  # x86 promises that "old, old" does not happen


VARIANTS: Final = (
    Variant(name="as KVM has it", vcpu_fence=True, sender_locked=True, forbidden=True),
    Variant(name="no entry fence", vcpu_fence=False, sender_locked=True, forbidden=False),
    Variant(name="plain store of ON", vcpu_fence=True, sender_locked=False, forbidden=False),
    Variant(name="no fence on either side", vcpu_fence=False, sender_locked=False, forbidden=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Litmus:
    """Counts of (ON as the vCPU read it, mode as the sender read it), by variant."""

    rounds: int
    cores: int
    counts: dict[str, Counter[str]]
    seconds: float

    @property
    def good(self) -> bool:
        """Nothing that the architecture forbids has been seen."""
        return not any(self.counts[v.name][OUTCOMES[0]] for v in VARIANTS if v.forbidden)

    @property
    def sentence(self) -> str:
        """What it shows."""
        both_old = {v.name: self.counts[v.name][OUTCOMES[0]] for v in VARIANTS}
        if fenced := both_old["as KVM has it"]:
            return f"with its fences the pair was reordered in {fenced:,} rounds: this is no x86."
        entry, neither = both_old["no entry fence"], both_old["no fence on either side"]
        if not (entry or neither):
            return (
                "no round showed the reordering here, with or without fences: that proves nothing, "
                "the two processes may never have run at the same moment."
            )
        return (
            f"of {self.rounds:,} rounds each, both CPUs read the old value, which would be a lost "
            f"interrupt, in {neither:,} ({100 * neither / self.rounds:.2g} %) without a fence on "
            f"either side and in {entry:,} without the entry fence alone; as KVM has it, in none."
        )

    def to_json(self) -> dict[str, Any]:
        """Schema pirlab-litmus/1."""
        return {
            "schema": SCHEMA,
            "rounds": self.rounds,
            "cores": self.cores,
            "seconds": round(self.seconds, 3),
            "variants": [
                {
                    "name": v.name,
                    "vcpu_fence": v.vcpu_fence,
                    "sender_locked": v.sender_locked,
                    "forbidden": v.forbidden,
                    "counts": {outcome: self.counts[v.name][outcome] for outcome in OUTCOMES},
                }
                for v in VARIANTS
            ],
            "shows": self.sentence,
        }

    def to_text(self) -> str:
        """A table; what each CPU read of the other's word: ON, then the mode."""
        lines = [
            "vCPU: mode = IN_GUEST_MODE; [smp_mb()]; read ON",
            "sender: set ON (locked, or plain); read mode",
            f"{self.rounds:,} rounds each, two processes, {self.cores} cores, {self.seconds:.1f} s",
            "",
            f"{'read of ON, of the mode:':<26}" + "".join(f"{o:>12}" for o in OUTCOMES),
        ]
        for v in VARIANTS:
            row = "".join(f"{self.counts[v.name][outcome]:>12,}" for outcome in OUTCOMES)
            lines.append(f"{v.name:<26}{row}{'   forbidden' if v.forbidden else ''}")
        return "\n".join([*lines, "", self.sentence])


def run_litmus(rounds: int) -> Litmus:
    """Every variant for `rounds` rounds.  HostError, RunBroken if the sender's process dies."""
    began = time.perf_counter()
    runtime = Path(tempfile.mkdtemp(prefix="pirlab-litmus-", dir=runtime_root()))  # mode 0700
    try:
        shape = Shape(pcpus=1, vcpus=BATCH, devices=0, ring_records=8)
        memory = Memory.create(runtime / "memory", shape)
    finally:
        # Mapped here and in what is forked from here: without a name, a kill leaves nothing behind.
        shutil.rmtree(runtime, ignore_errors=True)
    counts = {v.name: _run_variant(memory, v, rounds) for v in VARIANTS}
    cores = len(os.sched_getaffinity(0))
    return Litmus(rounds=rounds, cores=cores, counts=counts, seconds=time.perf_counter() - began)


def _run_variant(memory: Memory, variant: Variant, rounds: int) -> Counter[str]:
    for vcpu in range(BATCH):
        memory.view.store_u64(memory.vcpu(vcpu, V_CONTROL), 0)
        memory.view.store_u32(memory.vcpu(vcpu, V_MODE), 0)
    for word in (H_VCPU, H_SENDER):
        memory.view.store_u64(word, 0)
    ours, theirs = Pipe()
    vcpu_side = os.getpid()
    sender = os.fork()
    if sender == 0:
        die_with(vcpu_side)
        os._exit(_sender_main(memory, variant, rounds, theirs.send_bytes))
    theirs.close()
    try:
        on_seen = _vcpu_side(memory, variant, rounds)
        if not ours.poll(STUCK_S):
            raise RunBroken("the sender of the litmus test does not answer")
        mode_seen = ours.recv_bytes()
    except EOFError as error:
        raise RunBroken("the sender of the litmus test has died") from error
    finally:
        ours.close()
        os.kill(sender, signal.SIGKILL)
        os.waitpid(sender, 0)
    names = {(a, b): OUTCOMES[2 * a + b] for a in (0, 1) for b in (0, 1)}
    return Counter(names[pair] for pair in zip(on_seen, mode_seen, strict=True))


def _sender_main(
    memory: Memory, variant: Variant, rounds: int, send: Callable[[bytes], None]
) -> int:
    try:
        setproctitle.setproctitle("pirlab sender (litmus)")
        send(_sender_side(memory, variant, rounds))
    except BaseException:  # noqa: BLE001  a forked process must not return into its caller's text
        return 1
    return 0


# A batch of rounds has a number, and "new" is the batch's own: nothing needs to be set back.  In a
# batch the two wait for each other before each round, but not for long: the other may have lost its
# core.  Then each starts a little later or sooner.  The sides and their variants are written out:
# between the two instructions there is no room.


def _vcpu_side(memory: Memory, variant: Variant, rounds: int) -> bytes:
    """1 for each round in which ON was read as new."""
    words = [
        (memory.u32(memory.vcpu(v, V_MODE)).store, memory.u64(memory.vcpu(v, V_CONTROL)).load)
        for v in range(BATCH)
    ]
    arrive, other = memory.u64(H_VCPU).store, memory.u64(H_SENDER).load
    seen = bytearray()
    relaxed, fence = RELAXED, smp_mb
    for i in range(1, -(-rounds // BATCH) + 1):
        _meet(arrive, other, BATCH * i)
        for n, (store_mode, load_on) in enumerate(words):
            _draw_near(arrive, other, BATCH * i + n, LATER[n % len(LATER)])
            arrive(BATCH * i + n, relaxed)  # the other reads it: the mode queues behind it
            if variant.vcpu_fence:
                store_mode(i, relaxed)
                fence()
                on = load_on(relaxed)
            else:
                store_mode(i, relaxed)
                on = load_on(relaxed)
            seen.append(on == i)
    return bytes(seen[:rounds])


def _sender_side(memory: Memory, variant: Variant, rounds: int) -> bytes:
    """1 for each round in which the mode was read as new."""
    control = [memory.u64(memory.vcpu(v, V_CONTROL)) for v in range(BATCH)]
    modes = [memory.u32(memory.vcpu(v, V_MODE)).load for v in range(BATCH)]
    words = [(on.exchange, on.store, mode) for on, mode in zip(control, modes, strict=True)]
    arrive, other = memory.u64(H_SENDER).store, memory.u64(H_VCPU).load
    seen = bytearray()
    relaxed = RELAXED
    for i in range(1, -(-rounds // BATCH) + 1):
        _meet(arrive, other, BATCH * i)
        for n, (exchange_on, store_on, load_mode) in enumerate(words):
            _draw_near(arrive, other, BATCH * i + n, LATER[n // len(LATER)])
            if variant.sender_locked:
                exchange_on(i)
                mode = load_mode(relaxed)
            else:
                store_on(i, relaxed)
                mode = load_mode(relaxed)
            seen.append(mode == i)
    return bytes(seen[:rounds])


def _draw_near(
    arrive: Callable[[int, int], None], other: Callable[[], int], n: int, later: range
) -> None:
    """Wait a moment for the other to come to round `n`, then `later` empty loops."""
    arrive(n, RELAXED)
    for _ in NEAR:
        if other() >= n:
            break
    for _ in later:
        pass


def _meet(arrive: Callable[[int, int], None], other: Callable[[], int], n: int) -> None:
    """Wait until the other side has come to round `n`.  RunBroken if it does not."""
    arrive(n, RELEASE)
    looks, deadline = 0, 0.0
    while other() < n:
        looks += 1
        if looks % LOOKS == 0:
            os.sched_yield()
            deadline = deadline or time.monotonic() + STUCK_S
            if time.monotonic() > deadline:
                raise RunBroken("one side of the litmus test waits in vain for the other")
