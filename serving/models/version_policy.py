"""Choose the versions to serve among those that are found, and the order in which they come and go."""

from collections.abc import Collection, Iterable
from typing import Final, Literal, NamedTuple


class VersionPolicy(NamedTuple):
    """The choice of the versions of a model to serve; TensorFlow Serving's ServableVersionPolicy.

    Attributes:
        kind: the highest versions, all that are found, or those of `versions`.
        num_versions: how many, for "latest".
        versions: for "specific".
    """

    kind: Literal["latest", "all", "specific"] = "latest"
    num_versions: int = 1
    versions: frozenset[int] = frozenset()

    def choose(self, found: Iterable[int]) -> set[int]:
        """Return those of the versions `found` that are to be served."""
        if self.kind == "all":
            return set(found)
        if self.kind == "specific":
            return set(found).intersection(self.versions)
        return set(sorted(found)[-self.num_versions :])


LATEST: Final = VersionPolicy()
ALL: Final = VersionPolicy("all")


def find_unneeded(available: Collection[int], wanted: Collection[int]) -> list[int]:
    """Return the available versions that can go now, lowest first, without leaving the model without one.

    Those that are not wanted go once a wanted one is available, or if none is wanted; until then one of them stays, the
    highest, as in tensorflow_serving/core/availability_preserving_policy.cc.
    """
    unwanted = sorted(set(available).difference(wanted))
    if not wanted or set(wanted).intersection(available):
        return unwanted
    return unwanted[:-1]
