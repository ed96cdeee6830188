"""The findings of a preparation that people must know of, a line each; the same from every command that prepares."""

from collections.abc import Mapping

from trainer.data.manifest import BAD_FILES_NAME, DeepSamples, Manifest


def remarks_on(manifest: Manifest, out: str) -> list[tuple[str, str]]:
    """(a word, a sentence) of each finding on the dataset `out`."""
    remarks = []
    if manifest.num_left_out:
        remarks.append(("not taken", _counts(manifest.num_left_out)))
    if manifest.num_bad_files:
        remarks.append(("left out", f"{_counts(manifest.num_bad_files)}; {out}/{BAD_FILES_NAME} names each"))
    if manifest.num_reencoded:
        remarks.append(("re-encoded", f"{_counts(manifest.num_reencoded)}; all other files are stored as they are"))
    if manifest.deep_samples is not None:
        remarks.append(("16 bits", _on_deep_samples(manifest.deep_samples)))
    if manifest.num_duplicates_across_splits:
        first = " and ".join(manifest.duplicates[0].paths.values())
        remarks.append(
            (
                "warning",
                f"{manifest.num_duplicates_across_splits:,} files are in more than one split with the very same bytes, "
                f"such as {first}; {out}/manifest.json names them",
            )
        )
    return remarks


def _on_deep_samples(found: DeepSamples) -> str:
    files = f"{found.num_files:,} pictures of 16 bits do" if found.num_files > 1 else "1 picture of 16 bits does"
    why = "as --sample-bits says" if found.is_given else f"since no value is above {found.highest:,}"
    return (
        f"{files} not say how many of them are used: read as {found.bits} bits, {why}; "
        "trainer prepare --sample-bits BITS reads them otherwise"
    )


def _counts(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
