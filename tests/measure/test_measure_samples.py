"""Histograms and comparisons of samples."""

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_stream import Stream, facts, whole_way

from emulator.measure.compare import compare, compare_runs, median_interval
from emulator.measure.histogram import log2_histogram, write_hlog
from emulator.measure.stages import latencies
from emulator.measure.summary import summarise

samples_lists = st.lists(st.integers(0, 2**40), min_size=1, max_size=300)


def test_buckets_are_powers_of_two_and_empty_ones_between_are_kept():
    found = log2_histogram(np.array([0, 1, 2, 3, 4, 16, 31]))
    assert found == [(0, 1, 1), (1, 2, 1), (2, 4, 2), (4, 8, 1), (8, 16, 0), (16, 32, 2)]
    assert log2_histogram(np.array([5])) == [(4, 8, 1)]
    assert log2_histogram(np.zeros(0, dtype=np.int64)) == []


@settings(max_examples=50, deadline=None)
@given(samples_lists)
def test_every_sample_is_in_the_bucket_that_holds_it(samples):
    for low, high, n in log2_histogram(np.array(samples)):
        assert n == sum(low <= sample < high for sample in samples)


@settings(max_examples=30, deadline=None)
@given(values=samples_lists)
def test_the_log_reads_back_with_three_digits(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("hlog") / "hist.hlog"
    samples = np.array(values)
    stages = {"send": samples, "empty": samples[:0], "post_to_deliver": samples + 1}
    write_hlog(path, stages, start_s=1.7e9, length_s=5.0)
    reader = HistogramLogReader(str(path), HdrHistogram(1, 2**41, 3))
    read = {}
    while (histogram := reader.get_next_interval_histogram()) is not None:
        read[histogram.get_tag()] = histogram
    reader.input_file.close()
    assert list(read) == ["send", "post_to_deliver"]
    assert reader.get_start_time_sec() == 1.7e9
    send = read["send"]
    assert send.get_total_count() == len(samples)
    assert send.get_end_time_stamp() - send.get_start_time_stamp() == 5000.0
    for percentile in (1, 50, 90, 100):
        rank = max(int(percentile / 100 * len(samples) + 0.5), 1)
        truth = int(np.sort(samples)[rank - 1])
        assert send.get_value_at_percentile(percentile) == pytest.approx(truth, rel=1e-3, abs=1)


def test_the_log_opens_with_version_start_time_and_legend(tmp_path):
    path = tmp_path / "hist.hlog"
    write_hlog(path, {"send": np.array([2_500_000])}, start_s=0.5, length_s=1.25)
    lines = path.read_text().splitlines()
    assert lines[0] == "#[Histogram log format version 1.3]"
    assert lines[1] == "#[StartTime: 0.500 (seconds since epoch), 1970-01-01 00:00:00.500+00:00]"
    assert lines[2].startswith('"StartTimestamp","Interval_Length","Interval_Max"')
    assert lines[3].startswith("Tag=send,0.500,1.250,2.500,HIST")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_the_median_interval_covers_as_often_as_it_says(seed):
    rng = np.random.default_rng(seed)
    covered = 0
    for _ in range(200):
        low, high = median_interval(rng.exponential(size=20))
        covered += low <= np.log(2) <= high
    assert covered >= 180  # 97.6 % are expected; 90 % is out of reach for an honest interval


def test_six_units_are_too_few_for_an_interval_and_seven_are_enough():
    assert median_interval(np.arange(6)) is None
    assert median_interval(np.arange(7)) == (0, 6)


def noisy(seed, median, n=4000):
    return np.random.default_rng(seed).normal(median, 50, n).astype(np.int64)


def test_the_same_distribution_twice_shows_no_detectable_difference():
    found = compare([noisy(1, 1000)], [noisy(2, 1000)])
    assert found.verdict == "no detectable difference"
    assert found.low <= 0 <= found.high


def test_a_shift_is_found_with_its_direction_and_size():
    found = compare([noisy(1, 1000)], [noisy(2, 900)])
    assert found.verdict == "lower"
    assert found.low <= -100 <= found.high < 0
    assert found.difference == pytest.approx(-100, abs=10)
    assert compare([noisy(2, 900)], [noisy(1, 1000)]).verdict == "higher"


def test_a_run_that_drifts_within_itself_is_not_taken_for_precise():
    """Ten thousand samples of a walk are not ten thousand opinions."""
    drifting = noisy(1, 0, 10_000) + np.linspace(900, 1100, 10_000).astype(np.int64)
    shifted = noisy(2, 0, 10_000) + np.linspace(920, 1120, 10_000).astype(np.int64)
    assert compare([drifting], [shifted]).verdict == "no detectable difference"
    steady = [noisy(1, 1000, 10_000)], [noisy(2, 1020, 10_000)]
    assert compare(*steady).verdict == "higher"


def test_enough_runs_on_a_side_are_the_units():
    level = [900, 950, 1000, 1050, 1100, 1150, 1200]
    a = [noisy(i, of, 100) for i, of in enumerate(level)]
    b = [noisy(i, of + 60, 100) for i, of in enumerate(level)]
    assert compare(a, b).verdict == "no detectable difference"


def test_few_samples_are_not_compared():
    found = compare([noisy(1, 1000, 69)], [noisy(2, 2000)])
    assert (found.verdict, found.low) == ("too few samples", None)


def run(floor, legs):
    stream = Stream()
    for i in range(legs):
        whole_way(stream, 10_000 * i, message=i + 1)
    about = facts(floor_ns=(floor,) * 100)
    events = stream.events()
    return summarise(events, about), latencies(events, about)


def test_two_runs_are_compared_metric_by_metric_and_a_moved_floor_is_said():
    (a, samples_a), (b, samples_b) = run(1000, 100), run(1500, 120)
    found = compare_runs(a, b, samples_a, samples_b)
    assert found["schema"] == "pirlab-compare/1"
    assert found["latency"]["send"]["verdict"] == "no detectable difference"
    assert "wake_to_deliver" not in found["latency"]
    assert found["counts"]["notify.sent"] == [100, 120]
    assert found["note"] == "the bare transport itself moved by +50% between the runs"
    assert compare_runs(a, a, samples_a, samples_a)["note"] == ""
