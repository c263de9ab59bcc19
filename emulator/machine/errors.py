"""What can go wrong in the world: each becomes one sentence and an exit code in `cli`."""


class HostError(Exception):
    """What the host cannot do (exit code 4)."""


class RunBroken(Exception):  # noqa: N818  a state of the run, not of the code
    """A process died unasked or a deadline passed (exit code 3).  Finished results are kept."""
