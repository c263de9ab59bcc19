"""The cells of a matrix side by side: what one changed key did.

Before: `measure/summary.py` (`matrix`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from emulator.report.figures import duration, number, paragraph, table
from emulator.report.text import verdict_words

_WIDTHS: Final = (16, 9, 9, 8, 8, 8, 5, 9)
RULE_KEY: Final = "kvm.rule"


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
    """For each cell that elides, against the cell before it that differs in the rule alone."""
    sentences = []
    for at, cell in enumerate(cells):
        if not cell["counts"]["notify"]["elided_same_vcpu"]:
            continue
        plain = [
            other
            for other in cells[:at]
            if _but_rule(other) == _but_rule(cell)
            if not other["counts"]["notify"]["elided_same_vcpu"]
        ]
        if plain:
            sentences.append(_saving(plain[-1], cell))
    return sentences


def _but_rule(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in cell["set"].items() if key != RULE_KEY}


def _saving(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    others = _but_rule(after)
    where = f" ({_label(others)})" if others else ""
    sent = [_per_1000(cell, "sent") for cell in (before, after)]
    text = (
        f"From {before['rule']} to {after['rule']}{where}: {number(sent[0])} -> {number(sent[1])} "
        f"notifications per 1000 posts, {number(_per_1000(after, 'elided_same_vcpu'))} elided"
    )
    own = [cell["latency"]["self_post_to_deliver"]["p50_ns"] for cell in (before, after)]
    if None not in own:
        text += f"; a post to itself is delivered after {duration(own[0])} -> {duration(own[1])}"
    send = before["latency"]["send"]["p50_ns"]
    elided = after["counts"]["notify"]["elided_same_vcpu"]
    if send is not None:
        text += (
            f"; at {before['rule']}'s median send of {duration(send)}, the {number(elided)} "
            f"elided are {duration(elided * send)} of senders' time here"
        )
    if after["counts"]["lost"]:
        text += f". It lost {number(after['counts']['lost'])}: a saving that is not safe"
    return text + "."


def _per_1000(cell: Mapping[str, Any], name: str) -> float | None:
    counts = cell["counts"]
    return 1000 * counts["notify"][name] / counts["posted"] if counts["posted"] else None
