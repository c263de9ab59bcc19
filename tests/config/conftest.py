"""A config in a file, loaded, and the message when it is wrong."""

import textwrap

import pytest

from emulator.config import ConfigError, load_experiment

MINIMAL = """\
pirlab: 1
name: minimal
cluster: {pcpus: 2}
vms:
  db: {vcpus: 2}
"""


class Desk:
    """Writes `FILE` into a directory of its own and loads it."""

    def __init__(self, directory):
        self.directory = directory
        self.path = directory / "c.yaml"

    def write(self, text, name="c.yaml"):
        data = textwrap.dedent(text).encode() if isinstance(text, str) else text
        (self.directory / name).write_bytes(data)
        return self.directory / name

    def load(self, text, *overrides):
        return load_experiment(self.write(text), overrides)

    def cell(self, more="", *overrides):
        """The only cell of MINIMAL and `more`."""
        (cell,) = self.load(MINIMAL + textwrap.dedent(more), *overrides).cells
        return cell

    def error(self, text, *overrides):
        """The whole message, with the directory's name taken out."""
        with pytest.raises(ConfigError) as caught:
            self.load(text, *overrides)
        return self.clean(caught.value)

    def error_with(self, more, *overrides):
        """As `error`, of MINIMAL and `more`."""
        return self.error(MINIMAL + textwrap.dedent(more), *overrides)

    def clean(self, error):
        return str(error).replace(f"{self.directory}/", "")


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)
