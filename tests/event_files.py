"""Read event files as TensorBoard does."""

import pathlib

from tensorboard.backend.event_processing.event_accumulator import STORE_EVERYTHING_SIZE_GUIDANCE, EventAccumulator


def scalars(directory: pathlib.Path) -> dict[str, list[int]]:
    """Return the steps of each tag, in the order in which TensorBoard has them."""
    # Without its own removal of events that come again.
    events = EventAccumulator(str(directory), STORE_EVERYTHING_SIZE_GUIDANCE, purge_orphaned_data=False).Reload()
    return {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
