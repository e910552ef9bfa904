"""`python -m benchmarks.architectures`: the share of public architectures that compile with nothing in float.

Each architecture of a list is made with random weights, in a small configuration if the library has one, and compiled
strictly: without fallback and without overrides. A process of its own makes each, so that its peak memory is known and
an abort of one ends no other. Results are files of a folder, and a run goes on where the last one stopped.

    python -m benchmarks.architectures --library timm --shard 1/2     run a part
    python -m benchmarks.architectures --check                        predict in seconds, without a compile
    python -m benchmarks.architectures --page                         tables of what is there

timm and transformers are not dependencies: install them with `pip install --no-deps` next to this package.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qcompiler
from benchmarks.trainings import shard
from qcompiler.ir import tree
from qcompiler.validation.metrics import sqnr_db

__all__ = ["Result", "main", "page"]

TARGET = "int8_dsp_per_channel"
FOLDER = Path("out/architectures")
SECONDS = 900
"""Time limit of one architecture."""
BATCH = 2

TORCHVISION: Mapping[str, int] = {
    **dict.fromkeys(("alexnet", "vgg11_bn", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "squeezenet1_1"), 64),
    **dict.fromkeys(("densenet121", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_s"), 64),
    **dict.fromkeys(("shufflenet_v2_x0_5", "mnasnet0_5", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny"), 64),
    **dict.fromkeys(("swin_t", "swin_v2_t"), 64),
    "maxvit_t": 224,
    "vit_b_32": 224,
    "inception_v3": 128,
}
"""Classifiers of torchvision, one per family, with the size of their images."""

TIMM: Sequence[str] = (
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "deit3_small_patch16_224", "beit_base_patch16_224",
    "cait_xxs24_224", "eva02_tiny_patch14_224", "mixer_s32_224", "resmlp_12_224", "gmlp_ti16_224", "convnext_atto",
    "convnextv2_atto", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "pit_ti_224", "tnt_s_patch16_224",
    "poolformer_s12", "poolformerv2_s12", "efficientformer_l1", "efficientformerv2_s0", "mobilevit_xxs",
    "mobilevitv2_050", "edgenext_xx_small", "levit_128s", "coat_lite_tiny", "pvt_v2_b0", "twins_pcpvt_small",
    "visformer_tiny", "xcit_nano_12_p16_224", "crossvit_tiny_240", "convit_tiny", "davit_tiny", "maxvit_pico_rw_256",
    "coatnet_pico_rw_224", "focalnet_tiny_srf", "fastvit_t8", "repvit_m0_9", "repghostnet_050", "ghostnetv2_100",
    "mobilenetv4_conv_small", "mobilenetv3_small_050", "efficientnet_lite0", "tinynet_e", "lcnet_050", "resnet10t",
    "resnetv2_50", "resnest14d", "res2net50_26w_4s", "seresnet18", "eca_resnext26ts", "botnet26t_256", "halonet26t",
    "lambda_resnet26t", "nfnet_f0", "regnetz_b16", "dpn48b", "hrnet_w18_small", "vovnet39a", "cspresnet50", "dla34",
    "hgnet_tiny",
)  # fmt: skip
"""Small members of 60 families of timm."""

_TEXT: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 64, "vocab_size": 100,
}  # fmt: skip
_IMAGE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
_WIDTHS: dict[str, Any] = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}

TRANSFORMERS: Mapping[str, tuple[dict[str, Any], str]] = {
    **dict.fromkeys(("bert", "roberta", "electra", "albert", "deberta-v2", "mpnet", "camembert"), (_TEXT, "text")),
    **dict.fromkeys(("llama", "mistral", "qwen2", "gemma", "phi", "gpt_neox", "opt", "bloom"), (_TEXT, "text")),
    "distilbert": ({"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 100}, "text"),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 100}, "text"),
    **dict.fromkeys(("vit", "deit", "beit", "dinov2", "vit_mae", "ijepa"), (_IMAGE, "image")),
    "convnext": (_WIDTHS, "image"),
    "segformer": ({"hidden_sizes": [16, 32, 80, 128], "depths": [1, 1, 1, 1]}, "image"),
    "swin": ({"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "image_size": 32, "window_size": 4}, "image"),
    "resnet": ({**_WIDTHS, "embedding_size": 16}, "image"),
}
"""Small configurations of transformers, and what they read."""


@dataclass(frozen=True)
class Result:
    """One architecture.

    Args:
        name: Name in its library.
        library: The library.
        strict: Whether it compiles with nothing in float.
        why: First line of the refusal.
        db: Signal-to-noise ratio of the outputs in dB, against the float model.
        differing: Elements that differ between the exact simulation, the program and the C.
        forms: Forms that ran.
        seconds: Time of the compile.
        megabytes: Peak memory of the process.
    """

    name: str
    library: str
    strict: bool
    why: str = ""
    db: float = 0.0
    differing: int = 0
    forms: int = 0
    seconds: float = 0.0
    megabytes: int = 0


class _First(nn.Module):
    """The first tensor that a model of transformers gives."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.model(x, return_dict=False)[0]
        return result


def _torchvision(name: str) -> tuple[nn.Module, Tensor]:
    models: Any = importlib.import_module("torchvision").models
    extra = {"init_weights": True, "aux_logits": False} if name == "inception_v3" else {}
    return models.get_model(name, weights=None, **extra), torch.randn(BATCH, 3, TORCHVISION[name], TORCHVISION[name])


def _timm(name: str) -> tuple[nn.Module, Tensor]:
    model: Any = importlib.import_module("timm").create_model(name, pretrained=False)
    return model, torch.randn(BATCH, *model.default_cfg["input_size"])


def _transformers(name: str) -> tuple[nn.Module, Tensor]:
    library: Any = importlib.import_module("transformers")
    settings, reads = TRANSFORMERS[name]
    model = library.AutoModel.from_config(library.AutoConfig.for_model(name, **settings))
    if reads == "text":
        return _First(model), torch.randint(0, 100, (BATCH, 12))
    return _First(model), torch.randn(BATCH, 3, 32, 32)


LIBRARIES: Mapping[str, tuple[Sequence[str], Callable[[str], tuple[nn.Module, Tensor]]]] = {
    "torchvision": (tuple(TORCHVISION), _torchvision),
    "timm": (TIMM, _timm),
    "transformers": (tuple(TRANSFORMERS), _transformers),
}


def predict(library: str, name: str) -> Result:
    """Check one architecture without compiling it; `why` lists all reasons of a refusal."""
    torch.manual_seed(0)
    model, x = LIBRARIES[library][1](name)
    begin = time.perf_counter()
    try:
        found = qcompiler.check(model.eval(), TARGET, example_inputs=x)
    except qcompiler.errors.QCompilerError as error:
        return Result(name, library, False, str(error).splitlines()[0], seconds=time.perf_counter() - begin)
    reasons = dict.fromkeys(f"{node.op}: {node.detail}" for node in found.of("refused"))
    return Result(name, library, found.passed, "; ".join(reasons), seconds=time.perf_counter() - begin)


def measure(library: str, name: str) -> Result:
    """Compile one architecture in this process."""
    torch.manual_seed(0)
    model, x = LIBRARIES[library][1](name)
    model.train()
    if any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)) for module in model.modules()):
        with torch.no_grad():
            model(x)
    model.eval()
    begin = time.perf_counter()
    try:
        compiled = qcompiler.compile(model, TARGET, calibration_data=[x], effort="fast")
    except qcompiler.errors.QCompilerError as error:
        return Result(name, library, False, str(error).splitlines()[0], seconds=time.perf_counter() - begin)
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        wanted, found = (tree.flatten(result)[0][0] for result in (model(x), compiled.run(x)))
    report = compiled.verification
    ran = [] if report is None else [form for form in report.forms if form.elements]
    exact = [form for form in ran if "onnxruntime" not in form.name]
    db = float(sqnr_db(wanted, found))
    differing = sum(form.differing for form in exact)
    return Result(name, library, True, "", db, differing, len(ran), seconds)


def _in_process(library: str, name: str, *, check: bool = False) -> Result:
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "benchmarks.architectures"]
    begin = time.perf_counter()
    try:
        run = subprocess.run(
            [*command, *(["--check"] if check else []), "--one", library, name],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Result(name, library, False, f"not finished in {SECONDS} s", seconds=SECONDS)
    lines = run.stdout.strip().splitlines()
    if run.returncode or not lines:
        last = (run.stderr.strip().splitlines() or ["no message"])[-1]
        why = f"the process ended with {run.returncode}: {last}"
        return Result(name, library, False, why[:300], seconds=time.perf_counter() - begin)
    return Result(**json.loads(lines[-1]))


def page(results: Sequence[Result]) -> str:
    """The tables of all libraries, and what refuses most."""
    parts = []
    for library in LIBRARIES:
        mine = [item for item in results if item.library == library]
        if not mine:
            continue
        strict = sum(item.strict for item in mine)
        rows = [f"## {library}: {strict} of {len(mine)} strict", ""]
        rows += [
            "| architecture | strict | dB | differing | forms | s | MB | refusal |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for item in mine:
            numbers = f"{item.db:.1f} | {item.differing} | {item.forms}" if item.strict else " | | "
            mark = "yes" if item.strict else "no"
            why = item.why.replace("|", "\\|")[:160]
            rows.append(f"| {item.name} | {mark} | {numbers} | {item.seconds:.0f} | {item.megabytes} | {why} |")
        parts.append("\n".join(rows))
    reasons = Counter(item.why.partition(" (at ")[0].partition(";")[0][:90] for item in results if not item.strict)
    if reasons:
        lines = [f"- {count} x {why}" for why, count in reasons.most_common()]
        parts.append("\n".join(["## Refusals", "", *lines]))
    return "\n\n".join(parts) + "\n"


def _read(folder: Path) -> list[Result]:
    return [Result(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run."""
    parser = argparse.ArgumentParser(prog="benchmarks.architectures", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--library", choices=[*LIBRARIES], action="append", help="run these; all by default")
    parser.add_argument("--shard", type=shard, default=(0, 1), metavar="1/2", help="a part of the list")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the results")
    parser.add_argument("--page", action="store_true", help="print the tables of what is there")
    parser.add_argument("--check", action="store_true", help="predict by `check`; results in a folder of their own")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        result = (predict if options.check else measure)(*options.one)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(dataclasses.asdict(dataclasses.replace(result, megabytes=peak))))
        return 0
    if options.check:
        options.out = options.out / "check"
    if not options.page:
        options.out.mkdir(parents=True, exist_ok=True)
        jobs = [(library, name) for library in options.library or LIBRARIES for name in LIBRARIES[library][0]]
        index, parts = options.shard
        for library, name in jobs[index::parts]:
            path = options.out / f"{library}.{name}.json"
            if path.exists():
                continue
            result = _in_process(library, name, check=options.check)
            path.write_text(json.dumps(dataclasses.asdict(result)), encoding="utf-8")
            print(f"{library} {name}: {'strict' if result.strict else result.why[:140]}", flush=True)
        return 0
    print(page(_read(options.out)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
