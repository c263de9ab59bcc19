"""APICv inhibited and active by turns, on real processes; and B20, on the text alone."""

import json
from pathlib import Path

import pytest
from live_runs import run_json

from emulator.kvm.apicv import kvm_vcpu_update_apicv
from emulator.kvm.params import Bug, Kvm

SHORT = ("run.warmup=100ms", "run.for=1200ms", "matrix={}", "expect=[]")


def legs(run: dict) -> tuple[int, int]:
    counts = run["counts"]
    return counts["posted"], counts["delivered"] + counts["coalesced"] + counts["pending"]


def test_posts_across_the_phases_are_injected_or_virtual_and_none_is_lost(tmp_path):
    sets = (*SHORT, "kvm.apicv_inhibit=60ms")
    code, run = run_json("apicv-inhibit", tmp_path, *sets)

    exits = run["counts"]["exits"]
    posted, told = legs(run)
    assert code == 0
    assert not run["violations"]
    assert posted == told > 1000
    assert exits["INTERRUPT_WINDOW"] > 0
    # An EOI exits only while APICv is inhibited: some vectors were injected, and some were not.
    ends = exits["MSR_WRITE"] - run["loads"]["ipi"]["posted"] - run["loads"]["answer"]["posted"]
    assert 0 < ends < run["counts"]["delivered"]


def test_a_vcpu_that_floats_takes_its_missing_apicv_along(tmp_path):
    code, run = run_json("migration", tmp_path, *SHORT, "kvm.apicv_inhibit=60ms")

    posted, told = legs(run)
    counters = json.loads(Path(run["run_dir"], "counters.json").read_text())
    assert code == 0
    assert not run["violations"]
    assert posted == told > 500
    assert counters["vcpus"]
    assert run["counts"]["exits"]["MSR_WRITE"] > 500


def test_without_the_axis_no_eoi_exits(tmp_path):
    sets = (*SHORT, "kvm.apicv_inhibit=0ns", "load.ipi.count=1", "load.answer.count=1")
    code, run = run_json("apicv-inhibit", tmp_path, *sets)

    assert code == 0
    assert run["counts"]["exits"].get("INTERRUPT_WINDOW", 0) == 0
    assert run["counts"]["exits"].get("MSR_WRITE", 0) < 20 < run["counts"]["delivered"]


def test_pir_ignored_under_inhibition_is_seen_as_a_lost_interrupt(tmp_path):
    _, run = run_json("apicv-inhibit", tmp_path, *SHORT, "kvm.bugs=[B11]")

    assert run["counts"]["lost"] > 0
    assert {found["invariant"] for found in run["violations"]} == {"lost-interrupt"}


class Activating:
    """A vCPU whose handler of 0x41 runs while APICv comes back."""

    def __init__(self, *bugs: Bug) -> None:
        self.kvm = Kvm(apicv_inhibit_ns=1, bugs=frozenset(bugs))
        self.svi = 0

    def apicv_inhibited(self) -> bool:
        return False

    def apicv_active(self, _vcpu: int) -> bool:
        return False

    def store_apicv_active(self, _vcpu: int, active: bool) -> None:
        assert active

    def refresh_apicv_exec_ctrl(self, _vcpu: int, active: bool) -> None:
        assert active

    def find_highest_visr(self, _vcpu: int) -> int:
        return 0x41

    def set_svi(self, vector: int) -> None:
        self.svi = vector


@pytest.mark.parametrize(("bugs", "svi"), [((), 0x41), ((Bug.B20,), 0)])
def test_svi_is_refreshed_when_apicv_becomes_active_except_under_b20(bugs, svi):
    cpu = Activating(*bugs)
    kvm_vcpu_update_apicv(cpu, 0)

    assert cpu.svi == svi
