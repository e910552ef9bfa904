"""A quantized graph as a torch module."""

from __future__ import annotations

import torch
from torch import nn

from qcompiler.ir import calls
from qcompiler.ir.graph import Module
from qcompiler.ir.homes import home_of
from qcompiler.ir.interpret import interpret
from qcompiler.ir.settings import own_defaults
from qcompiler.quant.arithmetic import Arithmetic
from qcompiler.validation.exact import Codes, simulate


class QuantizedModule(nn.Module):
    """A module that runs the quantized graph: differentiable in train mode, on integer codes in eval mode.

    In train mode quantizers pass gradients straight through, and all computation is float32. In eval mode the outputs
    equal those of the integer program bit for bit. Parameters and buffers keep their module paths as names.

    Args:
        module: Module at stage QUANTIZED, which is cloned.
        arithmetic: Arithmetic of the target.
    """

    def __init__(self, module: Module, arithmetic: Arithmetic) -> None:
        super().__init__()
        self._module = module.clone()
        self._arithmetic = arithmetic
        nodes = [node for graph in self._module.graphs.values() for node in graph.nodes]
        trainable = {str(n.attributes["ref"]) for n in nodes if n.op == "parameter"}
        self._homes: dict[str, tuple[nn.Module, str]] = {}
        for name, tensor in self._module.tensors.items():
            home, leaf = home_of(self, name, self._module.tensors)
            value = tensor.detach().clone()
            if name in trainable and value.is_floating_point():
                home.register_parameter(leaf, nn.Parameter(value))
            else:
                home.register_buffer(leaf, value)
            self._homes[name] = (home, leaf)

    @own_defaults()
    def forward(self, *inputs: object, **named: object) -> object:
        """The model's outputs in its own output tree.

        Args:
            inputs: The model's arguments, by position.
            named: The model's arguments, by name.

        Raises:
            InputError: The arguments do not fit the model.
        """
        graph = self._module.main
        tensors = {name: getattr(home, leaf) for name, (home, leaf) in self._homes.items()}
        call = calls.bind(graph.input_tree, graph.input_names, inputs, named)
        if self.training:
            return call.results(graph.output_tree, interpret(graph, call.tensors, tensors)[0])
        with torch.no_grad():
            results, _ = simulate(graph, call.tensors, tensors, self._arithmetic)
        return call.results(graph.output_tree, [x.real() if isinstance(x, Codes) else x for x in results])
