"""Group interleaving: the schedule is run, and what it left is held against the expectations.

Before: `races` makes the steps.
"""

import re
from typing import Any

from emulator.conformance.document import Case
from emulator.conformance.expectations import check_descriptor, check_exits
from emulator.conformance.races import Race, RefusedError
from emulator.conformance.words import (
    MismatchError,
    NotUnderstoodError,
    check,
    vector_set,
    vectors_in,
)
from emulator.hardware.apicv import VIRR, VISR


def run_interleaving(case: Case) -> None:
    """One case, in every alternative that its sentences offer."""
    if not case.expect or not case.steps:
        raise NotUnderstoodError("the case has no steps or expects nothing")
    race = _schedule(case, choice=0)
    _check(race, case.expect)
    for choice in range(1, race.ledger.alternatives):
        _check(_schedule(case, choice=choice), case.expect)


def _schedule(case: Case, *, choice: int) -> Race:
    """The schedule by protocol text; by hand, if the text refuses and the case expects a loss."""
    race = Race(case, by_text=True, choice=choice)
    try:
        race.run(case.steps)
    except RefusedError as refusal:
        if not case.expect.get("lost"):
            raise MismatchError(f"the protocol text refuses this order: {refusal}") from refusal
        race = Race(case, by_text=False, choice=choice)
        race.run(case.steps)
    else:
        if case.expect.get("lost"):
            raise MismatchError("lost: the protocol text runs this order, it must lose nothing")
    return race


def _check(race: Race, expect: dict[str, Any]) -> None:
    """State first: delivering changes it."""
    late = []
    for key, expected in expect.items():
        if key in {"deliveries", "rule"} or key.startswith("delivered"):
            late.append((key, expected))
        else:
            _check_state(race, key, expected)
    race.open_interrupts()
    for key, expected in late:
        _check_deliveries(race, key, expected)


def _check_state(race: Race, key: str, expected: Any) -> None:
    vapic = race.vmcs.vapic
    match key:
        case "virr_after" | "visr_after":
            bits = vapic.page.bits(VIRR if key == "virr_after" else VISR)
            check(key, vectors_in(bits), vectors_in(vector_set(expected)))
        case "rvi_after" | "svi_after":
            check(key, vapic.rvi if key == "rvi_after" else vapic.svi, expected)
        case "nv_sent":
            check(key, len(race.cpu.sent), expected)
        case "notifications_sent":
            check(key, [sent.vector for sent in race.cpu.sent], expected)
        case "pi_processings":
            check(key, race.pi_processings, expected)
        case "lost":
            check(key, race.lost(), vectors_in(vector_set(expected)))
        case "exit" | "exits":
            check_exits(race.exits, _exit_list(expected))
        case "pid_after_post":
            if race.ledger.after_post is None:
                raise NotUnderstoodError("pid_after_post: nobody has posted")
            check_descriptor(key, race.ledger.after_post, expected)
        case _ if found := re.fullmatch(r"pid(_\w+)?", key):
            check_descriptor(key, race.descriptors[race.vcpu_named(found[1])], expected)
        case _ if found := re.fullmatch(r"nv_sent_by_(\w+)", key):
            name = found[1].lower().replace("_", " ")
            if name not in race.ledger.sent_by:
                raise NotUnderstoodError(f"{key}: no sender of that name")
            check(key, race.ledger.sent_by[name], expected)
        case _:
            raise NotUnderstoodError(f"unknown key {key!r} in expect")


def _exit_list(expected: Any) -> Any:
    if expected is None:
        return []
    return expected if isinstance(expected, list) else [expected]


def _check_deliveries(race: Race, key: str, expected: Any) -> None:
    match key:
        case "deliveries":
            check(key, len(race.delivered), expected)
        case "rule":
            _check_rule(race, expected)
        case _ if found := re.fullmatch(r"delivered(?:_to(_\w+))?", key):
            if found[1] and race.vcpu_named(found[1]) != race.cpu.current:
                raise NotUnderstoodError(f"{key}: that vCPU is not current")
            check(key, race.delivered, expected)
        case _:
            raise NotUnderstoodError(f"unknown key {key!r} in expect")


def _check_rule(race: Race, rule: Any) -> None:
    """A rule in words.  The schedule must show that it is needed, and that it is enough."""
    known = r"(?:software that )?clear(?:s|ing) SN must (?:look at|check|read) PIR(?: afterwards)?"
    if not re.fullmatch(known, str(rule), re.IGNORECASE):
        raise NotUnderstoodError(f"unknown rule {rule!r}")
    if not race.ledger.lost_when_sn_cleared:
        raise MismatchError(f"{rule}: nothing was stranded when SN was cleared")
    missing = sorted({v for _, v in race.ledger.posted} - set(race.delivered))
    if missing:
        raise MismatchError(f"{rule}: not delivered afterwards: {missing}")
