"""The pretend world: every interleaving of the protocol text that runs, and what it shows.

    lint, twin, automaton   the text, its coding rules, its generator twin, an actor as an automaton
    memory, model_*, choices, programs, world    the simulated machine: each step, who can move
    search, liveness, sampling, cost             every state; cycles; schedules; counts over runs
    scenario, catalogue, claims, coverage        what is asked, and what must have been seen
    verdict, exhibits, premises                  `check`, `museum`, `explain`
    counterexample, picture, walk                a way to a broken claim: saved, shown, followed
    path, record_text, record_owned, record_memory    is a recorded live run a path of the model

Imports `hardware` and `kvm`, never `machine`: nothing here decides what the protocol should do.
"""

from emulator.checker.claims import Claim, Sometimes
from emulator.checker.counterexample import Counterexample, CounterexampleError, load_counterexample
from emulator.checker.exhibits import museum
from emulator.checker.picture import render
from emulator.checker.premises import explain
from emulator.checker.sampling import Sample, Strategy, sample
from emulator.checker.scenario import Bounds, MemoryModel, Scenario
from emulator.checker.search import TooManyStatesError
from emulator.checker.verdict import Judgement, Verdict, check, list_scenarios
from emulator.checker.walk import Divergence, Replay, Walk, replay_file

__all__ = [
    "Bounds",
    "Claim",
    "Counterexample",
    "CounterexampleError",
    "Divergence",
    "Judgement",
    "MemoryModel",
    "Replay",
    "Sample",
    "Scenario",
    "Sometimes",
    "Strategy",
    "TooManyStatesError",
    "Verdict",
    "Walk",
    "check",
    "explain",
    "list_scenarios",
    "load_counterexample",
    "museum",
    "render",
    "replay_file",
    "sample",
]
