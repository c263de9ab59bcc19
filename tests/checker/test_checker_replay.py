"""What the checker finds is saved, loaded and followed to the same claim: nothing is guessed."""

import json
from dataclasses import replace

import pytest

from emulator.checker import CounterexampleError, MemoryModel, Scenario, Walk, check, replay_file
from emulator.checker.catalogue import SCENARIOS
from emulator.checker.exhibits import exhibits, scenarios_of
from emulator.checker.scenario import Bounds
from emulator.checker.search import explore
from emulator.checker.walk import _as_entry
from emulator.checker.world import World

STATES = 300  # of each scenario, spread over the order in which they were found

EXHIBITS = [scenarios_of(exhibit)[0] for exhibit in exhibits()]
BROKEN_ROWS = [
    scenario.under(rule)
    for scenario in SCENARIOS.values()
    for rule in sorted(scenario.expected, key=lambda rule: rule.value)
    if not scenario.sampled
]
AMBIGUOUS_ONCE = [
    SCENARIOS["guest-masks"],
    replace(SCENARIOS["timer"], bounds=Bounds(timer=1, fastpath=1, irq=1)),
    Scenario(name="shared", question="", bounds=Bounds(irq=1, timer=1), pins=(0, 0), hosts=1),
    SCENARIOS["hotplug"].under(memory=MemoryModel.TSO),
]


def named(scenario):
    return f"{scenario.name}-{scenario.rule.value}"


@pytest.mark.parametrize("scenario", [*EXHIBITS, *BROKEN_ROWS], ids=named)
def test_what_is_found_replays_from_its_file_to_the_same_claim(scenario, tmp_path):
    found = check(scenario, stop_at_first=True)
    found.counterexample.save(tmp_path / "found.jsonl")
    replay = replay_file(tmp_path / "found.jsonl")

    assert replay.counterexample == found.counterexample
    assert (replay.claim, replay.text) == (found.claim, found.counterexample.text)


@pytest.mark.parametrize("scenario", [*AMBIGUOUS_ONCE, *EXHIBITS], ids=named)
def test_no_two_moves_of_a_state_are_recorded_alike(scenario):
    world = World(scenario)
    states = list(explore(world).parents)

    for state in states[:: max(1, len(states) // STATES)]:
        told = {}
        for move in world.moves(state):
            assert told.setdefault(json.dumps(_as_entry(move)), move.delta) == move.delta


def test_a_halt_with_interrupts_off_is_not_taken_for_one_with_them_on(tmp_path):
    masked = next(scenario for scenario in EXHIBITS if scenario.name == "B22")
    path = tmp_path / "masked.jsonl"
    check(masked, stop_at_first=True).counterexample.save(path)
    assert '"vmcs": {"guest_if": 0}' in path.read_text()

    path.write_text(path.read_text().replace('{"guest_if": 0}', '{"guest_if": 1}'))
    with pytest.raises(CounterexampleError, match="is told otherwise than it went"):
        replay_file(path)
    path.write_text(path.read_text().replace('{"guest_if": 1}', '{"guest_if": 7}'))
    with pytest.raises(CounterexampleError, match="= 12, guest_if 7, is not possible here"):
        replay_file(path)


def test_an_exit_recorded_without_what_it_left_stands_for_the_first_of_its_reason():
    found = check(EXHIBITS[0], stop_at_first=True).counterexample
    entries = [step.taken[:4] for step in found.steps]

    assert Walk(found.scenario).follow(entries) is None
