"""`trainer bench serve`: latency and throughput of a server under load."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from trainer.cli.options import ExportArgument
from trainer.console.output import JsonOption, note, print_answer, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from serving.load.bench_server import LoadResult, ServerBenchmark


def bench_serve(
    export: ExportArgument,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="The server's REST API, http(s)://HOST:PORT[/v1/models/NAME].")
    ] = None,
    grpc: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Its gRPC API; grpcs://HOST:PORT for TLS.")
    ] = None,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(min=1, max=4096, help="Callers that wait for each answer; repeatable.", show_default="1, 4, 16"),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            min=0.01,
            help="Requests/s that arrive whether or not earlier ones were answered; repeatable. Replaces the default "
            "--concurrency.",
            show_default="none",
        ),
    ] = None,
    input_: Annotated[
        Literal["image_bytes", "images"],
        typer.Option("--input", help="image_bytes: image files; images: pixels at the model's size."),
    ] = "image_bytes",
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Images in a request.")] = 1,
    secs: Annotated[float, typer.Option(min=0.1, max=3600, help="Seconds for each load, after one to warm up.")] = 5.0,
    timeout_secs: Annotated[float, typer.Option(min=0.01, help="How long to wait for one answer.")] = 60.0,
    json_: JsonOption = False,
) -> None:
    """Measure a server that has loaded EXPORT: requests/s, and latency from p50 to p99.9.

    The requests are the golden images of the export. With [bold]--concurrency[/] each caller asks again when it has its
    answer, which finds the highest throughput; with [bold]--rate[/] requests arrive at random times and are timed from
    their arrival, as users feel it. Any server of TensorFlow Serving's APIs will do.
    """
    from export.files.checksums import Checksums
    from trainer.errors import UsageError

    Checksums.load(export)  # refuse a wrong directory before TensorFlow starts
    if server is None and grpc is None:
        raise UsageError(
            "no server is given; give --server http://HOST:8501, --grpc HOST:8500, or both; start one with: "
            f"trainer serve {export}"
        )
    from trainer.system import tf_runtime

    tf_runtime.configure(use_gpus=False)

    from serving.load.bench_server import bench_server
    from serving.load.generate import Load

    loads = [Load(loop="closed", concurrency=n, secs=secs) for n in concurrency or ([] if rate else [1, 4, 16])]
    loads += [Load(loop="open", rate=r, secs=secs) for r in rate or []]
    report = bench_server(
        export,
        loads,
        server=server,
        grpc=grpc,
        input_name=input_,
        batch_size=batch_size,
        timeout_secs=timeout_secs,
        on_result=lambda result: note(_line(result)),
    )
    if json_:
        print_json(report.answer())
    else:
        print_answer(_table(report))


def _what(result: "LoadResult") -> str:
    return f"{result.concurrency} callers" if result.concurrency is not None else f"{result.rate:g} requests/s arrive"


def _line(result: "LoadResult") -> str:
    errors = f", {sum(result.errors.values())} errors" if result.errors else ""
    return f"{result.api}, {_what(result)}: {result.requests_per_sec:,.1f} requests/s{errors}"


def _table(report: "ServerBenchmark") -> "Table":
    from rich.table import Table

    from serving.load.generate import QUANTILES

    images = "one image" if report.batch_size == 1 else f"{report.batch_size} images"
    table = Table(box=None, title=f"{report.model}, {report.input}, requests of {images}; latency in ms")
    for name in ("API", "load"):
        table.add_column(name, no_wrap=True)
    quantiles = [f"p{100 * q:g}" for q in QUANTILES]
    for name in ("requests/s", "images/s", *quantiles, "errors"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in report.results:
        latencies = [f"{result.latencies_ms[q]:.1f}" if q in result.latencies_ms else "-" for q in quantiles]
        table.add_row(
            result.api,
            _what(result),
            f"{result.requests_per_sec:,.1f}",
            f"{result.images_per_sec:,.1f}",
            *latencies,
            ", ".join(f"{count} {error}" for error, count in result.errors.items()) or "-",
        )
    return table
