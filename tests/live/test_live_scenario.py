"""The scenario that a config corresponds to: who can post, how often, and what is left out."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from emulator.checker import MemoryModel
from emulator.config import load_experiment
from emulator.kvm.params import Notify, PidScheme
from emulator.live_scenario import NoScenarioError, scenario_of
from emulator.proof import check

CONFIGS = Path(__file__).parents[2] / "configs"


def of(name: str, *overrides: str):
    return scenario_of(load_experiment(CONFIGS / f"{name}.yaml", overrides).cells[0])


@pytest.mark.parametrize(
    ("config", "bounds"),
    [
        ("first-run", "R<=2 F<=2"),
        ("lost-wakeup", "T<=2"),
        ("vtd-posted", "D<=2"),
        ("ring", "R<=2"),
        ("overcommit", "R<=1 F<=1 preempt<=1"),
        ("museum-b09", "D<=2 plug<=1"),
        ("exitless-timer", "F<=2"),
    ],
)
def test_each_sender_of_a_config_becomes_a_bound(config, bounds):
    assert str(of(config).scenario.bounds) == bounds


def test_the_rule_and_the_scheme_are_the_configs_and_the_memory_is_x86s():
    scenario = of("masked-wakeup", "kvm.rule=kvm-v5.16", "kvm.pid_scheme=preempt-sn").scenario

    assert scenario.rule is Notify.KVM_V5_16
    assert scenario.pid_scheme is PidScheme.PREEMPT_SN
    assert scenario.memory is MemoryModel.TSO


def test_what_the_bounds_do_not_hold_is_named():
    assert (
        "halt polling: it only delays blocking" in of("halt-polling", "kvm.halt_poll=1ms").left_out
    )
    assert any("rates" in what for what in of("first-run").left_out)


def test_an_hrtimer_is_the_guests_deadline_and_an_exitless_one_a_remote_sender():
    cells = load_experiment(CONFIGS / "exitless-timer.yaml").cells

    assert [str(scenario_of(cell).scenario.bounds) for cell in cells] == [
        "F<=2",
        "deadlines<=2",
        "R<=2",
    ]
    assert any("housekeeping" in what for what in scenario_of(cells[2]).left_out)


def test_the_fastpaths_are_those_of_the_configs_kernel():
    scenario = of("ipi-virtualization").scenario

    assert scenario.fastpath_hlt
    assert not of("lost-wakeup", "kvm={preset: kvm-v3.10}").scenario.fastpath_tscdeadline


def test_apicv_inhibition_is_left_out_by_name_and_its_bug_is_not_said_to_be_absent():
    done = CliRunner().invoke(check, [str(CONFIGS / "apicv-inhibit.yaml"), "--json"])
    without, with_it = json.loads(done.stdout)["checks"]

    assert done.exit_code == 1
    assert any("APICv" in what for what in without["left_out"])
    assert (without["verdict"], with_it["verdict"]) == ("holds", "vacuous")
    assert with_it["never"] == ["APICv was inhibited"]


BROKEN = {"lost-wakeup", "masked-wakeup", "migration", "museum-b04", "museum-b05", "museum-b09"}


@pytest.mark.parametrize(
    "config", sorted({path.stem for path in CONFIGS.glob("*.yaml")} - {"apicv-inhibit", "idle"})
)
def test_every_config_has_a_scenario_and_breaks_only_where_it_asks_for_it(config):
    done = CliRunner().invoke(check, [str(CONFIGS / f"{config}.yaml"), "--json"])
    checks = json.loads(done.stdout)["checks"]

    assert done.exit_code == (config in BROKEN), done.stderr
    assert "broken" in {c["verdict"] for c in checks} or config not in BROKEN
    assert "vacuous" not in {c["verdict"] for c in checks}
    assert all(c["left_out"] for c in checks)


def test_a_config_without_posts_is_refused():
    with pytest.raises(NoScenarioError, match="idle: nobody posts"):
        of("idle")


def test_check_of_a_config_finds_the_rule_that_loses_and_those_that_do_not():
    done = CliRunner().invoke(check, [str(CONFIGS / "lost-wakeup.yaml"), "--json"])

    assert done.exit_code == 1
    checks = json.loads(done.stdout)["checks"]
    assert {c["rule"]: c["verdict"] for c in checks} == {
        "kvm-v5.8": "broken",
        "kvm-v5.16": "holds",
        "kvm-v5.18": "holds",
    }
    assert all(c["left_out"] for c in checks)


@pytest.mark.parametrize("config", ["idle", "no-such-config"])
def test_check_of_a_config_that_does_not_fit_exits_2(config):
    done = CliRunner().invoke(check, [str(CONFIGS / f"{config}.yaml")])

    assert done.exit_code == 2
    assert done.stderr.startswith("pirlab: ")
