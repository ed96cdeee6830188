"""The exception tree, drawn in one place.

    TrainerError                      exit status 1: the work failed
    |-- UsageError                    exit status 2: wrong usage or bad input, nothing was started
    |   |-- ConfigError               a recipe or `--set` value
    |   |-- DataError                 a source, a dataset or a shard
    |   |-- DeviceError               devices, replicas, precision or XLA that this machine cannot give
    |   |-- ModelError                a backbone or a weight file
    |   |-- RunError                  a run directory that is missing, foreign or incomplete
    |   `-- ArtifactError             an export or an artifact file that is missing or broken
    |-- TrainingError                 training could not go on (non-finite gradients, a failed worker)
    |   `-- OutOfMemoryError          a step needs more memory than the devices have
    |       `-- OutOfMemoryRestart    exit status 76: restart me from the last checkpoint, with the batch in more parts
    |-- StorageError                  a full, broken or vanished disk kept something from being saved
    |-- ExportError                   a model cannot be converted to a format
    |-- ParityError                   an exported artifact does not answer like the model
    `-- StoppedOnRequest              exit status 75: saved, restart me

A message is one sentence with the value that was found, what was expected, and the fix.
"""


class TrainerError(Exception):
    """Base of everything that this project raises on purpose."""

    exit_status = 1


class UsageError(TrainerError):
    """Wrong usage or bad input; found before any work was started."""

    exit_status = 2


class ConfigError(UsageError):
    """A recipe, a default or a `--set` override is wrong."""


class DataError(UsageError):
    """A source of images, a prepared dataset or one of its shards cannot be used."""


class DeviceError(UsageError):
    """The devices that were asked for are not on this machine."""


class ModelError(UsageError):
    """A backbone is unknown, or weights do not fit the model."""


class RunError(UsageError):
    """A run directory is missing, belongs to another run, or holds no checkpoint."""


class ArtifactError(UsageError):
    """An export or a single artifact file is missing, incomplete or of an unknown kind."""


class TrainingError(TrainerError):
    """Training started and could not go on."""


class NonFiniteGradientError(TrainingError):
    """Too many steps in a row were skipped: those from `first_step` to `step`, counted from 1."""

    def __init__(self, message: str, *, step: int, first_step: int) -> None:
        super().__init__(message)
        self.step, self.first_step = step, first_step


class StorageError(TrainerError):
    """Something could not be written, or not be read again; the message has the reason and the figures."""


class OutOfMemoryError(TrainingError):
    """A step needs more memory than the devices have, in as many parts as its batch can be divided into."""


class OutOfMemoryRestart(OutOfMemoryError):
    """Memory ended where the step cannot be made again in place; the same command goes on from the last checkpoint.

    `is_host_memory` is true if the kernel ended a worker.
    """

    exit_status = 76

    def __init__(self, message: str, *, is_host_memory: bool = False) -> None:
        super().__init__(message)
        self.is_host_memory = is_host_memory


class ExportError(TrainerError):
    """A model uses something that a format, or the runtime behind it, does not have."""


class ParityError(TrainerError):
    """An exported artifact answered differently from the model it was made from."""


class StoppedOnRequest(TrainerError):
    """A signal asked the run to stop; everything was saved, and the same command goes on."""

    exit_status = 75
