"""What the tests of generation share."""

import pytest


@pytest.fixture
def config(config):
    """One layer in the decoder: generation does not know how many there are, and its
    programs take a quarter less time to compile."""
    return config.updated(decoder_layers=1)
