"""Every axis of the hypervisor reaches the checker: as a field of a scenario, or fixed by name."""

import inspect
from dataclasses import fields, replace
from typing import NoReturn

import pytest

from emulator.checker import Bounds, Judgement, Scenario, Sometimes, check, lint
from emulator.checker.catalogue import SCENARIOS
from emulator.checker.counterexample import scenario_from_json, scenario_to_json
from emulator.checker.model_cpu import ModelCpu
from emulator.checker.scenario import FIXED
from emulator.checker.search import explore
from emulator.checker.world import World
from emulator.kvm.cpu import Cpu
from emulator.kvm.params import (
    Bug,
    EntryOrder,
    Kvm,
    Notify,
    PidScheme,
    ReentryOrder,
    Timer,
)

OTHER = {  # a value that is not the usual one
    "rule": Notify.KVM_V4_11,
    "pid_scheme": PidScheme.SN_ON_PUT,
    "entry_order": EntryOrder.V2013,
    "reentry_order": ReentryOrder.NONE,
    "timer": Timer.HRTIMER,
    "fastpath_tscdeadline": False,
    "fastpath_preemption_timer": False,
    "fastpath_hlt": True,
    "bugs": frozenset({Bug.B03}),
}
PLAIN = Scenario(name="test", question="", bounds=Bounds(remote=1))
TIMED = replace(PLAIN, bounds=Bounds(timer=1))


def test_every_axis_of_kvm_is_a_scenarios_or_fixed_and_never_both():
    axes = {axis.name for axis in fields(Kvm)}
    of_scenarios = axes & {field.name for field in fields(Scenario)}

    assert of_scenarios | set(FIXED) == axes
    assert not of_scenarios & set(FIXED)
    assert set(OTHER) == of_scenarios


@pytest.mark.parametrize("axis", OTHER)
def test_an_axis_of_a_scenario_is_that_of_its_hypervisor(axis):
    asked = replace(PLAIN, **{axis: OTHER[axis]})

    assert getattr(asked.kvm, axis) == OTHER[axis] != getattr(PLAIN.kvm, axis)
    assert scenario_from_json(scenario_to_json(asked)) == asked


@pytest.mark.parametrize("axis", sorted(set(OTHER) - {"rule", "bugs"}))
def test_a_verdict_names_the_axes_that_are_not_the_usual_ones(axis):
    value = OTHER[axis]
    told = getattr(value, "value", value)

    assert str(told) in replace(PLAIN, **{axis: value}).axes
    assert PLAIN.axes == "put/load scheme none"


def test_the_model_returns_what_the_seam_says():
    for name in lint.KINDS:
        seam = inspect.signature(getattr(Cpu, name)).return_annotation
        model = inspect.signature(getattr(ModelCpu, name)).return_annotation
        assert model in (seam, NoReturn), name


def test_a_deadline_already_past_is_posted_by_the_vcpu_itself():
    past, to_come = World(TIMED), World(TIMED)
    for world, deadline in ((past, 1), (to_come, 2)):
        world.cpu.m, world.cpu.c = world.layout.unpack(world.initial()), 0
        world.cpu.set_tscdeadline(0, deadline)

    assert past.cpu.start_sw_timer(0) is True
    assert to_come.cpu.start_sw_timer(0) is False
    assert Sometimes.ELIDED not in check(replace(TIMED, timer=Timer.HRTIMER)).never


@pytest.mark.parametrize("timer", Timer)
@pytest.mark.parametrize("tscdeadline", [True, False])
@pytest.mark.parametrize("preemption_timer", [True, False])
def test_a_timer_is_delivered_however_it_is_counted(timer, tscdeadline, preemption_timer):
    asked = replace(
        TIMED,
        timer=timer,
        fastpath_tscdeadline=tscdeadline,
        fastpath_preemption_timer=preemption_timer,
    )

    assert check(asked).judgement is Judgement.HOLDS


def test_only_posts_from_the_fastpath_are_elided():
    slow = replace(TIMED, fastpath_tscdeadline=False, fastpath_preemption_timer=False)
    worlds = [World(TIMED), World(slow)]
    for world in worlds:
        explore(world)

    assert [Sometimes.ELIDED in world.cpu.seen for world in worlds] == [True, False]


def test_a_halt_that_goes_straight_back_is_another_way_and_as_safe():
    with_it, without = (check(name) for name in ("hlt-fastpath", "base"))

    assert with_it.judgement is without.judgement is Judgement.HOLDS
    assert with_it.states != without.states
    assert check(SCENARIOS["hlt-fastpath"], rule=Notify.KVM_V5_8).judgement is Judgement.BROKEN
