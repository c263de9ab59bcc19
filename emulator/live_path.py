"""`pirlab check RUN`: is a live run, recorded with `record: {order: total}`, a path of the model?

Where machine and checker meet: the run's directory has the steps (`order.bin`) and what they are
steps of (`order.json`), `checker/path` has the question.  Nothing of the run's processes is needed.
Before: `session` wrote the two files.  Next: `proof` prints.
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from emulator.checker.path import Answer, Divergence, Recorded, before, check_path
from emulator.checker.record_text import cpu_name, said, said_result
from emulator.checker.twin import source_hash
from emulator.config.model import Cell, from_plain, to_plain
from emulator.hardware.cpu import NOTIFICATION
from emulator.hardware.vectors import ExitReason
from emulator.kvm.params import Bug, Notify
from emulator.machine.controls import vcpus_with_pi_sender
from emulator.order import CALLS, FORMAT, HEADER_FILE, OPS, ORDER_FILE, OrderError, Step, read_steps

CELLS: Final = "cell-*"
ORDERLY: Final = frozenset({"complete", "interrupted"})  # the run's status: its threads have ended
EXITS: Final = {NOTIFICATION: "NOTIFICATION"} | {int(exit_): exit_.name for exit_ in ExitReason}


class PathError(Exception):
    """The run cannot be checked; the message is one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One run, or one cell of a matrix."""

    run: str  # the directory
    label: str  # the cell's settings, "" for a run of its own
    rule: str
    bugs: tuple[str, ...]
    cpus: int
    part: str  # "" if all of the run was checked, or what of it
    answer: Answer
    seconds: float

    @property
    def is_path(self) -> bool:
        return self.answer.divergence is None

    def to_json(self) -> dict[str, Any]:
        """A cell of the `pirlab-check-run/1` object."""
        answer = self.answer
        return {
            "run": self.run,
            "cell": self.label,
            "rule": self.rule,
            "bugs": sorted(self.bugs),
            "verdict": "path" if self.is_path else "diverged",
            "part": self.part,
            "steps": answer.steps,
            "cpus": self.cpus,
            "objects": answer.objects,
            "overlapping": answer.overlapping,
            "moves": answer.moves,
            "seconds": round(self.seconds, 3),
            "divergence": answer.divergence and divergence_json(answer.divergence),
        }


def write_order_header(directory: Path, cell: Cell, end: dict[str, Any] | None = None) -> None:
    """What the steps are steps of; `end` when the run is over: its status, what was dropped."""
    assigned = [load for load in cell.loads if not load.assigned_at_ns]
    posted_to = vcpus_with_pi_sender(cell, assigned)
    header = {
        "format": FORMAT,
        "source": source_hash(),
        "ops": OPS,
        "calls": CALLS,
        "cell": to_plain(cell),
        "has_pi_sender": [vcpu.index in posted_to for vcpu in cell.vcpus],
        "end": end,
    }
    (directory / HEADER_FILE).write_text(json.dumps(header) + "\n", encoding="utf-8")


def check_run(
    directory: Path, rule: Notify | None = None, bugs: frozenset[Bug] | None = None
) -> list[Checked]:
    """Check a run, or each cell of a matrix, against its own text or under another rule or bugs.

    PathError says why one cannot be checked.
    """
    cells = sorted(directory.glob(CELLS))
    return [check_one(cell, rule, bugs) for cell in cells or [directory]]


def check_one(
    directory: Path, rule: Notify | None = None, bugs: frozenset[Bug] | None = None
) -> Checked:
    """Check one run."""
    began = time.monotonic()
    header = read_header(directory)
    cell = from_plain(Cell, header["cell"])
    kvm = replace(cell.kvm, rule=rule or cell.kvm.rule)
    kvm = kvm if bugs is None else replace(kvm, bugs=bugs)
    if reason := not_covered(cell):
        raise PathError(f"{directory}: {reason}")
    try:
        steps = read_steps(directory / ORDER_FILE)
    except OrderError as error:
        raise PathError(str(error)) from error
    end = header["end"] or {"status": "died"}
    dropped = end.get("dropped", 0)
    whole = end["status"] in ORDERLY and not dropped
    part = ""
    if not whole:
        steps, part = before_the_break(steps, end)
        why = f"{dropped:,} steps did not fit into the rings" if dropped else "the run broke"
        part = f"{why}: checked {part}"
    recorded = Recorded(
        kvm=kvm,
        pins=tuple(vcpu.pcpu for vcpu in cell.vcpus),
        has_pi_sender=tuple(header["has_pi_sender"]),
        steps=steps,
        whole=whole,
    )
    answer = check_path(recorded)
    return Checked(
        run=str(directory),
        label=cell.label,
        rule=kvm.rule.value,
        bugs=tuple(sorted(bug.value for bug in kvm.bugs)),
        cpus=cell.pcpus,
        part=part,
        answer=answer,
        seconds=time.monotonic() - began,
    )


def read_header(directory: Path) -> dict[str, Any]:
    """The header of a run's record.  PathError if there is none, or of another text."""
    path = directory / HEADER_FILE
    if not path.exists():
        if not (directory / "events.bin").exists():
            raise PathError(f"{directory}: not a run directory")
        raise PathError(
            f"{directory}: the run put no order on record; run it with -s record.order=total"
        )
    try:
        header: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        same = header["format"] == FORMAT and header["ops"] == list(OPS)
        source = header["source"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PathError(f"{path}: not a record's header: {error}") from error
    if not same or source != source_hash():
        raise PathError(
            f"{directory}: recorded from another protocol text ({source}; this one is "
            f"{source_hash()}): a path of that one says nothing about this one"
        )
    return header


def not_covered(cell: Cell) -> str:
    """Why the model does not cover this config, empty if it does."""
    if cell.kvm.apicv_inhibit_ns and any(vcpu.floats for vcpu in cell.vcpus):
        return (
            "pin: float together with kvm.apicv_inhibit is not covered: the steps by which a vCPU "
            "takes its APICv along to another pCPU are no steps of the text"
        )
    return ""


def before_the_break(steps: dict[int, list[Step]], end: dict[str, Any]) -> tuple[
    dict[int, list[Step]], str
]:  # fmt: skip
    """The steps that nothing missing can have preceded, and how many they are of how many.

    `open` has the ticket before the first step of each process that is not on record.  Without
    that (the launcher was killed) each process's record counts up to its last ticket.
    """
    last = [max((step.end for step in own), default=0) for own in steps.values()]
    if "open" in end:
        cut = min((ticket for ticket in end["open"] if ticket), default=max(last, default=0) + 1)
    else:
        cut = min(last, default=0) + 1
    kept = before(steps, cut)
    total, left = sum(map(len, steps.values())), sum(map(len, kept.values()))
    return kept, f"the {left:,} of {total:,} recorded steps before that"


# -- in words -------------------------------------------------------------------------------------


def divergence_json(found: Divergence) -> dict[str, Any]:
    """Where a run leaves the model, as plain data."""
    return {
        "step": found.step and step_json(found.step),
        "why": found.why,
        "about": found.about,
        "before": [step_json(step) for step in found.before],
    }


def step_json(step: Step) -> dict[str, Any]:
    result = list(step.result) if isinstance(step.result, tuple) else step.result
    return {
        "cpu": cpu_name(step.source),
        "step": step.number,
        "tickets": [step.begin, step.end],
        "op": step.op,
        "args": list(step.args),
        "result": result,
    }


def verdict_json(directory: str, cells: list[Checked]) -> dict[str, Any]:
    """The `pirlab-check-run/1` object: a run is a path if each of its cells is."""
    return {
        "schema": "pirlab-check-run/1",
        "run": directory,
        "verdict": "path" if all(cell.is_path for cell in cells) else "diverged",
        "steps": sum(cell.answer.steps for cell in cells),
        "cpus": max(cell.cpus for cell in cells),
        "seconds": round(sum(cell.seconds for cell in cells), 3),
        "cells": [cell.to_json() for cell in cells],
    }


def verdict_text(checked: Checked) -> str:
    """The verdict, for people."""
    answer = checked.answer
    verdict = "a path of the model" if checked.is_path else "NOT a path of the model"
    rate = answer.steps / checked.seconds if checked.seconds else 0.0
    bugs = "".join(f" with {bug}" for bug in checked.bugs)
    overlapped = many(answer.overlapping, "step")
    lines = [
        f"{checked.label}: {verdict}" if checked.label else verdict,
        f"  rule {checked.rule}{bugs}, {many(answer.steps, 'step')} of {many(checked.cpus, 'CPU')}",
        f"  {overlapped} overlapped on one of memory's {answer.objects} objects",
        f"  {checked.seconds:.1f} s, {rate:,.0f} steps/s",
    ]
    if answer.moves:
        lines.append(
            f"  threads moved {many(answer.moves, 'time')}, to the head of their run loops"
        )
    if checked.part:
        lines.append(f"  {checked.part}")
    if answer.divergence:
        lines += ["", *divergence_lines(answer.divergence)]
    return "\n".join(lines)


def many(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def divergence_lines(found: Divergence) -> list[str]:
    """The steps that led there, a column for each CPU, and the step that leaves the model."""
    sources = sorted({step.source for step in found.before})
    shown = [(step, said_step(step)) for step in found.before]
    widths = {
        source: max(20, *(len(words) for step, words in shown if step.source == source))
        for source in sources
    }
    lines = ["  tickets      " + "  ".join(cpu_name(s).ljust(widths[s]) for s in sources).rstrip()]
    for step, words in shown:
        tickets = f"{step.begin}-{step.end}" if step.begin else ""
        cells = "  ".join(
            (words if step.source == source else "").ljust(widths[source]) for source in sources
        )
        mark = "*" if step == found.step else " "
        lines.append(f"{mark} {tickets:<12} {cells}".rstrip())
    lines.append("")
    if found.step is not None:
        step = found.step
        lines.append(f"*** step {step.number:,} of {cpu_name(step.source)}: {said_step(step)}")
    where = f"{found.about}: " if found.about else ""
    return [*lines, f"*** {where}{found.why}"]


def said_step(step: Step) -> str:
    """A step and its result."""
    match step.op, step.args:
        case "call", (call, *args):
            return f"-> {said(CALLS[call], tuple(args))}"
        case "interrupt", (vector,):
            return f"<irq> {vector:#x}"
        case "iret", _:
            return "<iret>"
        case (("deliver" | "eoi" | "self_ipi"), (vector,)):
            return f"guest: {step.op} {vector:#x}"
        case "arrive", (vector, sender, _):
            return f"{vector:#x} arrives from {cpu_name(sender)}"
        case "raise_irq", (pcpu, vector, _):
            return f"{vector:#x} to {cpu_name(pcpu)}"
        case "non_root_event", (vcpu,):
            return f"non_root_event({vcpu}) = {EXITS.get(step.result, step.result)}"
    words = said(step.op, step.args)
    return words if step.result is None else f"{words} = {said_result(step.result)}"
