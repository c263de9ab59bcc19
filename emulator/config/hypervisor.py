"""What `kvm:` means: a preset sets what a config does not, loads say which hardware there is.

Explicit keys win over the preset, and both over what the loads imply.  Combinations that history
never had are allowed; those that make no sense are mistakes.
Before: `config/shape.py`.  Next: `config/resolve.py` makes a `Kvm` of it.
"""

from typing import Any

from emulator.config.model import Load, Vcpu, Via, to_plain
from emulator.config.schema import kvm_key
from emulator.config.shape import BROKEN
from emulator.config.tree import Report
from emulator.kvm.params import Notify, PidScheme, Senders
from emulator.kvm.presets import PRESETS, SCHEME_OF_RULE

_POSTING = (Senders.VT_D.value, Senders.BOTH.value)


def given_keys(report: Report) -> frozenset[str]:
    """The keys that stand below `kvm` in the file, the matrix or an override."""
    node = report.tree.value.get("kvm") if isinstance(report.tree.value, dict) else None
    value = node.value if node is not None else None
    return frozenset(str(key) for key in value) if isinstance(value, dict) else frozenset()


def fill_preset(document: dict[str, Any], report: Report) -> None:
    """The axes that `kvm.preset` sets and nobody else does."""
    kvm = document["kvm"]
    if kvm is BROKEN or kvm["preset"] in (None, BROKEN):
        return
    given = given_keys(report)
    for field, value in to_plain(PRESETS[kvm["preset"]]).items():
        key = kvm_key(field)
        if key not in given:
            kvm[key] = value


def fill_hardware(document: dict[str, Any], loads: tuple[Load, ...], report: Report) -> None:
    """`senders` by the loads, and the `pid_scheme` that hardware senders need."""
    kvm = document["kvm"]
    if kvm is BROKEN or BROKEN in kvm.values():
        return
    given = given_keys(report)
    posted = [load for load in loads if load.via is Via.VT_D]
    if posted and "senders" not in given:
        kvm["senders"] = Senders.VT_D.value
    elif posted and kvm["senders"] not in _POSTING:
        problem = (
            f"{posted[0].name!r} goes through an IOMMU that posts (via: vt-d), and "
            f"kvm.senders is {kvm['senders']!r}; allowed: {', '.join(_POSTING)}"
        )
        report.add(("kvm", "senders"), problem)
    unkept = "pid_scheme" not in given and kvm["pid_scheme"] == PidScheme.NONE.value
    if unkept and kvm["senders"] != Senders.NONE.value:
        kvm["pid_scheme"] = SCHEME_OF_RULE[Notify(kvm["rule"])].value


def check_timer(document: dict[str, Any], vcpus: list[Vcpu], report: Report) -> None:
    """An exitless timer needs a housekeeping pCPU."""
    kvm, cluster = document["kvm"], document["cluster"]
    if BROKEN in (kvm, cluster) or BROKEN in kvm.values() or BROKEN in cluster.values():
        return
    if not kvm["exitless_timer"] or report.mistakes.found:
        return
    free = set(range(cluster["pcpus"])) - {vcpu.pcpu for vcpu in vcpus}
    if not free or any(vcpu.floats for vcpu in vcpus):
        problem = (
            "the timers count on a housekeeping pCPU, one that no vCPU runs on, and there is none; "
            "pin the vCPUs to fewer, or raise cluster.pcpus"
        )
        report.add(("kvm", "exitless_timer"), problem)
