"""The benchmark of training steps: its tables, and the text of a section."""

from __future__ import annotations

import argparse

from benchmarks.qat_speed import PEERS, TABLES, jobs, key, section
from benchmarks.qat_speed_step import TOOLKITS


def test_each_toolkit_is_in_one_table() -> None:
    rows = [toolkit for table in TABLES.values() for toolkit in table.toolkits]
    assert sorted(rows) == sorted(TOOLKITS)
    assert set(PEERS) <= set(rows)
    assert len({table.section for table in TABLES.values()}) == len(TABLES)


def test_a_section_has_ratios_and_reasons() -> None:
    options = argparse.Namespace(
        table="quantized_training",
        toolkits=TABLES["quantized_training"].toolkits,
        networks=("resnet18",),
        modes=("eager", "compiled"),
        threads=1,
        rounds=2,
        quick=False,
    )
    wanted = list(jobs(options))
    assert len(wanted) == 2 * 2 * 2
    found = {"version": "1", "torch": "2", "float": 2.0, "quantized": 3.0}
    cells = {key(job): {"skipped": "Unsupported: why"} if job.compiled else found for job in wanted}
    text = section(cells, wanted, options)
    assert text.startswith("## Time and memory of a step with quantized gradients")
    assert "| qcompiler, int8 training | 1.50 / 1.50 | - / - |" in text
    assert "| torchao int8 training 1 | 1.50 / 1.50 | - / - |" in text
    assert text.count("resnet18, compiled: Unsupported: why") == 2
    assert "At most 1.6 eager and 1.25 compiled" in " ".join(text.split())
