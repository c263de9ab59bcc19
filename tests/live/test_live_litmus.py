"""The mode/ON pair on this host: what is forbidden does not happen, and the counts add up."""

import json
import os
import subprocess
import sys
import time

import psutil
from click.testing import CliRunner

from emulator.machine.host import runtime_root
from emulator.machine.litmus import OUTCOMES, VARIANTS, run_litmus
from emulator.proof import litmus

ROUNDS = 5_000
DEADLINE_S = 20.0


def left_behind():
    return [p for p in runtime_root().glob("pirlab-litmus-*") if p.stat().st_uid == os.getuid()]


def test_with_kvms_fences_the_pair_is_never_reordered():
    result = run_litmus(ROUNDS)

    assert result.counts["as KVM has it"][OUTCOMES[0]] == 0
    assert result.good


def test_every_round_of_every_variant_has_one_of_four_outcomes():
    result = run_litmus(ROUNDS)

    assert {name: counts.total() for name, counts in result.counts.items()} == {
        variant.name: ROUNDS for variant in VARIANTS
    }


def test_a_forbidden_outcome_fails_and_says_so():
    result = run_litmus(64)
    result.counts["as KVM has it"][OUTCOMES[0]] += 1

    assert not result.good
    assert "this is no x86" in result.sentence


def test_the_command_prints_one_object_and_leaves_nothing_behind():
    done = CliRunner().invoke(litmus, ["--rounds", "640", "--json"])

    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["schema"] == "pirlab-litmus/1"
    assert [v["name"] for v in told["variants"]] == [v.name for v in VARIANTS]
    assert not left_behind()


def test_a_killed_litmus_leaves_no_file_behind():
    command = [sys.executable, "-m", "emulator", "litmus", "--rounds", "10000000"]
    launcher = psutil.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + DEADLINE_S
    while not (children := launcher.children()):
        assert time.monotonic() < deadline, "the sender's process did not start"
    launcher.kill()
    launcher.wait()

    _, alive = psutil.wait_procs(children, timeout=DEADLINE_S)
    assert not alive
    assert not left_behind()
