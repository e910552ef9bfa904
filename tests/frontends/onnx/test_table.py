"""The table of translations."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import PluginError, UnsupportedError
from qcompiler.frontends.onnx.symbolic import Recording, Size
from qcompiler.frontends.onnx.table import At, sizes_of, translates, unknown
from qcompiler.ir.graph import Location


def at(*operands: object, **attributes: object) -> At:
    return At("Op", Location("node", "Op"), 20, attributes, list(operands), 1, Recording(1))  # type: ignore[arg-type]


def test_operands() -> None:
    here = at(torch.tensor([2, 3]), None, torch.tensor(0.5))
    assert here.has(0)
    assert not here.has(1)
    assert not here.has(3)
    assert here.ints(0) == [2, 3]
    assert here.optional(1) is None
    assert here.sizes_or_number(2) == 0.5


def test_axes_are_an_attribute_or_an_operand() -> None:
    assert at(torch.ones(1), axes=[1]).axes(1) == [1]
    assert at(torch.ones(1), torch.tensor([0])).axes(1) == [0]
    assert at(torch.ones(1)).axes(1) is None


def test_what_depends_on_inputs_or_batch_is_refused_where_it_must_be_known() -> None:
    recording = Recording(2)
    x = recording.input("x", [torch.empty(2, 3, device="meta"), torch.empty(5, 3, device="meta")])
    with pytest.raises(UnsupportedError, match="operand 0 of Op depends on the inputs"):
        at(x).known(0)
    batch = x.shape[0]
    assert isinstance(batch, Size)
    with pytest.raises(UnsupportedError, match="depends on the batch size"):
        at(sizes_of([batch, 3])).ints(0)
    with pytest.raises(UnsupportedError, match="numbers that depend on the batch size"):
        at(sizes_of([batch, 3])).tensor(0)
    with pytest.raises(UnsupportedError, match="lacks its operand 0"):
        at().tensor(0)
    with pytest.raises(UnsupportedError, match="along an axis whose size"):
        at(x).fixed(batch)
    assert at(sizes_of([batch, 3])).sizes(0) == [batch, 3]


def test_known_sizes_are_tensors() -> None:
    found = sizes_of([2, 3])
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [2, 3]
    assert sizes_of([2], scalar=True).shape == ()


def test_an_operator_has_one_translation() -> None:
    with pytest.raises(PluginError, match="two translations of the ONNX operator 'Relu'"):
        translates("Relu")(lambda here: here.tensor(0))


def test_an_unknown_operator_is_named_with_its_place_and_near_ones() -> None:
    error = unknown("Convv", Location("conv1", "Convv"))
    assert "'Convv' is not read" in str(error)
    assert "conv1" in str(error)
    assert "Conv" in (error.fix or "")
