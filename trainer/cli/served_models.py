"""The models that `trainer serve` is asked for, from its arguments or from TensorFlow Serving's `models.config`."""

import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from rich.text import Text

from trainer.console.output import note, print_answer, print_json
from trainer.errors import UsageError

if TYPE_CHECKING:
    from serving.batching.request_queue import MakeQueue
    from serving.models.manager import VersionManager
    from serving.models.model_config import ModelConfig


RuntimeName = Literal["saved_model", "tflite", "onnx"]


class ServedModels(NamedTuple):
    """The models to serve.

    Attributes:
        configs: one for each model.
        config_file: where they are from, if not from arguments.
        is_export: whether the only model is an export.
    """

    configs: "Sequence[ModelConfig]"
    config_file: pathlib.Path | None
    is_export: bool

    def load(
        self,
        make_queue: "MakeQueue",
        *,
        runtime: RuntimeName,
        poll_wait_secs: float,
        config_wait_secs: float,
    ) -> "tuple[VersionManager, Callable[[], None]]":
        """Load the models, look for other versions and changes of the file from then on, and return what stops that.

        Raises ArtifactError if one cannot be served.
        """
        from serving.models.config_file import ConfigFile
        from serving.models.golden_check import checked
        from serving.models.manager import VersionManager
        from serving.models.model import Models
        from serving.models.periodic import Periodic
        from serving.models.servable import Serving

        serving = Serving(make_queue=make_queue)
        if runtime != "saved_model":
            from serving.models.file_runtime import loader

            serving = serving._replace(load=loader(runtime))
        manager = VersionManager(Models(), serving=checked(serving, tell=note), tell=note)
        note(self._describe_loading())
        manager.start(self.configs, poll_wait_secs=poll_wait_secs)
        if self.config_file is None or config_wait_secs == 0:
            return manager, manager.stop
        config_file = ConfigFile(self.config_file, manager, tell=note)
        reads = Periodic(config_file.reload_if_changed, interval_secs=config_wait_secs, name="config-file")
        reads.start()

        def stop() -> None:
            reads.stop()
            manager.stop()

        return manager, stop

    def _describe_loading(self) -> str:
        from serving.models.base_path import poll_versions

        parts = []
        for config in self.configs:
            versions = sorted(config.policy.choose(poll_versions(config.base_path)))
            parts.append(f"{config.name}, version {', '.join(map(str, versions)) or 'none'}, from {config.base_path}")
        return f"loading {'; '.join(parts)}"

    def tell_address(self, url: str, versions: dict[str, list[int]], *, grpc: str | None, json: bool) -> None:
        """Print where the models are served, over `grpc` unless it is None; `versions` are those loaded, by model."""
        from serving.protocol import address

        names = list(versions)
        curl = address.curl_line(url, names[0]) if self.is_export else None
        if json:
            several = {"models": versions} if self.config_file else {"model": names[0], "versions": versions[names[0]]}
            print_json({"url": url, "grpc": grpc, **several, "curl": curl})
            return
        for name in names:
            place = (f"{url}/v1/models/{name}", "bold")
            beside = () if grpc is None else (" and over gRPC at ", (grpc, "bold"))
            print_answer(Text.assemble("serving ", (name, "bold"), " at ", place, *beside, " (Ctrl-C stops it)"))
        if curl is not None:
            note(f"predict one image:\n\n  {curl}\n")


def choose_models(
    model: pathlib.Path | None,
    config_file: pathlib.Path | None,
    *,
    name: str | None,
    all_versions: bool,
    labels: Sequence[str],
) -> ServedModels:
    """Return the models that the arguments ask for.

    Raises:
        UsageError: they contradict each other.
        ArtifactError: there is no model, or the file cannot be used.
    """
    from serving.models.model_config import ModelConfig, read_model_config
    from serving.models.version_policy import ALL, LATEST, VersionPolicy

    if config_file is not None:
        given = {"MODEL": model, "--name": name, "--all-versions": all_versions, "--label": labels}
        others = [option for option, value in given.items() if value]
        if others:
            raise UsageError(
                f"{others[0]} and --model-config-file both say what to serve; leave {others[0]} out and write it into "
                f"{config_file}"
            )
        return ServedModels(read_model_config(config_file), config_file, is_export=False)
    if model is None:
        raise UsageError("there is nothing to serve; give MODEL or --model-config-file FILE")
    from serving.models.base_path import find_model
    from trainer.system.names import check_model_name

    files = find_model(model)
    model_name = name or files.model_name
    check_model_name(model_name)
    versions = _parse_labels(labels)
    # Labelled versions are there to be compared: a newer one must not push one of them out.
    labelled = VersionPolicy("specific", versions=frozenset(versions.values())) if versions else LATEST
    config = ModelConfig(model_name, files.base_path, ALL if all_versions else labelled, versions)
    return ServedModels([config], None, is_export=files.is_export)


def _parse_labels(labels: Sequence[str]) -> dict[str, int]:
    from trainer.system.names import parse_version

    versions: dict[str, int] = {}
    for text in labels:
        label, _, number = text.partition("=")
        version = parse_version(number)
        if not label or version is None:
            raise UsageError(f"--label {text!r} is not a label and a version; write for instance --label stable=3")
        if versions.setdefault(label, version) != version:
            raise UsageError(f"--label gives {label} to two versions, {versions[label]} and {version}; leave one out")
    return versions
