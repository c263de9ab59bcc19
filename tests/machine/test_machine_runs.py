"""Runs on real processes: what is counted, never how long it took."""

import pytest
from live_runs import run_json

from emulator.events import Event
from emulator.measure.records import read_events

SHORT = ("run.warmup=100ms", "run.for=800ms")

RUN_KEYS = {
    "schema", "name", "run_dir", "status", "verdict", "seconds", "seed", "rule", "host", "counts",
    "latency", "floor", "loads", "expect", "recorder",
}  # fmt: skip
COUNT_KEYS = {
    "posted", "delivered", "coalesced", "pending", "lost", "notify", "arrive", "exits", "halts",
    "wakeups", "halt_poll", "syncs", "fastpath_reenter",
}  # fmt: skip


def test_the_first_run_has_every_key_and_balances(tmp_path):
    code, run = run_json("first-run", tmp_path, *SHORT, "expect=[]")

    counts = run["counts"]
    assert code == 0
    assert run["schema"] == "pirlab-run/1"
    assert run.keys() >= RUN_KEYS
    assert counts.keys() >= COUNT_KEYS
    assert counts["posted"] == counts["delivered"] + counts["coalesced"] + counts["pending"]
    assert counts["delivered"] > 500
    assert counts["lost"] == 0
    assert counts["notify"]["sent"] == sum(counts["arrive"].values())
    assert run["recorder"]["dropped"] == 0
    assert run["floor"]["n"] >= 1000
    assert {"p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns", "n"} <= run["latency"]["send"].keys()


def test_only_the_patched_rule_sends_no_notification_to_itself_and_delivers_all_the_same(tmp_path):
    code, whole = run_json(
        "same-vcpu-shortcut", tmp_path, *SHORT, "load.ipi.rate=100/s", "expect=[]"
    )

    cells = {cell["rule"]: cell["counts"] for cell in whole["cells"]}
    assert code == 0
    assert whole["schema"] == "pirlab-matrix/1"
    assert cells["kvm-v5.16"]["notify"]["elided_same_vcpu"] == 0
    assert cells["kvm-v5.18"]["notify"]["elided_same_vcpu"] > 500
    assert cells["kvm-v5.16"]["notify"]["sent"] > 3 * cells["kvm-v5.18"]["notify"]["sent"]
    for counts in cells.values():
        assert counts["posted"] == counts["delivered"] + counts["coalesced"]


def test_the_reverted_rule_loses_a_wakeup_and_the_watchdog_says_so(tmp_path):
    code, run = run_json("lost-wakeup", tmp_path, "kvm.rule=kvm-v5.8", "run.for=30s")

    lost = [v for v in run["violations"] if v["invariant"] == "lost-wakeup"]
    assert code == 5
    assert run["verdict"] == "violated"
    assert run["counts"]["lost"] == 1
    assert lost
    assert any("elide: same vCPU" in line for line in lost[0]["story"])


@pytest.mark.parametrize("rule", ["kvm-v3.10", "kvm-v4.11", "kvm-v5.16", "kvm-v5.17", "kvm-v5.18"])
def test_every_other_rule_wakes_the_sleeper(tmp_path, rule):
    code, run = run_json(
        "lost-wakeup", tmp_path, f"kvm.rule={rule}", "run.for=1s", "expect=[{check: lost == 0}]"
    )

    assert code == 0
    assert run["counts"]["notify"]["woke"] > 100


def test_a_foreseen_violation_leaves_a_matrix_runs_code_alone(tmp_path):
    code, whole = run_json("lost-wakeup", tmp_path, "matrix={kvm.rule: [kvm-v5.8]}", "run.for=30s")

    assert code == 0
    assert [cell["verdict"] for cell in whole["cells"]] == ["violated"]


def test_every_ipi_to_a_halted_target_wakes_it(tmp_path):
    code, run = run_json("halted-target", tmp_path, *SHORT)

    assert code == 0
    assert run["counts"]["halts"] > 200
    assert run["counts"]["notify"]["sent"] < run["counts"]["posted"] / 10


def test_a_storm_coalesces_and_keeps_its_account(tmp_path):
    code, run = run_json("storm", tmp_path, *SHORT)

    assert code == 0
    assert run["counts"]["coalesced"] > 0
    assert run["counts"]["notify"]["elided_on"] > 0


def test_a_ring_of_more_guests_than_cores_goes_round(tmp_path):
    code, run = run_json("ring", tmp_path, *SHORT, "expect=[]")

    assert code == 0
    assert run["counts"]["delivered"] > 500


def test_vectors_cross_tcp_as_they_cross_ipc(tmp_path):
    code, run = run_json("first-run", tmp_path, *SHORT, "expect=[]", "cluster.fabric=tcp")

    assert code == 0
    assert run["counts"]["notify"]["sent"] > 100


def test_a_self_ipi_needs_no_exit(tmp_path):
    loads = "load=[{name: self, from: vm/0, to: self, via: self-ipi, vector: 0x61, rate: 1k/s}]"
    code, run = run_json("first-run", tmp_path, *SHORT, "expect=[]", loads)

    assert code == 0
    assert run["counts"]["delivered"] > 500
    assert set(run["counts"]["exits"]) <= {"EXTERNAL_INTERRUPT"}  # the signal at the end


def test_a_run_directory_of_any_length_will_do(tmp_path):
    out = tmp_path / ("x" * 120)

    code, run = run_json("first-run", out, "run.warmup=50ms", "run.for=200ms", "expect=[]")

    assert code == 0
    assert len(run["run_dir"]) > 107


def test_vcpus_that_share_pcpus_take_turns_and_lose_nothing(tmp_path):
    code, whole = run_json("overcommit", tmp_path, *SHORT)

    busy = whole["cells"][0]["counts"]
    assert code == 0
    assert busy["delivered"] > 300
    assert busy["notify"]["not_blocked"] > 0  # posted to a vCPU that waited for its turn


def test_a_vcpu_that_moves_from_pcpu_to_pcpu_gets_every_interrupt(tmp_path):
    code, run = run_json("migration", tmp_path, *SHORT, "expect=[]")

    events = read_events(f"{run['run_dir']}/events.bin")
    loads = events[events["kind"] == Event.SCHED_IN]
    moved = (loads["arg"] != loads["pcpu"]) & (loads["arg"] < 16)
    assert code == 0
    assert run["counts"]["lost"] == 0
    assert int(moved.sum()) > 50
