import pytest

from gpt_pjit.core.chips import chip_of_kind
from gpt_pjit.core.runtime import metrics
from gpt_pjit.core.runtime.metrics import MetricsWriter, Throughput
from tests.helpers import load_config
from tests.processes import logged


def test_a_resumed_run_replaces_the_lines_of_steps_that_it_redoes(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    for step in (1, 2, 3):
        writer.write(step, {"train/loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # cut short by a kill
    writer = MetricsWriter(tmp_path, 2)
    writer.write(3, {"train/loss": 30.0})
    writer.close()
    assert [(line["step"], line["train/loss"]) for line in logged(tmp_path)] == [
        (1, 1.0),
        (2, 2.0),
        (3, 30.0),
    ]


def test_throughput_and_mfu(monkeypatch):
    monkeypatch.setattr(metrics, "chip_of_kind", lambda _: chip_of_kind("TPU v3"))  # v3-32
    throughput = Throughput(load_config("580m"), n_params=586_931_712)
    measured = throughput.of({"from": 4, "to": 5, "seconds": 2.0}, waited=0.5)
    assert measured["throughput/tokens_per_second"] == pytest.approx(512 * 1024 / 2)
    assert measured["throughput/data_wait"] == 0.25
    flops = 6 * 586_931_712 + 12 * 18 * 1536 * 1024
    assert measured["throughput/mfu"] == pytest.approx(512 * 1024 / 2 * flops / (32 * 61.5e12))
