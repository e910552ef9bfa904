"""The results of a model itself, with which its graph is compared."""

from __future__ import annotations

import torch
from torch import nn

from qcompiler.errors import CaptureError, InputError
from qcompiler.frontends.compare import compare
from qcompiler.frontends.examples import Binding
from qcompiler.frontends.finite import check_result, is_finite
from qcompiler.frontends.running import first_line, run
from qcompiler.frontends.sized_by_data import SizedByData
from qcompiler.ir import tree
from qcompiler.ir.diagnostics import Diagnostic
from qcompiler.ir.graph import Graph


class Reference:
    """The results of a model on the example, and at other batch sizes if it runs at any.

    The graph is made from two batch sizes and checked at a third one: 1 if possible, the size on a device, at which an
    unnoticed squeeze or `batch // 2` shows.

    Args:
        model: The model as a module, which a run may change.
        binding: The example call.
        bounds: Smallest and largest batch size that the model declares.
        own_kernels: Whether the model computes with other kernels than torch.

    Raises:
        InputError: The model does not run on the example, or its result is not finite.
        CaptureError: The result contains something other than tensors and numbers.
        UnsupportedError: The sizes of the result depend on the values of the inputs.
    """

    def __init__(
        self, model: nn.Module, binding: Binding, bounds: tuple[int, int], *, own_kernels: bool = False
    ) -> None:
        self.model, self.binding, self.bounds, self.own_kernels = model, binding, bounds, own_kernels
        held = {name: x.clone() for name, x in model.named_buffers()}
        with SizedByData(binding.tensors) as sizes:
            result = run(model, binding)
        sizes.check(result)
        self.results = [(binding.tensors, result)]
        self.nesting = _own_nesting(result, f"{type(model).__name__}.forward")
        check_result(model, binding, result)
        self.batches: tuple[int, int] | None = None
        self.why_fixed = "no input has a batch axis"
        if binding.batch is not None:
            self._find_batches(binding.batch)
        self.written = [name for name, x in model.named_buffers() if name not in held or not torch.equal(x, held[name])]
        """Buffers that the forward changes."""

    def check_repeats(self) -> None:
        """Refuse a model with another result at each call.

        Raises:
            CaptureError: Two results on the example inputs differ.
        """
        tensors, result = self.results[0]
        again, _ = tree.flatten(self.binding.call(self.model, tensors), "model's result", values=True)
        before, _ = tree.flatten(result, "model's result", values=True)
        if not all(torch.equal(x, y) for x, y in zip(before, again, strict=True)):
            raise CaptureError(
                "the model returns different results for the same inputs",
                where=f"{type(self.model).__name__}.forward",
                expected="a forward whose result depends only on its inputs",
                fix="Remove random numbers, and values that are kept between calls, from the forward.",
            )

    def _find_batches(self, batch: int) -> None:
        for other in (batch + 1, batch - 1):
            if other and self._runs(other):
                self.batches = (batch, other)
                break
        else:
            return
        low, high = self.bounds
        if low not in self.batches:
            self.bounds = (low if self._runs(low) else min(self.batches), high)
            return
        third = max(self.batches) + 1
        if third > high:
            self.bounds = (low, max(self.batches))
        elif not self._runs(third):
            # A size of 1 or 2 that fits by broadcasting alone: the samples are not independent.
            self.batches = None
            del self.results[1:]

    def _runs(self, batch: int) -> bool:
        tensors = self.binding.resized(batch)
        try:
            result = self.binding.call(self.model, tensors)
        except Exception as error:  # the model may raise any error at other batch sizes
            self.why_fixed = first_line(error)
            return False
        if not is_finite(result):
            self.why_fixed = f"it returns NaN or infinity at batch size {batch}"
            return False
        self.results.append((tensors, result))
        return True

    def fixed_batch(self) -> list[Diagnostic]:
        """A note for the user if the model runs only at the batch size of the example."""
        if self.batches is not None:
            return []
        return [Diagnostic("fixed-batch", {"size": self.binding.batch, "reason": self.why_fixed})]

    def check(self, graph: Graph) -> list[Diagnostic]:
        """Compare a graph with the model at all batch sizes, and give it the nesting of the model's own results.

        Returns:
            Notes for the user.

        Raises:
            CaptureError: The results differ.
        """
        diagnostics: list[Diagnostic] = []
        for tensors, result in self.results:
            try:
                compare(graph, self.model, self.binding, tensors, result, own_kernels=self.own_kernels)
            except CaptureError as error:
                if not self.written:
                    self.check_repeats()
                    raise
                raise CaptureError(
                    f"the result of the model depends on {self.written[0]!r}, which its forward changes",
                    where=error.where,
                    expected="a forward whose result depends only on its inputs",
                    fix="Return the new value as an output.",
                ) from error
        if self.written:
            diagnostics.append(Diagnostic("omitted-writes", {"names": list(self.written)}))
        graph.set_outputs(graph.outputs, self.nesting)
        return diagnostics


def _own_nesting(result: object, where: str) -> tree.Tree:
    """The nesting of the model's result in its own classes.

    Args:
        result: Result of the model.
        where: Name of the model and its forward, for messages.

    Raises:
        CaptureError: The result contains something other than tensors and numbers, or no tensor, or an object that
            cannot be made from its fields.
    """
    try:
        leaves, nesting = tree.flatten(result, "model's result", values=True)
    except InputError as error:
        fix = "Remove it from the result of forward, or make it a tensor."
        raise CaptureError(error.found, where=error.where, expected=error.expected, fix=fix) from None
    if not leaves:
        raise CaptureError(
            f"the model returns {'None' if result is None else f'a {type(result).__name__} without tensors'}",
            where=where,
            expected="at least one tensor",
            fix="Return tensors from forward.",
        )
    try:
        again, found = tree.flatten(tree.unflatten(nesting, leaves), "model's result", values=True)
        reason = "" if found == nesting and len(again) == len(leaves) else "its content differs after that"
    except Exception as error:  # the constructor of the user's class may raise any error
        reason = first_line(error)
    if reason:
        raise CaptureError(
            f"the model returns a {type(result).__name__} that cannot be rebuilt from its fields: {reason}",
            where=where,
            expected="tensors in tuples, lists, dicts, NamedTuples and dataclasses",
            fix="Return the fields as a tuple or a dict.",
        )
    return nesting
