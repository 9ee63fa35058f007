"""Rates and shares of an interval against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from errors import assert_says
from parallel_worker import tiny_config
from quadriga.distributed.environment import SINGLE, DistEnv
from quadriga.engine.build import build_on_meta
from quadriga.engine.meters import throughput
from quadriga.engine.meters.cost import measure
from quadriga.engine.meters.throughput import Interval, Work, measure_work

SECONDS = {"step": 2.0, "data": 0.5, "communication": 0.25}


def test_rates_and_shares() -> None:
    interval = Interval(Work(flops_per_sample=1e6, tokens_per_sample=16, peak_flops=4e7), 10.0)
    interval.add(20, SECONDS)
    interval.add(30, SECONDS)
    interval.add_stall(1.5)
    assert interval.fields(15.0) == {
        "step_seconds": 2.5,
        "data_wait_share": 0.2,
        "checkpoint_stall_share": 0.3,
        "communication_share": 0.1,
        "samples_per_second": 10.0,
        "tokens_per_second": 160.0,
        "flops_per_second": 1e7,
        "mfu": 0.25,
    }


def test_what_is_unknown_is_left_out_and_a_restart_forgets() -> None:
    interval = Interval(Work(), 0.0)
    interval.add(8, SECONDS)
    interval.add_stall(3.0)
    interval.restart(7.0)
    interval.add(8, {"step": 1.0})
    assert interval.fields(8.0) == {
        "step_seconds": 1.0,
        "data_wait_share": 0.0,
        "checkpoint_stall_share": 0.0,
        "samples_per_second": 8.0,
    }


def test_the_work_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config, said = tiny_config(["train.precision=bfloat16"]), []
    monkeypatch.setattr(throughput, "device_name", lambda device: "NVIDIA A100-SXM4-40GB")
    two = DistEnv(0, 2, 0, 2, torch.device("cpu"))
    work = measure_work(config, two, said.append)
    assert said == []
    assert work.tokens_per_sample == 16  # 16 px in patches of 4
    assert work.peak_flops == 2 * 312e12
    # Linear in the batch: what 5 samples cost, from another measurement.
    example = config.views.build("train").example(5, torch.device("meta"))
    assert work.flops_per_sample == measure(build_on_meta(config), example).model_flops / 5


def test_recomputation_does_not_count_as_model_flops() -> None:
    one = measure_work(tiny_config([]), SINGLE, print)
    full = measure_work(tiny_config(["train.recompute=full"]), SINGLE, print)
    assert one == full


def test_an_unknown_device_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(throughput, "device_name", lambda device: "Abacus 3")
    work = measure_work(tiny_config([]), SINGLE, said.append)
    (line,) = said
    assert_says(line, "FLOP/s", "Abacus 3")
    assert work.peak_flops is None
    assert work.flops_per_sample is not None


def test_a_model_that_the_meta_device_cannot_run_has_no_flops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("no kernel\nsecond line")

    said: list[str] = []
    monkeypatch.setattr(throughput, "measure", fail)
    work = measure_work(tiny_config([]), SINGLE, said.append)
    assert dataclasses.replace(work, tokens_per_sample=None) == Work()
    assert_says(said[0], "no kernel")
