"""Golden cases of APIC virtualization, run against `hardware/`.

A file of format `apicv-golden-cases/1` holds cases (a state, steps, what must come of them) and
matrices (truth tables, exhaustive sweeps).  `run_file` runs all of it: a case is read from its
data, never from its id, and what is not understood fails.  Nothing is skipped.  Imports only
`hardware`.

    runner.py      who reads which group, and the result
    document.py    the file, read and checked once
    words.py       vectors, numbers and switches as such files write them
    bench.py       the shared vocabulary of steps, on one processor; `expectations.py`: its results
    windows.py     groups interrupt_window and entry_checks
    apics.py       group lapic: several physical local APICs and a clock
    selftests.py   group kvm_selftests: sentences; `liveness.py`: two CPUs; `readback.py`: the ICR
    races.py       group interleaving: the protocol text, one step at a time (`stepped.py`,
                   `race_words.py`), and what is left (`race_cases.py`)
    agents.py      who posts, and by which rule
    tables.py, sender_tables.py, registers.py, sweeps.py    the matrices
"""

from emulator.conformance.document import ConformanceError
from emulator.conformance.runner import CaseResult, Result, format_text, run_file

__all__ = ["CaseResult", "ConformanceError", "Result", "format_text", "run_file"]
