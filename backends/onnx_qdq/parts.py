"""Parts of an ONNX file between quantized tensors.

The time of ONNX Runtime's optimizer grows with the square of the number of nodes, so that large files run in parts:

    x -> Q -> a -> DQ -> Conv -> Q -> b -> DQ -> ...        parts that end at a and at b

A part holds up to `PART` quantizers and everything that they need from other parts only through codes. Operators are
fused between quantizers, so the optimizer does the same in a part as in the whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx

from qcompiler.backends.onnx_qdq.external import EDGE
from qcompiler.errors import InputError

Array = npt.NDArray[np.generic]

PART = 256
"""Maximum number of quantizers of a part."""
WHOLE = 3072
"""Maximum number of operators of a file whose default session loads it whole."""

COMPUTED = ".computed"
"""Suffix of the result of a layer in a file that is cut into layers; the name alone is the input of the next layer."""

CLIPS = ("Clip", "Max", "Min")
"""Operators that clamp numbers or codes: the same limits for all channels, or limits per channel."""


@dataclass(frozen=True)
class Part:
    """A part of a file.

    Args:
        file: The serialized part.
        tensors: Results of the part, in order.
    """

    file: bytes
    tensors: tuple[str, ...]


class Parts:
    """A file from which parts are taken.

    Args:
        model: The file.
        types: Element type of each quantized tensor, at which parts may begin.
    """

    def __init__(self, model: onnx.ModelProto, types: Mapping[str, int]) -> None:
        self.model, self.types = model, types
        self._nodes = list(model.graph.node)
        self._reads = [tuple(node.input) for node in self._nodes]  # once: protobuf makes a new text at each access
        self._makers = {name: place for place, node in enumerate(self._nodes) for name in node.output}
        self._constants = {item.name: item for item in model.graph.initializer}
        self._inputs = {item.name: item for item in model.graph.input}
        self._outputs = {item.name: item for item in model.graph.output}

    def file(self, wanted: Sequence[str], given: Collection[str]) -> bytes:
        """The part that computes `wanted`.

        Args:
            wanted: Names of results.
            given: Quantized tensors that the part takes as inputs, where it needs them.
        """
        places, reads = self.needs(wanted, given)
        part = onnx.ModelProto()
        part.ir_version = self.model.ir_version
        part.opset_import.extend(self.model.opset_import)
        part.graph.name = self.model.graph.name
        part.graph.node.extend(self._nodes[place] for place in places)
        part.graph.initializer.extend(self._constants[name] for name in reads if name in self._constants)
        part.graph.input.extend(item for name, item in self._inputs.items() if name in reads)
        part.graph.input.extend(self._codes(name, self.types[name]) for name in reads if name in self.types)
        for name in wanted:
            end = self._outputs.get(name) or self._codes(name, self.types[name.removesuffix(COMPUTED)])
            part.graph.output.append(end)
        data: bytes = part.SerializeToString()
        return data

    def needs(self, wanted: Sequence[str], given: Collection[str]) -> tuple[list[int], dict[str, None]]:
        """Positions of the nodes that compute `wanted`, and the tensors that they read from elsewhere."""
        ends, places, reads = set(wanted), set[int](), dict[str, None]()
        waiting = list(reversed(wanted))
        while waiting:
            name = waiting.pop()
            place = None if name in given and name not in ends else self._makers.get(name)
            if place is None:
                reads[name] = None
            elif place not in places:
                places.add(place)
                waiting += reversed(self._reads[place])
        return sorted(places), reads

    @staticmethod
    def _codes(name: str, kind: int) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, kind, None)


def files_of_parts(model: onnx.ModelProto, *, every: bool) -> Iterator[Part]:
    """The file in parts, in the order in which they run; what no quantizer reads is in the last part.

    Args:
        model: The file.
        every: Whether all quantized tensors are results; otherwise only those that other parts read.
    """
    kinds = element_types(model)
    types = {last.output[0]: kinds[quantizer.input[2]] for quantizer, last in quantizers(model)}
    parts = Parts(model, types)
    own = list(chunks(tuple(types))) or [()]
    home = {name: number for number, chunk in enumerate(own) for name in chunk}
    ends = [item.name for item in model.graph.output]
    last = [name for name in ends if name not in home]
    given = [_Others(home, number) for number in range(len(own))]
    read = {*home} if every else {*ends}
    if not every:
        for number, chunk in enumerate(own):
            wanted = [*chunk, *last] if number == len(own) - 1 else chunk
            read.update(parts.needs(wanted, given[number])[1])
    for number, chunk in enumerate(own):
        wanted = [name for name in chunk if name in read]
        wanted += last if number == len(own) - 1 else []
        if wanted:
            yield Part(parts.file(wanted, given[number]), tuple(wanted))


class _Others(Collection[str]):
    """The quantized tensors of all parts but one.

    Args:
        home: Part of each quantized tensor.
        number: That part.
    """

    def __init__(self, home: Mapping[str, int], number: int) -> None:
        self._home, self._number = home, number

    def __contains__(self, name: object) -> bool:
        return self._home.get(name, self._number) != self._number  # type: ignore[call-overload, no-any-return]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._home if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Loaded(Protocol):
    """A part that ONNX Runtime has loaded."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of its inputs."""

    def run_named(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Outputs for arrays by input name."""


def run_parts(
    model: onnx.ModelProto, inputs: Sequence[Array], load: Callable[[bytes], Loaded], *, every: bool
) -> dict[str, Array]:
    """Run the parts of a file.

    Args:
        model: The file.
        inputs: One array per input, in order.
        load: Function that loads a part.
        every: See `files_of_parts`.

    Returns:
        Results of all parts by name, the outputs of the file among them.

    Raises:
        InputError: The number of inputs is wrong, or one does not fit its declaration.
        VerificationError: ONNX Runtime refuses a part.
    """
    names = [item.name for item in model.graph.input]
    if len(inputs) != len(names):
        raise InputError(f"{len(inputs)} inputs were given", expected=str(len(names)))
    values = dict(zip(names, inputs, strict=True))
    for part in files_of_parts(model, every=every):
        session = load(part.file)
        results = session.run_named({name: values[name] for name in session.inputs})
        values.update(zip(part.tensors, results, strict=True))
    return values


def chunks(names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """`names` in groups of at most `PART`, in order."""
    for begin in range(0, len(names), PART):
        yield tuple(names[begin : begin + PART])


def is_large(model: onnx.ModelProto) -> bool:
    """Whether a file has more than `WHOLE` operators."""
    return len(model.graph.node) > WHOLE


def quantizers(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Each quantizer with the node whose result is used: the last that clips its codes, or the quantizer itself."""
    clips = {node.input[0]: node for node in model.graph.node if node.op_type in (*CLIPS, "Cast")}
    found = []
    for quantizer in (node for node in model.graph.node if node.op_type == "QuantizeLinear"):
        if quantizer.name.startswith(EDGE):
            continue
        last = quantizer
        while last.output[0] in clips:
            last = clips[last.output[0]]
        found.append((quantizer, last))
    return found


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of each initializer, by name."""
    return {item.name: int(item.data_type) for item in model.graph.initializer}
