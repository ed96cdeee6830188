"""`tfds:NAME[/CONFIG][:VERSION]`: a dataset of TensorFlow Datasets with an image and a label, or several.

It is downloaded and prepared in the folder of TensorFlow Datasets (`TFDS_DATA_DIR`, or ~/tensorflow_datasets), unless
it is already there. Images are copied to the workspace byte by byte, because most of its file formats have no random
access. The splits `validation` and `test` are kept, `prepare` divides the others; a split without labels, as some test
splits are, is left out.
"""

import contextlib
import difflib
import importlib.util
import os
import pathlib
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

from trainer.console.task_progress import Advances, ShowProgress
from trainer.data.sources.archives.staging import (
    Entry,
    IndexWriter,
    SpoolWriter,
    StagedIndex,
    find_index,
    iterate_range,
    new_file,
    new_index,
    staging_into,
)
from trainer.data.sources.candidate import Candidate, Source
from trainer.data.sources.split_names import fixed_split
from trainer.errors import DataError

PREFIX = "tfds:"


class _Features(NamedTuple):
    """The features of the image and its label, which may be a sequence."""

    image: str
    label: str
    class_names: list[str]


class TfdsSource(Source):
    """A dataset of TensorFlow Datasets, with its class names and label order. Files are named by split and position."""

    def __init__(self, text: str) -> None:
        """Check the source; `text` is the name in TensorFlow Datasets.

        Raises:
            DataError: the package is not installed, or the name is missing.
        """
        if importlib.util.find_spec("tensorflow_datasets") is None:
            raise DataError(
                f"{PREFIX}{text} needs the package tensorflow-datasets, which is not installed; install it with: "
                "scripts/setup tfds, or pip install 'trainer[tfds]'"
            )
        if not text:
            raise DataError(f"the source {PREFIX!r} names no dataset; write tfds:NAME, as in tfds:cats_vs_dogs")
        self._text = text
        self.name = text.split(":")[0].replace("/", "-")
        self._spool = pathlib.Path()
        self._index: StagedIndex | None = None

    @property
    def class_names(self) -> list[str]:
        assert self._index is not None, "stage comes first"
        names: list[str] = self._index.fact("class_names")
        return names

    def stage(self, workspace: pathlib.Path, progress: ShowProgress) -> None:
        """Download and prepare the dataset if needed, and copy its images to the workspace.

        Raises:
            DataError: there is no such dataset, no network, or no image with a label.
        """
        import tensorflow_datasets as tfds

        tfds.disable_progress_bar()
        builder = self._open(tfds)
        features = _find_features(tfds, builder, self._text)
        if not builder.is_prepared():
            self._download(builder, progress)
        self._spool = workspace / "tfds.spool"
        path = workspace / "tfds.index"
        with staging_into(workspace, self._text):
            splits = {name: info.num_examples for name, info in sorted(builder.info.splits.items())}
            identity = f"{builder.data_path} {splits}"
            if find_index(path, identity) is None or not self._spool.exists():
                self._copy(tfds, builder, features, path, identity, progress)
        self._index = StagedIndex(path)

    def candidates(self) -> Iterator[Candidate]:
        names = self.class_names
        assert self._index is not None, "stage comes first"
        for entry in self._index.entries():
            yield Candidate(
                filename=entry.name,
                class_names=tuple(names[int(label)] for label in entry.labels),
                split=fixed_split(entry.split),
                locator=entry.locator,
            )

    def read(self, candidate: Candidate) -> bytes:
        return b"".join(iterate_range(self._spool, candidate.locator))

    def _open(self, tfds: Any) -> Any:
        try:
            return tfds.builder(self._text, data_dir=os.environ.get("TFDS_DATA_DIR"))
        except tfds.core.registered.DatasetNotFoundError:
            near = difflib.get_close_matches(self._text.split("/")[0].split(":")[0], tfds.list_builders(), n=1)
            hint = f"did you mean tfds:{near[0]}?" if near else "its catalogue lists the names: tensorflow.org/datasets"
            raise DataError(f"TensorFlow Datasets knows no dataset {self._text!r}; {hint}") from None
        except Exception as e:  # the code of a dataset may raise anything
            reason = " ".join(str(e).split())[:300]
            raise DataError(
                f"TensorFlow Datasets cannot open {self._text!r} ({reason}); write tfds:NAME[/CONFIG][:VERSION]"
            ) from None

    def _download(self, builder: Any, progress: ShowProgress) -> None:
        """Download and prepare; resolve the hosts first, since its own downloads retry for four minutes."""
        try:
            if not urllib.request.getproxies():
                for url in builder.url_infos or {}:
                    socket.getaddrinfo(urllib.parse.urlsplit(url).hostname, None)
            # It prints progress, but standard output is for results.
            with progress(f"preparing {self._text}", 1) as shown, contextlib.redirect_stdout(sys.stderr):
                builder.download_and_prepare()
                shown.advance()
        except Exception as e:
            reason = " ".join(str(e).split())[:300] or type(e).__name__
            raise DataError(
                f"TensorFlow Datasets cannot get {self._text} ({reason}); run the command again with a "
                f"network, or copy what another machine prepared to {builder.data_path}"
            ) from None

    def _copy(
        self, tfds: Any, builder: Any, features: _Features, path: pathlib.Path, identity: str, progress: ShowProgress
    ) -> None:
        with (
            progress(f"copying {self._text}", builder.info.splits.total_num_examples) as shown,
            new_index(path, identity) as writer,
            new_file(self._spool) as temporary,
            temporary.open("wb") as spool,
        ):
            spooled = SpoolWriter(spool)
            num_entries = sum(
                _copy_split(_examples_of(tfds, builder, split, features), split, features, writer, spooled, shown)
                for split in sorted(builder.info.splits)
            )
            writer.set_fact("class_names", features.class_names)
            if not num_entries:
                raise DataError(f"{self._text} has no example with a label; choose another dataset")


def _copy_split(
    examples: Iterator[Any],
    split: str,
    features: _Features,
    writer: IndexWriter,
    spooled: SpoolWriter,
    shown: Advances,
) -> int:
    """Copy a split; return how many examples have labels, and raise DataError if only some have."""
    num_labelled = 0
    for i, example in enumerate(examples):
        labels = [int(label) for label in example[features.label].reshape(-1)]
        is_labelled = bool(labels) and min(labels) >= 0
        if is_labelled != (num_labelled > 0) and i > 0:
            raise DataError(f"some examples of {split} have a label and others have none, such as number {i}")
        if is_labelled:
            num_labelled += 1
            locator = spooled.append([example[features.image]])
            unique = tuple(str(label) for label in dict.fromkeys(labels))
            writer.add(Entry(f"{split}/{i:08}", locator, split, unique, 1.0))
        shown.advance()
    return num_labelled


def _examples_of(tfds: Any, builder: Any, split: str, features: _Features) -> Iterator[Any]:
    decoders = tfds.decode.PartialDecoding(
        {features.image: True, features.label: True}, decoders={features.image: tfds.decode.SkipDecoding()}
    )
    read_config = tfds.ReadConfig(interleave_cycle_length=1)  # in the order of the files
    dataset = builder.as_dataset(split=split, decoders=decoders, shuffle_files=False, read_config=read_config)
    examples: Iterator[Any] = dataset.as_numpy_iterator()
    return examples


def _find_features(tfds: Any, builder: Any, text: str) -> _Features:
    """Find the features of image and label: the supervised keys, or the only candidates, or those with plain names."""
    features = builder.info.features if isinstance(builder.info.features, tfds.features.FeaturesDict) else {}
    supervised = [key for key in builder.info.supervised_keys or () if isinstance(key, str)]
    images = [key for key in features if isinstance(features[key], tfds.features.Image)]
    labels = [key for key in features if _class_label_of(tfds, features[key]) is not None]
    image, label = _choose(images, supervised, ("image",)), _choose(labels, supervised, ("label", "labels"))
    if image is None or label is None:
        raise DataError(
            f"{text} has the features {', '.join(features)}, of which {len(images)} are images and {len(labels)} "
            "labels; expected one of each: choose a dataset for image classification"
        )
    class_label = _class_label_of(tfds, features[label])
    return _Features(image, label, [class_label.int2str(i) for i in range(class_label.num_classes)])


def _choose(keys: list[str], supervised: list[str], plain_names: tuple[str, ...]) -> str | None:
    chosen = [key for key in keys if key in supervised] or keys
    if len(chosen) > 1:
        # Pascal VOC has a second label feature, without difficult objects.
        chosen = [key for key in chosen if key in plain_names]
    return chosen[0] if len(chosen) == 1 else None


def _class_label_of(tfds: Any, feature: Any) -> Any:
    """Return the ClassLabel that `feature` is, or is a sequence of; None for other features."""
    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    is_label = isinstance(feature, tfds.features.ClassLabel) and feature.num_classes
    return feature if is_label else None
