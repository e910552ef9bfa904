"""A training step with and without quantization: run by `benchmarks.qat_speed` in an environment that has the toolkit.

`python -m benchmarks.qat_speed_step '{"toolkit": ..., "network": ..., ...}'` prints one line of JSON: `{"float": x,
"quantized": y}`, seconds of a step or bytes that it needs, with the version of the toolkit. A step is zero_grad,
forward, cross entropy, backward, SGD with momentum, and the function that the toolkit requires after a step.
"""

from __future__ import annotations

import copy
import ctypes
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 1000


@dataclass(frozen=True)
class Job:
    """The settings of a measurement.

    Args:
        toolkit: One of `TOOLKITS`.
        network: Network of torchvision.
        size: Size of the images, pixels.
        batch: Images.
        rounds: Steps of each kind, after one that warms up.
        threads: Number of torch threads.
        compiled: Whether torch.compile is used, for the float and the quantized step.
        memory: Bytes instead of seconds.
    """

    toolkit: str
    network: str
    size: int = 224
    batch: int = 16
    rounds: int = 5
    threads: int = 1
    compiled: bool = False
    memory: bool = False


@dataclass(frozen=True)
class Prepared:
    """A module that learns, and a function to call after each step."""

    module: nn.Module
    after: Callable[[], None] = lambda: None


def network(name: str) -> nn.Module:
    """With random weights, always the same, in train mode."""
    torch.manual_seed(0)
    return cast("nn.Module", getattr(torchvision.models, name)(weights=None, num_classes=CLASSES))


def ours_folded(model: nn.Module, x: Tensor) -> Prepared:
    """int8_dsp: one scale per weight, batch norms folded."""
    import qcompiler

    module = qcompiler.prepare_qat(model, "int8_dsp", calibration_data=[x[:2]], effort="fast")
    return Prepared(module, module.step)


def ours_kept(model: nn.Module, x: Tensor) -> Prepared:
    """int8_dsp_per_channel: a scale per channel, batch norms kept."""
    import qcompiler

    module = qcompiler.prepare_qat(
        model, "int8_dsp_per_channel", calibration_data=[x[:2]], effort="fast", batch_norm="keep"
    )
    return Prepared(module, module.step)


def ours_in_integers(model: nn.Module, x: Tensor) -> Prepared:
    """Quantized training for int8_dsp: weights, activations and gradients, ranges in hindsight."""
    import qcompiler

    module = qcompiler.prepare_quantized_training(model, "int8_dsp", example_inputs=(x[:2],))
    # Until its first call, each forward begins a step, and would be compiled a second time after it.
    module.step()
    return Prepared(module, module.step)


def torchao_in_integers(model: nn.Module, x: Tensor) -> Prepared:
    """The int8 prototype: scales per row, from the present tensor; linear layers alone."""
    from torchao.prototype.quantized_training import Int8MixedPrecisionTrainingConfig
    from torchao.quantization import quantize_

    quantize_(model, Int8MixedPrecisionTrainingConfig())
    return Prepared(model.train())


def aimet(model: nn.Module, x: Tensor) -> Prepared:
    """Range learning, batch norms folded, a scale per channel, as its default configuration has it."""
    import aimet_torch
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.common.defs import QuantScheme
    from aimet_torch.quantsim import QuantizationSimModel

    model = model.eval()
    fold_all_batch_norms(model, tuple(x.shape), dummy_input=x[:2])
    folder = Path(aimet_torch.__file__).parent / "common" / "quantsim_config"
    simulated = QuantizationSimModel(
        model,
        x[:2],
        quant_scheme=QuantScheme.training_range_learning_with_tf_init,
        config_file=str(folder / "default_config_per_channel.json"),
    )
    simulated.compute_encodings(lambda module, _: module(x[:2]), None)
    return Prepared(simulated.model.train())


def torchao(model: nn.Module, x: Tensor) -> Prepared:
    """PT2E with the quantizer for x86: moving ranges, a batch norm simulated after each convolution."""
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    exported = torch.export.export(model.train(), (x,), strict=False).module()
    module = prepare_qat_pt2e(exported, quantizer)
    move_exported_model_to_train(module)
    return Prepared(module)


def brevitas(model: nn.Module, x: Tensor) -> Prepared:
    """Brevitas' graph quantizer with its defaults: batch norms merged, 8 bits."""
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    prepared = preprocess_for_quantize(model.eval(), trace_model=True, equalize_iters=0)
    module = quantize(prepared)
    with torch.no_grad():
        module.train()(x[:2])
    return Prepared(module)


TOOLKITS: Mapping[str, tuple[Callable[[nn.Module, Tensor], Prepared], str]] = {
    "qcompiler, folded": (ours_folded, "qcompiler"),
    "qcompiler, kept": (ours_kept, "qcompiler"),
    "aimet-torch": (aimet, "aimet-torch"),
    "torchao PT2E": (torchao, "torchao"),
    "Brevitas": (brevitas, "brevitas"),
    "qcompiler, int8 training": (ours_in_integers, "qcompiler"),
    "torchao int8 training": (torchao_in_integers, "torchao"),
}
"""How each prepares a model, and the distribution whose version is reported."""


class Step:
    """One training step after the other."""

    def __init__(self, prepared: Prepared, x: Tensor, labels: Tensor, *, compiled: bool) -> None:
        self.run = cast("nn.Module", torch.compile(prepared.module)) if compiled else prepared.module
        self.after, self.x, self.labels = prepared.after, x, labels
        # So small that weights hardly move: no step shall differ from another one.
        self.optimizer = torch.optim.SGD(prepared.module.parameters(), lr=1e-6, momentum=0.9)

    def __call__(self) -> None:
        """The whole of it."""
        self.optimizer.zero_grad()
        self.gradients()
        self.optimizer.step()
        self.after()

    def gradients(self) -> None:
        """Forward and backward."""
        F.cross_entropy(self.run(self.x), self.labels).backward()


def seconds(steps: Mapping[str, Step], rounds: int, threads: int) -> dict[str, float]:
    """The shortest step of each kind, the kinds in turns: CPU seconds on one thread, else seconds of the clock."""
    clock = time.process_time if threads == 1 else time.perf_counter
    best: dict[str, float] = {}
    for index in range(rounds + 1):
        for name, step in steps.items():
            begun = clock()
            step()
            spent = clock() - begun
            if index:
                best[name] = min(best.get(name, spent), spent)
    return best


def status(key: str) -> int:
    """Bytes, of the process: `VmRSS` now, `VmHWM` at most."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return 1024 * int(found[1])


def peak(step: Step) -> int:
    """Bytes that forward and backward need beyond what is there before: activations, gradients, workspaces."""
    step()
    step.optimizer.zero_grad()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before = status("VmRSS")
    step.gradients()
    return status("VmHWM") - before


def measure(job: Job) -> dict[str, Any]:
    """See the module."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    prepare, distribution = TOOLKITS[job.toolkit]
    x, labels = torch.randn(job.batch, 3, job.size, job.size), torch.randint(CLASSES, (job.batch,))
    model = network(job.network)
    kinds: dict[str, Callable[[], Prepared]] = {
        "float": lambda: Prepared(copy.deepcopy(model).train()),
        "quantized": lambda: prepare(copy.deepcopy(model), x),
    }
    result: dict[str, Any] = {"version": version(distribution), "torch": torch.__version__}
    if job.memory:
        for name, make in kinds.items():
            result[name] = peak(Step(make(), x, labels, compiled=job.compiled))
        return result
    steps = {name: Step(make(), x, labels, compiled=job.compiled) for name, make in kinds.items()}
    return {**result, **seconds(steps, job.rounds, job.threads)}


def main() -> int:
    """Print what is measured."""
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
