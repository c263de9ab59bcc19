"""Why is it safe?  Each premise of the argument taken away in turn, and what happens then.

The answer is a table: a row for each premise, a column for each rule and memory model, in it the
length of the shortest counterexample; last, which rules need the premise.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from emulator.checker.claims import Claim
from emulator.checker.scenario import Bounds, MemoryModel, Scenario
from emulator.checker.verdict import Judgement, check
from emulator.kvm.params import Bug, Notify, PidScheme, ReentryOrder

SCHEMA: Final = "pirlab-explain/1"

_SOFTWARE: Final = Scenario(
    name="explain",
    question="Is any post lost without this premise?",
    bounds=Bounds(remote=1, irq=1, fastpath=1),
)
_DEVICE: Final = replace(
    _SOFTWARE,
    bounds=Bounds(device=1, preempt=1, migrate=1),
    pid_scheme=PidScheme.SN_ON_PUT,
    assigned=True,
)
# Not of posts lost, as the others, but of who elides: what the argument for eliding rests on.
# Nobody kicks here, or kvm-v5.8 would elide for a vCPU that is EXITING_GUEST_MODE, as it may.
_ELISION: Final = replace(
    _SOFTWARE,
    bounds=Bounds(irq=1, fastpath=1),
    claims=frozenset({Claim.ELISION_IS_SOUND}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Premise:
    """One leg the argument stands on; `without` is the scenario in which it is gone."""

    text: str
    without: Scenario


def _without(text: str, bug: Bug, scenario: Scenario = _SOFTWARE) -> Premise:
    return Premise(text=text, without=scenario.under(bugs=frozenset({bug})))


PREMISES: Final = (
    _without("interrupts are off before the mode store", Bug.B03),
    Premise(
        text="PIR is synced before a fastpath re-enters",
        without=replace(_SOFTWARE, reentry_order=ReentryOrder.NONE),
    ),
    _without("the mode is stored before ON is read", Bug.B04),
    _without("a full barrier stands between the two", Bug.NO_ENTRY_FENCE),
    _without("the sender sets PIR before ON", Bug.SEND_REVERSED),
    _without("the sender sets ON before it reads the mode", Bug.MODE_BEFORE_ON),
    _without("the receiver clears ON before it reads PIR", Bug.SYNC_REVERSED),
    _without("the task state is set before the last check", Bug.WAKE_WITHOUT_STATE),
    _without("a barrier stands between the two", Bug.STATE_WITHOUT_FENCE),
    _without("a vCPU that is not in guest mode is woken", Bug.NO_WAKE),
    _without("the mode is left before interrupts come on again", Bug.LATE_OUTSIDE),
    _without("the same, for none but the vCPU's thread to elide (I15)", Bug.LATE_OUTSIDE, _ELISION),
    _without("device: ON is recomputed after SN is cleared", Bug.B05, _DEVICE),
    _without("device: ON is looked at after arming", Bug.ARM_WITHOUT_ON_TEST, _DEVICE),
    _without("device: NDST is refreshed on migration", Bug.STALE_NDST, _DEVICE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A premise and, by (rule, memory), the shortest counterexample's length; None: none exists.

    A length of 0 stands for "vacuous": nothing broke, but nothing was put to the test either.
    """

    premise: str
    lengths: dict[tuple[Notify, MemoryModel], int | None]

    def needed_by(self) -> frozenset[Notify]:
        """The rules that break without it, under some memory model."""
        return frozenset(rule for (rule, _), length in self.lengths.items() if length)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The table, told for one rule."""

    rule: Notify
    rules: tuple[Notify, ...]
    rows: tuple[Row, ...]

    def needed(self, row: Row) -> str:
        """The last column: who needs this premise."""
        by = row.needed_by()
        if not by:
            return "none"
        if by == frozenset(self.rules):
            return "every rule"
        if by == {self.rule}:
            return "this rule only"
        if len(by) == len(self.rules) - 1:
            return f"every rule but {next(r.value for r in self.rules if r not in by)}"
        return ", ".join(rule.value for rule in self.rules if rule in by)

    def to_json(self) -> dict[str, Any]:
        """Schema pirlab-explain/1."""
        return {
            "schema": SCHEMA,
            "rule": self.rule.value,
            "premises": [
                {
                    "premise": row.premise,
                    "needed": self.needed(row),
                    "shortest": {
                        f"{rule.value}/{memory.value}": length
                        for (rule, memory), length in row.lengths.items()
                    },
                }
                for row in self.rows
            ],
        }

    def to_text(self) -> str:
        """The table; "-" where no counterexample exists."""
        wide = max(len(row.premise) for row in self.rows) + 2
        heads = [f"{r.value.removeprefix('kvm-'):>9}" for r in self.rules]
        lines = [
            "Each premise taken away in turn: length of the shortest counterexample, sc/tso.",
            "",
            "without: ".ljust(wide) + "".join(heads) + "   needed by",
        ]
        for row in self.rows:
            cells = "".join(f"{self._cell(row, rule):>9}" for rule in self.rules)
            lines.append(f"{row.premise:<{wide}}{cells}   {self.needed(row)}")
        if Notify.KVM_V5_8 in self.rules:
            lines += ["", "kvm-v5.8 without host interrupts, with which it is broken anyway."]
        return "\n".join(lines)

    @staticmethod
    def _cell(row: Row, rule: Notify) -> str:
        shown = []
        for memory in MemoryModel:
            length = row.lengths[rule, memory]
            shown.append("-" if length is None else "?" if length == 0 else str(length))
        return "/".join(shown)


def explain(
    rule: Notify = Notify.KVM_V5_18,
    rules: Iterable[Notify] = tuple(Notify),
    premises: Iterable[Premise] = PREMISES,
) -> Explanation:
    """Explore every premise's absence under each of `rules`; half a minute for all of it."""
    compared = tuple(rules)
    rows = []
    for premise in premises:
        lengths = {
            (r, memory): _shortest(premise.without, r, memory)
            for r in compared
            for memory in MemoryModel
        }
        rows.append(Row(premise=premise.text, lengths=lengths))
    return Explanation(rule=rule, rules=compared, rows=tuple(rows))


def _shortest(scenario: Scenario, rule: Notify, memory: MemoryModel) -> int | None:
    if rule is Notify.KVM_V5_8:
        scenario = replace(scenario, bounds=replace(scenario.bounds, irq=0))
    verdict = check(scenario, rule=rule, memory=memory, stop_at_first=True, bugs=scenario.bugs)
    if verdict.judgement is Judgement.BROKEN:
        assert verdict.counterexample is not None
        return len(verdict.counterexample.steps)
    return 0 if verdict.judgement is Judgement.VACUOUS else None
