"""`trainer predict`: the classes of images, from a run, an export, an artifact file or a server."""

import pathlib
from typing import Annotated

import typer

from trainer.cli.options import TrustOption, WhichOption
from trainer.console.output import JsonOption, print_answer, print_json


def predict(
    target: Annotated[
        str,
        typer.Argument(
            help="A run, an export, a .tflite or .onnx file of one, a SavedModel version directory, or the address of "
            "a server, such as http://localhost:8501."
        ),
    ],
    images: Annotated[
        list[pathlib.Path], typer.Argument(metavar="IMAGE...", help="JPEG, PNG, GIF, BMP or WebP files.")
    ],
    top: Annotated[int, typer.Option(min=1, help="How many classes to list for each image.")] = 5,
    which: WhichOption = "best",
    trust: TrustOption = False,
    json_: JsonOption = False,
) -> None:
    """Predict the classes of images with a run, an export, an artifact file or a server.

    Images that the camera marked as rotated are turned upright first. An unreadable image does not stop the others: it
    is listed with the reason, and the exit status is 1.
    """
    import trainer
    from export.prediction.predictions import raise_on_errors

    predictions = trainer.predict(target, images, top=top, which=which)
    if json_:
        print_json({"predictions": [p.model_dump(mode="json") for p in predictions]})
    else:
        from trainer.cli.export_tables import prediction_table

        print_answer(prediction_table(predictions))
    raise_on_errors(predictions)
