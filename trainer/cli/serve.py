"""`trainer serve` and `trainer manifests`: serve a model here, or with TensorFlow Serving in a cluster."""

import contextlib
import os
import pathlib
import sys
from typing import Annotated, Literal

import typer
from rich.text import Text

from serving.protocol.limits import MAX_BODY_BYTES
from trainer.cli.options import ExportArgument
from trainer.cli.served_models import RuntimeName, choose_models
from trainer.console.output import JsonOption, note, print_answer, print_json

NameOption = Annotated[
    str | None, typer.Option(help="Name of the model in URLs; by default the one that the export gave it.")
]


def serve(
    model: Annotated[
        pathlib.Path | None,
        typer.Argument(
            metavar="MODEL",
            help="An export, a SavedModel, or a base path: a directory that holds versions of one, named by numbers. "
            "A SavedModel is a program: serve those that you trust.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in (there is no password).")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the REST API; 0 takes any that is free.", min=0, max=65535)] = 8501,
    grpc_port: Annotated[
        int, typer.Option(help="Port of the gRPC API; 0 takes any that is free.", min=0, max=65535)
    ] = 8500,
    no_grpc: Annotated[bool, typer.Option("--no-grpc", help="Serve the REST API only.")] = False,
    name: NameOption = None,
    all_versions: Annotated[
        bool, typer.Option("--all-versions", help="Serve every version of the SavedModel, not just the newest.")
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=VERSION",
            help="Name a version for requests, such as stable=3; can be repeated. The labelled versions are served, "
            "instead of the newest.",
        ),
    ] = None,
    model_config_file: Annotated[
        pathlib.Path | None,
        typer.Option(metavar="FILE", help="Serve the models of TensorFlow Serving's models.config, instead of MODEL."),
    ] = None,
    model_config_file_poll_wait_seconds: Annotated[
        int, typer.Option(help="Read that file again this often; 0: only at the start.", min=0)
    ] = 0,
    file_system_poll_wait_seconds: Annotated[
        int, typer.Option(help="Look for new versions this often; 0: only at the start.", min=0)
    ] = 1,
    threads: Annotated[
        int | None,
        typer.Option(
            help="How many requests, or batches of them, are computed at the same time.",
            min=1,
            show_default="num_batch_threads of the batching parameters; without batching 4",
        ),
    ] = None,
    max_body_mib: Annotated[
        int, typer.Option(help="Refuse larger requests, also after decompression; in MiB.", min=1)
    ] = MAX_BODY_BYTES // 2**20,
    max_batch_size: Annotated[
        int | None,
        typer.Option(
            help="The most examples in a request, and in a batch; 0: no limit, only without batching.",
            min=0,
            show_default="that of the batching parameters; without batching for an export 16, otherwise 0",
        ),
    ] = None,
    batching_parameters_file: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="FILE",
            help="Join requests into batches as this file of TensorFlow Serving's flag of the same name says.",
            show_default="for an export that of trainer manifests, otherwise no batching",
        ),
    ] = None,
    no_batching: Annotated[bool, typer.Option("--no-batching", help="Compute every request by itself.")] = False,
    runtime: Annotated[
        RuntimeName,
        typer.Option(
            help="What runs an export: its SavedModel, or its float32 TFLite or ONNX file behind the same signatures."
        ),
    ] = "saved_model",
    cors: Annotated[
        bool,
        typer.Option("--cors", help="Let web pages of any origin call (TensorFlow Serving: --enable_cors_support)."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Serve a SavedModel on this machine, in TensorFlow Serving's REST and gRPC APIs.

    Paths, JSON, errors, limits and metrics are those of TensorFlow Serving in a cluster: POST to
    /v1/models/NAME:predict, GET /v1/models/NAME for the status, /v1/models/NAME/metadata for the signatures.
    PredictionService and ModelService over gRPC come with health checks and reflection.
    Metrics for Prometheus are at /monitoring/prometheus/metrics. Ctrl-C or SIGTERM answers the requests in flight and
    ends with status 0.

    A new version in the directory is loaded and checked while the old one answers, then takes its place; one that is
    damaged or answers wrongly stays out. Removing it, or trainer rollback for a published one, brings the old one back.
    """
    # Refuse wrong input before TensorFlow starts, which takes seconds.
    from serving.batching.choose_queues import choose_queues
    from serving.monitoring.metrics import Metrics
    from serving.protocol import address

    chosen = choose_models(model, model_config_file, name=name, all_versions=all_versions, labels=label or [])
    metrics = Metrics()
    make_queue = choose_queues(
        is_export=chosen.is_export,
        batching=not no_batching,
        parameters_file=batching_parameters_file,
        threads=threads,
        max_batch_size=max_batch_size,
        observer=metrics.batching,
    )
    with contextlib.ExitStack() as listeners:
        listener = listeners.enter_context(address.listen(host, port))
        rpc_listener = (
            None if no_grpc else listeners.enter_context(address.listen(host, grpc_port, option="--grpc-port"))
        )
        from trainer.system import tf_runtime

        tf_runtime.configure()
        from serving.server import local_server
        from serving.server.reload import make_reload

        url = address.url_of(listener)
        grpc = None if rpc_listener is None else address.target_of(rpc_listener)
        manager, stop_looking = chosen.load(
            make_queue,
            runtime=runtime,
            poll_wait_secs=file_system_poll_wait_seconds,
            config_wait_secs=model_config_file_poll_wait_seconds,
        )

        def tell_where() -> None:
            versions = {served: manager.models.available_versions(served) for served in manager.models.names}
            chosen.tell_address(url, versions, grpc=grpc, json=json)
            sys.stdout.flush()  # a reader of the pipe waits for it, and this process continues

        is_done = local_server.run(
            manager.models,
            listener,
            rpc_listener=rpc_listener,
            on_ready=tell_where,
            max_body_bytes=max_body_mib * 2**20,
            cors=cors,
            metrics=metrics,
            reload=make_reload(manager, chosen.configs),
        )
        stop_looking()
    if not is_done:
        note("stopped; a request that was still running was not answered")
        sys.stdout.flush()
        os._exit(1)  # its thread cannot be stopped, and a normal exit would wait for it
    note("stopped")


def manifests(
    export: ExportArgument,
    out: Annotated[
        pathlib.Path, typer.Option(help="Directory to write; one that this command wrote before is replaced.")
    ],
    name: NameOption = None,
    namespace: Annotated[
        str | None, typer.Option(help="Namespace of the objects; by default the one of the kubectl context.")
    ] = None,
    replicas: Annotated[int, typer.Option(help="Server pods.", min=1, max=2**31 - 1)] = 2,
    image: Annotated[
        str | None,
        typer.Option(help="Image of TensorFlow Serving, as REPOSITORY:TAG@DIGEST (either may be left out)."),
    ] = None,
    version_policy: Annotated[
        Literal["specific", "latest", "all"],
        typer.Option(
            help="specific: serve only the version of this export; latest: the newest on the volume; all: every one."
        ),
    ] = "specific",
    json: JsonOption = False,
) -> None:
    """Write Kubernetes manifests that serve an export with TensorFlow Serving, ready for `kubectl apply -k`.

    They hold the server (Deployment, Service, PodDisruptionBudget, NetworkPolicy, a volume for models) with the name,
    versions and probes of this model, and a pod that fills the volume. If kubectl is installed, the manifests are
    rendered and checked before they are written.
    """
    from serving.k8s.manifests import ManifestSettings, write_manifests

    settings = ManifestSettings(
        model_name=name, namespace=namespace, replicas=replicas, image=image, version_policy=version_policy
    )
    written = write_manifests(export, out, settings)
    if json:
        print_json(written.as_dict())
        return
    where = (str(written.directory), "bold")
    print_answer(Text.assemble("wrote ", where, f"; to deploy {written.model_name} to a cluster:\n"))
    for command in written.commands:
        note(f"  {command}")
    if not written.was_checked:
        note("\nkubectl is not installed here, so the manifests were neither rendered nor checked")
