"""The ordered record: every step of a live run, with its place in an order that all CPUs share.

A leaf besides `events.py`.  `machine/ordered` writes these records while a run with
`record: {order: total}` goes on, `checker/path` reads them afterwards and asks whether they are a
path of the protocol text.  They lie in a file of their own, because a step needs twice the room of
an event and the file of events is to stay what it is in every other run.

A step that others can see or that sees others takes a ticket from one shared counter before it and
another after it, both counted from 1.  So it is an interval: of two steps whose intervals overlap
either may have come first, all others are ordered.  What only its own CPU can see has no tickets
and stands where its CPU recorded it.

One record is 64 bytes, little-endian, no padding:

    offset  type   field    meaning
    0       u64    begin    the ticket before the step, 0 where it has none
    8       u64    end      the ticket after it
    16      u8     op       index into `OPS`
    17      u8     counts   how many arguments; << 4: how many words of `extra`
    18      u16    source   pCPU, or events.DEVICE_BASE + device
    20      i32    first    the first argument
    24      5*u64  rest     arguments 2 to 4, the result's two words; `extra` where these are free
"""

import typing
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Any, Final, NamedTuple

from emulator.hardware.cpu import KIND_ATTRIBUTE, Control, Kind
from emulator.kvm.cpu import Cpu

ORDER: Final = Struct("<QQBBHi5Q")
ORDER_BYTES: Final = 64
ORDER_FILE: Final = "order.bin"  # in a run's directory
HEADER_FILE: Final = "order.json"  # what the steps' file is of, and how it ended
FORMAT: Final = "pirlab-order/1"

WORLD: Final = (
    "thread",  # (vCPU): its thread begins here, or begins again
    "thread_end",  # (vCPU)
    "switch_in",  # (vCPU): its context_switch() returns here
    "interrupt",  # (vector): a host interrupt between two steps; do_irq() follows
    "iret",  # (): its handler is over
    "call",  # (index into `CALLS`, arguments): the world calls this function of the text
    "arrive",  # (vector, sender, message id): folded into the local APIC
    "stop",  # (): the launcher's signal
    "raise_irq",  # (pCPU, vector, message id): a device's interrupt, or the scheduler's
    "deliver",  # (vector): the guest takes a virtual interrupt
    "eoi",  # (vector)
    "self_ipi",  # (vector): virtualized, VIRR set
    "assign",  # (vCPU): hardware can post to it from now on
)
"""What happens to a CPU and is no call of the text: interrupts, the guest's own doings, threads."""

CALLS: Final = (
    *("vtd_post", "ipi_virtualization", "vmx_pi_start_assignment", "preempt_schedule"),
    "kvm_set_or_clear_apicv_inhibit",
)

KINDS: Final[dict[str, Kind]] = {
    name: getattr(getattr(Cpu, name), KIND_ATTRIBUTE)
    for name in dir(Cpu)
    if hasattr(getattr(Cpu, name), KIND_ATTRIBUTE)
}
STEPS: Final = tuple(sorted(name for name, kind in KINDS.items() if kind is not Kind.TRACE))
OPS: Final = (*STEPS, *WORLD)
CODES: Final = {op: code for code, op in enumerate(OPS)}

SHARED: Final = frozenset(
    {name for name in STEPS if KINDS[name] in (Kind.LOCKED, Kind.STORE, Kind.LOAD)}
    # A list that its lock guards, and hrtimers that another pCPU may count.
    | {"wakeup_list_next", "start_sw_timer", "cancel_sw_timer", "expired_sw_timer"}
    | {"thread", "switch_in", "arrive", "raise_irq", "assign"}
)
"""The operations that take tickets."""

RETURNS: Final = {
    name: typing.get_type_hints(getattr(Cpu, name)).get("return", type(None)) for name in STEPS
}
MASK: Final = (1 << 64) - 1
PAIR: Final = 2  # words of extra for a message: its pCPU and its id
EXTRA_AT: Final = {0: (), 1: (4,), PAIR: (2, 4), 4: (0, 1, 2, 4)}  # by how many words, in `rest`


class Step(NamedTuple):
    """One record.  `begin` and `end` are 0 for what no other CPU could see."""

    source: int
    number: int  # its place among its source's records
    begin: int
    end: int
    op: str
    args: tuple[int, ...]
    result: Any
    extra: tuple[int, ...]  # send_ipi, rcuwait_wake_up: (pCPU, message id); PIR: its four words


class OrderError(Exception):
    """Not a whole record; the message is one sentence."""


def pack_result(result: Any) -> tuple[int, int]:
    """A result of a step as two words."""
    match result:
        case None:
            return 0, 0
        case Control(on, sn, nv, ndst):
            return int(on) | sn << 1 | nv << 16 | ndst << 32, 0
        case (first, second):
            return first & MASK, second & MASK
    return int(result) & MASK, 0


def unpack_result(op: str, first: int, second: int) -> Any:
    """The inverse of `pack_result`, by what the step returns."""
    kind = RETURNS.get(op, type(None))
    if kind is bool:
        return first != 0
    if kind is int:
        return signed(first)
    if kind is Control:
        on, sn = first & 1 != 0, first & 2 != 0
        return Control(on=on, sn=sn, nv=first >> 16 & 0xFF, ndst=first >> 32)
    if kind is type(None):
        return None
    return signed(first), signed(second)


def signed(word: int) -> int:
    return word - (word >> 63 << 64)


def read_steps(path: Path) -> dict[int, list[Step]]:
    """Every step of a run, by source.  OrderError if the file is not a whole one."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OrderError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) % ORDER_BYTES:
        raise OrderError(f"{path}: cut off in the middle of a step")
    found: dict[int, list[Step]] = {}
    for step in decode(data):
        steps = found.setdefault(step.source, [])
        steps.append(step._replace(number=len(steps)))
    return found


def decode(data: bytes) -> Iterator[Step]:
    """The records of a whole number of steps; `number` is left 0."""
    for begin, end, code, counts, source, first, *rest in ORDER.iter_unpack(data):
        count, extras = counts & 15, counts >> 4
        if code >= len(OPS) or count > 4 or extras not in EXTRA_AT:
            raise OrderError(f"a step that there is not: operation {code} of {source}")
        op = OPS[code]
        args = (first, *map(signed, rest[: count - 1])) if count else ()
        result = unpack_result(op, rest[3], rest[4])
        extra = tuple(rest[at] for at in EXTRA_AT[extras])
        yield Step(source, 0, begin, end, op, args, result, extra)


def encode(step: Step) -> bytes:
    """One record."""
    counts, *rest = to_fields(step.args, step.result, step.extra)
    return ORDER.pack(step.begin, step.end, CODES[step.op], counts, step.source, *rest)


def to_fields(args: tuple[int, ...], result: Any, extra: tuple[int, ...]) -> list[int]:
    """What `ORDER` packs from `counts` on, without the source."""
    rest = [arg & MASK for arg in args[1:]]
    rest += [0] * (3 - len(rest))
    rest += pack_result(result)
    for at, word in zip(EXTRA_AT[len(extra)], extra, strict=True):
        rest[at] = word
    return [len(args) | len(extra) << 4, args[0] if args else 0, *rest]
