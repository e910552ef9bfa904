"""`python -m benchmarks.adaround`: adaptive rounding by moments against the paper's descent, layer by layer.

Both get the same weights, ranges and calibration images, and what the layer reads in the quantized model in which all
layers before it are rounded already. The error is that on images that neither has seen:

    E || f(W x) - f(W~ x^) ||^2        with f the identity, and with f the activation after the layer

MobileNetV2 and ResNet-18 have the shapes of torchvision and are trained here for a
little while on pictures of 64x64 pixels (`benchmarks.rendered`), for there are no trained weights without a network.
Finished layers are kept, so that a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.adaround_page import section
from benchmarks.networks import load
from benchmarks.pages import PERFORMANCE, write_section
from benchmarks.rendered import CLASSES, SPLITS, Scenes, render, split
from benchmarks.train import accuracy, score
from qcompiler.frontends import capture
from qcompiler.ir.graph import Graph, Node
from qcompiler.ir.interpret import evaluate_node, interpret
from qcompiler.ops.layers import Layer, leaf_of
from qcompiler.ops.quantizers import grid, leaf_tensor
from qcompiler.passes import PassContext, PassManager
from qcompiler.passes.adaptive_rounding.activation import activation_after
from qcompiler.passes.adaptive_rounding.adaround import AdaRound
from qcompiler.passes.common.equalization import parameter_readers
from qcompiler.passes.common.two_models import LayerInputs, read_batches, run_both
from qcompiler.quant.affine import along_axis
from qcompiler.session.pipeline import default_pipeline
from qcompiler.targets import load_target

OUTPUT = Path(__file__).resolve().parents[1] / "out" / "benchmarks"
SECTION = "adaptive rounding"
NETWORKS = ("mobilenet_v2", "resnet18")
NAMED: dict[str, tuple[str, ...]] = {
    "mobilenet_v2": ("features.2.conv.0.0", "features.4.conv.1.0", "features.8.conv.2", "classifier.1"),
    "resnet18": ("conv1", "layer1.0.conv1", "layer2.0.downsample.0", "layer4.1.conv2"),
}
"""A 1x1, a depthwise, a projecting and a linear layer; a 7x7, a 3x3, a 1x1 of stride 2, and the largest 3x3."""
SIZE, BITS = 64, 4
TRAINING_STEPS, TRAINING_BATCH = 300, 64
BATCH, TRAINED_ON, HELD_OUT = 32, 32, 8
"""Images per batch, batches that are rounded to, and batches for the error: 1024 and 256 images."""

STEPS, STEPS_OF_ALL, QUICK_STEPS = 10_000, 1_000, 50
DRAWS = 3
"""Number of draws of calibration images, for the comparison with another toolkit."""

Json = dict[str, Any]


def pictures(count: int, seed: int) -> Scenes:
    """Rendered scenes at SIZE pixels."""
    scenes = render(count, seed)
    return scenes._replace(images=F.interpolate(scenes.images, size=(SIZE, SIZE), mode="bilinear", align_corners=False))


def trained(name: str) -> nn.Module:
    """A network of torchvision after TRAINING_STEPS steps, in eval mode; kept on disk."""
    torch.manual_seed(0)
    model = cast("nn.Module", getattr(torchvision.models, name)(weights=None, num_classes=CLASSES))
    path = OUTPUT / f"{name}_{SIZE}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=TRAINING_STEPS)
    scenes = pictures(4_000, SPLITS["train"][1])
    generator = torch.Generator().manual_seed(0)
    for _ in range(TRAINING_STEPS):
        chosen = torch.randint(len(scenes.labels), (TRAINING_BATCH,), generator=generator)
        loss = F.cross_entropy(model(scenes.images[chosen]), scenes.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model.eval()


def quantized(model: nn.Module) -> tuple[Graph, PassContext]:
    """The graph with quantizers and ranges of weights, as adaptive rounding finds it."""
    pool = F.interpolate(split("calibration").images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    held_out = pictures(HELD_OUT * BATCH, SPLITS["validation"][1]).images
    batches = [[part] for part in torch.cat([pool[: TRAINED_ON * BATCH], held_out]).split(BATCH)]
    passes = default_pipeline("best", per_channel=True)
    passes = passes[: next(index for index, item in enumerate(passes) if isinstance(item, AdaRound))]
    module = capture(model, batches[0][0]).module
    target = load_target("int8_dsp").override(weight_bits=BITS, per_channel=True)
    PassManager(passes).run(module, PassContext(target, [[batches[0][0][:2]]]))
    return module.main, PassContext(target, calibration_data=batches)


def errors(node: Node, inputs: LayerInputs, weight: Tensor, shift: Tensor | None) -> Tensor:
    """Squared error of each held-out image, without and with the activation: float64 [2, images]."""
    activation, axis = activation_after(node) or (lambda x, axis: x), Layer(node).output_axis
    bias = [leaf_tensor(leaf_of(value)) for value in node.inputs[2:]]
    ours = [bias[0] + shift.to(bias[0].dtype)] if shift is not None else bias
    found = []
    for index in range(TRAINED_ON, TRAINED_ON + HELD_OUT):
        pair = inputs.batch(index)
        pairs = [
            evaluate_node(node, [pair.real, inputs.parameters().real, *bias])[0],
            evaluate_node(node, [pair.quantized, weight, *ours])[0],
        ]
        behind = [activation(x, axis) for x in pairs]
        found.append(torch.stack([(b - a).double().square().flatten(1).sum(1) for a, b in (pairs, behind)]))
    return torch.cat(found, 1)


def compared(ours: Tensor, theirs: Tensor) -> list[float]:
    """The quotient of the errors, and half its 95 % confidence interval: the images are a sample."""
    quotient = float(ours.sum() / theirs.sum())
    # Delta method for a ratio of means over the same images.
    spread = float((ours - quotient * theirs).std() * len(ours) ** 0.5 / theirs.sum())
    return [quotient, 1.96 * spread]


def measure(name: str, chosen: Sequence[str] | None, steps: int, cells: Json, path: Path) -> Iterator[Json]:
    """One row per layer: of those chosen, or of all."""
    graph, context = quantized(trained(name))
    readers = parameter_readers(graph)
    gram, sgd = AdaRound(), AdaRound(method="sgd", iterations=steps)
    rows: list[Json] = []

    def layer(node: Node, inputs: LayerInputs) -> None:
        module = node.name
        trained_on = copy.copy(inputs)
        trained_on.count = TRAINED_ON
        weight = leaf_tensor(leaf_of(node.inputs[1]))
        begun = time.perf_counter()
        by_moments = gram.round(node, trained_on, readers, context.seed)
        seconds = time.perf_counter() - begun
        if chosen is None or module in chosen:
            key = f"{name} {module} {steps}"
            if key not in cells:
                begun = time.perf_counter()
                by_descent = sgd.round(node, trained_on, readers, context.seed)
                params, spec = grid(cast("Node", node.inputs[1].producer))
                scale = along_axis(params.scale, weight.dim(), params.axis)
                nearest = (weight / scale).round().clamp(spec.qmin, spec.qmax) * scale
                parts = [errors(node, inputs, nearest, None)]
                parts.append(errors(node, inputs, by_moments["weight"], by_moments.get("shift")))
                parts.append(errors(node, inputs, by_descent["weight"], None))
                cells[key] = {
                    "shape": list(weight.shape),
                    "seconds": [seconds, time.perf_counter() - begun],
                    "gram over nearest": [compared(parts[1][i], parts[0][i])[0] for i in range(2)],
                    "sgd over nearest": [compared(parts[2][i], parts[0][i])[0] for i in range(2)],
                    "gram over sgd": [compared(parts[1][i], parts[2][i]) for i in range(2)],
                }
                path.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
            rows.append({"network": name, "layer": module, "steps": steps, **cells[key]})
            print(line(rows[-1]), flush=True)
        graph.module.tensors[str(cast("Node", leaf_of(node.inputs[1]).producer).attributes["ref"])] = by_moments[
            "weight"
        ]
        if "shift" in by_moments:
            bias = cast("Node", leaf_of(node.inputs[2]).producer)
            graph.module.tensors[str(bias.attributes["ref"])] = leaf_tensor(bias.output) + by_moments["shift"].float()

    run_both(graph, read_batches(graph, context, (TRAINED_ON + HELD_OUT) * BATCH), layer, replace(context))
    yield from rows


def line(row: Json) -> str:
    """For the terminal."""
    parts = []
    for index, name in enumerate(("without", "with")):
        quotient, half = row["gram over sgd"][index]
        each = f"{row['gram over nearest'][index]:.3f} / {row['sgd over nearest'][index]:.3f}"
        parts.append(f"{name} {each} = {quotient:.3f} ± {half:.3f}")
    seconds = "{:.2f} s / {:.1f} s".format(*row["seconds"])
    return f"{row['network']:<13}{row['layer']:<24}{row['shape']!s:<20}{'  '.join(parts)}  {seconds}"


def drawn(images: int, seed: int) -> Tensor:
    """Calibration images."""
    pool = split("calibration").images
    return pool[torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:images]]


def ours(name: str, images: int, seed: int) -> Json:
    """Seconds of the pass, and the accuracy with rounded weights of four bits and float activations."""
    target = load_target("int8_dsp").override(weight_bits=BITS, per_channel=True)
    passes = default_pipeline("best", per_channel=True)
    end = next(index for index, item in enumerate(passes) if isinstance(item, AdaRound))
    model, batches = load(name), [[part] for part in drawn(images, seed).split(BATCH)]
    module = capture(model, batches[0][0]).module
    context = PassContext(target, calibration_data=batches, seed=seed)
    PassManager(passes[:end]).run(module, context)
    begun = time.perf_counter()
    passes[end].run(module.main, context)
    seconds = time.perf_counter() - begun
    scenes = split("test")
    with torch.no_grad():
        logits = torch.cat([interpret(module.main, [part], module.tensors)[0][0] for part in scenes.images.split(500)])
    return {"seconds": seconds, "accuracy": score(name, logits, scenes), "float": accuracy(name, model, scenes)}


def theirs(name: str, images: int, seed: int) -> Json:
    """The same by aimet-torch, in an environment of its own; `{"skipped": why}` where there can be none."""
    folder = OUTPUT / "aimet"
    python = folder / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
            packages = ["aimet-torch", "safetensors"]
            command = [str(python), "-m", "pip", "install", "--quiet", *packages]
            subprocess.run(command, check=True, capture_output=True, text=True)
        output, data = folder / "result.json", folder / "images.safetensors"
        output.unlink(missing_ok=True)
        save_file({"images": drawn(images, seed)}, data)
        command = [str(python), "-m", "benchmarks.adaround_aimet", name, str(data), str(seed), str(output)]
        root = Path(__file__).parents[1]
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    except subprocess.CalledProcessError as failed:
        return {"skipped": f"{' '.join(failed.cmd[:4])}: {failed.stderr.strip().splitlines()[-1:]}"}
    result: Json = json.loads(output.read_text(encoding="utf-8"))
    return result


def compare(images: int, cells: Json, path: Path) -> Json:
    """Both on the benchmark network of the accuracy tables, by draws of the images."""
    for seed in range(DRAWS):
        key = f"peer {seed}"
        if key not in cells:
            peer = theirs("mobilenet", images, seed)
            if "skipped" in peer:
                return peer
            cells[key] = {"ours": ours("mobilenet", images, seed), "theirs": peer}
            path.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    return {"images": images, "draws": [cells[f"peer {seed}"] for seed in range(DRAWS)]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.adaround", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps, few layers, no peer; writes no page")
    parser.add_argument("--layers", nargs="+", help="names; writes no page")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--fresh", action="store_true", help="forget what is finished")
    options = parser.parse_args(arguments)
    path = OUTPUT / "adaround.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    cells: Json = {} if options.fresh or not path.exists() else json.loads(path.read_text(encoding="utf-8"))
    steps = QUICK_STEPS if options.quick else STEPS
    named = [
        row for name in options.networks for row in measure(name, options.layers or NAMED[name], steps, cells, path)
    ]
    if options.quick or options.layers or options.networks != NETWORKS:
        return 0
    everything = [row for name in NETWORKS for row in measure(name, None, STEPS_OF_ALL, cells, path)]
    peer = compare(TRAINED_ON * BATCH, cells, path)
    text = section(named, everything, peer, images=HELD_OUT * BATCH)
    print(text)
    write_section(PERFORMANCE, SECTION, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
