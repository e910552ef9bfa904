"""The back end ONNX: `model.onnx`, run in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial

from qcompiler.backends.base import Array, Backend, Bound, Files, Lowered, Results, Way
from qcompiler.backends.onnx_qdq.bounds import layer_bounds, without_integer_kernel
from qcompiler.backends.onnx_qdq.check import check_file
from qcompiler.backends.onnx_qdq.emit import emit
from qcompiler.backends.onnx_qdq.emitter import OnnxOptions
from qcompiler.backends.onnx_qdq.runtime import Layers, integer_weights, run, run_observed
from qcompiler.errors import ArtifactError
from qcompiler.program.files import ProgramFiles
from qcompiler.targets import Target

FILE = "model.onnx"


class Onnx(Backend):
    """QuantizeLinear and DequantizeLinear around each operator, for ONNX Runtime."""

    name = "ONNX"

    def emit(self, model: Lowered, target: Target) -> Files:
        """The file in the variant of the target."""
        return {FILE: emit(model.graph, OnnxOptions(**target.onnx.model_dump()))}

    def run(self, files: Files, inputs: Sequence[Array]) -> list[Array]:
        """Run the file on the CPU, as ONNX Runtime runs it by default."""
        return run(files[FILE], inputs)

    def bound(self, target: Target) -> Bound:
        """The difference that the target allows for a layer computed with ONNX Runtime's arithmetic."""
        allowed = target.descriptor.verify
        return Bound(allowed.layer_lsb, allowed.layer_fraction)

    def check(self, files: Files) -> None:
        """Refuse files that `emit` cannot have written."""
        if set(files) != {FILE}:
            raise ArtifactError(f"the form {self.name} has the files {', '.join(files)}", expected=FILE)
        check_file(files[FILE], FILE)

    def ways(self, files: Files, program: ProgramFiles, target: Target, samples: int) -> Generator[Way, None, None]:
        """With default settings and without optimization, because some exports are correct in only one of the two."""
        del samples
        model, declared = files[FILE], program.program.tensors
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
