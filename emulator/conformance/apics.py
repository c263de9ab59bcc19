"""Group lapic: some physical local APICs, a clock, and CPUs that take every interrupt at once.

Each step is made, then time passes until every timer has had its say.
Next: nothing; the expectations are checked here.
"""

import re
from typing import Any, Final

from emulator.conformance.document import Case
from emulator.conformance.words import (
    MismatchError,
    NotUnderstoodError,
    check,
    known_keys,
    number,
    vector_of,
)
from emulator.hardware.destinations import decode_icr, targets, x2apic_ldr
from emulator.hardware.lapic import (
    APIC_BASE_EN,
    APIC_BASE_EXTD,
    ApicMode,
    LocalApic,
    mode_after_base_write,
)
from emulator.hardware.timer import ApicTimer, TimerMode, lvt_timer
from emulator.hardware.vectors import MSR_TSC_DEADLINE

CPUS_MAX: Final = 255
EXPIRIES_MAX: Final = 16  # after one step; a periodic timer would go on for ever
_TSC_AT_RESET = 1_000_000

_SETUP: Final = ("apic_mode", "cpus", "lvtt", "tdcr", "target_activity")
_MODES: Final = {
    "xapic": (ApicMode.XAPIC,),
    "x2apic": (ApicMode.X2APIC,),
    "either": (ApicMode.XAPIC, ApicMode.X2APIC),
}


class Apics:
    """The machine.  `received[cpu]` counts interrupts taken; `halted` CPUs wake with the first."""

    def __init__(self, setup: dict[str, Any], mode: ApicMode) -> None:
        known_keys("setup", setup, _SETUP)
        cpus = number(setup.get("cpus", 1))
        if not 1 <= cpus <= CPUS_MAX:
            raise NotUnderstoodError(f"{cpus} CPUs")
        self.apics = [LocalApic(i, mode, send=self._sender(i)) for i in range(cpus)]
        for i, apic in enumerate(self.apics):
            apic.ldr = (1 << i & 0xFF) << 24  # flat: the first eight have a logical ID
        self.timer = ApicTimer()
        if "lvtt" in setup:
            self.timer.write_lvt(_lvt_of(setup["lvtt"]))
        self.timer.tdcr = number(setup.get("tdcr", 0))
        self.tsc = _TSC_AT_RESET
        self.received = [0] * cpus
        self.elapsed: list[int] = []  # ticks from arming the timer to each of its interrupts
        activity = setup.get("target_activity", "active")
        if activity not in ("active", "hlt"):
            raise NotUnderstoodError(f"unknown target_activity {activity!r}")
        self.halted = [activity == "hlt" and i > 0 for i in range(cpus)]

    def _sender(self, cpu: int) -> Any:
        def send(value: int) -> None:
            icr = decode_icr(value, self.apics[cpu].mode)
            for i in targets(self.apics, cpu, icr):
                self.apics[i].accept(icr.vector)

        return send

    def take_all(self) -> None:
        """Every CPU takes what its APIC presents, and EOIs it."""
        for i, apic in enumerate(self.apics):
            while apic.pending():
                apic.acknowledge()
                self.halted[i] = False
                self.received[i] += 1
                apic.eoi()

    def pass_time(self) -> None:
        """Up to the timer's expiries, one after the other, and a long time beyond the last."""
        armed_at = self.tsc
        for _ in range(EXPIRIES_MAX):
            if not self.timer.fires_at:
                break
            # One tick too early it must be silent; then it is due.
            early = max(self.tsc, self.timer.fires_at - 1)
            if early < self.timer.fires_at and self.timer.expire(early):
                raise MismatchError("the timer fires a tick too early")
            self.tsc = max(self.tsc, self.timer.fires_at)
            vector = self.timer.expire(self.tsc)
            if vector:
                self.apics[0].accept(vector)
                self.elapsed.append(self.tsc - armed_at)
                self.take_all()
        self.tsc += 1 << 32
        if self.timer.mode is not TimerMode.PERIODIC and self.timer.expire(self.tsc):
            raise MismatchError("the timer fires twice")

    # -- the steps ------------------------------------------------------------------------------

    def step(self, step: Any) -> None:
        """One step on CPU 0, or on `step["cpu"]`."""
        if not isinstance(step, dict):
            raise NotUnderstoodError(f"step {step!r} is not an object")
        known_keys(f"step {step.get('op')}", step, ("op", "cpu", "value", "dest", "msr"))
        cpu = number(step.get("cpu", 0))
        if not 0 <= cpu < len(self.apics):
            raise NotUnderstoodError(f"no CPU {cpu}")
        apic = self.apics[cpu]
        match step.get("op"):
            case "icr":
                logical = number(step.get("value")) >> 11 & 1 == 1
                destination = self._destination(cpu, step.get("dest", 0), logical=logical)
                shift = 32 if apic.mode is ApicMode.X2APIC else 56
                apic.write_icr(number(step["value"]) | destination << shift)
            case "mov_to_cr8":
                apic.cr8 = number(step.get("value"))
            case "write_tpr":
                apic.write_register(0x080, number(step.get("value")))
            case "wrmsr" if step.get("msr") == MSR_TSC_DEADLINE:
                self.timer.write_deadline(number(step.get("value"), rdtsc=self.tsc))
            case "wrmsr" if 0x800 <= number(step.get("msr")) <= 0x8FF:
                apic.write_register((number(step["msr"]) & 0xFF) << 4, number(step.get("value")))
            case "write_tmict":
                self.timer.write_initial_count(number(step.get("value")), self.tsc)
            case op:
                raise NotUnderstoodError(f"unknown step {op!r}")
        self.take_all()
        self.pass_time()

    def _destination(self, cpu: int, words: Any, *, logical: bool) -> int:
        """A destination field: a number, "self id", "logical id of CPU 1", "id of CPU 2"."""
        if not isinstance(words, str):
            return number(words)
        found = re.fullmatch(r"(?:(physical|logical) )?id of cpu (\d+)|self(?: id)?", words.lower())
        if found is None:
            return number(words)
        i = cpu if found[2] is None else int(found[2])
        if not 0 <= i < len(self.apics):
            raise NotUnderstoodError(f"no CPU {i}")
        apic = self.apics[i]
        if found[1] == "logical" or (found[1] is None and logical):
            return x2apic_ldr(i) if apic.mode is ApicMode.X2APIC else apic.ldr >> 24
        return apic.apic_id

    # -- the expectations -----------------------------------------------------------------------

    def check_key(self, key: str, expected: Any) -> None:
        """One key of `expect`; a CPU that "received" does not name must have received nothing."""
        match key:
            case "received":
                if not isinstance(expected, dict):
                    raise NotUnderstoodError("received is not an object")
                counts = [expected.get(str(i), 0) for i in range(len(self.apics))]
                known_keys("received", expected, map(str, range(len(self.apics))))
                check("received", self.received, counts)
            case "tpr":
                check(key, self.apics[0].tpr, expected)
            case "ppr":
                check(key, self.apics[0].ppr(), expected)
            case "cr8":
                check(key, self.apics[0].cr8, expected)
            case "msr_6e0":
                check(key, self.timer.deadline_msr, expected)
            case "min_elapsed_ticks":
                if not self.elapsed or min(self.elapsed) < expected:
                    raise MismatchError(f"{key}: expected {expected}, got {self.elapsed}")
            case _:
                raise NotUnderstoodError(f"unknown key {key!r} in expect")


def _lvt_of(words: Any) -> int:
    """The LVT timer register from "tsc-deadline, vector 0xef"."""
    found = re.fullmatch(r"([a-z-]+), vector (0x[0-9a-f]+|\d+)", str(words).lower())
    modes = {mode.name.lower().replace("_", "-"): mode for mode in TimerMode}
    if found is None or found[1] not in modes:
        raise NotUnderstoodError(f"lvtt {words!r}")
    return lvt_timer(modes[found[1]], vector_of(found[2]))


def run_lapic(case: Case) -> None:
    """One case, in each APIC mode that it is meant for."""
    if not case.expect:
        raise NotUnderstoodError("the case expects nothing")
    modes = _MODES.get(case.setup.get("apic_mode", "either"))
    if modes is None:
        raise NotUnderstoodError(f"unknown apic_mode {case.setup['apic_mode']!r}")
    for mode in modes:
        machine = Apics(case.setup, mode)
        for step in case.steps:
            machine.step(step)
        for key, expected in case.expect.items():
            if key == "transitions":
                check_transitions(expected)
            else:
                machine.check_key(key, expected)


# -- IA32_APIC_BASE -------------------------------------------------------------------------------

_BASE_WRITES: Final = {
    "extd only": APIC_BASE_EXTD,
    "en only": APIC_BASE_EN,
    "xapic": APIC_BASE_EN,
    "disabled": 0,
    "x2apic": APIC_BASE_EN | APIC_BASE_EXTD,
}


def check_transitions(expected: Any) -> None:
    """Each entry {from, write, result}: WRMSR IA32_APIC_BASE in a mode; "ok" or "#GP"."""
    if not isinstance(expected, list) or not expected:
        raise NotUnderstoodError("transitions is not a list")
    for entry in expected:
        known_keys("transitions", entry, ("from", "write", "result"))
        words = re.sub(r" \(.*\)$", "", str(entry.get("write")).lower())
        starts = [mode for mode in ApicMode if mode.value == entry.get("from")]
        if words not in _BASE_WRITES or not starts:
            raise NotUnderstoodError(f"transition {entry!r}")
        value = _BASE_WRITES[words]
        after = mode_after_base_write(starts[0], value)
        got = "#GP" if after is None else "ok"
        check(f"{entry['from']}: write {entry['write']}", got, entry.get("result"))
        apic = LocalApic(mode=starts[0])
        check("the APIC itself", apic.write_base(value), after is not None)
        check("its mode", apic.mode, after or starts[0])
