"""Training on a mesh goes on exactly from what was kept of it."""

import pathlib

import pytest
from conftest import on_devices


@pytest.mark.devices
def test_training_goes_on(tmp_path):
    script = pathlib.Path(__file__).with_name("resumed.py")
    assert on_devices(4, script, tmp_path) == "done"
