"""All of these tests run in JAX's strict modes."""

import pytest


@pytest.fixture(autouse=True)
def strictly(strict_modes):
    pass
