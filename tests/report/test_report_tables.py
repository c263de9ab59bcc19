"""Cells of a matrix and pairs of runs side by side."""

from report_example import asleep, example

from emulator.measure.compare import compare_runs
from emulator.measure.summary import matrix
from emulator.report.comparison import comparison_text
from emulator.report.figures import COLUMNS
from emulator.report.matrix import matrix_text


def test_a_cell_is_a_row():
    text = matrix_text(matrix([example(rule="kvm-v5.16"), example(rule="kvm-v5.18")]))
    rows = [line.split() for line in text.splitlines() if line.startswith("kvm-")]
    assert rows == [
        ["kvm-v5.16", "70", "0", "3.00us", "3.00us", "20.0us", "0", "OK"],
        ["kvm-v5.18", "30", "40", "3.00us", "3.00us", "20.0us", "0", "OK"],
    ]


def test_what_the_test_saved_is_said_between_cells_that_differ_in_the_rule_alone():
    text = " ".join(
        matrix_text(matrix([example(rule="kvm-v5.16"), example(rule="kvm-v5.18")])).split()
    )
    assert "From kvm-v5.16 to kvm-v5.18: 1,000 -> 429 notifications per 1000 posts" in text
    assert "571 elided" in text
    assert "the 40 elided are 800us of senders' time here" in text


def test_cells_that_differ_in_more_than_the_rule_are_not_set_against_each_other():
    plain = example(rule="kvm-v5.16", cell={"kvm.rule": "kvm-v5.16", "kvm.halt_poll": "0us"})
    elided = example(rule="kvm-v5.18", cell={"kvm.rule": "kvm-v5.18", "kvm.halt_poll": "200us"})
    text = matrix_text(matrix([plain, elided]))
    assert "From kvm" not in text
    assert "rule=kvm-v5.16 halt_poll=0us\n" in text
    assert "From kvm" not in matrix_text(matrix([elided, elided]))


def test_repeats_of_a_cell_are_taken_together():
    cells = [
        example(rule=rule, cell={"kvm.rule": rule, "run.repeat": n})
        for rule in ("kvm-v5.16", "kvm-v5.18")
        for n in range(3)
    ]
    text = " ".join(matrix_text(matrix(cells)).split())
    assert text.count("From kvm-v5.16 to kvm-v5.18: 1,000 -> 429 notifications") == 1
    assert "the 120 elided are 2.40ms" in text


def test_a_rule_is_set_against_the_last_one_that_elides_nothing():
    unsafe = asleep() | {"set": {"kvm.rule": "kvm-v5.8"}}
    rules = [example(rule="kvm-v5.16"), unsafe, example(rule="kvm-v5.18")]
    text = matrix_text(matrix(rules))
    assert "From kvm-v5.16 to kvm-v5.18" in text
    assert "From kvm-v5.8" not in text


def test_a_saving_that_loses_interrupts_is_not_praised():
    before = example(rule="kvm-v5.16")
    lossy = asleep() | {"set": {"kvm.rule": "kvm-v5.8"}}
    text = " ".join(matrix_text(matrix([before, lossy])).split())
    assert "It lost 1: a saving that is not safe" in text
    assert "kvm-v5.8: VIOLATED lost-wakeup: db/1 slept over vector 0x41" in text


def test_a_matrix_fits_into_a_mail():
    cell = {"kvm.rule": "kvm-v5.18", "vms.db.vcpus": 2, "cluster.fabric": "ipc", "x.y": "z" * 60}
    text = matrix_text(matrix([example(cell=cell), asleep()]))
    assert max(map(len, text.splitlines())) <= COLUMNS


def compared(seconds_apart_ns=0):
    import numpy as np

    from emulator.measure.stages import STAGES

    noise = np.random.default_rng(1).normal(50_000, 500, 1000).astype(np.int64)
    none = dict.fromkeys(STAGES, np.zeros(0, dtype=np.int64))
    a = none | {"send": noise}
    b = none | {"send": noise + seconds_apart_ns}
    runs = example(rule="kvm-v5.16"), example(rule="kvm-v5.18", floor_ns=(60_000,) * 30)
    return comparison_text(compare_runs(*runs, a, b))


def test_a_difference_is_shown_with_its_interval_and_no_difference_as_such():
    row = next(line for line in compared(9_000).splitlines() if line.startswith("send"))
    assert row.split()[:2] == ["send", "50.0us"]
    assert row.endswith("higher")
    row = next(line for line in compared().splitlines() if line.startswith("send"))
    assert row.endswith(" =")


def test_counts_that_differ_are_listed_and_a_moved_floor_is_noted():
    text = compared()
    row = next(line for line in text.splitlines() if line.startswith("notify.sent "))
    assert row.split() == ["notify.sent", "70", "30", "-40"]
    assert "posted" not in text
    assert "transport itself moved by +50%" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= COLUMNS
