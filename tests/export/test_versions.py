"""`trainer publish` and `trainer rollback`: versions side by side, one current, whole whatever happens meanwhile."""

import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest
import typer
from digits_classifier import SIGNATURE
from typer.testing import CliRunner

import trainer.cli.publish
from export.convert.tflite_metadata import with_metadata
from export.files.checksums import Checksums
from export.files.formats import FORMATS
from export.files.provenance import ExportProvenance
from export.files.version_proof import VersionChecksums
from export.versions.publish import CURRENT, current_version, find_versions, next_version, publish_version, roll_back
from export.versions.renumber import renumber
from trainer.errors import ArtifactError, ParityError, UsageError
from trainer.system import lock

PROJECT = pathlib.Path(trainer.cli.publish.__file__).parents[2]
app = typer.Typer()
app.command()(trainer.cli.publish.publish)
app.command()(trainer.cli.publish.rollback)


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def third(exported: Any) -> pathlib.Path:
    return exported.directory


@pytest.fixture(scope="module")
def fourth(third: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The same export under the next number, its card changed so that the two can be told apart."""
    directory = pathlib.Path(shutil.copytree(third, tmp_path_factory.mktemp("fourth") / "digits"))
    ExportProvenance.load(directory).model_copy(update={"version": 4}).save(directory)
    (directory / "saved_model/digits/3").rename(directory / "saved_model/digits/4")
    parity = (directory / "parity.json").read_text().replace("saved_model/digits/3", "saved_model/digits/4")
    (directory / "parity.json").write_text(parity)
    (directory / "MODEL_CARD.md").write_text("the fourth")
    Checksums.of(directory).save(directory)
    return directory


@pytest.fixture
def root(third: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A root with version 3 alone."""
    publish_version(third, tmp_path / "root")
    return tmp_path / "root"


def whole(directory: pathlib.Path) -> bool:
    Checksums.load(directory).verify(directory)
    return True


def test_the_last_published_version_is_current_and_the_others_stay(root: pathlib.Path, fourth: pathlib.Path) -> None:
    assert json.loads(invoke("publish", fourth, root, "--json")) == {
        "schema_version": 1, "current": 4, "before": 3, "versions": [3, 4],
    }  # fmt: skip
    assert (root / CURRENT / "MODEL_CARD.md").read_text() == "the fourth"
    # What TensorFlow Serving is given as a base path holds the current version alone.
    assert [path.name for path in (root / CURRENT / "saved_model/digits").iterdir()] == ["4"]
    assert whole(root / "3") and whole(root / "4")


def test_a_rollback_goes_to_the_version_before_and_comes_back(root: pathlib.Path, fourth: pathlib.Path) -> None:
    publish_version(fourth, root)
    assert f"{root / CURRENT} is version 3, version 4 before" in invoke("rollback", root).replace("\n", "")
    assert [path.name for path in (root / CURRENT / "saved_model/digits").iterdir()] == ["3"]
    invoke("rollback", root, "--to", 4)
    assert current_version(root) == 4


def test_publishing_an_export_twice_is_once(root: pathlib.Path, third: pathlib.Path, fourth: pathlib.Path) -> None:
    publish_version(fourth, root)
    assert publish_version(third, root).now == 3
    assert find_versions(root) == [3, 4]


def test_another_export_does_not_take_a_number_that_is_taken(
    root: pathlib.Path, third: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    other = pathlib.Path(shutil.copytree(third, tmp_path / "other"))
    (other / "MODEL_CARD.md").write_text("another")
    Checksums.of(other).save(other)
    with pytest.raises(ArtifactError, match=r"is another export of version 3; export this one again with --version 4"):
        publish_version(other, root)
    assert (root / "3/MODEL_CARD.md").read_text() == (third / "MODEL_CARD.md").read_text()


@pytest.fixture
def counted(third: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Another export, whose version nobody asked for."""
    directory = pathlib.Path(shutil.copytree(third, tmp_path / "counted"))
    ExportProvenance.load(directory).model_copy(update={"version_counts_up": True}).save(directory)
    Checksums.of(directory).save(directory)
    return directory


def test_a_version_that_nobody_asked_for_counts_up_where_it_is_published(
    root: pathlib.Path, counted: pathlib.Path
) -> None:
    from export.gate.replay import verify_export

    answer = json.loads(invoke("publish", counted, root, "--json"))
    assert (answer["current"], answer["versions"]) == (4, [3, 4])
    published = root / "4"
    for name in ("MODEL_CARD.md", "README.md", "parity.json"):
        text = (published / name).read_text()
        assert "saved_model/digits/4" in text and "digits/3" not in text
    for path in (published / "tflite").iterdir():
        content, original = path.read_bytes(), (counted / "tflite" / path.name).read_bytes()
        assert content == with_metadata(original, SIGNATURE, 4) != original == with_metadata(content, SIGNATURE, 3)
    # It answers, in every format, what the export did.
    verify_export(published).raise_on_failure()
    provenance = ExportProvenance.load(published)
    assert provenance.version == 4 and "--version 4" in " ".join(provenance.command)


def test_publishing_it_twice_is_once_and_the_way_back_leads_to_it(root: pathlib.Path, counted: pathlib.Path) -> None:
    invoke("publish", counted, root)
    roll_back(root)
    assert publish_version(counted, root) == (3, 4)
    assert find_versions(root) == [3, 4]


def test_the_next_export_to_a_place_is_the_next_version(third: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert next_version(tmp_path / "absent", "digits") == next_version(tmp_path, "digits") == 1
    assert next_version(third, "digits") == 4
    assert next_version(third, "letters") == 1, "versions are counted for each model"


def test_a_changed_export_is_not_published_and_a_changed_version_is_not_gone_back_to(
    root: pathlib.Path, fourth: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    changed = pathlib.Path(shutil.copytree(fourth, tmp_path / "changed"))
    (changed / "labels.txt").write_text("nothing\n")
    with pytest.raises(ParityError, match=r"labels\.txt was changed"):
        publish_version(changed, root)
    assert find_versions(root) == [3] and current_version(root) == 3
    publish_version(fourth, root)
    (root / "3/labels.txt").write_text("nothing\n")
    with pytest.raises(ParityError, match=r"labels\.txt was changed"):
        roll_back(root)
    assert current_version(root) == 4


def test_an_export_over_budget_is_not_published(
    root: pathlib.Path, fourth: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    failed = pathlib.Path(shutil.copytree(fourth, tmp_path / "failed"))
    report = json.loads((failed / "parity.json").read_bytes())
    report["comparisons"][0]["failure"] = "it differs"
    (failed / "parity.json").write_text(json.dumps(report))
    Checksums.of(failed).save(failed)
    with pytest.raises(ParityError, match="it differs"):
        publish_version(failed, root, allow_failed=True)
    report["comparisons"][0]["allowed"] = True
    (failed / "parity.json").write_text(json.dumps(report))
    Checksums.of(failed).save(failed)
    with pytest.raises(ParityError, match="it differs"):
        publish_version(failed, root)
    assert find_versions(root) == [3]
    # Twice on request: when it was exported, and now.
    invoke("publish", failed, root, "--allow-failed")
    assert find_versions(root) == [3, 4]


KILLED = {
    "while it is copied": "export.files.checksums.sha256_of",
    "before the copy has its name": "trainer.system.atomic.sync_directory",
    "before it is current": "os.replace",
}
# In each root, given with the function in which it happens, a process of its own publishes and is killed.
KILLER = """
import os, pathlib, signal, sys, unittest.mock
import export.gate.run_gate
from export.versions.publish import publish_version
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
for place, root in zip(sys.argv[2::2], sys.argv[3::2]):
    child = os.fork()
    if child == 0:
        with unittest.mock.patch(place, die):
            publish_version(pathlib.Path(sys.argv[1]), pathlib.Path(root))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, place
"""


@pytest.fixture(scope="module")
def killed(
    third: pathlib.Path, fourth: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, pathlib.Path]:
    """Roots with version 3, in each of which the publication of version 4 was killed."""
    roots = {moment: tmp_path_factory.mktemp("killed") / "root" for moment in KILLED}
    for root in roots.values():
        publish_version(third, root)
    arguments = [argument for moment, root in roots.items() for argument in (KILLED[moment], str(root))]
    subprocess.run(
        [sys.executable, "-c", KILLER, str(fourth), *arguments],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        check=True,
        timeout=600,
    )
    return roots


@pytest.mark.parametrize("moment", list(KILLED))
def test_a_kill_leaves_the_old_version_whole_and_current(
    moment: str, killed: dict[str, pathlib.Path], fourth: pathlib.Path
) -> None:
    root = killed[moment]
    assert current_version(root) == 3 and whole(root / CURRENT)
    assert all(whole(root / str(version)) for version in find_versions(root))
    assert publish_version(fourth, root).now == 4
    assert sorted(path.name for path in root.iterdir()) == [".lock", "3", "4", CURRENT]


def test_a_rollback_that_had_to_wait_goes_back_from_what_is_current_then(
    root: pathlib.Path, third: pathlib.Path, fourth: pathlib.Path
) -> None:
    publish_version(fourth, root)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        with lock.hold(root / ".lock"):
            waiting = pool.submit(roll_back, root)
            while "->" not in pathlib.Path("/proc/locks").read_text():
                time.sleep(0.01)
            # Another writer, which has the lock, has gone back meanwhile: below version 3 there is nothing.
            (root / CURRENT).unlink()
            (root / CURRENT).symlink_to("3")
        with pytest.raises(ArtifactError, match="has no version below 3, the current one"):
            waiting.result()
    assert current_version(root) == 3


def test_what_is_no_root_and_no_version_is_refused(
    root: pathlib.Path, third: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match="holds something other than versions"):
        publish_version(third, tmp_path / "photos")
    with pytest.raises(UsageError, match="is not a local path"):
        publish_version(third, pathlib.Path("gs://bucket/models"))
    with pytest.raises(ArtifactError, match="is not a finished export"):
        publish_version(tmp_path / "photos", root)
    with pytest.raises(ArtifactError, match=r"has no version below 3, the current one \(it has 3\)"):
        roll_back(root)
    with pytest.raises(ArtifactError, match=r"has no version 9 \(it has 3\)"):
        roll_back(root, 9)
    with pytest.raises(ArtifactError, match="has no current version"):
        roll_back(tmp_path / "photos")


def test_a_root_is_of_one_model(root: pathlib.Path, fourth: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other = pathlib.Path(shutil.copytree(fourth, tmp_path / "other"))
    ExportProvenance.load(other).model_copy(update={"model_name": "letters"}).save(other)
    Checksums.of(other).save(other)
    with pytest.raises(ArtifactError, match="holds versions of digits, not of letters"):
        publish_version(other, root)


def test_an_export_says_where_it_comes_from(third: pathlib.Path) -> None:
    provenance = ExportProvenance.load(third)
    assert (provenance.version, provenance.run.name, provenance.run.global_step) == (3, "digits-run", 228)
    assert provenance.dataset.num_images_compared == 300
    assert "tensorflow" in provenance.packages
    assert " ".join(provenance.command) == (
        f"trainer export RUN --out EXPORT --formats {','.join(FORMATS)} --which best --weights raw --name digits "
        "--version 3 --parity-images 0 --onnx-opset 18 --no-calibrate"
    )
    assert str(third.parent) not in (third / "provenance.json").read_text()


def test_a_renumbered_version_still_proves_itself(third: pathlib.Path, tmp_path: pathlib.Path) -> None:
    directory = pathlib.Path(shutil.copytree(third, tmp_path / "digits"))
    renumber(directory, 9)
    Checksums.load(directory).verify(directory)
    version = directory / "saved_model/digits/9"
    VersionChecksums.load(version).verify(version)
    assert VersionChecksums.load(version) == VersionChecksums.load(third / "saved_model/digits/3")
