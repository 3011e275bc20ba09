"""Loading and saving on a mesh gives what loading and saving on one device gives."""

import pathlib

import pytest
from conftest import on_devices


@pytest.mark.devices
def test_checkpoints(tmp_path):
    script = pathlib.Path(__file__).with_name("on_mesh.py")
    assert on_devices(8, script, tmp_path) == "done"
