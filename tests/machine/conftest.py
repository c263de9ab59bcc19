"""Fixtures for live runs; what they are made of is in `live_runs`."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_runs import Started, wait_for


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    started: list[Started] = []

    def begin(config: str, *options: str) -> Started:
        run = Started(tmp_path / "runs", config, *options)
        started.append(run)
        return run

    yield begin
    for run in started:
        run.popen.kill()
        run.popen.communicate()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path) -> Iterator[None]:
    yield
    wait_for(lambda: not leftovers(tmp_path), "clean shared-memory folder", 5.0)


def leftovers(tmp_path: Path) -> list[str]:
    """Runtime directories of runs whose results lie below `tmp_path`."""
    shared = Path("/dev/shm")  # noqa: S108  looked at, not written
    found = []
    for path in shared.glob(f"pirlab-{os.getuid()}-*"):
        try:
            owner = (path / "owner").read_text()
        except OSError:
            continue  # gone meanwhile, or just being made by somebody else
        if str(tmp_path) in owner:
            found.append(path.name)
    return found
