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
