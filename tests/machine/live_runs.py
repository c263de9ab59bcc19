"""Live runs: real processes, started by the command, watched from outside."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

CONFIGS = Path(__file__).parents[2] / "configs"
RUN_DEADLINE_S = 100.0


def pirlab(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "emulator", *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=RUN_DEADLINE_S, check=False, **kwargs
    )


def run_json(config: str, out: Path, *sets: str) -> tuple[int, dict]:
    options = [part for one in sets for part in ("-s", one)]
    done = pirlab("run", CONFIGS / f"{config}.yaml", "--json", "--out", out, *options)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def wait_for(condition: Callable[[], object], what: str, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {within_s} s"
        time.sleep(0.01)  # a poll with a deadline, not a guess


def children_of(process: psutil.Process) -> dict[str, psutil.Process]:
    """The processes of a run by role and number, as `ps` shows them."""
    found = {}
    for child in process.children(recursive=True):
        try:
            words = child.cmdline()[0].split() if child.cmdline() else []
        except psutil.Error:
            continue
        if words[:1] == ["pirlab"]:
            found["".join(words[1:3]) if words[1] != "nursery" else "nursery"] = child
    return found


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class Started:
    """A `pirlab run` under way."""

    def __init__(self, out: Path, config: str, *options: str) -> None:
        command = [sys.executable, "-m", "emulator", "run", str(CONFIGS / f"{config}.yaml")]
        self.out = out
        self.popen = subprocess.Popen(
            [*command, "--out", str(out), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.process = psutil.Process(self.popen.pid)
        wait_for(self.running, "running vCPU in the logs")
        self.children = children_of(self.process)

    def running(self) -> bool:
        logs = list(self.out.glob("*/log/pcpu*.log"))
        return bool(logs) and all("running" in log.read_text() for log in logs)

    @property
    def run_dir(self) -> Path:
        return (self.out / "latest").resolve()

    def finish(self) -> tuple[int, str, str]:
        stdout, stderr = self.popen.communicate(timeout=RUN_DEADLINE_S)
        return self.popen.returncode, stdout, stderr
