"""The guest that most tests of this room begin with."""

import pytest
from hardware_guest import Guest


@pytest.fixture
def guest():
    return Guest()
