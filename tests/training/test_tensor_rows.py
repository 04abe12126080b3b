from __future__ import annotations

import pytest
import torch

from qtoolkit.errors import ModelFileError
from qtoolkit.training.tensor_rows import TensorRows


def test_rows_come_back_in_the_order_they_are_asked_for(tmp_path):
    rows, values = TensorRows(tmp_path / "rows"), torch.rand(5, 3, 2, 4)
    rows.append(values[:2].contiguous(memory_format=torch.channels_last), 2)
    rows.append(values[2:], 3)
    assert torch.equal(rows.read([4, 0, 4]), values[[4, 0, 4]])
    rows.delete()
    assert not (tmp_path / "rows").exists()


@pytest.mark.parametrize("value", [torch.rand(3, 2), torch.rand(())])
def test_a_tensor_without_the_images_first_is_refused(tmp_path, value):
    rows = TensorRows(tmp_path / "rows")
    with pytest.raises(ModelFileError, match="whose first axis does not hold the images"):
        rows.append(value, 2)
    rows.delete()
