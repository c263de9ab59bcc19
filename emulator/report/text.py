"""One run as text: 72 columns, to read in a terminal or to paste into a mail.

The verdict stands first, then what was counted, then what was timed, and beside every time the
floor of the same run: here a notification costs thousands of PIR sets, on silicon far fewer, so
counts transfer to hardware and times do not.  Every section is a function of the summary.
Before: `measure/summary.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

from rich.console import Console
from rich.text import Text

from emulator.report.figures import (
    clip,
    duration,
    log2_lines,
    number,
    paragraph,
    ratio,
    table,
)

# The notification rules, by the commit that brought them: what each does when ON was just set.
RULES: Final = {
    "kvm-v3.10": ("a20ed54d6e47", "request EVENT; IPI if in guest mode, else full kick"),
    "kvm-v4.11": ("b95234c84004", "IPI if in guest mode, else kick"),
    "kvm-v5.8": ("379a3c8ee444", "nothing at all if the target is the running vCPU; unsafe"),
    "kvm-v5.16": ("fdba608f15e2", "IPI if in guest mode, even to itself, else kick"),
    "kvm-v5.17": ("0f65a9d33767", "IPI if in guest mode, even to itself, else wake"),
    "kvm-v5.18": (
        "9b44423bf4c8",
        "in guest mode: IPI unless the target is the running vCPU; otherwise wake",
    ),
}
_DECISIONS: Final = (
    ("sent", "sent"),
    ("elided_pir", "elided: PIR bit was set"),
    ("elided_on", "elided: ON was set"),
    ("elided_same_vcpu", "elided: same vCPU"),
    ("elided_sn", "elided: SN was set"),
    ("woke", "woke the sleeping vCPU"),
    ("not_blocked", "no wake needed: not blocked"),
    ("kicked", "(kicked besides)"),
    ("sent_without_post", "(of sent: for no new PIR bit)"),
    ("dropped", "(refused by the transport)"),
)
_ALWAYS: Final = frozenset(
    ("sent", "elided_pir", "elided_on", "elided_same_vcpu", "woke", "not_blocked")
)
_ARRIVALS: Final = (
    ("in_guest", "case 1 still in guest mode", "the processor harvests PIR"),
    ("root_runnable", "case 2 exited, runnable", "benign: the next entry syncs"),
    ("root_blocked", "case 3 exited, blocked", "benign: synced before it sleeps"),
    ("other_vcpu", "       another vCPU current", "benign: its own entry syncs"),
    ("merged", "       merged in the LAPIC", "its vector was pending already"),
)
_QUANTILES: Final = ("p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")


def run_text(summary: Mapping[str, Any]) -> str:
    """The whole report of one run, without colour, ending in a newline."""
    sections = (
        _head(summary),
        _violations(summary),
        _expectations(summary),
        _interrupts(summary),
        _arrivals(summary),
        _run_loop(summary),
        _latencies(summary),
        _floor(summary),
        _self_posts(summary),
        _saved(summary),
        _histogram(summary),
        _loads(summary),
        _recorder(summary),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def show(text: str, stream: TextIO) -> None:
    """Print a report.  Colours only on a terminal, and not where NO_COLOR is set (rich's rule)."""
    painted = Text(text, end="")
    painted.highlight_words(["VIOLATED", "FAILED", "DIED", "LOST"], "bold red")
    painted.highlight_words(["OK", "held"], "green")
    Console(file=stream, highlight=False).print(painted, soft_wrap=True, end="")


def verdict_words(summary: Mapping[str, Any]) -> str:
    """OK, FAILED or VIOLATED, with a complaint of how the run ended."""
    words = {"ok": "OK", "expect-failed": "FAILED", "violated": "VIOLATED"}[summary["verdict"]]
    ending = {"complete": "", "interrupted": " (interrupted)", "died": " (DIED)"}[summary["status"]]
    return words + ending


def _head(summary: Mapping[str, Any]) -> list[str]:
    violations, expected = summary["violations"], summary["expect"]
    failed = sum(one["held"] is False for one in expected)
    if violations:
        why = f"{len(violations)} invariant{'s' * (len(violations) > 1)} broken"
    elif failed:
        why = f"{failed} of {len(expected)} expectations failed"
    elif summary["account"]["checked"]:
        held = f", {len(expected)} expectations held" if expected else ""
        why = f"every interrupt is accounted for{held}"
    else:
        why = f"account not checked: {summary['account']['why']}"
    lines = [clip(f"{verdict_words(summary)}: {summary['name']}: {why}")]
    lines += paragraph(summary["question"])
    rule = summary["rule"]
    commit, does = RULES.get(rule, ("", ""))
    lines += ["", f"rule   {rule}" + (f" ({commit})" if commit else "")]
    lines += paragraph(does, " " * 7)
    host = summary["host"]
    cores = f", {host['cores']} cores" if "cores" in host else ""
    lines.append(clip(f"run    {summary['seconds']:.3g} s, seed {summary['seed']}{cores}"))
    if summary["run_dir"]:
        lines.append(f"       {summary['run_dir']}")  # not cut: it is there to be pasted
    return lines


def _violations(summary: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for found in summary["violations"]:
        lines += ["", *paragraph(f"VIOLATED {found['invariant']}: {found['text']}", "")]
        story = found.get("story", ())
        if story:
            lines.append("  seconds since the first record, where, what:")
        lines += [clip(line) for line in story]
    return lines[1:]


def _expectations(summary: Mapping[str, Any]) -> list[str]:
    words = {True: "held", False: "FAILED", None: "-"}
    rows = [
        f"  {words[one['held']]:<7}{one['check']}  (is {one['value']})" for one in summary["expect"]
    ]
    return ["Expectations", *map(clip, rows)] if rows else []


def _interrupts(summary: Mapping[str, Any]) -> list[str]:
    """Interrupts on the left, the decisions about their notifications on the right."""
    counts, notify = summary["counts"], summary["counts"]["notify"]
    names = ("posted", "delivered", "coalesced", "pending", "lost")
    left = [f"  {name:<14}{number(counts[name]):>13}" for name in names]
    right = [
        f"  {words:<28}{number(notify[name]):>12}"
        for name, words in _DECISIONS
        if notify[name] or name in _ALWAYS
    ]
    left += [""] * (len(right) - len(left))
    lines = [f"{'Interrupts':<29}Notifications, a decision a post"]
    lines += [f"{a:<29}{b}" for a, b in zip(left, right, strict=True)]
    account = summary["account"]
    if not account["checked"]:
        law = f"account not checked: {account['why']}"
    elif any(found["invariant"] in _ACCOUNT for found in summary["violations"]):
        law = "posted = delivered + coalesced + pending: DOES NOT BALANCE, see above"
    else:
        law = (
            "posted = delivered + coalesced + pending, leg by leg, for each of "
            f"{len(account['rows'])} pairs of vCPU and vector"
        )
    return lines + paragraph(law)


_ACCOUNT: Final = (
    "posted-harvested",
    "harvested-delivered",
    "delivered-eoi",
    "post-decided",
    "sent-arrived",
    "arrived-accepted",
)


def _arrivals(summary: Mapping[str, Any]) -> list[str]:
    arrive = summary["counts"]["arrive"]
    rows = [
        f"  {words:<27}{number(arrive[name]):>9}  {why}"
        for name, words, why in _ARRIVALS
        if arrive[name] or name.startswith(("in_", "root_"))
    ]
    return ["Arrivals, by what the notification met", *rows]


def _run_loop(summary: Mapping[str, Any]) -> list[str]:
    counts = summary["counts"]
    poll, syncs = counts["halt_poll"], counts["syncs"]
    exits = sorted(counts["exits"].items(), key=lambda item: -item[1])
    by_reason = ", ".join(f"{reason} {number(n)}" for reason, n in exits)
    text = (
        f"{number(sum(counts['exits'].values()))} VM exits ({by_reason or 'none recorded'}); "
        f"{number(counts['fastpath_reenter'])} re-entered by the fastpath; "
        f"{number(syncs['on'])} syncs found ON set, {number(syncs['off'])} did not; "
        f"{number(counts['halts'])} halts, {number(counts['wakeups'])} wake-ups, "
        f"{number(poll['successful'])} of {number(poll['attempted'])} halt polls found work"
    )
    return ["Run loop", *paragraph(text)]


def _latencies(summary: Mapping[str, Any]) -> list[str]:
    rows = [
        (f"  {stage}", number(of["n"]), *(duration(of[q]) for q in _QUANTILES))
        for stage, of in summary["latency"].items()
        if of["n"]
    ]
    header = ("Stages", "n", "p50", "p90", "p99", "p99.9", "max")
    lines = table(header, rows, (24, 11, 7, 7, 7, 8, 8))
    return [*lines, "  (-: fewer than ten samples lie beyond)"] if rows else []


def _floor(summary: Mapping[str, Any]) -> list[str]:
    floor = summary["floor"]
    if not floor["n"]:
        return ["Floor: not measured in this run"]
    base = floor["notify_p50_ns"]
    beyond = f"p99 {duration(floor['notify_p99_ns'])}, n {number(floor['n'])}"
    lines = [
        "Floor: the bare transport between these processes, one way",
        f"  {'p50':<24}{duration(base):>7}   {beyond}",
    ]
    for stage in ("notify_to_arrive", "remote_post_to_deliver", "post_to_deliver"):
        p50 = summary["latency"][stage]["p50_ns"]
        if p50 is not None:
            lines.append(f"  {stage:<24}{duration(p50):>7} = {ratio(p50, base)} the floor (p50)")
    return lines


def _self_posts(summary: Mapping[str, Any]) -> list[str]:
    """Where the time of a vCPU's post to itself goes: the path that the patch is about."""
    latency = summary["latency"]
    whole = latency["self_post_to_deliver"]
    if whole["p50_ns"] is None:
        return []
    first = duration(latency["self_post_to_sync"]["p50_ns"])
    second = duration(latency["self_sync_to_deliver"]["p50_ns"])
    in_all = duration(whole["p50_ns"])
    return [
        f"A post to itself: where the time goes (medians of {number(whole['n'])})",
        f"  post --{first}--> sync --{second}--> deliver    in all {in_all}",
    ]


def _saved(summary: Mapping[str, Any]) -> list[str]:
    """The elision in notifications, which transfer, and in this run's time, which does not."""
    elided = summary["counts"]["notify"]["elided_same_vcpu"]
    if not elided:
        return []
    sent = summary["counts"]["notify"]["sent"]
    send, floor = summary["latency"]["send"], summary["floor"]["notify_p50_ns"]
    share = 100 * elided / (elided + sent)
    text = (
        f"Notifications not sent because the target was the vCPU running here: {number(elided)} "
        f"({share:.1f} % of sent and elided together)."
    )
    if send["p50_ns"] is None:
        text += f" What a notification costs its sender is not known: only {send['n']} measured."
    else:
        text += (
            f" At this run's median send of {duration(send['p50_ns'])} that is "
            f"{duration(elided * send['p50_ns'])} of the senders' time; one way over the bare "
            f"transport is {duration(floor)}."
        )
    text += (
        " The count transfers to hardware, the time does not: here a notification costs thousands "
        "of PIR sets, on silicon far fewer."
    )
    return ["What the elision saved", *paragraph(text)]


def _histogram(summary: Mapping[str, Any]) -> list[str]:
    buckets = summary["histogram"]["post_to_deliver"]
    return ["post_to_deliver, ns", *log2_lines(buckets)] if buckets else []


def _loads(summary: Mapping[str, Any]) -> list[str]:
    rows: list[Sequence[str]] = [
        (
            f"  {name}",
            number(load["rate_wanted"]),
            number(load["rate_reached"]),
            number(load["posted"]),
            number(load["late"]),
            duration(load["latency"]["due_to_deliver"]["p50_ns"]),
            duration(load["latency"]["due_to_deliver"]["p99_ns"]),
        )
        for name, load in summary["loads"].items()
    ]
    header = ("Loads", "wanted/s", "got/s", "posted", "late", "due p50", "p99")
    return table(header, rows, (14, 10, 10, 11, 11, 8, 8)) if rows else []


def _recorder(summary: Mapping[str, Any]) -> list[str]:
    recorder = summary["recorder"]
    lines = [f"Recorder: {number(recorder['events'])} events, {recorder['dropped']} dropped"]
    if recorder["dropped"]:
        lines += paragraph(
            "Chains with a gap are left out of the latencies; the counts are short of what was "
            "dropped."
        )
    inverted = summary["account"]["inverted"]
    if inverted:
        lines += paragraph(
            f"{number(inverted)} posts were stamped after their own harvest (their process lost "
            "its CPU in between); their first legs count as 0."
        )
    return lines
