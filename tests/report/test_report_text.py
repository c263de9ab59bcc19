"""One run as text: what stands where, what is admitted, and that it fits into a mail."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_example import asleep, example

from emulator.measure.summary import judge
from emulator.report.figures import COLUMNS, duration, log2_lines, number, ratio
from emulator.report.text import RULES, run_text, show


def section(text, title):
    return next(part for part in text.split("\n\n") if part.startswith(title))


def test_the_first_line_is_the_verdict():
    fine = example()
    first = run_text(fine).splitlines()[0]
    assert first == "OK: same-vcpu-shortcut: every interrupt is accounted for"
    failed = judge(fine, [{"check": "lost == 1", "held": False, "value": 0}])
    first = run_text(failed).splitlines()[0]
    assert first == "FAILED: same-vcpu-shortcut: 1 of 1 expectations failed"
    first = run_text(asleep()).splitlines()[0]
    assert first == "VIOLATED: same-vcpu-shortcut: 1 invariant broken"


def test_a_run_that_dropped_records_does_not_claim_that_it_balances():
    text = run_text(example(dropped=5))
    assert text.startswith("OK: same-vcpu-shortcut: account not checked: 5 events dropped\n")
    assert "  account not checked: 5 events dropped" in text
    assert "posted = delivered" not in text
    assert "5 dropped" in section(text, "Recorder")


def test_a_run_that_was_cut_short_says_so_in_its_verdict():
    assert run_text(example(status="interrupted")).startswith("OK (interrupted):")
    assert run_text(example(status="died")).startswith("OK (DIED):")


def test_an_account_that_does_not_balance_says_so_below_its_figures():
    text = run_text(example(counters={"vcpus": [{"pir_pending": [0xEC]}, {}]}))
    assert "DOES NOT BALANCE" in section(text, "Interrupts")
    assert "DOES NOT BALANCE" not in run_text(example())


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_is_named_with_its_commit_and_what_it_does(rule):
    text = run_text(example(rule=rule))
    commit, does = RULES[rule]
    assert f"rule   {rule} ({commit})" in text
    assert does in " ".join(text.split())


def test_arrivals_are_worded_as_the_cases_of_the_comment():
    arrivals = section(run_text(example(remote=30)), "Arrivals")
    assert "  case 1 still in guest mode        30  " in arrivals
    assert "  case 2 exited, runnable            0  benign" in arrivals
    assert "  case 3 exited, blocked             0  benign" in arrivals


def test_counts_stand_in_two_columns():
    lines = section(run_text(example()), "Interrupts").splitlines()
    assert lines[1].split() == ["posted", "70", "sent", "30"]
    assert lines[4].split() == ["pending", "0", "elided:", "same", "vCPU", "40"]


def test_rare_decisions_are_shown_where_there_were_any():
    kicked = example()
    assert "kicked" not in run_text(kicked)
    kicked["counts"]["notify"]["kicked"] = 3
    rows = section(run_text(kicked), "Interrupts").splitlines()
    assert any(row.split()[-3:] == ["(kicked", "besides)", "3"] for row in rows)


def test_a_percentile_with_too_few_samples_is_a_dash():
    row = next(
        line
        for line in section(run_text(example(remote=30)), "Stages").splitlines()
        if line.startswith("  send ")
    )
    assert row.split() == ["send", "30", "20.0us", "-", "-", "-", "20.0us"]


def test_times_stand_beside_the_floor_of_the_same_run():
    floor = section(run_text(example(own=0)), "Floor")
    assert "p50                      40.0us   p99 -, n 30" in floor
    assert "notify_to_arrive         40.0us = 1x the floor" in floor
    assert "remote_post_to_deliver   50.0us = 1.2x the floor" in floor
    assert "Floor: not measured in this run" in run_text(example(floor_ns=()))


def test_the_elision_is_priced_in_notifications_and_in_this_runs_sends():
    saved = " ".join(section(run_text(example()), "What the elision saved").split())
    assert "the vCPU running here: 40 (57.1 % of sent and elided together)" in saved
    assert "median send of 20.0us that is 800us" in saved
    assert "transport is 40.0us" in saved
    assert "The count transfers to hardware, the time does not" in saved
    assert "What the elision saved" not in run_text(example(rule="kvm-v5.16"))


def test_the_price_of_an_elision_is_not_guessed_where_nothing_was_sent():
    saved = section(run_text(example(remote=0)), "What the elision saved")
    assert "is not known" in " ".join(saved.split())


def test_a_post_to_itself_is_shown_leg_by_leg():
    legs = section(run_text(example()), "A post to itself")
    assert "post --1.00us--> sync --2.00us--> deliver    in all 3.00us" in legs


def test_the_histogram_is_bpftraces():
    lines = section(run_text(example(own=40, remote=10)), "post_to_deliver").splitlines()
    assert lines[1] == f"[2K, 4K)                 40 |{'@' * 40}|"
    assert lines[-1] == f"[32K, 64K)               10 |{'@' * 10}{' ' * 30}|"


def test_labels_of_the_lowest_buckets_are_single_values():
    lines = log2_lines([(0, 1, 1), (1, 2, 0), (2, 4, 3), (1 << 30, 1 << 31, 1)])
    assert [line.split("  ")[0] for line in lines] == ["[0]", "[1]", "[2, 4)", "[1G, 2G)"]


def test_loads_show_what_they_wanted_and_got():
    lines = section(run_text(example()), "Loads").splitlines()
    assert lines[1].split() == ["timer", "2,000", "8", "40", "0", "3.05us", "-"]
    assert lines[2].split()[:4] == ["ipi", "-", "6", "30"]


def test_a_violation_comes_with_the_last_records_of_its_vcpu():
    text = run_text(asleep())
    story = section(text, "VIOLATED lost-wakeup")
    assert "db/1 slept over vector 0x41" in story
    assert story.splitlines()[-1].endswith("elide: same vCPU 0x41 [db/1]")
    assert text.index("VIOLATED lost-wakeup") < text.index("Interrupts")


def test_exits_are_named():
    loop = section(run_text(example()), "Run loop")
    assert "97 VM exits (MSR_WRITE 90, HLT 7)" in loop


def inflated(value, rng):
    """The same summary with every number anything a long run may reach."""
    if isinstance(value, dict):
        return {key: inflated(of, rng) for key, of in value.items()}
    if isinstance(value, list):
        return [inflated(of, rng) for of in value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return rng.choice((0, 7, 10**5 - 1, 10**7 - 1, 10**8 - 1))  # three gigabytes of records


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_line_fits_into_a_mail_whatever_the_figures(rng):
    summary = inflated(example(own=25, remote=25), rng)
    summary["histogram"]["post_to_deliver"] = [(1 << 29, 1 << 30, 10**8)]
    for load in summary["loads"].values():
        load |= {"rate_wanted": 1e7 - 1, "rate_reached": 1e7 - 1}
    text = run_text(summary)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= COLUMNS


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**13), st.integers(0, 10**13))
def test_a_duration_has_three_digits_six_columns_and_keeps_the_order(a, b):
    units = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}

    def value(text):
        digits = text.rstrip("nums")
        return float(digits) * units[text[len(digits) :]]

    assert len(duration(a)) <= 6
    assert value(duration(a)) == pytest.approx(a, rel=0.0051, abs=0.5)
    assert (value(duration(a)) <= value(duration(b))) or a > b


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "-"), (0, "0ns"), (1, "1ns"), (999, "999ns"), (1000, "1.00us"), (9994, "9.99us"),
        (9996, "10.0us"), (99_960, "100us"), (999_600, "1.00ms"), (2_500_000_000, "2.50s"),
        (-41_200, "-41.2us"),
    ],
)  # fmt: skip
def test_durations_have_the_unit_that_leaves_three_digits(ns, text):
    assert duration(ns) == text


def test_what_was_not_measured_is_a_dash_and_never_a_zero():
    assert (number(None), ratio(None, 1), ratio(1, None), ratio(1, 0)) == ("-", "-", "-", "-")
    assert (number(0), number(12_345), number(12.34), number(200.4)) == (
        "0",
        "12,345",
        "12.3",
        "200",
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colour_is_for_terminals_and_no_color_is_obeyed(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    text = run_text(asleep())
    file, terminal, quiet = io.StringIO(), Terminal(), Terminal()
    show(text, file)
    show(text, terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    show(text, quiet)
    assert file.getvalue() == text
    assert "\x1b[1;31mVIOLATED" in terminal.getvalue()
    assert "31m" not in quiet.getvalue()
