"""`EXPORT/README.md`: how to call every artifact, with complete programs, generated from the signature.

The first line of each program names its file; `programs_of` extracts them.
"""

import re

from export.documents.markdown import render_markdown
from export.files.formats import SAVED_MODELS
from export.files.parity import ParityReport
from export.files.signature import (
    IMAGE_BYTES,
    IMAGES,
    LABEL,
    PROBABILITIES,
    SIGNATURE_IMAGE_BYTES,
    STATUS,
    STATUS_OK,
    TFLITE_SIGNATURE,
    Signature,
)

FILE_NAME = "README.md"
_TEMPLATE_FILE = "readme.md.j2"
_PROGRAM = re.compile(r"^```(python|sh|cpp)\n((?:#|//) ([\w.]+).*?)^```$", re.MULTILINE | re.DOTALL)


def render(signature: Signature, report: ParityReport) -> str:
    """Return the text of the README."""
    paths = {artifact.format: artifact.path for artifact in report.artifacts()}
    tflite = {name: path for name, path in paths.items() if path.endswith(".tflite")}
    saved_model = next((paths[wanted.name] for wanted in SAVED_MODELS if wanted.name in paths), None)
    onnx = next((path for path in paths.values() if path.endswith(".onnx")), None)
    return render_markdown(
        _TEMPLATE_FILE,
        signature=signature,
        saved_model=saved_model,
        tflite=tflite,
        onnx=onnx,
        pixels=bool(tflite or onnx),
        how_files_are_read=signature.inputs[SIGNATURE_IMAGE_BYTES].description,
        names={
            "image_bytes": IMAGE_BYTES,
            "images": IMAGES,
            "label": LABEL,
            "probabilities": PROBABILITIES,
            "encoded_signature": SIGNATURE_IMAGE_BYTES,
            "tflite_signature": TFLITE_SIGNATURE,
            "status": STATUS,
            "ok": STATUS_OK,
        },
    )


def programs_of(readme: str) -> dict[str, str]:
    """Return the programs in a README by file name; a C++ program gets the suffix .cc."""
    return {f"{name}.cc" if language == "cpp" else name: text for language, text, name in _PROGRAM.findall(readme)}
