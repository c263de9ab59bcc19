"""What one iteration of a benchmark costs, counted on real processes: the same on any machine.

The guests are those of kvm-unit-tests' x86/vmexit.c (`guest/vmexit.py`): nothing overlaps in them.
The exits that end a run (a signal) are no part of an iteration and are left out.
"""

import json
from pathlib import Path

import pytest
from live_runs import run_json

COUNT = 100
ONE = ("matrix={}", "expect=[]", "run.warmup=0ms", "run.for=500ms")
IPI = f"load=[{{name: ipi, from: vm/0, to: vm/1, vector: 0x20, rate: 5k/s, count: {COUNT}}}]"
SELF = f"load=[{{name: one, from: vm/0, to: self, vector: 0x61, rate: 5k/s, count: {COUNT}, "


def counted(out: Path, *sets: str) -> tuple[dict, list[dict[str, int]]]:
    """The counts of a run whose account balances, and the exits of each pCPU by reason."""
    code, run = run_json("ipi-virtualization", out, *ONE, *sets)
    counts = run["counts"]
    assert code == 0
    assert 0 < counts["posted"] <= COUNT
    assert counts["delivered"] == counts["posted"]
    counters = json.loads(Path(run["run_dir"], "counters.json").read_text())
    exits = [
        {reason: n for reason, n in pcpu["exits"].items() if reason != "1"}
        for pcpu in counters["pcpus"]
    ]
    return counts, exits


def test_an_ipi_costs_its_sender_an_exit_and_a_notification_and_its_target_nothing(tmp_path):
    counts, (sender, target) = counted(tmp_path, "kvm.preset=kvm-v5.18", IPI)

    assert sender == {"32": counts["posted"]}
    assert target == {}
    assert counts["notify"]["sent"] == counts["posted"]
    assert counts["arrive"]["in_guest"] == counts["posted"]


def test_an_ipi_with_ipi_virtualization_costs_no_exit_anywhere(tmp_path):
    counts, exits = counted(tmp_path, "kvm.senders=ipi-virtualization", IPI)

    assert exits == [{}, {}]
    assert counts["notify"]["sent"] == counts["posted"]


def test_an_ipi_to_a_target_that_halts_costs_it_one_exit(tmp_path):
    counts, (sender, target) = counted(tmp_path, "vms.vm.guest=ipi-halt", IPI)

    assert sender == {"32": counts["posted"]}
    assert target == {"12": counts["posted"] + 1}  # and the halt before the first


@pytest.mark.parametrize(("preset", "notifications"), [("kvm-v5.16", 1), ("kvm-v5.18", 0)])
def test_a_deadline_in_the_past_costs_one_exit_and_its_notification_is_elided(
    tmp_path, preset, notifications
):
    counts, (own, _) = counted(
        tmp_path, f"kvm.preset={preset}", "vms.vm.guest=tscdeadline-immed", SELF + "}]"
    )

    assert own == {"32": counts["posted"]}
    assert counts["notify"]["sent"] == notifications * counts["posted"]
    assert counts["notify"]["elided_same_vcpu"] == (1 - notifications) * counts["posted"]


def test_a_write_of_the_self_ipi_register_costs_no_exit(tmp_path):
    counts, exits = counted(tmp_path, "vms.vm.guest=spin", SELF + "via: self-ipi}]")

    assert exits == [{}, {}]
    assert counts["notify"]["sent"] == 0


def test_a_self_ipi_by_the_icr_costs_one_exit(tmp_path):
    counts, (own, _) = counted(tmp_path, "vms.vm.guest=spin", SELF + "via: icr}]")

    assert own == {"32": counts["posted"]}
    assert counts["notify"]["elided_same_vcpu"] == counts["posted"]


@pytest.mark.parametrize("fastpath", [True, False])
def test_a_halt_with_work_pending_re_enters_where_that_is_a_fastpath(tmp_path, fastpath):
    counts, (own, _) = counted(
        tmp_path,
        "vms.vm.guest=self-ipi-halt",
        SELF + "via: self-ipi}]",
        f"kvm.fastpath_hlt={str(fastpath).lower()}",
    )

    assert own == {"12": counts["posted"]}
    assert counts["fastpath_reenter"] == fastpath * counts["posted"]
    assert counts["halts"] == 0


@pytest.mark.parametrize(("icr", "reentries"), [("none", 0), ("exit", 0), ("reenter", 1)])
def test_an_icr_write_re_enters_where_that_is_a_fastpath(tmp_path, icr, reentries):
    counts, (sender, _) = counted(tmp_path, f"kvm.fastpath_icr={icr}", IPI)

    assert sender == {"32": counts["posted"]}
    assert counts["fastpath_reenter"] == reentries * counts["posted"]
    assert counts["notify"]["sent"] == counts["posted"]


@pytest.mark.parametrize(
    ("axes", "reasons"),
    [
        (("kvm.timer=preemption",), {"32", "52"}),  # the WRMSR, and the timer
        (("kvm.timer=preemption", "kvm.fastpath_preemption_timer=false"), {"32", "52"}),
        (("kvm.timer=hrtimer",), {"32"}),  # and external interrupts
        (("kvm.exitless_timer=true", "cluster.pcpus=3"), {"32"}),
    ],
)
def test_a_deadline_to_come_exits_as_its_timer_does(tmp_path, axes, reasons):
    load = f"load=[{{name: t, from: vm/0, to: self, vector: 0x61, rate: 500/s, count: {COUNT}}}]"
    counts, (own, *_) = counted(tmp_path, "vms.vm.guest=spin", load, *axes)

    interrupts = counts["exits"].get("EXTERNAL_INTERRUPT", 0)
    assert own.keys() == reasons
    assert own["32"] >= counts["posted"]
    if axes == ("kvm.timer=hrtimer",):
        assert interrupts > 0.9 * counts["posted"]
    else:
        assert interrupts <= 2
