"""What a run's events say: stage latencies, counts, the conservation law, histograms, statistics.

A room that runs after the run, on saved records, on any machine: it starts nothing, sends nothing
and imports no world.  The way through it:

    records   events.bin as a numpy array
    facts     what the records do not say: names, loads, the state at the end
    chains    which post was harvested, delivered and ended by which record; who decided what
    account   the conservation law over those chains, and what breaks it
    stages    the table of latencies, and percentiles that have enough samples
    summary   all of it as one `pirlab-run/1` object

`histogram` and `compare` look at samples, `story` at the last records of a vCPU.
Next: `report`, which only words what stands in the summary.
"""
