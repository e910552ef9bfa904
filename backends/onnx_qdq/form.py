"""The back end ONNX: `model.onnx`, run in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial

import onnx

from qcompiler.backends.base import Array, Backend, Bound, Deployed, Files, Lowered, Results, Way
from qcompiler.backends.onnx_qdq.bounds import layer_bounds, without_integer_kernel
from qcompiler.backends.onnx_qdq.check import check_file
from qcompiler.backends.onnx_qdq.emit import emit
from qcompiler.backends.onnx_qdq.emitter import OnnxOptions
from qcompiler.backends.onnx_qdq.external import with_real_ends
from qcompiler.backends.onnx_qdq.parts import is_large
from qcompiler.backends.onnx_qdq.runtime import (
    Layers,
    integer_kernels,
    integer_weights,
    run,
    run_default,
    run_observed,
    saturates,
)
from qcompiler.errors import ArtifactError
from qcompiler.program.files import ProgramFiles
from qcompiler.targets import Target

FILE = "model.onnx"

SAFE_BITS = 7
"""Width of weights with which the sum of two products with 8-bit codes fits in 16 bits: 2 * 63 * 255 < 2^15."""
UNSAFE_WEIGHT = 65
"""Smallest magnitude of two equal weights with which that sum may not fit: 2 * 65 * 255 > 2^15 - 1."""
NO_OPTIMIZATION = "Set the graph_optimization_level of the session to ORT_DISABLE_ALL."


class Onnx(Backend):
    """QuantizeLinear and DequantizeLinear around each operator, for ONNX Runtime."""

    name = "ONNX"

    def emit(self, model: Lowered, target: Target) -> Files:
        """The file in the variant of the target."""
        return {FILE: emit(model.graph, OnnxOptions(**target.onnx.model_dump()), io=model.io)}

    def run(self, files: Files, inputs: Sequence[Array]) -> list[Array]:
        """Run the file on the CPU, as ONNX Runtime runs it by default."""
        return run(with_real_ends(files[FILE]), inputs)

    def bound(self, target: Target) -> Bound:
        """The difference that the target allows for a layer computed with ONNX Runtime's arithmetic."""
        allowed = target.descriptor.verify
        return Bound(allowed.layer_lsb, allowed.layer_fraction)

    def check(self, files: Files) -> None:
        """Refuse files that `emit` cannot have written."""
        if set(files) != {FILE}:
            raise ArtifactError(f"the form {self.name} has the files {', '.join(files)}", expected=FILE)
        check_file(files[FILE], FILE)

    def deployed(self, files: Files, target: Target) -> Deployed:
        """A session with default settings, whose optimizer may fuse operators between the outputs of `ways`."""
        model, fixes = with_real_ends(files[FILE]), []
        if SAFE_BITS in target.descriptor.dtypes[target.descriptor.defaults.weight].widths:
            fixes.append(f"Compile for such processors with target.override(weight_bits={SAFE_BITS})")
        fixes.append('set the session option "session.x64quantprecision" to "1"')
        saturating = saturates()
        in_parts = is_large(onnx.load_from_string(model))
        return Deployed(
            "onnxruntime, default session" + (" in parts" if in_parts else ""),
            partial(run_default, model),
            partial(run, model, optimize=False),
            doubt="sums of two 8-bit products may saturate on this processor, x86 without VNNI" if saturating else "",
            kernels=partial(integer_kernels, model, least=UNSAFE_WEIGHT if saturating else 0),
            fix=(", or ".join(fixes) + ".") if saturating else NO_OPTIMIZATION,
        )

    def ways(self, files: Files, program: ProgramFiles, target: Target, samples: int) -> Generator[Way, None, None]:
        """With default settings and without optimization, because some exports are correct in only one of the two."""
        del samples
        model, declared = with_real_ends(files[FILE]), program.program.tensors
        unsigned = frozenset(name for name, tensor in declared.items() if str(tensor.dtype) in ("u4", "u8"))
        for optimize in (True, False):
            layers = Layers(model, optimize=optimize, unsigned=unsigned)

            def observed(inputs: Sequence[Array], *, optimize: bool = optimize) -> Results:
                codes, outputs = run_observed(model, inputs, optimize=optimize, unsigned=unsigned)
                return Results(outputs, codes)

            yield Way(
                "onnxruntime" if optimize else "onnxruntime unoptimized",
                observed,
                layers.run,
                layer_bounds(layers.operators, program, self.bound(target), optimize=optimize),
                "once" if optimize else "float32",
                without_integer_kernel(program) if optimize else frozenset(),
                partial(integer_weights, model) if optimize else None,
            )
            del layers
