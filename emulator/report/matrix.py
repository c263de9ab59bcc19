"""The cells of a matrix side by side: what one changed key did.

Before: `measure/summary.py` (`matrix`).
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Final

from emulator.report.figures import duration, number, paragraph, table
from emulator.report.text import verdict_words

_WIDTHS: Final = (16, 9, 9, 8, 8, 8, 5, 9)
RULE_KEY: Final = "kvm.rule"
REPEAT_KEY: Final = "run.repeat"


def matrix_text(matrix: Mapping[str, Any]) -> str:
    """One row a cell, at most 72 columns; then what the same-vCPU test saved between cells."""
    cells = matrix["cells"]
    lines = [matrix["name"], *paragraph(matrix["question"]), ""]
    header = ("cell", "sent", "elided", "p50", "p50self", "send", "lost", "verdict")
    lines += table(header, [_row(cell) for cell in cells], _WIDTHS)
    lines += [
        "",
        *paragraph(
            "sent: notifications. elided: not sent, the target was the vCPU running here. p50: "
            "post_to_deliver; p50self: of a vCPU's posts to itself. send: the sender's own cost "
            "of one notification, median. Counts transfer to hardware, times do not."
        ),
    ]
    for sentence in _savings(cells):
        lines += ["", *paragraph(sentence)]
    for cell in cells:
        for found in cell["violations"]:
            text = f"{_label(cell['set'])}: VIOLATED {found['invariant']}: {found['text']}"
            lines += ["", *paragraph(text)]
    return "\n".join(lines) + "\n"


def _row(cell: Mapping[str, Any]) -> Sequence[str]:
    counts, latency = cell["counts"], cell["latency"]
    return (
        _label(cell["set"]),
        number(counts["notify"]["sent"]),
        number(counts["notify"]["elided_same_vcpu"]),
        duration(latency["post_to_deliver"]["p50_ns"]),
        duration(latency["self_post_to_deliver"]["p50_ns"]),
        duration(latency["send"]["p50_ns"]),
        number(counts["lost"]),
        verdict_words(cell).split()[0],
    )


def _label(settings: Mapping[str, Any]) -> str:
    """One axis: its value says enough; more: with the last part of each key."""
    if len(settings) == 1:
        return str(next(iter(settings.values())))
    return " ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in settings.items())


def _savings(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each rule that elides, against the rule before it, all other settings being equal.

    Repeats of a cell are taken together.
    """
    groups: dict[str, list[list[Mapping[str, Any]]]] = {}  # by settings, the rules in order
    for cell in cells:
        rules = groups.setdefault(_label(_but_rule(cell)), [])
        if rules and rules[-1][0]["rule"] == cell["rule"]:
            rules[-1].append(cell)
        else:
            rules.append([cell])
    sentences = []
    for rules in groups.values():
        for at, after in enumerate(rules):
            plain = [before for before in rules[:at] if not _total(before, "elided_same_vcpu")]
            if plain and _total(after, "elided_same_vcpu"):
                sentences.append(_saving(plain[-1], after))
    return sentences


def _but_rule(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {k: value for k, value in cell["set"].items() if k not in (RULE_KEY, REPEAT_KEY)}


def _saving(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> str:
    others = _but_rule(after[0])
    where = f" ({_label(others)})" if others else ""
    old, new = before[0]["rule"], after[0]["rule"]
    sent = [_per_1000(side, "sent") for side in (before, after)]
    text = (
        f"From {old} to {new}{where}: {number(sent[0])} -> {number(sent[1])} "
        f"notifications per 1000 posts, {number(_per_1000(after, 'elided_same_vcpu'))} elided"
    )
    own = [_median(side, "self_post_to_deliver") for side in (before, after)]
    if None not in own:
        text += f"; a post to itself is delivered after {duration(own[0])} -> {duration(own[1])}"
    send, elided = _median(before, "send"), _total(after, "elided_same_vcpu")
    if send is not None:
        text += (
            f"; at {old}'s median send of {duration(send)}, the {number(elided)} "
            f"elided are {duration(elided * send)} of senders' time here"
        )
    lost = sum(cell["counts"]["lost"] for cell in after)
    if lost:
        text += f". It lost {number(lost)}: a saving that is not safe"
    return text + "."


def _total(cells: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(cell["counts"]["notify"][name] for cell in cells)


def _per_1000(cells: Sequence[Mapping[str, Any]], name: str) -> float | None:
    posted = sum(cell["counts"]["posted"] for cell in cells)
    return 1000 * _total(cells, name) / posted if posted else None


def _median(cells: Sequence[Mapping[str, Any]], stage: str) -> float | None:
    """Of the cells' medians; one cell's own if there is but one."""
    medians = [p50 for c in cells if (p50 := c["latency"][stage]["p50_ns"]) is not None]
    return median(medians) if medians else None
