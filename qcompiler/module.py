"""A quantized graph as a torch module."""

from __future__ import annotations

from collections.abc import Container

import torch
from torch import nn

from qcompiler.ir import tree
from qcompiler.ir.graph import Module
from qcompiler.ir.interpret import interpret
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.validation.exact import Codes, simulate


class QuantizedModule(nn.Module):
    """Runs the quantized graph: differentiable in train mode, on integer codes in eval mode.

    In train mode quantizers pass gradients straight through, and a forward is float32 throughout. In eval mode the
    outputs are those of the integer program, bit for bit. Parameters and buffers keep their module paths as names.

    Args:
        module: At stage QUANTIZED. Its graph is shared, its tensors are copied.
        arithmetic: Of the target.
    """

    def __init__(self, module: Module, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._module = module.clone()
        self._arithmetic = arithmetic
        nodes = [node for graph in self._module.graphs.values() for node in graph.nodes]
        trainable = {str(n.attributes["ref"]) for n in nodes if n.op == "parameter"}
        self._homes: dict[str, tuple[nn.Module, str]] = {}
        for name, tensor in self._module.tensors.items():
            home, leaf = _home(self, name, self._module.tensors)
            value = tensor.detach().clone()
            if name in trainable and value.is_floating_point():
                home.register_parameter(leaf, nn.Parameter(value))
            else:
                home.register_buffer(leaf, value)
            self._homes[name] = (home, leaf)

    def forward(self, *inputs: object) -> object:
        """The model's outputs in its own output tree.

        Args:
            inputs: The model's arguments.

        Raises:
            InputError: They do not fit the model.
        """
        graph = self._module.main
        self._module.tensors = {name: getattr(home, leaf) for name, (home, leaf) in self._homes.items()}
        leaves = tree.match(graph.input_tree, inputs)
        if self.training:
            return tree.unflatten(graph.output_tree, interpret(graph, leaves))
        with torch.no_grad():
            results = simulate(graph, leaves, self._arithmetic)
        return tree.unflatten(graph.output_tree, [x.real() if isinstance(x, Codes) else x for x in results])


def _home(root: nn.Module, name: str, taken: Container[str]) -> tuple[nn.Module, str]:
    """The module that holds the tensor called `name`, made where it is missing, and the last part of the name.

    `conv.weight` and `conv.weight.q.scale` cannot both be: the path through a tensor gets an underscore.
    """
    *path, leaf = name.split(".")
    home = root
    for length, part in enumerate(path, start=1):
        part = f"{part}_" if ".".join(path[:length]) in taken or hasattr(nn.Module, part) else part
        if part not in dict(home.named_children()):
            home.add_module(part, nn.Module())
        home = home.get_submodule(part)
    return home, f"{leaf}_" if hasattr(nn.Module, leaf) else leaf
