"""Devices on real processes: posted and remapped, switched, moved, assigned late; and the axes."""

import json
from pathlib import Path

import pytest
from live_runs import run_json

from emulator.kvm.presets import PRESETS

SHORT = ("run.warmup=100ms", "run.for=800ms")


def balanced(run: dict) -> bool:
    counts = run["counts"]
    told = counts["delivered"] + counts["coalesced"] + counts["pending"]
    return counts["posted"] == told and not counts["lost"]


def pcpus_of(run: dict) -> list[dict]:
    return json.loads(Path(run["run_dir"], "counters.json").read_text())["pcpus"]


# -- posted and remapped --------------------------------------------------------------------------


def test_a_posted_interrupt_reaches_a_guest_without_an_exit_and_a_sleeper_by_0xf1(tmp_path):
    code, run = run_json("vtd-posted", tmp_path, *SHORT)

    counts = run["counts"]
    assert code == 0
    assert balanced(run)
    assert counts["host_irqs"]["device"] == 0
    assert counts["host_irqs"]["piw"] > 0.9 * run["loads"]["disk"]["posted"]
    assert counts["arrive"]["in_guest"] > 0.9 * run["loads"]["nic"]["posted"]


def test_a_remapped_interrupt_is_the_hosts_first(tmp_path):
    code, run = run_json("vtd-remapped", tmp_path, *SHORT)

    counts = run["counts"]
    assert code == 0
    assert balanced(run)
    assert counts["host_irqs"]["device"] > 0.9 * counts["posted"]
    assert counts["notify"]["sent"] == 0


def test_an_entry_that_changes_its_format_loses_nothing(tmp_path):
    sets = ("load.nic.switch=100ms", "load.disk.switch=70ms", "expect=[]")
    code, run = run_json("vtd-posted", tmp_path, *SHORT, *sets)

    irqs = run["counts"]["host_irqs"]
    assert code == 0
    assert balanced(run)
    assert irqs["device"] > 100
    assert irqs["piw"] > 50
    assert run["counts"]["arrive"]["in_guest"] > 100


def test_an_interrupt_whose_affinity_changes_is_handled_on_each_pcpu_and_lost_on_none(tmp_path):
    sets = ("load.nic.on=[pcpu/0, pcpu/1]", "load.disk.on=[pcpu/0, pcpu/1]")
    code, run = run_json("vtd-remapped", tmp_path, *SHORT, *sets, "expect=[]")

    assert code == 0
    assert balanced(run)
    assert min(pcpu["irq_device"] for pcpu in pcpus_of(run)) > 100


@pytest.mark.parametrize("urgent", [False, True])
def test_only_an_urgent_entry_notifies_a_vcpu_that_is_preempted(tmp_path, urgent):
    shared = (
        "vms={a: {vcpus: 1, pin: {0: 0}, guest: spin}, b: {vcpus: 1, pin: {0: 0}, guest: spin}}"
    )
    more = f", urgent: {str(urgent).lower()}" if urgent else ""
    load = (
        f"load=[{{name: nic, from: device/d, via: vt-d, to: a/0, vector: 0x41, rate: 1k/s{more}}}]"
    )
    sets = ("cluster.pcpus=1", shared, load, "kvm.preset=kvm-v5.18", "expect=[]")
    code, run = run_json("vtd-posted", tmp_path, *SHORT, *sets)

    suppressed = run["counts"]["notify"]["elided_sn"]
    assert code == 0
    assert balanced(run)
    assert suppressed == 0 if urgent else suppressed > 10


# -- assignment -----------------------------------------------------------------------------------

LATE = (
    "run.warmup=0ms",
    "run.watchdog=500ms",
    "load.disk.assigned_at=300ms",
    "load.nic.assigned_at=300ms",
    "expect=[]",
)


def test_a_device_assigned_to_a_sleeping_vcpu_wakes_it(tmp_path):
    code, run = run_json("vtd-posted", tmp_path, *LATE, "run.for=1s")

    assert code == 0
    assert balanced(run)
    assert run["counts"]["host_irqs"]["piw"] > 100


def test_without_the_unblock_request_that_device_never_wakes_it(tmp_path):
    code, run = run_json("vtd-posted", tmp_path, *LATE, "run.for=4s", "kvm.bugs=[B09]")

    assert code == 5
    assert [v["invariant"] for v in run["violations"]] == ["lost-wakeup"]
    assert run["violations"][0]["vcpu"] == "idle/0"
    assert any("notify 0xf2" in line for line in run["violations"][0]["story"])


# -- the loss of kvm-v5.8, masked -----------------------------------------------------------------


def test_an_assigned_device_masks_the_lost_wakeup_by_a_self_sent_0xf1(tmp_path):
    sets = ("matrix={}", "kvm.pid_scheme=preempt-sn", "run.for=4s", "expect=[]")
    code, run = run_json("masked-wakeup", tmp_path, *sets)

    assert code == 0
    assert balanced(run)
    assert run["counts"]["host_irqs"]["piw"] > 0


@pytest.mark.parametrize("unmasked", ["kvm.pid_scheme=none", "kvm.senders=none"])
def test_without_the_scheme_or_the_device_the_wakeup_is_lost(tmp_path, unmasked):
    sets = ("matrix={}", "kvm.pid_scheme=preempt-sn", unmasked, "expect=[]", "run.for=30s")
    code, run = run_json("masked-wakeup", tmp_path, *sets)

    assert code == 5
    assert run["violations"][0]["invariant"] == "lost-wakeup"


# -- whole kernels, and the other configs ----------------------------------------------------------


def test_every_preset_keeps_its_account_under_devices_ipis_and_timers(tmp_path):
    presets = ", ".join(PRESETS)
    loads = """load=[
        {name: nic, from: device/nic0, via: vt-d, to: busy/0, vector: 0x41, rate: 500/s},
        {name: disk, from: device/d, to: idle/0, vector: 0x51, rate: 300/s, on: pcpu/0},
        {name: ipi, from: busy/0, to: idle/0, vector: 0xfb, rate: 300/s},
        {name: timer, from: each-vcpu, to: self, vector: 0xec, rate: 300/s}]"""
    code, whole = run_json(
        "vtd-posted", tmp_path, f"matrix={{kvm.preset: [{presets}]}}", loads, "expect=[]",
        "run.warmup=50ms", "run.for=500ms",
    )  # fmt: skip

    assert code == 0
    assert len(whole["cells"]) == len(PRESETS)
    for cell in whole["cells"]:
        assert balanced(cell), cell["set"]
        assert min(load["posted"] for load in cell["loads"].values()) > 50


def test_a_window_above_the_gap_polls_and_none_sleeps(tmp_path):
    cells = "matrix={kvm.halt_poll: [0us, 20ms]}"
    code, whole = run_json("halt-polling", tmp_path, *SHORT, cells)

    sleeping, polling = (cell["counts"] for cell in whole["cells"])
    assert code == 0
    assert sleeping["halt_poll"]["attempted"] == sleeping["halt_poll"]["fail_ns"] == 0
    assert sleeping["halt_poll"]["wait_ns"] > 400_000_000
    assert polling["halt_poll"]["success_ns"] > polling["halt_poll"]["wait_ns"]
    assert polling["notify"]["woke"] < 0.5 * sleeping["notify"]["woke"]


def test_an_exitless_timer_is_posted_by_another_pcpu(tmp_path):
    code, run = run_json(
        "exitless-timer", tmp_path, *SHORT, "matrix={}", "exclude=[]", "expect=[]",
        "kvm.exitless_timer=true",
    )  # fmt: skip

    counts = run["counts"]
    assert code == 0
    assert balanced(run)
    assert counts["exits"]["MSR_WRITE"] >= counts["posted"]
    assert counts["exits"].get("EXTERNAL_INTERRUPT", 0) < 0.05 * counts["posted"]
    assert "PREEMPTION_TIMER" not in counts["exits"]
    assert counts["notify"]["sent"] > 0.4 * counts["posted"]
    assert pcpus_of(run)[2]["irq_loc"] > 0.4 * counts["posted"]
