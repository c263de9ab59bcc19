"""Golden cases of APIC virtualization, run against `hardware/`.

A file of format `apicv-golden-cases/1` holds cases (a state, steps, what must come of them) and
matrices (truth tables, exhaustive sweeps).  `runner.run_file` runs all of it: a case is read from
its data, never from its id, and what is not understood fails.  Nothing is skipped.

    document.py    the file, read and checked once
    words.py       vectors, numbers and switches as such files write them
    bench.py       the shared vocabulary of steps, on one processor; `expectations.py`: its results
    windows.py     group interrupt_window: a guest program with positions
    apics.py       group lapic: several physical local APICs and a clock
    selftests.py   group kvm_selftests: a suite's steps in sentences
    races.py       group interleaving: the protocol text, one step at a time (`stepped.py`)
    agents.py      who posts, and by which rule
    tables.py, registers.py, sweeps.py    the matrices
"""
