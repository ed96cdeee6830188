"""Features on several replicas: each computes its share, and all train on the same, also where a disk is not shared."""

import pathlib
import subprocess
import sys
import threading
from typing import Any, ClassVar

import numpy as np
import pytest
from feature_runs import SETTINGS, FinishedRun, finish_run, make_config

from tests import small_backbone
from trainer.console.task_progress import show_nothing
from trainer.data.dataset.storage import parse_path
from trainer.data.decode.geometry import Geometry
from trainer.data.input.pixel_cache import decode_split
from trainer.distribute.topology import Topology
from trainer.features.extract import Extraction
from trainer.features.store import Features
from trainer.features.trunk import Cut, cut_classifier
from trainer.model.classifier import build_classifier
from trainer.plan.plan import make_plan

pytestmark = pytest.mark.slow

NUM_WORKERS = 3


class ThreadedEngine:
    """Workers that are threads of this process, with what extraction needs of an engine."""

    _barrier = threading.Barrier(NUM_WORKERS, timeout=600)
    _given: ClassVar[dict[int, np.ndarray[Any, Any]]] = {}

    def __init__(self, worker_index: int) -> None:
        self.topology = Topology(
            strategy="horovod", device="cpu", num_local_replicas=1, num_workers=NUM_WORKERS, worker_index=worker_index
        )

    def gather_from_workers(self, array: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        self._given[self.topology.worker_index] = array
        self._barrier.wait()
        gathered = [self._given[i] for i in range(NUM_WORKERS)]
        self._barrier.wait()
        return gathered

    def any(self, flag: bool) -> bool:
        return any(bool(value) for value in self.gather_from_workers(np.array(flag)))

    def barrier(self) -> None:
        self.any(False)


@pytest.fixture(scope="module")
def cut() -> Cut:
    backbone = str(small_backbone.PATH)
    model = build_classifier(backbone=backbone, pixels="0-1", num_classes=10, image_size_px=32, trainable="head")
    found = cut_classifier(model)
    assert found is not None
    return found


def extract_on(worker_index: int, dataset_dir: pathlib.Path, store: pathlib.Path, cut: Cut) -> dict[str, Features]:
    config = make_config(dataset_dir, f"features.dir={store}")
    engine: Any = ThreadedEngine(worker_index)
    alone = Topology(strategy="single", device="cpu", num_local_replicas=1)
    return Extraction(
        plan=make_plan(config, parse_path(str(dataset_dir)), alone, []).features,
        config=config,
        dataset_dir=str(dataset_dir),
        geometry=Geometry(image_size_px=32, resize="crop"),
        precision="float32",
        jit_compile=False,
        engine=engine,
        cut=cut,
        pixels={},
        progress=show_nothing,
        note=lambda _: None,
    ).features()


@pytest.mark.parametrize("is_shared", [True, False], ids=["one disk", "a disk each"])
def test_workers_compute_a_share_each_and_all_have_the_features_of_every_image(
    few_digits: pathlib.Path, tmp_path: pathlib.Path, cut: Cut, is_shared: bool
) -> None:
    stores = [tmp_path / ("store" if is_shared else f"store{i}") for i in range(NUM_WORKERS)]
    found: dict[int, dict[str, Features]] = {}

    def work(i: int) -> None:
        found[i] = extract_on(i, few_digits, stores[i], cut)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(NUM_WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=600)
    for split, num_examples in (("train", 120), ("validation", 20)):
        images = np.concatenate(
            list(decode_split(few_digits, split, Geometry(image_size_px=32, resize="crop")))  # type: ignore[arg-type]
        )
        expected = np.asarray(cut.trunk(images.astype(np.float32), training=False))
        assert len(expected) == num_examples
        for i in range(NUM_WORKERS):
            np.testing.assert_allclose(found[i][split], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert all(len(list(store.glob("*/features.float32"))) == 2 for store in stores)


def test_two_replicas_of_one_process_train_on_features_as_one_does(
    few_digits: pathlib.Path, tmp_path: pathlib.Path, cached_run: FinishedRun
) -> None:
    run = finish_run(
        few_digits,
        tmp_path / "run",
        "features.runtime=tensorflow",
        "distribute.strategy=mirrored",
        "distribute.replicas=2",
        f"features.dir={tmp_path / 'store'}",
    )
    np.testing.assert_allclose(run.metrics("loss"), cached_run.metrics("loss"), rtol=1e-5)
    np.testing.assert_allclose(run.metrics("loss", "validation"), cached_run.metrics("loss", "validation"), rtol=1e-5)


@pytest.mark.parametrize("strategy", [pytest.param("horovod", marks=pytest.mark.horovod), "multiworker"])
def test_a_job_of_two_processes_trains_on_features_as_one_replica_does(
    few_digits: pathlib.Path, tmp_path: pathlib.Path, cached_run: FinishedRun, strategy: str
) -> None:
    settings = [f"--set={setting}" for setting in (*SETTINGS, f"features.dir={tmp_path / 'store'}")]
    command = [sys.executable, "-m", "trainer", "launch", f"--data={few_digits}", f"--run-dir={tmp_path / 'run'}"]
    job = subprocess.run(
        [*command, f"--strategy={strategy}", "--replicas=2", *settings],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert job.returncode == 0, job.stdout + job.stderr
    assert "computed once, by ONNX Runtime" in job.stderr
    run = FinishedRun(tmp_path / "run", cached_run.plan, [])
    np.testing.assert_allclose(run.metrics("loss"), cached_run.metrics("loss"), rtol=1e-3)
