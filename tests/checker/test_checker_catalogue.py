"""The named scenarios, the museum and the table of premises say what is known of them."""

from dataclasses import replace

import pytest

from emulator.checker import Claim, Judgement, MemoryModel, check, explain, list_scenarios
from emulator.checker.catalogue import SCENARIOS
from emulator.checker.exhibits import exhibits, museum, show
from emulator.checker.premises import PREMISES
from emulator.kvm.bugs import HISTORY, MUTANTS
from emulator.kvm.params import Bug, Notify

QUICK = [scenario for scenario in SCENARIOS.values() if not scenario.full]


@pytest.mark.parametrize("scenario", QUICK, ids=lambda s: s.name)
def test_a_scenario_breaks_under_the_rules_it_says(scenario):
    for rule in {scenario.rule, Notify.KVM_V5_8, Notify.KVM_V5_18}:
        expected = Judgement.BROKEN if rule in scenario.expected else Judgement.HOLDS
        verdict = check(scenario, rule=rule)
        assert verdict.judgement is expected, (rule, verdict.text, verdict.never)


@pytest.mark.parametrize("rule", Notify)
def test_a_preempted_sleeper_is_lost_under_every_rule_with_a_gate(rule):
    lost = check("preempted-sleeper", rule=rule).judgement is Judgement.BROKEN

    assert lost is (rule is not Notify.KVM_V3_10)  # which notifies whatever it finds in ON
    assert check("preempted-sleeper-repaired", rule=rule).judgement is Judgement.HOLDS


def test_a_preempted_sleeper_is_lost_between_pir_and_on():
    found = check("preempted-sleeper").counterexample
    order = [step.op for step in found.steps]

    ops = ("check_request", "pi_test_and_set_pir", "preempt", "context_switch", "pi_set_on")
    marks = [order.index(op) for op in (*ops, "deactivate_task", "pi_test_and_set_on")]
    assert marks == sorted(marks)
    assert found.steps[order.index("context_switch")].result == 1  # on another pCPU


def test_an_unknown_scenario_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no scenario 'bse'; there are: base, "):
        check("bse")


def test_every_scenario_asks_a_question():
    listed = list_scenarios()

    assert len(listed) == len(SCENARIOS)
    assert all(row["question"] and row["bounds"] for row in listed)


@pytest.mark.parametrize("exhibit", list(exhibits()), ids=lambda e: e.id)
def test_an_exhibit_is_found_with_its_switch_and_absent_without(exhibit):
    shown = show(exhibit)

    assert shown.found.judgement is Judgement.BROKEN
    assert shown.absent.judgement is Judgement.HOLDS, shown.absent.never
    assert shown.as_expected


def test_every_switch_is_an_exhibit_or_says_why_not():
    named = {exhibit.switch for exhibit in (*HISTORY, *MUTANTS)} | {Bug.NOTHING}
    told = {exhibit.id for exhibit in MUTANTS if exhibit.why_not}

    assert {bug for bug in Bug if bug not in named and bug.value not in told} == {
        Bug.REPAIR_WAKE_AT_LOAD
    }


def test_every_known_bug_has_a_number():
    assert [exhibit.id for exhibit in HISTORY] == [f"B{n:02}" for n in range(1, 26)]


def test_the_museum_says_what_it_leaves_out(monkeypatch):
    monkeypatch.setattr("emulator.checker.exhibits.exhibits", lambda: iter(()))
    told = museum()

    assert told["schema"] == "pirlab-museum/1"
    assert {row["id"] for row in told["left_out"]} >= {"B02", "B07", "B13", "B25"}
    assert all(row["why"] for row in told["left_out"])


@pytest.mark.parametrize("bug", [Bug.LATE_OUTSIDE, Bug.ELIDE_EXITING])
def test_who_elides_too_much_loses_no_post_but_breaks_the_argument(bug):
    for rule in (Notify.KVM_V5_16, Notify.KVM_V5_18):
        assert check("base", rule=rule, bugs=[bug]).judgement is Judgement.HOLDS

    broken = check("elision", bugs=[bug])
    assert broken.claim is Claim.ELISION_IS_SOUND
    assert check("elision", rule=Notify.KVM_V5_17, bugs=[bug]).judgement is Judgement.HOLDS


def test_a_handler_with_interrupts_on_waits_for_the_lock_of_what_it_interrupted():
    verdict = check("interrupted-handler", stop_at_first=True)

    assert verdict.claim is Claim.EVERY_POST_IS_DELIVERED
    assert "deadlock: irq0 waits for the lock of pCPU 0's wake-up list" in verdict.text
    assert check(replace(verdict.scenario, bugs=frozenset())).judgement is Judgement.HOLDS


def test_only_eliding_rules_need_the_sync_before_reentry():
    sync = [premise for premise in PREMISES if "re-enters" in premise.text]
    told = explain(rules=(Notify.KVM_V5_17, Notify.KVM_V5_18), premises=sync)

    assert told.needed(told.rows[0]) == "this rule only"
    assert told.rows[0].lengths[Notify.KVM_V5_17, MemoryModel.SC] is None


def test_the_entry_barrier_is_needed_under_tso_alone():
    barrier = [premise for premise in PREMISES if "full barrier" in premise.text]
    told = explain(rules=(Notify.KVM_V5_18,), premises=barrier)

    assert told.rows[0].lengths[Notify.KVM_V5_18, MemoryModel.SC] is None
    assert told.rows[0].lengths[Notify.KVM_V5_18, MemoryModel.TSO] == 11
    assert told.needed(told.rows[0]) == "every rule"
    assert "-/11" in told.to_text()


def test_a_premise_that_nobody_needs_says_so():
    late = [premise for premise in PREMISES if "come on again" in premise.text]

    told = explain(rules=(Notify.KVM_V5_18,), premises=late)

    assert told.to_json()["premises"][0]["needed"] == "none"


def test_only_the_rule_that_elides_in_guest_mode_needs_the_mode_left_before_interrupts_are_on():
    for_i15 = [premise for premise in PREMISES if "(I15)" in premise.text]
    told = explain(rules=(Notify.KVM_V5_8, Notify.KVM_V5_17, Notify.KVM_V5_18), premises=for_i15)

    assert [told.needed(row) for row in told.rows] == ["this rule only"]
