"""`check:` expressions, and which cells an expectation applies to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.config import evaluate
from emulator.config.expect import DEPTH_MAX, LENGTH_MAX, CheckError, parse_check
from emulator.config.model import Expectation

SUMMARY = {
    "status": "ok",
    "seconds": 5.0,
    "counts": {"lost": 0, "posted": 90, "notify": {"sent": 30, "elided_same_vcpu": 60}},
    "latency": {"post_to_deliver": {"n": 90, "p50_ns": 5000, "p999_ns": None}},
    "floor": {"notify_p50_ns": 4000},
    "loads": {"my-timer": {"posted": 90, "rate_wanted": 2000.0}},
    "expect": [{"held": True}],
}


@pytest.mark.parametrize(
    ("check", "value"),
    [
        ("lost == 0", 0),
        ("counts.lost == 0", 0),
        ("notify.elided_same_vcpu > 0", 60),
        ("latency.post_to_deliver.p50_ns <= 1.6 * floor.notify_p50_ns", 5000),
        ("latency.post_to_deliver.p50_ns < 6us", 5000),
        ("latency.post_to_deliver.p50_ns>=5us", 5000),
        ("latency.post_to_deliver.p50_ns - floor.notify_p50_ns == 1us", 1000),
        ("loads.my-timer.rate_wanted == 2k/s", 2000.0),
        ("loads.my-timer.posted / 2 == 45", 45),
        ("notify.sent + notify.elided_same_vcpu == posted", 90),
        ("2 * (notify.sent + 1) - 1 == 61", 61),
        ("1 - 2 - 3 == -4", -4),
        ("2 + 3 * 4 == 14", 14),
        ("12 / 2 / 3 == 2", 2),
        ("-lost == 0", 0),
        ("- -3 == 3", 3),
        ("status == 'ok'", "ok"),
        ('status != "broken"', "ok"),
        ("expect.0.held == 1", True),
        ("lost == 0 and posted > 0", 0),
        ("1e3 == 1000", 1000),
        ("seconds < 5.5", 5.0),
    ],
)
def test_a_check_that_holds_says_so_with_its_left_value(check, value):
    assert evaluate(check, SUMMARY) == (True, value, "")


@pytest.mark.parametrize(
    ("check", "value", "text"),
    [
        ("posted == 0", 90, "posted is 90, not == 0"),
        ("posted > 90 and lost == 0", 90, "posted is 90, not > 90"),
        ("lost == 0 and notify.sent * 2 < 60", 60, "notify.sent * 2 is 60, not < 60"),
        ("latncy.x > 0", None, "latncy.x is not in the summary"),
        ("counts.lst == 0", None, "counts.lst is not in the summary"),
        ("lost.x == 0", None, "lost.x is not in the summary"),
        ("expect.1.held == 1", None, "expect.1.held is not in the summary"),
        ("status.0 == 'o'", None, "status.0 is not in the summary"),
        ("lost == nothing", 0, "nothing is not in the summary"),
        (
            "latency.post_to_deliver.p999_ns < 1s",
            None,
            "latency.post_to_deliver.p999_ns has no value (too few samples)",
        ),
        ("notify == 0", None, "notify is not a single value"),
        ("posted / lost > 1", None, "posted / lost: division by zero"),
        ("status > 1", "ok", "status: a text and a number cannot be compared or computed with"),
        (
            "status + 1 > 1",
            None,
            "status + 1: a text and a number cannot be compared or computed with",
        ),
    ],
)
def test_a_check_that_fails_says_why(check, value, text):
    assert evaluate(check, SUMMARY) == (False, value, text)


@pytest.mark.parametrize(
    ("check", "offset", "problem"),
    [
        ("lost = 0", 5, "expected a path, a number or a sign, got '='"),
        ("lost", 4, "expected one of < <= == != >= >, got the end"),
        ("", 0, "expected a path, a number or '(', got the end"),
        ("lost == ", 7, "expected a path, a number or '(', got the end"),
        ("a < b < c", 6, "expected 'and' or the end, got '<'"),
        ("a < b or c < d", 6, "expected 'and' or the end, got 'or'"),
        ("(a < b)", 3, "expected ')', got '<'"),
        ("a + < b", 4, "expected a path, a number or '(', got '<'"),
        ("and < b", 0, "expected a path, a number or '(', got 'and'"),
        ("a < 6parsec", 4, "expected a path, a number or a sign, got '6parsec'"),
        ("a < 0.5ns", 4, "must be a whole number of ns, got '0.5ns'"),
        ("a.  < 1", 1, "expected a path, a number or a sign, got '.'"),
        ("a < 1 and", 9, "expected a path, a number or '(', got the end"),
        ("__import__('os') == 0", 10, "expected one of < <= == != >= >, got '('"),
        ("a[0] == 0", 1, "expected a path, a number or a sign, got '[0]'"),
        ("'a == 0", 0, 'expected a path, a number or a sign, got "\'a"'),
    ],
)
def test_what_is_no_check_is_told_with_its_place(check, offset, problem):
    with pytest.raises(CheckError) as caught:
        parse_check(check)
    assert (caught.value.offset, str(caught.value)) == (offset, problem)


@pytest.mark.parametrize("opening", ["(", "-"])
def test_a_check_has_limits(opening):
    parse_check("(" * (DEPTH_MAX - 1) + "1" + ")" * (DEPTH_MAX - 1) + " == 1")
    with pytest.raises(CheckError, match=f"nested more than {DEPTH_MAX} deep"):
        parse_check(opening * (DEPTH_MAX + 1) + "1")
    with pytest.raises(CheckError, match=f"at most {LENGTH_MAX} characters, got"):
        parse_check("1" + "+1" * LENGTH_MAX + " == 0")


@given(st.text(alphabet="ab.<=>!()+-*/ 019smk'\"and", max_size=30))
def test_any_text_is_a_check_or_a_check_error(text):
    try:
        outcome = evaluate(text, SUMMARY)
    except CheckError as error:
        offset = error.offset
    else:
        offset = 0
        assert outcome.held is (outcome.text == "")
    assert 0 <= offset <= len(text)


_LEAVES = st.integers(0, 1000).map(str)
_SUMS = st.recursive(
    _LEAVES,
    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner),
    max_leaves=8,
)


@given(_SUMS)
def test_arithmetic_is_python_s(text):
    assert evaluate(f"{text} == 0", {}).value == eval(text)  # noqa: S307


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ("{check: lost = 0}", "6:23"),
        ("{check: 'lost = 0'}", "6:24"),
        ('{check: "lost = 0"}', "6:24"),
        ("{check: &a lost = 0}", "6:18"),
    ],
)
def test_a_wrong_check_has_its_caret_inside_the_text(desk, entry, place):
    message = desk.error_with(f"expect: [{entry}]")
    assert message.startswith(f"c.yaml:{place}: expect.0.check: expected a path")


def test_a_wrong_check_in_a_block_text_is_told_at_the_text(desk):
    message = desk.error_with("expect:\n  - check: |\n      lost = 0\n")
    assert message.startswith("c.yaml:7:12: expect.0.check: expected a path")


# -- when -----------------------------------------------------------------------------------------


def applying(desk, when, *overrides):
    more = "load:\n  - {name: t, from: db/0, to: self, vector: 0x41, rate: 2k/s}\n"
    cell = desk.cell(more + f"expect:\n  - {{check: lost == 0, when: {when}}}\n", *overrides)
    return bool(cell.expect)


@pytest.mark.parametrize(
    "when",
    [
        "{}",
        "{kvm.rule: kvm-v5.18}",
        "{kvm.halt_poll: 0.2ms}",
        "{load.t.rate: 2000/s, load.t.vector: 65}",
        "{load.t.via: tsc-deadline}",
        "{vms.db.pin.1: 1}",
        "{cluster.pcpus: 2, run.seed: 42}",
        "{kvm.entry_order: 2017}",
    ],
)
def test_an_expectation_applies_where_all_values_are_those(desk, when):
    assert applying(desk, when)


@pytest.mark.parametrize(
    "when", ["{kvm.rule: kvm-v5.8}", "{kvm.rule: kvm-v5.18, run.seed: 1}", "{vms.db.pin.1: 0}"]
)
def test_an_expectation_does_not_apply_elsewhere(desk, when):
    assert not applying(desk, when)


def test_an_expectation_follows_the_matrix_and_the_overrides(desk):
    more = "expect: [{violates: lost-wakeup, when: {kvm.rule: kvm-v5.8}}, {check: lost == 0}]\n"
    violation = Expectation(check=None, violates="lost-wakeup")
    check = Expectation(check="lost == 0", violates=None)
    assert desk.cell(more).expect == (check,)
    assert desk.cell(more, "kvm.rule=kvm-v5.8").expect == (violation, check)
    assert desk.cell(more, "matrix={kvm.rule: [kvm-v5.8]}").expect == (violation, check)


@pytest.mark.parametrize(
    ("when", "problem"),
    [
        ("{kvm.rle: 1}", "6:36: expect.0.when: kvm.rle: unknown key; did you mean 'rule'?"),
        ("{load.t.rate: 1/s}", "6:36: expect.0.when: load.t: unknown key; allowed: none here"),
        ("{vms.web.vcpus: 1}", "6:36: expect.0.when: vms.web: unknown key; allowed: db"),
        ("{kvm.rule.x: 1}", "6:36: expect.0.when: kvm.rule: has nothing below it, so no 'x'"),
        ("{kvm.rule: kvm-v5.9}", "6:46: expect.0.when.kvm.rule: unknown value, got 'kvm-v5.9'"),
    ],
)
def test_a_wrong_when_is_told(desk, when, problem):
    assert problem in desk.error_with(f"expect: [{{check: lost == 0, when: {when}}}]")


def test_an_exit_that_never_happened_is_zero_and_one_that_cannot_has_no_value():
    summary = {"counts": {"exits": {"HLT": 3}}}
    assert evaluate("exits.MSR_WRITE == 0 and counts.exits.HLT == 3", summary).held
    assert not evaluate("counts.exits.MSR_WRITTEN == 0", summary).held
    assert not evaluate("counts.exits.MSR_WRITE.deeper == 0", summary).held
