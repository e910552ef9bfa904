"""Values that record what is computed with them."""

from __future__ import annotations

import torch

from qcompiler.frontends.onnx.symbolic import Recording, Size, apply, parts


def traced(*shapes: tuple[int, ...]) -> tuple[Recording, object]:
    recording = Recording(len(shapes))
    return recording, recording.input("x", [torch.empty(shape, device="meta") for shape in shapes])


def test_known_tensors_are_computed() -> None:
    found = apply(torch.add, torch.ones(2), 1.0)
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [2.0, 2.0]


def test_a_call_with_a_traced_tensor_is_recorded() -> None:
    recording, x = traced((2, 3), (5, 3))
    weight = recording.name(torch.ones(4, 3), "parameter", "w")
    y = apply(torch.nn.functional.linear, x, weight)
    assert [tuple(shape.shape) for shape in y.shapes] == [(2, 4), (5, 4)]  # type: ignore[union-attr]
    assert [node.op for node in recording.graph.nodes] == ["placeholder", "placeholder", "call_function"]
    (leaf,) = recording.leaves.values()
    assert (leaf.kind, leaf.ref) == ("parameter", "w")


def test_only_sizes_that_differ_are_traced() -> None:
    _, x = traced((2, 3), (5, 3))
    batch, channels = x.shape  # type: ignore[attr-defined]
    assert channels == 3
    assert isinstance(batch, Size)
    doubled = 2 * batch + 1
    assert isinstance(doubled, Size)
    assert doubled.values == (5, 11)
    assert batch - batch == 0


def test_parts_of_a_result() -> None:
    _, x = traced((2, 6))
    assert [tuple(part.shape) for part in parts(torch.split, x, 4, 1)] == [(2, 4), (2, 2)]


def test_equal_tensors_share_a_name_and_others_get_another_one() -> None:
    recording, x = traced((2,))
    for number in (1.0, 1.0, 2.0):
        x = apply(torch.add, x, recording.name(torch.full((2,), number), "parameter", "w"))
    assert [leaf.ref for leaf in recording.leaves.values()] == ["w", "w_1"]
