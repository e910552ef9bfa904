"""Run an exported file in ONNX Runtime: the whole file, or single layers on given integers."""

from __future__ import annotations

import functools
import platform
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from qcompiler.backends.onnx_qdq.emitter import UNSIGNED_SHIFT, WEIGHT_CODES
from qcompiler.backends.onnx_qdq.parts import (
    CLIPS,
    COMPUTED,
    Parts,
    chunks,
    element_types,
    files_of_parts,
    is_large,
    quantizers,
    run_parts,
)
from qcompiler.errors import InputError, VerificationError

Array = npt.NDArray[np.generic]

INTEGER_KERNELS = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "MatMulInteger": 1, "ConvInteger": 1}
"""Kernels of ONNX Runtime that multiply integers -> the position of the weight among their inputs."""

MADE_UNSIGNED = "_s8_2_u8"
"""Suffix that ONNX Runtime gives to weights that it makes unsigned, on processors on which `saturates` is true."""

_CPU_FLAGS = Path("/proc/cpuinfo")


def run(model: bytes, inputs: Sequence[Array], *, optimize: bool = True) -> list[Array]:
    """Run a file on the CPU.

    Args:
        model: The serialized file.
        inputs: One array per input, in order.
        optimize: Whether ONNX Runtime optimizes the file; False runs each operator as written.

    Returns:
        The outputs, in order.

    Raises:
        InputError: The number of inputs is wrong, or one does not fit its declaration.
        VerificationError: ONNX Runtime refuses the file.
    """
    return Session(model, optimize=optimize).run(inputs)


def run_default(model: bytes, inputs: Sequence[Array]) -> list[Array]:
    """Run a file in a session with default settings, as its user does; arguments, results and errors as for `run`.

    A file of more than `WHOLE` operators runs in parts, because ONNX Runtime's optimizer takes a time that grows with
    the square of its size.
    """
    proto = onnx.load_from_string(model)
    if not is_large(proto):
        return Session(model, precise=False).run(inputs)
    values = run_parts(proto, inputs, lambda file: Session(file, precise=False), every=False)
    return [values[item.name] for item in proto.graph.output]


class Session:
    """A file loaded into ONNX Runtime.

    Args:
        model: The serialized file.
        optimize: See `run`.
        optimized: File to which ONNX Runtime writes its optimized graph; None writes no file.
        precise: Whether kernels that may saturate on this processor are replaced by slower ones.

    Raises:
        VerificationError: ONNX Runtime refuses the file.
    """

    def __init__(
        self, model: bytes, *, optimize: bool = True, optimized: Path | None = None, precise: bool = True
    ) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        options.enable_cpu_mem_arena = False  # memory of a run is returned after it: several sessions are open at once
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        if precise and saturates():
            # Pairs of u8 x s8 products saturate in 16 bits there; this selects slower kernels without saturation.
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions have no common base class
            raise VerificationError(f"ONNX Runtime {ort.__version__} refuses the file: {_one_line(error)}") from error
        self.inputs = tuple(item.name for item in self._session.get_inputs())
        self.outputs = tuple(item.name for item in self._session.get_outputs())

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs for one array per input."""
        if len(inputs) != len(self.inputs):
            raise InputError(f"{len(inputs)} inputs were given", expected=str(len(self.inputs)))
        return self.run_named(dict(zip(self.inputs, inputs, strict=True)))

    def run_named(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The outputs for arrays by input name.

        Raises:
            InputError: The arrays do not fit the inputs of the file.
            VerificationError: ONNX Runtime fails while it runs the file.
        """
        try:
            # Arithmetic on arrays without axes returns NumPy scalars, which the runtime does not accept.
            given = {name: np.asarray(array) for name, array in inputs.items()}
            results: list[Array] = self._session.run(None, given)
        except Exception as error:  # the runtime's exceptions have no common base class
            if type(error).__name__ in _OF_INPUTS:
                raise InputError(f"ONNX Runtime does not run on these inputs: {_one_line(error)}") from error
            found = f"ONNX Runtime {ort.__version__} fails while it runs the file: {_one_line(error)}"
            raise VerificationError(found) from error
        return results


_OF_INPUTS = ("InvalidArgument", "TypeError", "ValueError")
"""Exceptions of ONNX Runtime about its inputs."""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@functools.lru_cache(maxsize=1)
def saturates() -> bool:
    """Whether sums of u8 x s8 products may saturate on this processor: x86 without VNNI, or of unknown flags."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return False
    try:
        text = _CPU_FLAGS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return True
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    return not {"avx_vnni", "avx512_vnni"} & set(flags)


def _as_in_the_graph(name: str, codes: Array, unsigned: Collection[str]) -> Array:
    """Codes of the graph: the file stores signed activations as unsigned codes."""
    if not _shift(name, codes.dtype, unsigned):
        return codes
    # The code minus 128 in the same byte: its highest bit inverted. NumPy returns a number for an array without axes.
    return np.asarray(np.bitwise_xor(codes, UNSIGNED_SHIFT, dtype=np.uint8)).view(np.int8)


def _shift(name: str, dtype: np.dtype[np.generic], unsigned: Collection[str]) -> int:
    return UNSIGNED_SHIFT if dtype == np.uint8 and name not in unsigned else 0


class Layers:
    """A file that is cut at every integer activation, so that one run computes all layers on chosen integers.

        ... -> Q -> a -> DQ -> Conv -> Q -> b -> DQ -> ...

    becomes

        ... -> Q -> a.computed     a -> DQ -> Conv -> Q -> b.computed     b -> DQ -> ...

    Args:
        model: The serialized file.
        optimize: See `run`.
        unsigned: Names of the tensors whose 8-bit codes are unsigned in the graph too.
    """

    def __init__(self, model: bytes, *, optimize: bool = True, unsigned: Collection[str] = ()) -> None:
        self._unsigned = unsigned
        proto = onnx.load_from_string(model)
        makers = {node.output[0]: node for node in proto.graph.node}
        self._types: dict[str, int] = {}
        self.operators: dict[str, str] = {}
        """The operator before each quantizer, by name of tensor; empty for a quantized input."""
        types = element_types(proto)
        for quantizer, last in quantizers(proto):
            name = last.output[0]
            maker = makers.get(quantizer.input[0])
            while maker is not None and maker.op_type in CLIPS:
                maker = makers.get(maker.input[0])
            self._types[name] = types[quantizer.input[2]]
            self.operators[name] = "" if maker is None else maker.op_type
            last.output[0] += COMPUTED
        self.tensors = tuple(self._types)
        self.inputs = tuple(item.name for item in proto.graph.input)
        parts = Parts(proto, self._types)
        self._sessions = [
            (chunk, Session(parts.file([name + COMPUTED for name in chunk], self._types), optimize=optimize))
            for chunk in chunks(self.tensors)
        ]

    def run(self, inputs: Sequence[Array], codes: Mapping[str, Array]) -> dict[str, Array]:
        """Run each layer.

        Args:
            inputs: The inputs of the file, in order.
            codes: Codes that the users of each tensor read, by name of tensor, in logical order.

        Returns:
            Codes that the layer of each tensor computes, by name of tensor.

        Raises:
            VerificationError: `codes` lacks a tensor of the file.
        """
        missing = [name for name in self.tensors if name not in codes]
        if missing:
            raise VerificationError(f"the file has a tensor %{missing[0]} that is not in the graph")
        if not self.tensors:
            return {}
        feeds: dict[str, Array] = dict(zip(self.inputs, inputs, strict=True))
        for name in self.tensors:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(self._types[name])
            given = codes[name].astype(dtype)
            if shift := _shift(name, dtype, self._unsigned):
                given = np.bitwise_xor(given, shift, dtype=np.uint8)  # the code plus 128, in the same byte
            feeds[name] = np.asarray(given)  # NumPy returns a number for arrays without axes
        found: dict[str, Array] = {}
        for chunk, session in self._sessions:
            results = session.run_named({name: feeds[name] for name in session.inputs})
            pairs = zip(chunk, results, strict=True)
            found.update((name, _as_in_the_graph(name, array, self._unsigned)) for name, array in pairs)
        return found


def run_observed(
    model: bytes, inputs: Sequence[Array], *, optimize: bool = True, unsigned: Collection[str] = ()
) -> tuple[dict[str, Array], list[Array]]:
    """Run the whole file once; return codes by name of tensor, and the outputs. Arguments as for `Layers`."""
    proto = onnx.load_from_string(model)
    values = run_parts(proto, inputs, lambda file: Session(file, optimize=optimize), every=True)
    names = [last.output[0] for _, last in quantizers(proto)]
    codes: dict[str, Array] = {name: _as_in_the_graph(name, values[name], unsigned) for name in names}
    return codes, [values[item.name] for item in proto.graph.output]


def integer_weights(model: bytes) -> frozenset[str]:
    """Weights that ONNX Runtime multiplies in its integer kernels, read from its optimized graph.

    The optimizer keeps the names of initializers, but not of results.
    """
    return frozenset(name for _, name in _weighted_kernels(model))


def integer_kernels(model: bytes, *, least: int = 0) -> list[str]:
    """The integer kernels of the optimized graph and their weights, such as `QLinearConv (conv1.weight)`.

    Args:
        model: The serialized file.
        least: Least magnitude that a code of the weight must reach.
    """
    sizes = {
        item.name.removesuffix(WEIGHT_CODES): int(
            np.abs(onnx.numpy_helper.to_array(item).astype(np.int64)).max(initial=0)
        )
        for item in onnx.load_from_string(model).graph.initializer
        if item.name.endswith(WEIGHT_CODES)
    }
    return [f"{kernel} ({name})" for kernel, name in _weighted_kernels(model) if sizes.get(name, 0) >= least]


def _weighted_kernels(model: bytes) -> list[tuple[str, str]]:
    """Type and weight of each integer kernel of the optimized graph."""
    kernels = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        for part in files_of_parts(onnx.load_from_string(model), every=False):
            if not any(item.name.endswith(WEIGHT_CODES) for item in onnx.load_from_string(part.file).graph.initializer):
                continue  # it multiplies no weights, and the optimizer takes as long as for one that does
            Session(part.file, optimized=path)
            kernels += [node for node in onnx.load(str(path)).graph.node if node.op_type in INTEGER_KERNELS]
    read = ((node.op_type, node.input[INTEGER_KERNELS[node.op_type]].removesuffix(MADE_UNSIGNED)) for node in kernels)
    return [(kernel, name.removesuffix(WEIGHT_CODES)) for kernel, name in read if name.endswith(WEIGHT_CODES)]
