"""The commands `trainer serve` and `trainer manifests`."""

import pathlib
import sys
from typing import Annotated, Literal

import typer
from rich.text import Text

from trainer.cli.output import JsonOption, note, print_answer, print_json

ExportArgument = Annotated[
    pathlib.Path, typer.Argument(metavar="EXPORT", help="Directory that `trainer export` wrote.", show_default=False)
]
NameOption = Annotated[
    str | None, typer.Option(help="Name of the model in URLs; by default the one that the export gave it.")
]


def serve(
    export: ExportArgument,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in (there is no password).")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the REST API; 0 takes any that is free.", min=0, max=65535)] = 8501,
    name: NameOption = None,
    all_versions: Annotated[
        bool, typer.Option("--all-versions", help="Serve every version of the SavedModel, not just the newest.")
    ] = False,
    threads: Annotated[int, typer.Option(help="Requests that are computed at the same time.", min=1)] = 4,
    max_body_mib: Annotated[int, typer.Option(help="Larger requests are refused; in MiB.", min=1)] = 64,
    json: JsonOption = False,
) -> None:
    """Serve the SavedModel of an export on this machine, in TensorFlow Serving's REST API.

    What a client learns here (paths, JSON, errors) holds for TensorFlow Serving in a cluster: POST to
    /v1/models/NAME:predict, GET /v1/models/NAME for the status, /v1/models/NAME/metadata for the signatures.
    Metrics for Prometheus are at /monitoring/prometheus/metrics. Ctrl-C or SIGTERM answers what is in flight and
    ends with status 0.
    """
    # What can be wrong is told at once, not after the seconds that TensorFlow takes to start.
    from export.signature import Signature
    from serving import address
    from serving.base_path import base_path_of, find_versions
    from trainer.system.names import check_model_name

    if name is not None:
        check_model_name(name)
    signature = Signature.load(export)
    base_path = base_path_of(export, signature)
    find_versions(base_path)
    with address.listen(host, port) as listener:
        from trainer import tf_runtime

        tf_runtime.configure()
        from serving import local_server
        from serving.servable import Model

        kept: Literal["all", "latest"] = "all" if all_versions else "latest"
        model = Model(name=name or signature.model_name, base_path=base_path, versions=kept)
        versions, url = list(model.servables), address.url_of(listener)
        note(f"loading {model.name}, version {', '.join(map(str, versions))}, from {export}")
        model.load()

        def tell_where() -> None:
            curl = address.curl_line(url, model.name)
            if json:
                print_json({"url": url, "model": model.name, "versions": versions, "curl": curl})
                sys.stdout.flush()  # whoever reads it through a pipe waits for it, and this process goes on
                return
            place = (f"{url}/v1/models/{model.name}", "bold")
            print_answer(Text.assemble("serving ", (model.name, "bold"), " at ", place, " (Ctrl-C stops it)"))
            note(f"predict one image:\n\n  {curl}\n")

        local_server.run(model, listener, max_body_bytes=max_body_mib * 2**20, num_threads=threads, on_ready=tell_where)
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
            help="specific: serve just the versions of this export; latest: the newest on the volume; all: every one."
        ),
    ] = "specific",
    json: JsonOption = False,
) -> None:
    """Write Kubernetes manifests that serve an export with TensorFlow Serving, ready for `kubectl apply -k`.

    The tree holds the server (Deployment, Service, PodDisruptionBudget, NetworkPolicy, a volume for models) with this
    model's name, versions and probes filled in, and a pod that fills the volume. Where kubectl is installed, the
    result is rendered and checked before it takes its place.
    """
    from serving.manifests import ManifestSettings, write_manifests

    settings = ManifestSettings(
        model_name=name, namespace=namespace, replicas=replicas, image=image, version_policy=version_policy
    )
    written = write_manifests(export, out, settings)
    if json:
        print_json(written.as_dict())
        return
    where = (str(written.directory), "bold")
    print_answer(Text.assemble("wrote ", where, f"; to bring {written.model_name} into a cluster:\n"))
    for command in written.commands:
        note(f"  {command}")
    if not written.was_checked:
        note("\nkubectl is not installed here, so the tree was neither rendered nor checked")
