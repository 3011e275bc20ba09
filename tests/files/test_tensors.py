"""Parts of tensors: what is read of a file, and no more."""

import itertools

import numpy as np
import pytest
from held import held

from eqx_bart.files import tensors
from eqx_bart.files.safetensors import read_safetensors, write_safetensors


@pytest.fixture
def num_read(monkeypatch):
    """How many bytes were read, so far."""
    counts = []

    def read_into(file, offset, buffer, whole=tensors.read_into):
        counts.append(whole(file, offset, buffer))
        return counts[-1]

    monkeypatch.setattr(tensors, "read_into", read_into)
    return lambda: sum(counts)


SHAPES = [(), (7,), (1,), (0,), (6, 5), (1, 5), (6, 1), (4, 3, 2), (2, 0, 3), (3, 1, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_part_is_all_that_is_read(shape, tmp_path, num_read):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    write_safetensors(tmp_path / "x", held({"a": np.ones(3), "x": x}))
    stored = read_safetensors(tmp_path / "x")["x"]
    ranges = [
        [slice(a, b) for a in range(n + 1) for b in range(a, n + 1)] + [slice(None)]
        for n in shape
    ]
    for place in itertools.product(*ranges):
        before, part = num_read(), stored.load_part(place)
        assert np.array_equal(part, x[place])
        assert part.shape == x[place].shape
        assert num_read() - before == part.nbytes


def test_a_transpose_is_read_as_a_whole(tmp_path, num_read):
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    file = tmp_path / "x"
    file.write_bytes(x.tobytes())
    stored = tensors.StoredTensor(file, ((0, 96),), x.dtype, (4, 6), strides=(1, 4))
    assert np.array_equal(stored.load_part((slice(1, 3), slice(2, 6))), x.T[1:3, 2:6])
    assert num_read() == x.nbytes


def test_a_file_that_has_become_shorter(tmp_path):
    x = np.ones((6, 4), np.float32)
    write_safetensors(tmp_path / "x", held({"x": x}))
    stored = read_safetensors(tmp_path / "x")["x"]
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-4])
    assert np.array_equal(stored.load_part((slice(0, 5), slice(0, 4))), x[:5])
    with pytest.raises(ValueError, match="ends early: it has changed"):
        stored.load_part((slice(0, 6), slice(2, 4)))
