"""Every public call on a mesh of devices, whatever the types of its axes, as on one."""

import pathlib

import pytest
from conftest import on_devices


CHILD = pathlib.Path(__file__).with_name("on_mesh.py")

#: Those that have a mechanism of their own on a mesh.
FEW_CALLS = ("cached", "parts", "loss", "records", "samples", "stepped")


@pytest.mark.devices
def test_a_mesh_as_jax_makes_it():
    assert on_devices(4, CHILD, "explicit", "explicit", *FEW_CALLS) == "done"


@pytest.mark.slow
@pytest.mark.parametrize("data", ["explicit", "automatic"])
@pytest.mark.parametrize("fsdp", ["explicit", "automatic"])
def test_any_mesh(data, fsdp):
    assert on_devices(4, CHILD, data, fsdp, "all") == "done"
