import json
import os
import subprocess
import sys

import pytest

from trainer.environment import collect, recorded_variables


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
        "from trainer.environment import collect\n"
        "collect()\n"
        "import tensorflow as tf\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)\n"
        "assert len(tf.config.list_logical_devices('CPU')) == 2\n"
        "collect()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
