"""Plans, wrong input and evaluation through the library surface that `trainer launch` itself calls."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests import small_backbone
from trainer.cli.app import main
from trainer.config.config import load_config
from trainer.data.dataset.manifest import Manifest
from trainer.data.dataset.split_reader import SplitReader
from trainer.data.preparation.prepare import PrepareOptions, prepare_dataset
from trainer.distribute.mirrored import make_engine
from trainer.distribute.topology import Topology
from trainer.errors import DataError, TrainingError, UsageError
from trainer.evaluation.evaluate_run import evaluate_run
from trainer.launch.plan_run import plan_run
from trainer.launch.start_run import start_run
from trainer.metrics.calibration import fit_temperature
from trainer.metrics.evaluation import Evaluation, load_arrays
from trainer.run.run_dir import RunDir
from trainer.training.batches import staged_batches
from trainer.training.input import TrainInputs, make_training_stream

pytestmark = pytest.mark.slow

SMALL = [
    "distribute.device=cpu",
    *small_backbone.SETTINGS,
    "model.image_size_px=32",
    "model.trainable=head",
    "train.epochs=1",
    "optimizer.learning_rate=0.01",
]


def no_note(_: str) -> None: ...


@pytest.fixture(scope="module")
def run(digits: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run of one epoch."""
    config = load_config(overrides=[*SMALL, f"data.path={digits}"])
    planned = plan_run(config, run_dir=tmp_path_factory.mktemp("runs") / "run", resume=True, note=no_note)
    start_run(planned, no_note)
    return planned.run


def exit_status(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["trainer", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--gpus=8"], "finds 0 GPUs on this machine; use --device cpu --replicas 2"),
        (["--device=cpu", "--gpus=1"], "exclude each other"),
        (["--replicas=2"], "add --device cpu"),
        (["--device=cpu", "--set=train.epoch=2"], "did you mean 'train.epochs'"),
        (["--device=cpu", "--set=train.epochs=two"], "should be a valid number"),
        (["--device=cpu", "--set=model.backbone=resnet5"], "the nearest names are"),
        (["--device=cpu", "--replicas=4", "--set=train.global_batch_size=4"], "too small for 4 replicas"),
        (
            ["--device=cpu", "--replicas=3", "--set=train.global_batch_size=64", "--strict-batch"],
            "cannot share evenly",
        ),
        (["--device=cpu", "--set=model.weights=nowhere.safetensors", "--set=model.image_size_px=32"], "does not exist"),
        (["--device=cpu", "--config=nowhere.yaml"], "the recipe nowhere.yaml does not exist"),
        (["--device=cpu", "--hosts=a:2,b:2"], "needs a strategy of several processes"),
        (["--device=cpu", "--hosts=a:0", "--strategy=horovod"], "expected at least 1"),
        (["--device=cpu", "--set=model.batch_norm=synchronized", "--xla=on"], "use --xla auto"),
        (["--device=cpu", "--set=model.batch_norm=synchronized", "--set=model.trainable=head"], "keeps its statistics"),
        (
            ["--device=cpu", "--set=model.batch_norm=synchronized", "--set=train.accumulate_steps=2"],
            "computes it in parts",
        ),
        (["--device=cpu", "--set=train.accumulate_steps=40"], "use at most 32"),
        (["--device=cpu", "--set=optimizer.warmup_epochs=20"], "longer than the run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_sentence_with_the_fix_and_status_2(
    digits: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    answer: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status = exit_status(monkeypatch, "launch", f"--data={digits}", f"--run-dir={tmp_path / 'run'}", *arguments)
    stderr = capfd.readouterr().err
    assert status == 2
    assert "error: " in stderr and "Traceback" not in stderr
    assert answer in stderr, stderr


@pytest.mark.parametrize("data", ["missing", "empty", "one class"])
def test_data_that_cannot_be_trained_on_is_refused_with_status_2(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], data: str
) -> None:
    folder = tmp_path / "images"
    if data != "missing":
        folder.mkdir()
    if data == "one class":
        (folder / "cat").mkdir()
        (folder / "cat" / "1.png").write_bytes(b"not looked at")
    assert exit_status(monkeypatch, "launch", f"--data={folder}", "--device=cpu") == 2
    assert str(folder) in capfd.readouterr().err


def test_a_launch_without_data_says_how_to_name_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_status(monkeypatch, "launch", "--device=cpu") == 2
    assert "give --data DATASET" in capfd.readouterr().err


def test_an_index_that_fails_its_checksum_is_named_before_the_start(
    digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(digits, damaged)
    index = sorted(damaged.glob("train-*.idx"))[0]
    content = bytearray(index.read_bytes())
    content[len(content) // 2] ^= 1
    index.write_bytes(content)
    config = load_config(overrides=[*SMALL, f"data.path={damaged}"])
    planned = plan_run(config, run_dir=tmp_path / "run", resume=True, note=no_note)
    with pytest.raises(UsageError, match=f"{index.name} fails its checksum"):
        start_run(planned, no_note)
    assert not (tmp_path / "run").exists()


def test_a_run_directory_that_holds_another_run_is_refused(run: RunDir, digits: pathlib.Path) -> None:
    other = load_config(overrides=[*SMALL, f"data.path={digits}", "train.seed=5"])
    with pytest.raises(UsageError, match=r"its train\.seed is 0, and now 5; give --run-dir"):
        plan_run(other, run_dir=run.path, resume=True, note=no_note)
    same = load_config(overrides=[*SMALL, f"data.path={digits}"])
    with pytest.raises(UsageError, match="--no-resume"):
        plan_run(same, run_dir=run.path, resume=False, note=no_note)


def test_without_a_run_dir_an_unfinished_run_of_the_same_configuration_goes_on(
    digits: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(overrides=[*SMALL, f"data.path={digits}"])
    first = plan_run(config, run_dir=None, resume=True, note=no_note)
    first.run.create(config, first.plan.run_info(config, "first"))
    assert plan_run(config, run_dir=None, resume=True, note=no_note).run.path == first.run.path
    other = load_config(overrides=[*SMALL, f"data.path={digits}", "train.seed=5"])
    assert not plan_run(other, run_dir=None, resume=True, note=no_note).run.exists()


def test_the_run_directory_tells_everything_of_the_run(run: RunDir) -> None:
    assert run.config().model.image_size_px == 32
    info = run.info()
    assert info.weights == "bundled" and info.precision == "float32" and info.batch_norm == "frozen"
    for path in (run.plan_file, run.environment_file, run.metrics_file):
        assert path.stat().st_size > 0
    assert list(run.tensorboard_dir.rglob("events.out.*"))


def test_evaluation_gives_the_same_numbers_on_any_number_of_replicas(run: RunDir, digits: pathlib.Path) -> None:
    results = []
    for num_replicas, batch_size in ((1, 32), (1, 7), (3, 8)):
        strategy = "single" if num_replicas == 1 else "mirrored"
        topology = Topology(strategy=strategy, device="cpu", num_local_replicas=num_replicas)
        evaluation = evaluate_run(run, "test", make_engine(topology), per_replica_batch_size=batch_size)
        results.append(evaluation)
    assert {e.num_examples for e in results} == {
        sum(results[0].confusion_matrix[i][j] for i in range(10) for j in range(10))
    }
    assert len({e.accuracy for e in results}) == 1
    np.testing.assert_allclose([e.loss for e in results], results[0].loss, rtol=1e-6)
    assert results[0].confusion_matrix == results[1].confusion_matrix == results[2].confusion_matrix


def test_the_test_split_is_evaluated_with_what_was_tuned_on_validation(run: RunDir, tmp_path: pathlib.Path) -> None:
    shutil.rmtree(run.evaluation_dir, ignore_errors=True)
    engine = make_engine(Topology(strategy="single", device="cpu", num_local_replicas=1))
    notes: list[str] = []
    table = tmp_path / "photographers.csv"
    table.write_text("example,by\n0,Ann\n1,Ann\n2,Bob\n")
    first = evaluate_run(run, "test", engine, slice_columns=["format"], slice_file=table, note=notes.append)
    validation = Evaluation.load(run.evaluation_dir, "validation")
    assert first.tuning == validation.tuning and first.tuning is not None
    assert len(notes) == 1 and "validation split first" in notes[0]
    assert first.dataset_hash == validation.dataset_hash == run.info().dataset_hash
    labels, logits = load_arrays(run.evaluation_dir, validation)
    assert fit_temperature(labels, logits, "single_label") == pytest.approx(first.tuning.temperature)
    sizes = {(s.column, s.value): s.num_examples for s in first.slices}
    num_others = first.num_examples - 3
    assert sizes == {
        ("format", "png"): first.num_examples, ("by", "Ann"): 2, ("by", "Bob"): 1, ("by", "(none)"): num_others
    }  # fmt: skip
    again = evaluate_run(run, "test", engine, note=notes.append)
    assert len(notes) == 1, "what stands is used"
    assert again == first.model_copy(update={"slices": []})
    other = evaluate_run(run, "test", engine, weights="raw", note=notes.append)
    assert len(notes) == 2 and other.tuning is not None, "those of other weights are not"


def test_the_command_prints_figures_for_a_person_or_all_of_them_for_a_program(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = ["evaluate", str(run.path), "--device=cpu", "--split=test", "--slice=format"]
    assert exit_status(monkeypatch, *arguments) == 0
    text = capsys.readouterr().out
    evaluation = Evaluation.load(run.evaluation_dir, "test")
    assert evaluation.tuning is not None and evaluation.intervals is not None
    low, high = evaluation.accuracy_interval
    assert f"test: accuracy {evaluation.accuracy:.4f} (95% interval {low:.4f} to {high:.4f})" in text
    low, high = evaluation.intervals.macro_f1 or (0, 0)
    assert f"macro F1 {evaluation.macro.f1:.4f} ({low:.4f} to {high:.4f})" in text
    assert f"calibration error {evaluation.calibration.ece:.4f}; with the temperature" in text
    assert f"format png: {evaluation.accuracy:.4f}" in text
    assert exit_status(monkeypatch, *arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out) == evaluation.model_dump(mode="json")


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("", "is empty"),
        ("name,by\n1,Ann\n", "exactly one of filename and example"),
        ("filename,example,by\na,0,Ann\n", "exactly one of filename and example"),
        ("example\n0\n", "at least one other column"),
        ("example,by\n0,Ann,1\n", "line 2 of .* has 3 values, but the header has 2"),
        ("example,by\n0,Ann\n0,Bob\n", "'0' more than once"),
        ("example,by\n99999,Ann\n", "no line of .* is about an example of the split"),
        ("example,format\n0,Ann\n", "which is also asked of the records"),
    ],
)
def test_a_table_to_slice_by_that_does_not_fit_is_an_error_before_the_work(
    run: RunDir, tmp_path: pathlib.Path, content: str, answer: str
) -> None:
    engine = make_engine(Topology(strategy="single", device="cpu", num_local_replicas=1))
    (tmp_path / "table.csv").write_text(content)
    with pytest.raises(DataError, match=answer):
        evaluate_run(run, "test", engine, slice_columns=["format"], slice_file=tmp_path / "table.csv")


def test_an_unknown_column_names_those_that_there_are(run: RunDir) -> None:
    engine = make_engine(Topology(strategy="single", device="cpu", num_local_replicas=1))
    with pytest.raises(DataError, match="no column 'camera'; they have folder, format, height, width, weight"):
        evaluate_run(run, "test", engine, slice_columns=["camera"])


def test_gradients_that_are_not_finite_end_the_run_with_the_batch_saved(
    digits: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    # The first step gives weights that all later ones overflow with.
    overrides = [*SMALL, f"data.path={digits}", "optimizer.learning_rate=1e38", "train.max_skipped_steps=3"]
    sizes = ["model.image_size_px=36", "augment.progressive_sizes_px=[32,36]", "augment.preset=strong"]
    config = load_config(overrides=[*overrides, *sizes, "train.global_batch_size=100", "log.every_steps=1"])
    planned = plan_run(config, run_dir=tmp_path / "run", resume=True, note=no_note)
    with pytest.raises(TrainingError, match=r"3 steps up to step 4 were skipped.* the batch of step 4 is in"):
        start_run(planned, no_note)
    saved = np.load(planned.run.bad_batch_file)
    assert int(saved["step"]) == 4
    # As the step got it: in the size of its stage, with what the random changes on the device are made of.
    stream = make_training_stream(planned.plan, config, planned.topology, TrainInputs())
    made = next(staged_batches(planned.plan.schedule.stages, make_engine(planned.topology), stream, first_step=3))
    for name in ("images", "weights", "positions", "randomness"):
        np.testing.assert_array_equal(saved[name], getattr(made, name))
    assert saved["images"].shape == (100, 32, 32, 3) and saved["randomness"].size
    assert len(set(saved["examples"].tolist())) == 100
    with SplitReader(digits, Manifest.load(digits), "train") as reader:
        np.testing.assert_array_equal(saved["labels"], reader.labels()[saved["examples"]])


def test_a_raw_folder_is_prepared_once_beside_itself(tmp_path: pathlib.Path) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(random.integers(0, 256, [20, 30, 3], dtype=np.uint8)).save(
                tmp_path / "pets" / name / f"{i}.png"
            )
    config = load_config(overrides=[*SMALL, f"data.path={tmp_path / 'pets'}"])
    first = plan_run(config, run_dir=tmp_path / "run", resume=True, note=no_note)
    written = pathlib.Path(first.plan.data.dataset_dir, "manifest.json").stat().st_mtime_ns
    second = plan_run(config, run_dir=tmp_path / "run", resume=True, note=no_note)
    assert first.plan == second.plan
    assert pathlib.Path(second.plan.data.dataset_dir, "manifest.json").stat().st_mtime_ns == written
    assert first.plan.data.class_names == ["cat", "dog"]


def test_digits_prepared_with_another_seed_are_another_run(digits: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = tmp_path / "digits"
    prepare_dataset("digits", other, options=PrepareOptions(seed=1))
    plans = [
        plan_run(
            load_config(overrides=[*SMALL, f"data.path={path}"]), run_dir=tmp_path / "run", resume=True, note=no_note
        ).plan
        for path in (digits, other)
    ]
    assert plans[0].data.dataset_hash != plans[1].data.dataset_hash
