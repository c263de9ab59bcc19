"""Every exhibit of `kvm/bugs.py`, explored twice: found with its switch on, absent with it off."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from emulator.checker.claims import SAFETY, Claim
from emulator.checker.scenario import Bounds, MemoryModel, Scenario
from emulator.checker.verdict import Judgement, Verdict, check
from emulator.kvm.bugs import HISTORY, MUTANTS, Exhibit
from emulator.kvm.params import Bug, Notify, PidScheme

SCHEMA: Final = "pirlab-museum/1"

_ONE_EACH: Final = Bounds(remote=1, irq=1, fastpath=1)
_LIST: Final = frozenset({Claim.LIST_AGREES_WITH_NV})
_ELISION: Final = frozenset({Claim.ELISION_IS_SOUND})


def _room(bounds: Bounds, **axes: Any) -> Scenario:
    return Scenario(name="museum", question="Is the bug found?", bounds=bounds, **axes)


def _with_device(bounds: Bounds, scheme: PidScheme, **axes: Any) -> Scenario:
    return _room(bounds, pid_scheme=scheme, assigned=True, **axes)


# Where each exhibit shows, with its switch off.  Small bounds: enough for it and no more.
ROOMS: Final[dict[str, Scenario]] = {
    "B03": _room(Bounds(remote=1)),
    "B04": _room(Bounds(remote=1)),
    "B05": _with_device(Bounds(device=1, preempt=1), PidScheme.PREEMPT_SN),
    # The lists alone: with preemption this scheme loses an interrupt of its own (see the
    # scenario preempted-pre-block).
    "B06": _with_device(Bounds(device=1, preempt=1, migrate=1), PidScheme.PRE_BLOCK, claims=_LIST),
    "B08": _with_device(Bounds(remote=1, plug=2), PidScheme.PRE_BLOCK),
    "B09": _room(Bounds(device=1, plug=1), pid_scheme=PidScheme.PREEMPT_SN),
    "B10": _with_device(Bounds(remote=1, plug=2), PidScheme.PREEMPT_SN),
    "B12": _with_device(Bounds(device=1), PidScheme.PREEMPT_SN),
    "B16": _with_device(
        Bounds(device=1),
        PidScheme.SN_ON_PUT,
        guest_masks=True,
        claims=SAFETY | {Claim.NO_NEEDLESS_WAKE},
    ),
    Bug.SEND_REVERSED.value: _room(_ONE_EACH),
    Bug.MODE_BEFORE_ON.value: _room(_ONE_EACH),
    Bug.NO_GATE.value: _room(_ONE_EACH, claims=frozenset({Claim.GATE})),
    Bug.NO_WAKE.value: _room(_ONE_EACH),
    Bug.SYNC_REVERSED.value: _room(_ONE_EACH),
    Bug.NO_ENTRY_FENCE.value: _room(_ONE_EACH, memory=MemoryModel.TSO),
    Bug.WAKE_WITHOUT_STATE.value: _room(_ONE_EACH),
    Bug.STATE_WITHOUT_FENCE.value: _room(_ONE_EACH, memory=MemoryModel.TSO),
    # A handler on the pCPU that the vCPU has left takes it for its own.
    Bug.STALE_RUNNING.value: _room(
        Bounds(irq=1, preempt=1, migrate=1), bugs=frozenset({Bug.REPAIR_WAKE_AT_LOAD})
    ),
    Bug.LIST_WRONG_CPU.value: _with_device(Bounds(device=1, migrate=1), PidScheme.SN_ON_PUT),
    Bug.ARM_WITHOUT_ON_TEST.value: _with_device(Bounds(device=1), PidScheme.SN_ON_PUT),
    Bug.STALE_NDST.value: _with_device(
        Bounds(device=1, preempt=1, migrate=1),
        PidScheme.SN_ON_PUT,
        claims=frozenset({Claim.EVERY_POST_IS_DELIVERED}),
    ),
    # Giving the VM a device kicks its vCPUs: the mode is EXITING when the fastpath posts.
    Bug.ELIDE_EXITING.value: _room(Bounds(fastpath=1, plug=1), claims=_ELISION),
    Bug.LATE_OUTSIDE.value: _room(Bounds(irq=1, fastpath=1), claims=_ELISION),
}

# The claim of B22: a guest that halts with interrupts off arms no wake-up vector.
_LEAVING: Final = _with_device(
    Bounds(device=1),
    PidScheme.PREEMPT_SN,
    guest_masks=True,
    claims=frozenset({Claim.NOTIFIED_WHERE_LOADED}),
)

# Exhibits that are an axis of `Kvm` and not a switch: (with, without).
_AXES: Final[dict[str, tuple[Scenario, Scenario]]] = {
    "B01": (
        _room(_ONE_EACH, rule=Notify.KVM_V5_8),
        _room(_ONE_EACH, rule=Notify.KVM_V5_16),
    ),
    "B22": (_LEAVING, replace(_LEAVING, pid_scheme=PidScheme.SN_ON_PUT)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One exhibit, explored both ways."""

    exhibit: Exhibit
    found: Verdict  # with the switch on; stopped at the first broken claim
    absent: Verdict  # with it off

    @property
    def as_expected(self) -> bool:
        """Found with it, and not without it."""
        found, absent = self.found.judgement, self.absent.judgement
        return found is Judgement.BROKEN and absent is not Judgement.BROKEN

    def to_json(self) -> dict[str, Any]:
        """A row of `museum --json`; `states`, `depth` and `seconds` are those of the finding."""
        found = self.found
        return {
            "id": self.exhibit.id,
            "title": self.exhibit.title,
            "introduced": self.exhibit.introduced,
            "commit": self.exhibit.commit,
            "invariant": self.exhibit.invariant,
            "found_with": found.judgement is Judgement.BROKEN,
            "absent_without": self.absent.judgement is not Judgement.BROKEN,
            "claim": found.claim.title if found.claim else None,
            "states": found.states,
            "depth": len(found.counterexample.steps) if found.counterexample else found.depth,
            "seconds": round(found.seconds + self.absent.seconds, 4),
            "rule": found.scenario.rule.value,
            "memory": found.scenario.memory.value,
            "bounds": str(found.scenario.bounds),
        }


def scenarios_of(exhibit: Exhibit) -> tuple[Scenario, Scenario]:
    """(with the bug, without it)."""
    if exhibit.id in _AXES:
        pair = _AXES[exhibit.id]
        return replace(pair[0], name=exhibit.id), replace(pair[1], name=exhibit.id)
    assert exhibit.switch is not None
    off = replace(ROOMS[exhibit.id], name=exhibit.id)
    return off.under(bugs=off.bugs | {exhibit.switch}), off


def show(exhibit: Exhibit) -> Shown:
    """Explore one exhibit that can be told."""
    with_it, without = scenarios_of(exhibit)
    found = check(with_it, stop_at_first=True)
    return Shown(exhibit=exhibit, found=found, absent=check(without))


def exhibits() -> Iterator[Exhibit]:
    """Those that can be told, history first."""
    return (exhibit for exhibit in (*HISTORY, *MUTANTS) if not exhibit.why_not)


def museum() -> dict[str, Any]:
    """The object that `museum --json` prints: the exhibits, and what is left out and why."""
    bugs = [show(exhibit).to_json() for exhibit in exhibits()]
    left_out = [
        {"id": e.id, "title": e.title, "commit": e.commit, "why": e.why_not}
        for e in (*HISTORY, *MUTANTS)
        if e.why_not
    ]
    return {"schema": SCHEMA, "bugs": bugs, "left_out": left_out}
