"""Snapshots: every change on which results depend is seen, and a copy counts as the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qcompiler.ir.graph import Module
from qcompiler.ir.rewrite import Rewriter
from qcompiler.ir.snapshot import Snapshot
from qcompiler.ir.types import Stage
from tests.ir.samples import node_of, small


def test_a_module_and_its_copy_are_the_same_as_before() -> None:
    module = small()
    snapshot = Snapshot.of(module)
    assert snapshot.same(Snapshot.of(module)) and snapshot.same(Snapshot.of(module.clone()))


def _replace_tensor(module: Module) -> None:
    module.tensors["w"] = module.tensors["w"].clone()


def _write_tensor(module: Module) -> None:
    module.tensors["w"].mul_(2.0)


def _add_tensor(module: Module) -> None:
    module.tensors["other"] = torch.ones(1)


def _operand(module: Module) -> None:
    graph = module.main
    Rewriter(graph).replace_input(node_of(graph, "add"), 0, node_of(graph, "relu").output)


def _output(module: Module) -> None:
    graph = module.main
    graph.set_outputs([node_of(graph, "relu").output])


def _node(module: Module) -> None:
    graph = module.main
    relu = node_of(graph, "relu")
    Rewriter(graph).insert("relu", [relu.output], before=relu.following, like=relu)


def _attribute(module: Module) -> None:
    Rewriter(module.main).set_attributes(node_of(module.main, "parameter"), ref="v")


def _stage(module: Module) -> None:
    module.main.stage = Stage.CANONICAL


@pytest.mark.parametrize(
    "change", [_replace_tensor, _write_tensor, _add_tensor, _operand, _output, _node, _attribute, _stage]
)
def test_each_change_is_seen(change: Callable[[Module], None]) -> None:
    module = small()
    snapshot = Snapshot.of(module)
    change(module)
    assert not snapshot.same(Snapshot.of(module))


def test_tensors_without_a_version_never_count_as_the_same() -> None:
    module = small()
    with torch.inference_mode():
        module.tensors["w"] = torch.eye(4)
    assert not Snapshot.of(module).same(Snapshot.of(module))


def test_a_snapshot_keeps_no_tensor_alive() -> None:
    module = small()
    snapshot = Snapshot.of(module)
    module.tensors["w"] = torch.eye(4)
    assert snapshot.tensors["w"]() is None
