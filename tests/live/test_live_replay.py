"""A way through the model, on real processes: the same in every step, and what freedom brings."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from emulator.checker import CounterexampleError, MemoryModel, check
from emulator.checker.catalogue import SCENARIOS
from emulator.checker.exhibits import exhibits, scenarios_of
from emulator.kvm.params import Bug, Notify
from emulator.live_replay import random_way, replay_live, schedule_of, way_of_file
from emulator.machine.gate import STOP, Gate, Schedule, Stopped
from emulator.machine.gated import GatedCpu
from emulator.machine.gated_run import PREFIX
from emulator.machine.host import runtime_root
from emulator.machine.memory import P_LIST_LOCK, Memory, Shape

FREE_S = 0.02
DEADLINE_S = 20.0


def save(path: Path, scenario: str, **options) -> Path:
    check(scenario, stop_at_first=True, **options).counterexample.save(path)
    return path


@pytest.fixture(scope="module")
def lost(tmp_path_factory):
    return save(tmp_path_factory.mktemp("live") / "lost.jsonl", "lost-wakeup")


@pytest.fixture(autouse=True)
def nothing_stays_behind():
    def mine():
        children = psutil.Process().children(recursive=True)
        return [c for c in children if c.cmdline()[:1] and "(replay)" in c.cmdline()[0]]

    yield
    assert not mine()
    assert not list(runtime_root().glob(f"{PREFIX}{os.getuid()}-*"))


def same(result) -> bool:
    return result.outcome.diverged is None and not result.differs


def changed(way, which: str, **changes) -> Schedule:
    """The way's schedule with its last turn of this kind told otherwise."""
    schedule = schedule_of(way)
    at = max(i for i, turn in enumerate(schedule.turns) if turn.op == which)
    turns = list(schedule.turns)
    turns[at] = replace(turns[at], **changes)
    return replace(schedule, turns=tuple(turns))


# -- what the processes do -------------------------------------------------------------------------


def test_the_lost_wakeup_is_lost_on_processes_too_and_stays_lost(lost):
    result = replay_live(way_of_file(lost))

    assert same(result)
    assert result.left == ("vCPU 0 sleeps, PIR[224] set",)
    assert result.outcome.at_end == result.way.state(-1)
    assert "lost, and stays lost" in result.to_text()
    assert result.good


def test_the_patched_rule_recovers_from_the_same_beginning(lost):
    result = replay_live(way_of_file(lost, Notify.KVM_V5_18))

    assert same(result)
    assert len(result.schedule.turns) >= 15
    assert not result.left
    assert result.good


def test_a_lost_interrupt_of_the_missing_fence_stays_lost(tmp_path):
    result = replay_live(way_of_file(save(tmp_path / "fence.jsonl", "entry-barrier")), FREE_S)

    assert same(result)
    assert result.left == ("vCPU 0 runs, PIR[33] set",)
    assert "software store buffer" in result.to_text()


@pytest.mark.parametrize(
    ("scenario", "bug"),
    [("device-preempt-sn", Bug.B05), ("device-sn-on-put", Bug.STALE_NDST)],
)
def test_a_thread_that_is_preempted_or_moves_continues_where_it_left(scenario, bug, tmp_path):
    result = replay_live(way_of_file(save(tmp_path / "x.jsonl", scenario, bugs=[bug])), FREE_S)

    assert any(turn.op == "context_switch" for turn in result.schedule.turns)
    assert same(result), result.to_text()
    assert result.good


@pytest.mark.parametrize("exhibit", list(exhibits()), ids=lambda e: e.id)
def test_an_exhibit_of_the_museum_goes_on_processes_as_in_the_model(exhibit, tmp_path):
    check(scenarios_of(exhibit)[0], stop_at_first=True).counterexample.save(tmp_path / "x.jsonl")
    result = replay_live(way_of_file(tmp_path / "x.jsonl"), FREE_S)

    assert same(result), result.to_text()
    assert result.good


def test_who_waits_for_a_lock_that_a_stopped_handler_holds_stops_too(tmp_path):
    memory = Memory.create(
        tmp_path / "memory", Shape(pcpus=1, vcpus=1, devices=0, ring_records=1 << 4)
    )
    memory.u32(memory.pcpu(0, P_LIST_LOCK)).store(1)
    memory.set_phase(STOP)
    cpu = SimpleNamespace(
        memory=memory,
        gate=SimpleNamespace(check_stop=lambda: Gate.check_stop(cpu)),
        call=lambda _op, args, do: do(cpu, *args),
    )

    with pytest.raises(Stopped):
        GatedCpu.wakeup_list_lock(cpu, 0)


def test_a_deadlock_is_refused_before_a_process_spins_on_it(tmp_path):
    path = save(tmp_path / "stuck.jsonl", "interrupted-handler")

    with pytest.raises(CounterexampleError, match=r"deadlock: irq0 waits .* not with --live"):
        way_of_file(path)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("memory", list(MemoryModel))
def test_random_schedules_end_with_the_models_memory(seed, memory):
    rule = list(Notify)[seed]
    way = random_way(SCENARIOS["armed"].under(rule, memory=memory), seed)

    assert same(result := replay_live(way, FREE_S)), result.to_text()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scenario", ["hrtimer", "hlt-fastpath"])
def test_random_schedules_of_other_axes_end_with_the_models_memory(scenario, seed):
    way = random_way(SCENARIOS[scenario], seed)

    assert same(result := replay_live(way, FREE_S)), result.to_text()


def test_notifications_cross_between_processes():
    ways = (random_way(SCENARIOS["remote"], seed) for seed in range(50))
    way = next(w for w in ways if any(t.op == "send_ipi" for t in schedule_of(w).turns))
    result = replay_live(way, FREE_S)

    assert same(result)
    assert result.outcome.messages == sum(t.op == "send_ipi" for t in result.schedule.turns)


# -- what must not go unnoticed --------------------------------------------------------------------


def test_another_result_than_the_recorded_one_is_a_divergence(lost):
    way = way_of_file(lost)
    result = replay_live(way, FREE_S, changed(way, "pi_test_and_set_on", result=True))

    assert result.outcome.diverged.at == 15
    assert "pi_test_and_set_on" in result.outcome.diverged.text
    assert "the model True" in result.to_text()
    assert not result.good


def test_another_step_than_the_texts_is_a_divergence(lost):
    way = way_of_file(lost)
    schedule = changed(way, "set_current_state", op="finish_rcuwait", args=[0])
    result = replay_live(way, FREE_S, schedule)

    assert "about to do set_current_state" in result.outcome.diverged.text


def test_another_argument_than_the_texts_is_a_divergence(lost):
    way = way_of_file(lost)
    result = replay_live(way, FREE_S, changed(way, "pi_test_and_set_pir", args=[0, 33]))

    assert "about to do pi_test_and_set_pir(0, 224)" in result.outcome.diverged.text


def test_a_vector_that_nobody_sent_is_a_missing_message(lost):
    way = way_of_file(lost)
    schedule = changed(way, "interrupt", actor="host0", args=["do_irq", 0xF2])
    result = replay_live(way, FREE_S, schedule)

    assert "no message with vector 0xf2" in result.outcome.diverged.text


def test_another_memory_than_the_models_is_named_value_by_value(lost):
    way = way_of_file(lost)
    otherwise = replace(way, states=(*way.states[:-1], way.states[-3]))
    result = replay_live(otherwise, FREE_S, schedule_of(way))

    assert result.outcome.diverged is None
    assert "  vcpu 0: state is 'SLEEPING' live, 'INTERRUPTIBLE' in the model" in result.differs
    assert not result.good


# -- the command -----------------------------------------------------------------------------------


def pirlab(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emulator", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_replays_a_saved_file_live(lost):
    done = pirlab("replay", lost, "--live")

    assert done.returncode == 0, done.stderr
    assert "19 steps" in done.stdout
    assert "lost, and stays lost" in done.stdout


def test_a_spoilt_file_gets_one_sentence_and_exit_2(lost, tmp_path):
    spoilt = tmp_path / "spoilt.jsonl"
    spoilt.write_text("\n".join(lost.read_text().splitlines()[:9]))
    done = pirlab("replay", spoilt, "--live")

    assert done.returncode == 2
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "breaks off" in done.stderr


def test_a_killed_launcher_leaves_no_process_and_no_file(lost):
    command = [sys.executable, "-m", "emulator", "replay", str(lost), "--live"]
    launcher = psutil.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + DEADLINE_S
    while len(children := launcher.children(recursive=True)) < 3:
        assert time.monotonic() < deadline, "the processes did not start"
    launcher.kill()
    launcher.wait()

    _, alive = psutil.wait_procs(children, timeout=DEADLINE_S)
    assert not alive
