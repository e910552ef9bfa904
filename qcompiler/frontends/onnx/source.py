"""An ONNX file as a model source."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from qcompiler.errors import InputError
from qcompiler.frontends.examples import Binding
from qcompiler.frontends.given import parse_device
from qcompiler.frontends.onnx.bounded import check_sizes
from qcompiler.frontends.onnx.reading import OnnxFile, Subject, read
from qcompiler.frontends.source import Call, Candidate, Source
from qcompiler.frontends.torch_module import convert
from qcompiler.ir import calls
from qcompiler.quant.encoding import Encodings

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["OnnxModel"]

_Run: TypeAlias = "Callable[[dict[str, Any]], list[Any]]"

FOUND_BATCH = 2
"""Batch size of inputs that are made from the sizes in the file."""


class OnnxModel(Source):
    """An ONNX file.

    The reference is the file as it stands, in ONNX Runtime without optimisations; where that lacks a kernel, the
    reference evaluator of the package `onnx`.

    Args:
        subject: A path, the bytes of a file, or the message.
        fixed_inputs: Values of inputs that become constants of the model, by name.
        separates: Whether the quantizers of a quantized file become its `encodings`, and the model one of real numbers;
            otherwise quantizers are arithmetic of the model.

    Raises:
        UnsupportedError: The quantizers have no encodings, see `separate`.
        InputError: The file cannot be read, see `read`; or a fixed input does not exist or has another type.
    """

    has_own_kernels = True

    def __init__(
        self, subject: Subject, fixed_inputs: Mapping[str, object] | None = None, *, separates: bool = True
    ) -> None:
        self.file = read(subject, fixed_inputs or {}, separates=separates)
        self.name = self.file.name
        self.parameters = _identifiers([item.name for item in self.file.inputs])

    def signature(self) -> inspect.Signature:
        """One parameter for each input; names that Python does not allow have underscores."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Signature([inspect.Parameter(name, kind) for name in self.parameters])

    def example(self) -> object | None:
        """Normal numbers in the sizes that the file declares, if only the first size of each is open."""
        generator = torch.Generator("cpu").manual_seed(0)
        found = []
        for item in self.file.inputs:
            if item.shape is None or not item.dtype.is_floating_point:
                return None
            sizes = [
                FOUND_BATCH if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(item.shape)
            ]
            shape = [size for size in sizes if isinstance(size, int)]
            if len(shape) < len(sizes):
                return None
            check_sizes(shape, f"the input {item.name!r}", self.name)
            found.append(torch.randn(shape, generator=generator).to(item.dtype))
        return tuple(found)

    @property
    def encodings(self) -> Encodings | None:
        """The grids of the tensors of a quantized file."""
        return self.file.encodings

    def place(self, binding: Binding, device: torch.device | str | None) -> torch.device:
        """The processor, on which ONNX Runtime runs here."""
        del binding
        if device is not None and parse_device(device).type != "cpu":
            raise InputError(f"an ONNX file is captured on the processor, not on {device}", fix="Omit device=.")
        return torch.device("cpu")

    def reference(self, device: torch.device) -> nn.Module:
        """The file in ONNX Runtime."""
        del device
        return _Runtime(self.file, self.parameters)

    def graphs(self, reference: nn.Module, call: Call) -> Iterator[Callable[[], Candidate]]:
        """The graph of the file."""
        del reference
        # Imported on demand: the translations are not needed for other models.
        from qcompiler.frontends.onnx.translate import trace

        def graph() -> Candidate:
            runs = [call.binding.tensors] if call.batches is None else [call.binding.resized(b) for b in call.batches]
            return convert(trace(self.file, self.parameters, runs), "given", call)

        yield graph


def _identifiers(names: list[str]) -> list[str]:
    """Names that Python allows, each once. A name that Python allows stays, so that it never stands for another."""
    taken = {name for name in names if calls.parameter_name(name) == name}
    found: list[str] = []
    for name in names:
        word = calls.parameter_name(name)
        while word != name and word in taken:
            word += "_"
        taken.add(word)
        found.append(word)
    return found


class _Runtime(nn.Module):
    """Runs the file.

    Args:
        file: The file.
        names: Names of its inputs as parameters.
    """

    def __init__(self, file: OnnxFile, names: Sequence[str]) -> None:
        super().__init__()
        self.file, self.names = file, names
        self.is_bounded = False

    def __deepcopy__(self, memo: dict[int, object]) -> _Runtime:
        """Itself: a run changes nothing, and a session cannot be copied."""
        del memo
        return self

    @cached_property
    def run(self) -> _Run:
        """A function from arrays by name to the results."""
        return _runner(self.file.model)

    def parts(self, *inputs: Tensor) -> Iterable[tuple[str, str, list[Tensor]]]:
        """Results of all operators outside of subgraphs."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.file.model)
        nodes = [
            (node.name or node.output[0], node.op_type, [x for x in node.output if x]) for node in model.graph.node
        ]
        del model.graph.output[:]
        for _, _, names in nodes:
            model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        arrays = iter(_runner(model)(self._feed(inputs)))
        for path, op, names in nodes:
            found = [next(arrays) for _ in names]
            yield path, op, [torch.from_numpy(np.array(x)) for x in found if isinstance(x, np.ndarray)]

    def forward(self, *inputs: Tensor) -> object:
        """The results by name, or the only one.

        Raises:
            QCompilerError: A tensor has too many elements, or the file is refused; nothing is run.
        """
        if not self.is_bounded:
            self._check_sizes(inputs)
        results = [torch.from_numpy(np.array(found)) for found in self.run(self._feed(inputs))]
        pairs = zip(self.file.inputs, inputs, strict=True)
        if any(x.is_floating_point() and x.dtype != item.dtype for item, x in pairs):
            # Inputs in float32 in place of another type: results, too.
            results = [x.to(torch.float32) if x.is_floating_point() else x for x in results]
        names = [item.name for item in self.file.outputs]
        return results[0] if len(results) == 1 else dict(zip(names, results, strict=True))

    def _check_sizes(self, inputs: Sequence[Tensor]) -> None:
        """Compute all shapes before anything runs. What is refused has no known shapes, and is not run either."""
        from qcompiler.frontends.onnx.translate import trace

        trace(self.file, self.names, [inputs])
        self.is_bounded = True

    def _feed(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """The inputs by name, in the types that the file declares."""
        arrays = [x.detach().numpy() for x in inputs]
        return {
            item.name: array.astype(str(item.dtype).removeprefix("torch.")) if x.is_floating_point() else array
            for item, x, array in zip(self.file.inputs, inputs, arrays, strict=True)
        }


def _runner(model: ModelProto) -> _Run:
    """A function that runs a model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # a kernel or a whole set of operators that this version lacks
        from onnx.reference import ReferenceEvaluator

        try:
            evaluator = ReferenceEvaluator(model)
        except Exception:  # the same
            raise error from None
        return lambda feed: list(evaluator.run(None, feed))
    return lambda feed: list(session.run(None, feed))
