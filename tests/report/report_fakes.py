"""Run directories as a run leaves them."""

import base64
import json

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJg"
    "gg=="
)

RESULTS = [
    {
        "protocol": "knn",
        "numbers": {"top1": 45.31, "top5": 88.25, "top1_random": 31.2, "top5_random": 90.5},
        "pictures": {},
        "details": {"neighbours": 20, "temperature": 0.07},
    },
    {
        "protocol": "linear_probe",
        "numbers": {"top1": 56.72, "top1_random": 38.41},
        "pictures": {},
        "details": {"learning_rate": 0.03},
    },
    {
        "protocol": "reconstruction",
        "numbers": {"masked_mse": 0.38125},
        "pictures": {"reconstruction.png": "8 test images"},
        "details": {},
    },
]


def record(step, **values):
    return {
        "step": step,
        "epoch": step * 8 / 100,
        "samples": step * 8,
        "loss": 1.0 / step + 0.25,
        "lr": 1e-3,
        "grad_norm": 2.0,
        "step_seconds": 0.5,
        "data_wait_share": 0.015,
        "samples_per_second": 16.0,
        "memory_gib": 1.5,
        "eta_seconds": 90.0,
        **values,
    }


def write_run(folder, *, steps=40, config=None, environment=None, results=RESULTS):
    (folder / "report").mkdir(parents=True)
    tree = {"name": "mae_tiny", "seed": 3, "objective": {"kind": "mae"}, "model": {"kind": "vit"}}
    tree |= {"data": {"kind": "digits"}, "train": {"epochs": 4.0, "steps": None}, **(config or {})}
    sources = {"name": "recipe", "train.epochs": "command line", "seed": "default"}
    environment = {
        "quadriga": "0.1.0",
        "device_name": "A processor",
        "cores": 2,
        "world_size": 1,
        "parameters": 5_812_345,
        "command": "quadriga train mae_tiny train.epochs=4",
        "started": "2025-11-21T08:12:33+00:00",
        **(environment or {}),
    }
    (folder / "config.json").write_text(json.dumps({"config": tree, "sources": sources}))
    (folder / "environment.json").write_text(json.dumps(environment))
    lines = [json.dumps(record(step)) + "\n" for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    if results is not None:
        text = json.dumps({"step": steps, "results": results})
        (folder / "report" / "evaluation.json").write_text(text)
        (folder / "report" / "reconstruction.png").write_bytes(PIXEL)
    return folder
