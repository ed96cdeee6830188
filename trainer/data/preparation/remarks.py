"""Summarize the findings of a preparation, one line each, for every command that prepares."""

from collections.abc import Mapping, Sequence

from trainer.data.dataset.manifest import BAD_FILES_NAME, BESIDE_CLASSES, DeepSamples, Manifest


def remarks_on(manifest: Manifest, out: str) -> list[tuple[str, str]]:
    """Return (keyword, sentence) of each finding on the dataset `out`."""
    remarks = []
    if manifest.split_origins:
        remarks.append(("splits", _on_splits(manifest)))
    if manifest.num_left_out:
        names = f" ({_named(manifest.beside)})" if manifest.beside else ""
        text = _counts(manifest.num_left_out).replace(BESIDE_CLASSES, f"{BESIDE_CLASSES}{names}")
        remarks.append(("not taken", text))
    if manifest.num_ignored:
        remarks.append(("ignored", f"{_counts(manifest.num_ignored)}, which are neither images nor classes"))
    if manifest.num_bad_files:
        remarks.append(("left out", f"{_counts(manifest.num_bad_files)}; {out}/{BAD_FILES_NAME} lists them"))
    if manifest.num_reencoded:
        remarks.append(("re-encoded", f"{_counts(manifest.num_reencoded)}; all other files are stored unchanged"))
    if manifest.deep_samples is not None:
        remarks.append(("16 bits", _on_deep_samples(manifest.deep_samples)))
    if manifest.num_duplicates_across_splits:
        first = " and ".join(manifest.duplicates[0].paths.values())
        remarks.append(
            (
                "warning",
                f"{manifest.num_duplicates_across_splits:,} files are in more than one split with the same bytes, "
                f"such as {first}; {out}/manifest.json lists them",
            )
        )
    return remarks


def _on_splits(manifest: Manifest) -> str:
    cut: dict[str, list[str]] = {"train": [], "rest": [], "all": []}
    given = []
    for split, origin in manifest.split_origins.items():
        count = f"{split} ({manifest.splits[split].num_examples:,})" if split in manifest.splits else split
        if origin == "given" and not (split == "train" and "train" in manifest.split_origins.values()):
            given.append(count)
        elif split != "train":
            cut[origin].append(count)
    pools = {
        "train": f"the source's own {_num_for_training(manifest):,} for training",
        "rest": "the images that the source puts into no split",
        "all": "all images",
    }
    parts = [f"{_and(names)} cut from {pools[origin]}" for origin, names in cut.items() if names]
    parts += [f"{_and(given)} as the source has {'them' if len(given) > 1 else 'it'}"] if given else []
    return "; ".join(parts) or "all images are for training"


def _num_for_training(manifest: Manifest) -> int:
    """Count the usable training images of the source, before any split is cut from them."""
    origins = manifest.split_origins
    of_train = [split for split in manifest.splits if split == "train" or origins.get(split) == "train"]
    return sum(manifest.splits[split].num_examples for split in of_train) + manifest.num_left_out.get("over --train", 0)


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _named(names: Sequence[str]) -> str:
    return _and([*names[:3], f"{len(names) - 3:,} more"] if len(names) > 3 else names)


def _on_deep_samples(found: DeepSamples) -> str:
    files = f"{found.num_files:,} pictures of 16 bits do" if found.num_files > 1 else "1 picture of 16 bits does"
    why = "as --sample-bits says" if found.is_given else f"since the highest value is {found.highest:,}"
    if found.num_darker:
        why += f", though {found.num_darker:,} would fit into fewer"
    return (
        f"{files} not say how many of them are used: read as {found.bits} bits, {why}; "
        "change it with: trainer prepare --sample-bits BITS"
    )


def _counts(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
