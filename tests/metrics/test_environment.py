import json
import os
import subprocess
import sys

import pytest

from trainer.system.environment import collect, recorded_variables
from trainer.system.nvidia_smi import list_driver_gpus


@pytest.fixture(scope="module")
def collected() -> dict:
    return collect(["trainer", "launch", "--run-dir", "my run"])


def test_it_holds_strict_json_and_what_explains_a_figure(collected):
    assert json.loads(json.dumps(collected, allow_nan=False)) == collected
    assert collected["schema_version"] == 1
    assert collected["command"] == "trainer launch --run-dir 'my run'"
    assert collected["python"] == ".".join(map(str, sys.version_info[:3]))
    assert collected["packages"]["tensorflow"].startswith("2.")
    assert collected["cpu"]["num_usable_cores"] == len(os.sched_getaffinity(0))
    assert collected["memory_bytes"] > 2**28
    assert set(collected["tensorflow_build"]) == {"is_cuda_build", "cuda_version", "cudnn_version"}


def test_the_gpus_are_those_that_tensorflow_sees(collected):
    import tensorflow as tf

    assert len(collected["gpus"]) == len(tf.config.list_physical_devices("GPU"))


def test_only_variables_of_the_allow_list_are_recorded():
    wanted = {
        "XLA_FLAGS": "--xla_gpu_autotune_level=2",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "OMP_NUM_THREADS": "4",
        "TF_ENABLE_ONEDNN_OPTS": "1",
        "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
    }
    secret = {
        "TF_VAR_password": "hunter2",  # Terraform's, as the next one
        "TF_TOKEN_app_terraform_io": "hunter2",
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "HOME": "/home/someone",
        "MY_XLA_FLAGS": "x",
    }
    assert recorded_variables({**wanted, **secret}.items()) == wanted


def test_devices_can_still_be_configured_afterwards():
    program = (
        "from trainer.system.environment import collect\n"
        "collect()\n"
        "import tensorflow as tf\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)\n"
        "assert len(tf.config.list_logical_devices('CPU')) == 2\n"
        "collect()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


ODD_ANSWERS = {
    "as it should be": ("Tesla T4, 15360, 470.57.02", [("Tesla T4", 15360 * 2**20, "470.57.02")]),
    "no memory known": ("NVIDIA GB10, [N/A], 580.95.05", [("NVIDIA GB10", None, "580.95.05")]),
    "not supported": ("[Not Supported], [Not Supported], [Not Supported]", [(None, None, None)]),
    "without what was not asked": ("NVIDIA H100 80GB HBM3, 550.54.15", [("NVIDIA H100 80GB HBM3", None, "550.54.15")]),
    "with units": ("Tesla T4, 15360 MiB, 470.57.02", [("Tesla T4", 15360 * 2**20, "470.57.02")]),
    "a warning among them": (
        "WARNING: infoROM is corrupted at gpu 0000:00:1E.0\nTesla T4, 15360, 470.57.02",
        [("Tesla T4", 15360 * 2**20, "470.57.02")],
    ),
    "no devices": ("No devices were found", []),
    "a sentence with commas": ("Unable to determine the device handle for GPU 0, which is lost, Unknown Error", []),
    "slices": ("  MIG 1g.5gb Device 0:\nA100, [Insufficient Permissions], 535.1", [("A100", None, "535.1")]),
    "nothing": ("", []),
    "not UTF-8": ("Grafik\\377karte, 8192, 1.2", [("Grafik\ufffdkarte", 8192 * 2**20, "1.2")]),
}  # fmt: skip


@pytest.mark.parametrize("answer", ODD_ANSWERS)
def test_whatever_nvidia_smi_prints_the_gpus_are_those_that_it_names(answer, tmp_path, monkeypatch):
    said, expected = ODD_ANSWERS[answer]
    pretend_nvidia_smi(tmp_path, f"printf '{said}'", monkeypatch)
    assert [(gpu.name, gpu.memory_bytes, gpu.driver) for gpu in list_driver_gpus()] == expected
    assert collect([])["gpus"] == [], "TensorFlow sees none here"


@pytest.mark.parametrize("script", ["exit 9", "kill -9 $$", "printf '\\377'; exit 1"])
def test_an_nvidia_smi_that_fails_is_none(script, tmp_path, monkeypatch):
    pretend_nvidia_smi(tmp_path, script, monkeypatch)
    assert list_driver_gpus() is None
    (tmp_path / "nvidia-smi").write_text("no program at all")
    assert list_driver_gpus() is None or list_driver_gpus() == []


def pretend_nvidia_smi(place, script, monkeypatch):
    (place / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (place / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)
