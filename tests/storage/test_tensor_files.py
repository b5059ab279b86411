"""Arrays and tensors come back from a safetensors file as they went in; what is no such file says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cvad_cli.adapters.storage.tensor_files import read_arrays, read_header, read_tensors, write_tensors

ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a": np.array(7)}


def test_arrays_come_back_with_the_header(tmp_path):
    write_tensors(tmp_path / "file", ARRAYS, {"made": "here"})
    found = read_arrays(tmp_path / "file")
    assert found.keys() == ARRAYS.keys()
    for name, values in ARRAYS.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    assert read_header(tmp_path / "file") == {"made": "here"}


def test_tensors_that_learn_or_lie_in_strides_are_written_with_arrays_beside_them(tmp_path):
    learnt = torch.arange(6.0).reshape(2, 3).requires_grad_().T
    write_tensors(tmp_path / "file", {"learnt": learnt, "array": ARRAYS["b"], "half": torch.ones(2).half()})
    found = read_tensors(tmp_path / "file")
    assert torch.equal(found["learnt"], learnt.detach())
    assert found["half"].dtype == torch.float16
    np.testing.assert_array_equal(found["array"].numpy(), ARRAYS["b"])
    assert read_header(tmp_path / "file") == {}


@pytest.mark.parametrize("read", [read_arrays, read_tensors, read_header])
def test_a_damaged_file_is_a_value_error(tmp_path, read):
    (tmp_path / "file").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="not a safetensors file"):
        read(tmp_path / "file")
