"""The options that determine the content of a dataset besides its source."""

import dataclasses
from typing import Any

from trainer.data.dataset.manifest import SplitName
from trainer.data.sources import SourceOptions
from trainer.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Options of a preparation; all but `num_workers` and `max_bad_fraction` determine the content of the dataset.

    validation_fraction, test_fraction: shares of the images of each class, each at least 0, together below 1. A split
        that the source already has is kept.
    train_fraction: share of each class's images that the source assigns to no split; None for all that remain.
    seed: of the assignment to splits and the order of examples.
    exclude: classes to leave out; an image of several classes keeps the others.
    fraction: share of the images of each class to take, above 0; a smaller one takes a subset of a larger one.
    per_class: the most images of each class, over all splits; None for all.
    group_column: the column of a listing with groups that must not be divided between splits.
    max_side_px: an image with a longer side is made smaller; None for no limit.
    sample_bits: how many bits are used in 16-bit files that do not say so; None to derive it from their values.
    sha256: the checksum of an archive given as the source.
    shard_bytes: the approximate size of a shard (larger if there would be more than `write_shards.MAX_SHARDS`).
    max_bad_fraction: a larger share of unusable files is an error.
    num_workers: threads; 0 for one per core.
    """

    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    train_fraction: float | None = None
    seed: int = 0
    exclude: tuple[str, ...] = ()
    fraction: float = 1.0
    per_class: int | None = None
    group_column: str | None = None
    max_side_px: int | None = None
    sample_bits: int | None = None
    sha256: str | None = None
    shard_bytes: int = 128 * 2**20
    max_bad_fraction: float = 0.01
    num_workers: int = 0

    def __post_init__(self) -> None:
        for flag, value in (("--val", self.validation_fraction), ("--test", self.test_fraction)):
            if not 0 <= value < 1:
                raise DataError(f"{flag} is {value}; expected a share of the images, from 0 to below 1, such as 0.1")
        if self.validation_fraction + self.test_fraction >= 1:
            raise DataError(
                f"--val {self.validation_fraction} and --test {self.test_fraction} leave nothing to train on; "
                "give shares that add up to less than 1"
            )
        self._check_train_fraction()
        if not 0 <= self.max_bad_fraction <= 1:
            raise DataError(f"--max-bad-fraction is {self.max_bad_fraction}; expected a share from 0 to 1")
        if not 0 < self.fraction <= 1:
            raise DataError(f"--fraction is {self.fraction}; expected a share of each class over 0, such as 0.2")
        if self.per_class is not None and self.per_class < 1:
            raise DataError(f"--per-class is {self.per_class}; expected how many images of each class, at least 1")
        if self.max_side_px is not None and self.max_side_px < 1:
            raise DataError(f"--max-side is {self.max_side_px}; expected pixels, at least 1, such as 1024")
        if self.sample_bits is not None and not 8 <= self.sample_bits <= 16:
            raise DataError(f"--sample-bits is {self.sample_bits}; expected the bits in use, 8 to 16, such as 12")
        if self.shard_bytes < 1 or self.num_workers < 0:
            raise DataError(
                f"{self.shard_bytes} bytes per shard and {self.num_workers} workers; expected at least 1, and 0 or more"
            )

    def _check_train_fraction(self) -> None:
        share = self.train_fraction
        if share is None:
            return
        if not 0 < share <= 1:
            raise DataError(f"--train is {share}; expected a share of each class over 0, such as 0.2")
        # Rounded, because decimal shares that sum to 1 may sum to slightly more in binary.
        if round(share + self.validation_fraction + self.test_fraction, 9) > 1:
            raise DataError(
                f"--train {share}, --val {self.validation_fraction} and --test {self.test_fraction} are more than all "
                "images; give shares that add up to at most 1"
            )

    @property
    def fractions(self) -> dict[SplitName, float]:
        return {"validation": self.validation_fraction, "test": self.test_fraction}

    @property
    def for_source(self) -> SourceOptions:
        return SourceOptions(group_column=self.group_column, sha256=self.sha256, exclude=self.exclude)

    def decisive(self) -> dict[str, Any]:
        """Return the options that determine the content, as JSON values."""
        values = dataclasses.asdict(self)
        del values["num_workers"], values["max_bad_fraction"]
        # Omitted at their defaults, so that datasets of versions without these options stay valid.
        if self.train_fraction is None:
            del values["train_fraction"]
        if self.sample_bits is None:
            del values["sample_bits"]
        values["exclude"] = sorted(set(values["exclude"]))
        return values
