"""The arrows between the rooms: who may import whom."""

import ast
from pathlib import Path

import emulator

ROOT = Path(emulator.__file__).parent

LEAVES = {"events", "order"}
ALLOWED = {
    "events": set(),
    "order": {"kvm", "hardware"},
    "hardware": {"hardware", "events"},
    "kvm": {"kvm", "hardware", "events"},
    "guest": {"guest", "hardware", "events"},
    "config": {"config", "kvm", "hardware"},
    "machine": {"machine", "kvm", "hardware", "guest", "events", "order", "config"},
    "checker": {"checker", "kvm", "hardware", "guest", "events", "order"},
    "conformance": {"conformance", "hardware", "events"},
    "measure": {"measure", "events", "hardware"},
    "report": {"report", "measure", "events"},
}
# config's value types travel to every process; the loader behind them must not
TYPES_ONLY = {("machine", "config"): {"emulator.config.model"}}
IO_MODULES = {"zmq", "mmap", "atomicshm", "os", "time", "subprocess", "socket", "select"}
IO_ROOMS = {"machine"}
PURE_ROOMS = {"hardware", "kvm", "guest", "events"}
HEAVY = {"yaml", "pydantic", "rich", "numpy", "click"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def rooms() -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in ROOT.rglob("*.py"):
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        files.setdefault(room, []).append(path)
    return files


def test_every_arrow_between_rooms_is_one_that_the_design_allows():
    wrong = []
    for room, files in rooms().items():
        if room not in ALLOWED:
            continue  # cli and what stands beside it may import all
        for path in files:
            for name in imports(path):
                if name.split(".")[0] != "emulator":
                    continue
                other = [*name.split("."), ""][1]
                only = TYPES_ONLY.get((room, other))
                if other not in ALLOWED[room] or (only and name not in only):
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")

    assert not wrong


def test_every_room_is_known_to_the_rule():
    beside = {"cli", "proof", "session", "saved", "progress", "live_replay", "live_scenario"}
    beside |= {"live_path", "suite", "__init__", "__main__"}
    known = ALLOWED.keys() | beside

    assert rooms().keys() <= known


def test_pure_rooms_touch_no_socket_clock_or_process():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for room in PURE_ROOMS
        for path in rooms()[room]
        for name in imports(path)
        if name.split(".")[0] in IO_MODULES
    ]

    assert not wrong


def test_pcpu_processes_carry_no_heavy_library():
    import subprocess
    import sys

    code = "import sys, emulator.machine.nursery; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()

    assert not HEAVY & set(loaded)
