"""However a run ends: a code, a sentence, the results so far, and nothing left behind."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from live_runs import CONFIGS, alive, children_of, pirlab, wait_for

from emulator.machine.errors import HostError, RunBroken
from emulator.machine.fabric import bind
from emulator.machine.memory import Memory, Shape


def test_each_pcpu_is_its_own_process_named_by_role_and_number(start):
    run = start("first-run")

    assert {"nursery", "pcpu0", "pcpu1"} <= run.children.keys()
    assert len({child.pid for child in run.children.values()}) == 3


def test_ctrl_c_keeps_partial_results_and_says_130(start):
    run = start("first-run", "--json")

    run.popen.send_signal(signal.SIGINT)
    code, stdout, _ = run.finish()

    summary = json.loads(stdout)
    assert code == 130
    assert summary["status"] == "interrupted"
    assert summary["counts"]["posted"] == summary["counts"]["delivered"] + (
        summary["counts"]["coalesced"] + summary["counts"]["pending"]
    )
    assert (run.run_dir / "status").read_text().startswith("interrupted")
    assert not any(alive(child) for child in run.children.values())


def test_a_killed_pcpu_ends_the_run_with_its_name_status_and_log(start):
    run = start("first-run")

    run.children["pcpu1"].kill()
    code, _, stderr = run.finish()

    assert code == 3
    assert "pcpu1" in stderr
    assert "SIGKILL" in stderr
    assert "running vCPUs [1]" in stderr
    assert json.loads((run.run_dir / "summary.json").read_text())["status"] == "died"
    assert not any(alive(child) for child in run.children.values())


def test_a_killed_launcher_leaves_no_process_and_marks_the_run(start):
    run = start("first-run")

    run.popen.kill()
    run.popen.communicate()

    wait_for(lambda: not any(alive(c) for c in run.children.values()), "end of the children", 2.0)
    wait_for(lambda: "died" in (run.run_dir / "status").read_text(), "mark", 2.0)


def test_a_launcher_killed_while_its_nursery_gets_ready_leaves_nothing(tmp_path):
    config = str(CONFIGS / "first-run.yaml")
    command = [sys.executable, "-m", "emulator", "run", config, "--out", str(tmp_path / "runs")]
    launcher = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(launcher.children, "nursery")
    nursery = launcher.children()[0]

    launcher.kill()
    launcher.wait()

    # Its shared memory goes as well: every test here looks for that when it is over.
    wait_for(lambda: not alive(nursery), "end of the nursery", 5.0)
    assert next((tmp_path / "runs").glob("*/status")).read_text().startswith("died")


def test_ctrl_c_before_there_is_a_run_says_130_too(tmp_path):
    config = str(CONFIGS / "first-run.yaml")
    program = (
        "import signal, sys\n"
        "from emulator.cli import main\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'emulator.session':\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "main(['run', sys.argv[1]], prog_name='pirlab')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, config],
        capture_output=True, text=True, timeout=30, cwd=tmp_path, check=False,
    )  # fmt: skip

    assert done.returncode == 130
    assert done.stderr == "pirlab: interrupted\n"


def test_a_killed_nursery_takes_its_children_along(start):
    run = start("first-run")

    run.children["nursery"].kill()
    code, _, stderr = run.finish()

    assert code == 3
    assert "nursery" in stderr
    assert not any(alive(child) for child in run.children.values())
    assert not children_of(run.process) if alive(run.process) else True


@pytest.mark.parametrize("out", ["/dev/null/runs", "/proc/runs"])
def test_an_output_folder_that_cannot_be_written_gets_a_sentence(out):
    done = pirlab("run", CONFIGS / "first-run.yaml", "--out", out)

    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert out in done.stderr


def test_too_few_file_descriptors_get_a_sentence(tmp_path):
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))

    done = pirlab("run", CONFIGS / "ring.yaml", "--out", tmp_path, preexec_fn=few)

    assert done.returncode == 4
    assert "file descriptors" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_too_little_shared_memory_gets_a_sentence_and_leaves_no_file(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    path = tmp_path / "memory"

    with pytest.raises(HostError, match="KiB of shared memory"):
        Memory.create(path, Shape(pcpus=2, vcpus=2, devices=0, ring_records=1 << 10))
    assert not path.exists()


def test_a_socket_path_that_is_taken_is_never_stolen(tmp_path):
    (tmp_path / "pcpu0").touch()

    class NeverBinds:
        def bind(self, _address: str) -> None:
            raise AssertionError("bound")

    with pytest.raises(RunBroken, match="already taken"):
        bind(NeverBinds(), str(tmp_path), "ipc", "pcpu0")


def test_a_file_that_is_no_memory_file_is_refused(tmp_path):
    path: Path = tmp_path / "memory"
    path.write_bytes(b"\0" * 4096)

    with pytest.raises(ValueError, match="not a pirlab memory file"):
        Memory.open(path)


def test_clean_removes_what_a_killed_run_left_and_nothing_that_lives(tmp_path, monkeypatch):
    from emulator.machine import host

    monkeypatch.setattr(host, "runtime_root", lambda: tmp_path)
    for name, pid in (("dead", 2**22 + 1), ("alive", os.getpid())):
        path = tmp_path / f"{host.RUNTIME_PREFIX}{os.getuid()}-{name}"
        path.mkdir()
        (path / "owner").write_text(f"{pid}\n/runs/x\n")

    found = host.abandoned()

    assert [path.name.split("-")[-1] for path in found] == ["dead"]
