"""Linked text against the text as it stands in the files.

The same pCPU, alone with a clock that ticks when it is read and a fabric that leads back to it: two
runs of it must record the same events at the same ticks.
"""

import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest

from emulator.config import load_experiment
from emulator.guest import PROGRAMS
from emulator.guest.program import Guest
from emulator.guest.workload import Workload
from emulator.hardware.vmcs import GuestState
from emulator.kvm.params import Kvm, Notify
from emulator.kvm.vcpu import vcpu_run
from emulator.machine import linker
from emulator.machine.linker import Linker, link_text
from emulator.machine.live import LiveCpu
from emulator.machine.memory import P_RUNG, Memory, Shape
from emulator.machine.pcpu import stream_of, vcpu_thread
from emulator.machine.recorder import Recorder
from emulator.machine.words import all_words

TICK_NS = 300
EVENTS = 2500
CLOCKED = ("processor", "descriptors", "inhibition", "timers", "live", "scheduler")

CONFIG = """
pirlab: 1
name: alone
question: Does the linked text do what the text does?
cluster: {{pcpus: 1, fabric: ipc}}
vms:
  vm: {{vcpus: {vcpus}, pin: {{{pin}}}, guest: {guest}}}
load:
  - {{name: timer, from: each-vcpu, to: self, vector: 0xec, rate: 9k/s, arrival: poisson}}
  - {{name: self, from: each-vcpu, to: self, via: icr, vector: 0x41, rate: 7k/s, arrival: poisson}}
kvm: {{{kvm}}}
run: {{for: 1s, seed: 7}}
"""

ALONE = ("spin", 1)
HALTING = ("hlt-loop", 1)
SHARING = ("hlt-loop", 3)
CASES = [
    *((guest, f"rule: {rule.value}") for rule in Notify for guest in (ALONE, HALTING)),
    (SHARING, "rule: kvm-v5.18, sched_slice: 100us, halt_poll: 0us"),
    (SHARING, "rule: kvm-v5.16, sched_slice: 100us, pid_scheme: pre-block, senders: vt-d"),
    (SHARING, "rule: kvm-v5.17, sched_slice: 100us, pid_scheme: preempt-sn, senders: vt-d"),
    (HALTING, "rule: kvm-v5.18, timer: hrtimer, reentry_order: sync-last"),
    (HALTING, "rule: kvm-v5.16, entry_order: 2013"),
    (ALONE, "rule: kvm-v5.18, apicv_inhibit: 1ms"),
]


class EnoughError(Exception):
    pass


class Loop:
    """A fabric of one: what is sent arrives, unless nobody looks."""

    def __init__(self, memory):
        self._ring = memory.u64(memory.pcpu(0, P_RUNG)).fetch_add
        self._queue = []

    def send(self, pcpu, message):
        assert pcpu == 0
        self._ring(1)
        self._queue.append(message)

    def receive(self):
        return self._queue.pop(0) if self._queue else None

    def wait(self, timeout):
        return None


def events_of(path, cell, monkeypatch, *, linked):
    """What the pCPU records, from its start."""
    path.unlink(missing_ok=True)
    memory = Memory.create(path, Shape(pcpus=1, vcpus=len(cell.vcpus), devices=0, ring_records=64))
    memory.set_phase(1)
    for words in all_words(memory):
        words.reset(0, has_pi_sender=cell.kvm.irq_bypass, suppressed=True)
    recorder = Recorder(memory, 0)
    recorded = []

    def guest(cpu, vcpu):
        work = Workload(
            number=vcpu, neighbour=0, start_ns=0, seed=7, draining=lambda: False,
            streams=tuple(stream_of(load) for load in cell.loads if load.vcpu == vcpu),
        )  # fmt: skip
        guest = Guest(PROGRAMS[cell.vcpus[vcpu].guest], work, cpu.lp, cpu)
        guest.execute_by(cpu.text.instructions)
        return guest

    cpu = LiveCpu(memory, Loop(memory), cell, 0, recorder, 0, guest, vcpu_thread)
    if linked:
        monkeypatch.setattr(linker, "_linked", {})  # what it holds has another clock
        cpu.text = link_text(LiveCpu, cell.kvm)

    def note(event):
        recorded.append(event)
        if len(recorded) >= EVENTS:
            raise EnoughError

    cpu.note = note
    with pytest.raises(EnoughError):
        cpu.scheduler.run()
    return recorded


def ticking(monkeypatch):
    now = 0

    def clock():
        nonlocal now
        now += TICK_NS
        return now

    for module in CLOCKED:
        monkeypatch.setattr(sys.modules[f"emulator.machine.{module}"], "monotonic_ns", clock)


@pytest.mark.parametrize(("guest", "kvm"), CASES, ids=lambda value: str(value)[:60])
def test_the_linked_text_records_what_the_text_records_tick_by_tick(
    guest, kvm, monkeypatch, tmp_path
):
    program, vcpus = guest
    pin = ", ".join(f"{vcpu}: 0" for vcpu in range(vcpus))
    config = tmp_path / "alone.yaml"
    config.write_text(CONFIG.format(vcpus=vcpus, pin=pin, guest=program, kvm=kvm))
    cell = load_experiment(config).cells[0]

    runs = []
    for linked in (False, True):
        ticking(monkeypatch)
        runs.append(events_of(tmp_path / "memory", cell, monkeypatch, linked=linked))

    assert len(runs[0]) == EVENTS
    assert runs[0] == runs[1]
    assert len({event[3] for event in runs[0]}) > 5  # kinds of events: it did run


# -- the inliner, on small functions ---------------------------------------------------------------


class Toy:
    """Steps of every shape that the inliner has to tell apart."""

    def __init__(self):
        self.said = []
        self.value = 0

    def early(self, n):
        if n < 0:
            return "negative"
        if n == 0:
            return "zero"
        self.said.append(n)
        return "positive"

    def falls_off(self, n):  # noqa: RET503  None is its value then
        if n > 1:
            return n
        self.said.append("small")

    def search(self, n):
        i = 0
        while True:
            i += 1
            if i * i >= n:
                return i

    def counted(self, n):
        n += 1
        self.said.append(n)
        return n

    def said_by_default(self, what="nothing", times=2):
        self.said.append(what * times)

    def nothing(self):
        self.said.append("nothing")

    def squares(self, n):
        return [i * i for i in range(n)]

    def doubled(self):
        return self.value + self.value

    def set_value(self, value):
        self.value = value


def returns_from_the_middle(cpu, n):
    if cpu.early(n) == "zero":
        return "nil"
    return cpu.early(n - 1)


def falls_off_the_end(cpu, n):
    first = cpu.falls_off(n)
    second = cpu.falls_off(n - 1)
    return first, second


def loops_inside(cpu, n):
    found = cpu.search(n)
    while cpu.early(found) != "zero":
        found = found - 1
    return found


def assigns_its_parameter(cpu, n):
    a = cpu.counted(n)
    b = cpu.counted(n)
    return a, b, n


def defaults_and_none(cpu, n):
    cpu.said_by_default()
    cpu.said_by_default("x")
    cpu.said_by_default("y", n)
    return cpu.nothing()


def order_of_evaluation(cpu, n):
    cpu.set_value(n)
    if (cpu.counted(1) == 2 and cpu.counted(2) == 3) or cpu.counted(3) == 4:
        cpu.set_value(cpu.doubled())
    if n < cpu.doubled():
        cpu.nothing()
    return cpu.value, cpu.squares(n)


@pytest.mark.parametrize(
    "function",
    [
        returns_from_the_middle,
        falls_off_the_end,
        loops_inside,
        assigns_its_parameter,
        defaults_and_none,
        order_of_evaluation,
    ],
)
@pytest.mark.parametrize("n", [0, 1, 2, 9])
def test_an_inlined_call_has_the_value_and_the_effects_of_the_call(function, n):
    plain, inlined = Toy(), Toy()

    linked = Linker(Toy, Kvm()).function(function)

    assert linked(inlined, n) == function(plain, n)
    assert (inlined.said, inlined.value) == (plain.said, plain.value)


def test_a_name_that_two_classes_share_calls_the_one_that_the_inliner_takes_it_for():
    ours, processors = (
        {name for name in vars(cls) if not name.startswith("__")} for cls in (Guest, GuestState)
    )

    assert not {n for n in ours & processors if callable(getattr(Guest, n))}


def test_a_traceback_names_the_line_of_the_text():
    class Broken(LiveCpu):
        __slots__ = ()

        def pi_test_on(self, vcpu):
            raise EnoughError

    linked = Linker(Broken, Kvm()).function(vcpu_run)
    cpu = Broken.__new__(Broken)
    cpu.words = [SimpleNamespace(desc=None)]
    with pytest.raises(AttributeError) as caught:
        linked(cpu, 0)

    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert Path(frame.filename).name == "vcpu.py"
    assert "cpu.mp_state(vcpu)" in frame.line
