"""What the coding rules refuse, rule by rule, and that the protocol text breaks none of them."""

import pytest

from emulator.checker.lint import KINDS, lint
from emulator.checker.twin import PROTOCOL, source_of
from emulator.kvm.cpu import Cpu

REFUSED = {
    "two loads in one comparison": (
        "one-call",
        "def f(cpu, v):\n    if cpu.pi_test_on(v) == cpu.pi_is_pir_empty(v):\n        return\n",
    ),
    "a step in another's argument": (
        "one-call",
        "def f(cpu, v):\n    cpu.send_ipi(cpu.load_vcpu_cpu(v), 1, v)\n",
    ),
    "a protocol call in a step's argument": (
        "one-call",
        "def f(cpu, v):\n    cpu.set_rvi(g(cpu, v))\n",
    ),
    "a step inside for": (
        "loop",
        "def f(cpu, v):\n    for i in (1, 2):\n        cpu.pi_test_on(i)\n",
    ),
    "while without a step": ("loop", "def f(cpu, v):\n    while v:\n        v = v - 1\n"),
    "a mutable local": ("local", "def f(cpu, v):\n    seen = [v]\n    cpu.pi_test_on(v)\n"),
    "an attribute assigned": ("local", "def f(cpu, v):\n    v.x = cpu.pi_test_on(v)\n"),
    "a comprehension": ("construct", "def f(cpu, v):\n    return max(i for i in (1, v))\n"),
    "try": (
        "construct",
        "def f(cpu, v):\n    try:\n        cpu.smp_mb()\n    finally:\n        v = 1\n",
    ),
    "a lambda": ("construct", "def f(cpu, v):\n    g = lambda: v\n    cpu.smp_mb()\n"),
    "a global": ("construct", "def f(cpu, v):\n    global x\n    x = v\n"),
    "print": ("call", "def f(cpu, v):\n    print(v)\n"),
    "another module's function": ("call", "def f(cpu, v):\n    time.monotonic_ns()\n"),
    "cpu put away": ("cpu", "def f(cpu, v):\n    c = cpu\n"),
    "cpu not first": ("cpu", "def f(v, cpu):\n    cpu.smp_mb()\n"),
    "a method taken uncalled": ("cpu", "def f(cpu, v):\n    g = cpu.smp_mb\n"),
    "a step that does not exist": ("step", "def f(cpu, v):\n    cpu.frobnicate(v)\n"),
    "a keyword to a step": ("step", "def f(cpu, v):\n    cpu.pi_test_on(vcpu=v)\n"),
    "a clock imported": ("import", "import time\n"),
    "a socket imported": ("import", "from zmq import Context\n"),
    "the other world imported": ("import", "from emulator.machine import live\n"),
    "module state": ("module", "seen = {}\n"),
    "a statement at module level": ("module", "if 1:\n    x = 2\n"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_lint_refuses(name):
    rule, source = REFUSED[name]

    assert rule in {offence.rule for offence in lint(source, "text.py")}


def test_an_offence_names_file_line_and_rule():
    (offence,) = lint("import time\n", "kvm/text.py")

    assert str(offence) == "kvm/text.py:1: import: imports time"


def test_what_the_text_needs_is_allowed():
    source = (
        "def f(cpu, v):\n"
        "    if cpu.kvm.bugs and cpu.running_vcpu() == v:\n"
        "        return\n"
        "    while cpu.halt_poll_open(v):\n"
        "        why = g(cpu, v)\n"
        "        if why:\n"
        "            break\n"
        "    msr, value = cpu.exit_msr()\n"
        "    v = min(value, 3)\n"
        "    assert cpu.running_vcpu() == v\n"
    )

    assert lint(source, "text.py") == []


@pytest.mark.parametrize("module", PROTOCOL, ids=lambda m: m.__name__)
def test_protocol_text_keeps_the_rules(module):
    assert [str(offence) for offence in lint(*source_of(module))] == []


def test_every_method_of_cpu_has_a_kind():
    methods = {name for name in dir(Cpu) if not name.startswith("_")} - {"kvm"}

    assert methods == set(KINDS)
