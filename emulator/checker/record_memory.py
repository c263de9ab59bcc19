"""A recorded run against memory: is there an order of the steps in which each result comes out?

Every step on something that CPUs share is an interval between two tickets.  The question is whether
each step can be given a point in its interval so that, done at these points one after the other,
the steps return what is on record: whether the history is linearizable.  It is if and only if it is
for each object by itself (Herlihy and Wing 1990, theorem 1), and an object here is small: a word of
PIR, the control word, a mode.  So each is searched alone, over the few steps that overlap at a
time: a configuration is (value, which of the overlapping steps are done), all that the record still
allows are kept, and each is visited once.

A step on all four words of PIR is four steps: the manual's harvest is indivisible by the word, and
so is the live one (SDM vol. 3, 29.6 step 5).  An acquisition of a wake-up list's lock inside a
step belongs to the step.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from emulator.hardware.cpu import Control
from emulator.hardware.vectors import POSTED_INTR_VECTOR, RESCHEDULE_VECTOR
from emulator.kvm.params import TaskState
from emulator.order import PAIR, Step

RUNNING: Final = int(TaskState.RUNNING)
INTERRUPTIBLE: Final = int(TaskState.INTERRUPTIBLE)
SLEEPING: Final = int(TaskState.SLEEPING)
IMPOSSIBLE: Final = ("impossible",)  # a result that nothing on record is equal to

Value = Any  # of an object: immutable
Key = tuple[Any, ...]  # (kind of object, its number...)
Rule = Callable[[Value, Step], tuple[Value, Any]]
"""What a step does to an object: (its value before, the step) -> (its value after, the result)."""


# -- the rules: what `machine/descriptors` and `machine/live` do with locked instructions ---------


def _set_pir(bits: int, step: Step) -> tuple[int, bool]:
    mask = 1 << (step.args[1] & 63)
    return bits | mask, bits & mask != 0


def _set_on_unless_sn(before: Control, step: Step) -> tuple[Control, Control]:
    if before.on or (before.sn and not step.args[1]):
        return before, before
    return before._replace(on=True), before


def _update_control(before: Control, step: Step) -> tuple[Control, bool]:
    _, nv, ndst, sn = step.args
    after = Control(before.on, sn != 0, nv, before.ndst if ndst < 0 else ndst)
    return after, after.on


def _store(_: int, step: Step) -> tuple[int, None]:
    return step.args[1], None


def _load(value: int, _: Step) -> tuple[int, int]:
    return value, value


def _load_flag(value: int, _: Step) -> tuple[int, bool]:
    return value, value != 0


def _cmpxchg(value: int, step: Step) -> tuple[int, int]:
    _, old, new = step.args
    return (new if value == old else value), value


def _check_request(requests: int, step: Step) -> tuple[int, bool]:
    return requests & ~step.args[1], requests & step.args[1] != 0


# A task is (a waiter is registered, its state).


def _set_state(task: tuple[int, int], step: Step) -> tuple[tuple[int, int], None]:
    return (task[0], step.args[1]), None


def _deactivate(task: tuple[int, int], _: Step) -> tuple[tuple[int, int], bool]:
    if task[1] != INTERRUPTIBLE:
        return task, False
    return (task[0], SLEEPING), True


def _wake_up(task: tuple[int, int], step: Step) -> tuple[tuple[int, int], Any]:
    """try_to_wake_up(); only a sleeper's pCPU is told."""
    waiting, state = task
    if not waiting or state == RUNNING:
        return task, IMPOSSIBLE if step.extra else False
    if state != SLEEPING and step.extra:
        return task, IMPOSSIBLE
    return (waiting, RUNNING), True


def _switch_in(task: tuple[int, int], step: Step) -> tuple[tuple[int, int], Any]:
    """Somebody has made it runnable, or the launcher's signal has (`extra`: the ticket before)."""
    if task[1] != SLEEPING:
        return task, None
    return (task[0], RUNNING), None if step.extra else IMPOSSIBLE


# A wake-up list is (locked, the vCPUs on it as bits).


def _list(change: Callable[[int, int], int]) -> Rule:
    def rule(value: tuple[bool, int], step: Step) -> tuple[tuple[bool, int], Any]:
        locked, listed = value
        if locked:
            return value, IMPOSSIBLE
        return (False, change(listed, 1 << step.args[1])), None

    return rule


def _lock(value: tuple[bool, int], _: Step) -> tuple[tuple[bool, int], Any]:
    return (True, value[1]), IMPOSSIBLE if value[0] else None


def _unlock(value: tuple[bool, int], _: Step) -> tuple[tuple[bool, int], Any]:
    return (False, value[1]), None if value[0] else IMPOSSIBLE


def _list_next(value: tuple[bool, int], step: Step) -> tuple[tuple[bool, int], int]:
    after = step.args[1] + 1
    rest = value[1] >> after << after
    return value, (rest & -rest).bit_length() - 1


# An hrtimer is armed or not.  When it expires is the clock's business.


def _start_timer(armed: bool, step: Step) -> tuple[bool, Any]:
    return not step.result or armed, step.result


def _expire_timer(armed: bool, step: Step) -> tuple[bool, Any]:
    return False, step.result if armed else IMPOSSIBLE


_RULES: Final[dict[str, tuple[str, Rule]]] = {
    "pi_test_and_set_on": ("control", lambda c, _: (c._replace(on=True), c.on)),
    "pi_test_and_set_on_unless_sn": ("control", _set_on_unless_sn),
    "pi_clear_on": ("control", lambda c, _: (c._replace(on=False), None)),
    "pi_set_on": ("control", lambda c, _: (c._replace(on=True), None)),
    "pi_set_sn": ("control", lambda c, _: (c._replace(sn=True), None)),
    "pi_clear_sn": ("control", lambda c, _: (c._replace(sn=False), None)),
    "pi_test_on": ("control", lambda c, _: (c, c.on)),
    "pi_read_control": ("control", lambda c, _: (c, c)),
    "pi_update_control": ("control", _update_control),
    "store_mode": ("mode", _store),
    "load_mode": ("mode", _load),
    "cmpxchg_mode": ("mode", _cmpxchg),
    "store_vcpu_cpu": ("cpu", _store),
    "load_vcpu_cpu": ("cpu", _load),
    "make_request": ("requests", lambda value, step: (value | step.args[1], None)),
    "request_pending": ("requests", _load_flag),
    "check_request": ("requests", _check_request),
    "load_has_pi_sender": ("has_pi_sender", _load_flag),
    "assign": ("has_pi_sender", lambda *_: (1, None)),
    "prepare_to_rcuwait": ("task", lambda task, _: ((1, task[1]), None)),
    "finish_rcuwait": ("task", lambda *_: ((0, RUNNING), None)),
    "set_current_state": ("task", _set_state),
    "rcuwait_wake_up": ("task", _wake_up),
    "deactivate_task": ("task", _deactivate),
    "switch_in": ("task", _switch_in),
    "wakeup_list_add": ("list", _list(lambda listed, bit: listed | bit)),
    "wakeup_list_del": ("list", _list(lambda listed, bit: listed & ~bit)),
    "wakeup_list_lock": ("list", _lock),
    "wakeup_list_unlock": ("list", _unlock),
    "wakeup_list_next": ("list", _list_next),
    "timer_pending_inc": ("timer_pending", lambda value, _: (value + 1, None)),
    "timer_pending": ("timer_pending", _load_flag),
    "timer_pending_clear": ("timer_pending", lambda *_: (0, None)),
    "store_apicv_active": ("apicv_active", _store),
    "apicv_active": ("apicv_active", _load_flag),
    "start_sw_timer": ("hrtimer", _start_timer),
    "cancel_sw_timer": ("hrtimer", lambda *_: (False, None)),
}

NAMES: Final = {
    "pir": "PIR word {1} of vCPU {0}", "control": "the control word of vCPU {0}",
    "mode": "vcpu->mode of vCPU {0}", "cpu": "vcpu->cpu of vCPU {0}",
    "requests": "vcpu->requests of vCPU {0}", "task": "the thread of vCPU {0}",
    "has_pi_sender": "the devices of vCPU {0}", "list": "the wake-up list of CPU{0}",
    "timer_pending": "lapic_timer.pending of vCPU {0}", "hrtimer": "the hrtimer of vCPU {0}",
    "soft": "word {1} of the software VIRR of vCPU {0}", "apicv_active": "APICv of vCPU {0}",
    "inhibited": "the reasons against APICv",
}  # fmt: skip


def initial_value(key: Key, pins: tuple[int, ...], has_pi_sender: tuple[bool, ...]) -> Value:
    """An object as a run begins: reset, not loaded.  A record may name a vCPU that there is not."""
    known = 0 <= key[1] < len(pins)
    pin = pins[key[1]] if known else -1
    match key[0]:
        case "control":
            return Control(on=False, sn=True, nv=POSTED_INTR_VECTOR, ndst=pin)
        case "cpu":
            return pin
        case "apicv_active":
            return 1
        case "has_pi_sender":
            return int(known and has_pi_sender[key[1]])
        case "task":
            return 0, RUNNING
        case "list":
            return False, 0
    return 0


class Use(NamedTuple):
    """A step's doing with one object."""

    key: Key
    step: Step
    rule: Rule
    result: Any

    @property
    def begin(self) -> int:
        """The ticket before; a thread may have been roused as early as the launcher's signal."""
        return (
            self.step.extra[0]
            if self.step.op == "switch_in" and self.step.extra
            else self.step.begin
        )


def uses(step: Step) -> Iterator[Use]:
    """What a step does with objects; nothing, for what CPUs do not share."""
    op = step.op
    if op in _RULES:
        kind, rule = _RULES[op]
        yield Use((kind, step.args[0]), step, rule, step.result)
    elif op == "pi_test_and_set_pir":
        key = ("pir", step.args[0], step.args[1] >> 6)
        yield Use(key, step, _set_pir, step.result)
    elif op == "pi_harvest":
        for word, found in enumerate(step.extra):
            key = ("pir", step.args[0], word)
            yield Use(key, step, lambda bits, _: (0, bits), found)
    elif op == "pi_is_pir_empty":
        for word, found in enumerate(step.extra):
            yield Use(("pir", step.args[0], word), step, lambda bits, _: (bits, bits), found)
    elif op == "lapic_set_irr":
        yield Use(("soft", step.args[0], step.args[1] >> 6), step, _set_pir, step.result)
    elif op == "lapic_merge_irr":
        for word, found in enumerate(step.extra):
            yield Use(("soft", step.args[0], word), step, lambda bits, _: (0, bits), found)
    elif op == "store_apicv_inhibited":
        yield Use(("inhibited", 0), step, lambda _, s: (s.args[0], None), None)
    elif op == "apicv_inhibited":
        yield Use(("inhibited", 0), step, _load_flag, step.result)
    elif op == "expired_sw_timer" and step.result >= 0:
        yield Use(("hrtimer", step.result), step, _expire_timer, step.result)


# -- the search -----------------------------------------------------------------------------------

Message = tuple[int, int, int, int]  # (pCPU, vector, id, which one of those without an id)
Configuration = tuple[Value, frozenset[int]]  # a value, and which of the open uses are done


class Stuck(NamedTuple):
    """The first step on an object that no order explains, and the results that some would have."""

    use: Use
    possible: tuple[Any, ...]


def search(used: list[Use], first: Value) -> Stuck | None:
    """Is there an order of these uses of one object, whose value is `first` before them?"""
    events = sorted(
        [(use.begin, i) for i, use in enumerate(used)]
        + [(use.step.end, ~i) for i, use in enumerate(used)]
    )
    configurations: set[Configuration] = {(first, frozenset())}
    open_uses: list[int] = []
    for _, event in events:
        if event >= 0:
            open_uses.append(event)
            continue
        i = ~event
        reached = close(used, open_uses, configurations)
        configurations = {(value, done - {i}) for value, done in reached if i in done}
        if not configurations:
            use = used[i]
            possible = {use.rule(value, use.step)[1] for value, done in reached if i not in done}
            return Stuck(use, tuple(r for r in possible if r is not IMPOSSIBLE))
        open_uses.remove(i)
    return None


def close(
    used: list[Use], open_uses: list[int], start: Iterable[Configuration]
) -> set[Configuration]:
    """Every configuration that some of the open uses, done one after the other, lead to."""
    reached = set(start)
    todo = list(reached)
    while todo:
        value, done = todo.pop()
        for i in open_uses:
            if i in done:
                continue
            use = used[i]
            after, result = use.rule(value, use.step)
            if result != use.result:
                continue
            found = (after, done | {i})
            if found not in reached:
                reached.add(found)
                todo.append(found)
    return reached


# -- messages -------------------------------------------------------------------------------------


def check_messages(steps: Iterable[Step]) -> dict[Step, str]:
    """What was sent and what arrived: an arrival without its sending, before it, or twice.

    The launcher does not number what it sends (id 0): there the n-th of a kind is the n-th.
    """
    sent: dict[Message, int] = {}  # the ticket before its sending
    arrivals: list[tuple[Message, Step]] = []
    numbers: Counter[tuple[str, int, int]] = Counter()

    def message(what: str, pcpu: int, vector: int, ref: int) -> Message:
        n = 0
        if not ref:
            n = numbers[what, pcpu, vector]
            numbers[what, pcpu, vector] += 1
        return pcpu, vector, ref, n

    for step in steps:
        if step.op == "arrive":
            vector, _, ref = step.args
            arrivals.append((message("arrive", step.source, vector, ref), step))
        elif step.op == "raise_irq":
            sent[message("send", *step.args)] = step.begin
        elif len(step.extra) == PAIR:
            vector = step.args[1] if step.op == "send_ipi" else RESCHEDULE_VECTOR
            pcpu, ref = step.extra
            sent[message("send", pcpu, vector, ref)] = step.begin
    wrong: dict[Step, str] = {}
    for what, step in arrivals:
        begin = sent.pop(what, None)
        if begin is None:
            wrong[step] = "nobody has sent that message, or it has arrived already"
        elif step.end < begin:
            wrong[step] = "the message is sent only later"
    return wrong
