"""A small QUANTIZED graph in text, whose codes can be computed by hand."""

from __future__ import annotations

import torch

from qcompiler.ir.graph import Module
from qcompiler.ir.text import parse_module

LINEAR = """graph @main stage=quantized {
  input %x : f32[N, 2]
  bound N 1 64
  %x.scale = parameter() {ref = "x.scale", dtype = "f32", shape = ()} : f32[]
  %zero = state() {ref = "zero", dtype = "i32", shape = ()} : i32[]
  %x.q = fake_quantize(%x, %x.scale, %zero) {spec = spec"s8"} : f32[N, 2]
  %w = parameter() {ref = "w", dtype = "f32", shape = (2, 2)} : f32[2, 2]
  %w.scale = parameter() {ref = "w.scale", dtype = "f32", shape = ()} : f32[]
  %w.q = fake_quantize(%w, %w.scale, %zero) {spec = spec"s8 symmetric narrow"} : f32[2, 2]
  %a = linear(%x.q, %w.q) : f32[N, 2]
  %r = relu(%a) : f32[N, 2]
  %r.scale = parameter() {ref = "r.scale", dtype = "f32", shape = ()} : f32[]
  %r.q = fake_quantize(%r, %r.scale, %zero) {spec = spec"s8"} : f32[N, 2]
  return %r.q
}
"""
"""The codes of [1, 2] are [2, 4], of the weight [[1, 2], [-3, 1]]; the sums 10 and -2 in steps of 0.5 become 10 and 0
in steps of 0.5."""


def linear() -> Module:
    """`LINEAR` with its tensors."""
    return parse_module(
        LINEAR,
        {
            "x.scale": torch.tensor(0.5),
            "zero": torch.tensor(0, dtype=torch.int32),
            "w": torch.tensor([[1.0, 2.0], [-3.0, 1.0]]),
            "w.scale": torch.tensor(1.0),
            "r.scale": torch.tensor(0.5),
        },
    )


INPUT = torch.tensor([[1.0, 2.0]])
