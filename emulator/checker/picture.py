"""A counterexample as on the mailing list: a column per CPU, time downwards.

Interrupt handlers are indented in the column of the CPU they interrupt, the events of a store
buffer (`~`) stand in the column of the CPU that owns it, the last line says what is wrong.
"""

from typing import Any, Final

from emulator.checker.counterexample import Counterexample, Step
from emulator.hardware.vectors import (
    POSTED_INTR_NESTED_VECTOR,
    POSTED_INTR_VECTOR,
    POSTED_INTR_WAKEUP_VECTOR,
    RESCHEDULE_VECTOR,
    ExitReason,
    Mode,
)
from emulator.kvm.params import TaskState

HEADINGS: Final = (
    "vcpu_enter_guest",
    "kvm_vcpu_block",
    "schedule",
    "preempt_schedule",
    "pi_pre_block",
    "pi_post_block",
)
VECTORS: Final = {
    POSTED_INTR_VECTOR: "POSTED_INTR_VECTOR",
    POSTED_INTR_WAKEUP_VECTOR: "POSTED_INTR_WAKEUP_VECTOR",
    POSTED_INTR_NESTED_VECTOR: "POSTED_INTR_NESTED_VECTOR",
    RESCHEDULE_VECTOR: "RESCHEDULE_VECTOR",
}
WIDTH: Final = 76
COLUMN_MIN: Final = 24

Row = tuple[int, str, Step | None]  # (pCPU, text, the step it belongs to)


def render(
    found: Counterexample, *, lines: bool = False, state: bool = False, fold: bool = False
) -> str:
    """The whole picture.

    `lines` puts each step's place in the source before it, `state` the descriptor and the mode
    after it; `fold` leaves out the steps that commute with what the other actors did.
    """
    rows = _rows(found, fold=fold)
    pcpus = sorted({pcpu for pcpu, _, _ in rows})
    widths = {
        pcpu: max(COLUMN_MIN, *(len(text) + 2 for p, text, _ in rows if p == pcpu))
        for pcpu in pcpus
    }
    margin = max((len(_place(s)) + 2 for _, _, s in rows if s), default=0) if lines else 0
    out = [
        " " * margin + "  ".join(_title(found, p).ljust(widths[p]) for p in pcpus).rstrip(),
        " " * margin + "  ".join("-" * widths[p] for p in pcpus),
    ]
    for pcpu, text, step in rows:
        cells = "  ".join((text if p == pcpu else "").ljust(widths[p]) for p in pcpus)
        place = _place(step) if lines and step else ""
        line = place.ljust(margin) + cells
        if state and step:
            line += "  " + _state(step.state)
        out.append(line.rstrip())
    return "\n".join([*out, "", *_verdict(found)])


def _title(found: Counterexample, pcpu: int) -> str:
    loaded = [str(v) for v, home in enumerate(found.scenario.pins) if home == pcpu]
    return f"CPU{pcpu} (vCPU {', '.join(loaded)})" if loaded else f"CPU{pcpu}"


def _place(step: Step) -> str:
    return step.line.removeprefix("emulator/")


def _state(state: dict[str, Any]) -> str:
    pir = ",".join(str(v) for v in state["pir"]) or "-"
    mode = Mode[state["mode"]].name.removesuffix("_GUEST_MODE")
    return f"PIR {pir:<7} ON {state['on']} SN {state['sn']} NV {state['nv']:02x} mode {mode}"


def _verdict(found: Counterexample) -> list[str]:
    scenario = found.scenario
    how = "shortest" if found.seed is None else f"seed {found.seed}"
    text = (
        f"*** {found.text}.  {len(found.steps)} steps, {how}; rule {scenario.rule.value}, "
        f"bound {scenario.bounds}, {scenario.memory.value}."
    )
    out, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > WIDTH:
            out.append(line)
            line = "    " + word
        else:
            line = f"{line} {word}" if line else word
    return [*out, line]


def _rows(found: Counterexample, *, fold: bool) -> list[Row]:
    rows: list[Row] = []
    heading: dict[int, list[str]] = {}
    buffered = found.scenario.memory.value == "tso"
    for step in found.steps:
        if step.actor.startswith("vcpu"):
            chain = [f for f in step.functions if f in HEADINGS]
            for depth, function in enumerate(chain):
                if heading.get(step.cpu, [])[: depth + 1] != chain[: depth + 1]:
                    rows.append((step.cpu, "  " * depth + function + "()", None))
            heading[step.cpu] = chain
            indent = "  " * len(chain)
        elif step.actor.startswith(("irq", "host")):
            indent = "    <irq> "
        else:
            indent = ""
        if fold and not step.keep:
            continue
        text = _text(step)
        if buffered and step.op.startswith("store_"):
            text = f"{text:<34}(buffered)"
        rows.append((step.cpu, indent + text, step))
        rows += ((step.cpu, indent + aside, None) for aside in _asides(found, step))
    return _without_empty_headings(rows) if fold else rows


def _without_empty_headings(rows: list[Row]) -> list[Row]:
    """A heading under which everything was folded away says nothing."""
    kept: list[Row] = []
    for row in reversed(rows):
        below = next((r for r in reversed(kept) if r[0] == row[0]), None)
        depth = len(row[1]) - len(row[1].lstrip())
        is_heading = row[2] is None and row[1].endswith("()")
        if is_heading and (below is None or len(below[1]) - len(below[1].lstrip()) <= depth):
            continue
        kept.append(row)
    return list(reversed(kept))


def _asides(found: Counterexample, step: Step) -> list[str]:
    """What the text told its tracepoints after this step: why it did not notify."""
    out = []
    rule = found.scenario.rule.value
    for op, args, _ in step.looks:
        if op == "trace" and args[0] == _ELIDE_SAME_VCPU:
            what = "skip everything" if step.op == "pi_test_and_set_on" else "skip the IPI"
            out.append(f"vcpu == running vcpu: {what}     <-- rule {rule}")
        elif op == "trace" and args[0] == _ELIDE_ON:
            out.append("ON was set: somebody has notified")
        elif op == "trace" and args[0] == _ELIDE_SN:
            out.append("SN is set: must not notify")
    return out


_ELIDE_ON, _ELIDE_SAME_VCPU, _ELIDE_SN = 3, 4, 5  # events.Event, as the file has them


def _text(step: Step) -> str:
    args, result = step.args, step.result
    match step.op:
        case "store_mode":
            return f"vcpu->mode = {Mode(args[1]).name}"
        case "load_mode":
            return f"vcpu->mode is {Mode(result).name}"
        case "store_vcpu_cpu":
            return f"vcpu->cpu = {args[1]}"
        case "load_vcpu_cpu":
            return f"vcpu->cpu is {result}"
        case "pi_test_on" if "kvm_vcpu_check_block" in step.functions:
            return f"kvm_vcpu_check_block(): pi_test_on() = {int(result)}"
        case "pi_test_on":
            return f"pi_test_on() = {int(result)}"
        case "pi_test_and_set_pir":
            return f"pi_test_and_set_pir({args[1]}) = {int(result)}"
        case "pi_test_and_set_on":
            return f"pi_test_and_set_on() = {int(result)}"
        case "pi_harvest":
            return "PIR -> VIRR" if result >= 0 else "PIR -> VIRR: nothing"
        case "pi_update_control":
            ndst = f", NDST = {args[2]}" if args[2] >= 0 else ""
            return f"NV = {args[1]:#x}{ndst}, SN = {int(args[3])}: ON is {int(result)}"
        case "pi_read_control":
            on, sn, nv, ndst = result
            return f"control: ON {int(on)} SN {int(sn)} NV {nv:#x} NDST {ndst}"
        case "pi_is_pir_empty":
            return f"PIR is {'empty' if result else 'not empty'}"
        case "send_ipi":
            return f"send {VECTORS.get(args[1], hex(args[1]))} to CPU{args[0]}"
        case "rcuwait_wake_up":
            return f"wake_up: {'woken' if result else 'not sleeping'}"
        case "set_current_state":
            return f"set_current_state(TASK_{TaskState(args[1]).name})"
        case "check_request" if not result and "kvm_vcpu_check_block" in step.functions:
            return "no event pending"
        case "deactivate_task":
            return "deactivated, put, off the CPU" if result else "woken meanwhile: goes on"
        case "context_switch":
            return f"runs again, on CPU{result}"
        case "vm_entry":
            return "VM-entry"
        case "non_root_event":
            masked = ", RFLAGS.IF = 0" if step.vmcs.get("guest_if") == 0 else ""
            exits = f"VM-exit: {ExitReason(result).name}{masked}" if result else ""
            return exits or "notification acknowledged"
        case "drain":
            value = Mode(args[2]).name if args[1] == "mode" else args[2]
            return f"~ vcpu->{args[1]} = {value} reaches memory"
        case _:
            return _of_surroundings(step)


def _of_surroundings(step: Step) -> str:
    args = step.args
    match step.op:
        case "interrupt":
            return f"{VECTORS.get(args[1], f'device interrupt {args[1]:#x}')}"
        case "deliver":
            return f"the guest takes vector {args[1]}"
        case "compute":
            return "guest computes"
        case "call":
            return f"{args[0]}({args[2]})"
        case "preempt":
            return "preempted"
        case "iret" | "return" | "retire" | "assign" | "unassign":
            return {"assign": "device assigned", "unassign": "device taken away"}.get(
                step.op, step.op
            )
        case op:
            shown = ", ".join(str(a) for a in args[1:])
            tail = "" if step.result is None else f" = {step.result}"
            return f"{op}({shown}){tail}"
