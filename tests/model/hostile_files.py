"""Files as attackers make them: after the public advisories on Keras and HDF5, and what else such files can do.

Each builder writes one file into a directory and returns its path. What would run touches `CANARY` there.
"""

import base64
import io
import json
import marshal
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import h5py
import keras
import numpy as np

CANARY = "executed"
Change = Callable[[dict[str, Any]], None]


def honest_model() -> Any:
    layers = keras.layers
    pixels = keras.Input((24, 24, 3))
    x = layers.Rescaling(1 / 255, name="own_scaling")(pixels)
    x = layers.Conv2D(4, 3, name="only")(x)
    return keras.Model(pixels, layers.Dense(3, name="top")(layers.GlobalAveragePooling2D()(x)), name="mine")


def code(directory: pathlib.Path) -> str:
    """Bytecode as Keras stores a lambda."""
    touch = compile(f"lambda x: (open({str(directory / CANARY)!r}, 'w').close(), x)[1]", "evil", "eval")
    return base64.b64encode(marshal.dumps(touch.co_consts[0])).decode()


def keras_file(
    directory: pathlib.Path,
    *,
    change: Change = lambda _: None,
    config: bytes | None = None,
    members: dict[str, bytes] | None = None,
    weights: bytes | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> pathlib.Path:
    """An honest model saved by Keras, of which `change` edits the first layer after the input."""
    honest, path = directory / "honest.keras", directory / "hostile.keras"
    honest_model().save(honest)
    with zipfile.ZipFile(honest) as old, zipfile.ZipFile(path, "w", compression) as new:
        parsed = json.loads(old.read("config.json"))
        change(next(layer for layer in parsed["config"]["layers"] if layer["class_name"] == "Rescaling"))
        new.writestr("metadata.json", old.read("metadata.json"))
        new.writestr("config.json", config if config is not None else json.dumps(parsed))
        new.writestr("model.weights.h5", weights if weights is not None else old.read("model.weights.h5"))
        for name, content in (members or {}).items():
            new.writestr(name, content)
    honest.unlink()
    return path


def replaced(**entry: Any) -> Callable[[pathlib.Path], pathlib.Path]:
    return lambda directory: keras_file(directory, change=lambda layer: layer.update(entry))


def lambda_layer(directory: pathlib.Path) -> pathlib.Path:
    function = {"class_name": "__lambda__", "config": {"value": code(directory), "defaults": None, "closure": None}}
    entry = {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "l", "function": function}}
    return keras_file(directory, change=lambda layer: layer.update(entry))


def lambda_without_module(directory: pathlib.Path) -> pathlib.Path:
    def change(layer: dict[str, Any]) -> None:
        layer.clear()
        layer.update(class_name="Lambda", config={"name": "l", "function": [code(directory), None, None]})

    return keras_file(directory, change=change)


def hidden_in_an_argument(directory: pathlib.Path) -> pathlib.Path:
    evil = {"module": "keras.utils", "class_name": "get_file", "config": {"origin": "file:///etc/passwd"}}
    return keras_file(directory, change=lambda layer: layer["config"].update(scale=[{"deep": evil}]))


def hdf5_bytes(fill: Callable[[Any], Any], **options: Any) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w", **options) as file:
        fill(file)
    return content.getvalue()


def _secret(directory: pathlib.Path) -> str:
    secret = directory / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["kernel"] = np.ones((3, 3, 3, 4), np.float32)
    return str(secret)


def external_link(file: Any, secret: str) -> None:
    file["layers/conv2d/vars/0"] = h5py.ExternalLink(secret, "kernel")


def soft_link(file: Any, secret: str) -> None:
    file["kernel"] = np.ones((3, 3, 3, 4), np.float32)
    file["layers/conv2d/vars/0"] = h5py.SoftLink("/kernel")


def external_storage(file: Any, secret: str) -> None:
    file.create_dataset("layers/conv2d/vars/0", (3, 3, 3, 4), "f4", external=[(secret, 0, 432)])


def virtual_dataset(file: Any, secret: str) -> None:
    layout = h5py.VirtualLayout((3, 3, 3, 4), "f4")
    layout[...] = h5py.VirtualSource(secret, "kernel", (3, 3, 3, 4))
    file.create_virtual_dataset("layers/conv2d/vars/0", layout)


def shape_bomb(file: Any, secret: str) -> None:
    file.create_dataset("layers/conv2d/vars/0", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))


def piece_bomb(file: Any, secret: str) -> None:
    file.create_dataset("layers/conv2d/vars/0", (4,), "f4", chunks=(1 << 28,), maxshape=(None,), compression="gzip")


def doubling_groups(file: Any, secret: str) -> None:
    group = file.create_group("layers")
    for _ in range(40):
        child = group.create_group("a")
        group["b"] = child
        group = child


def group_within_itself(file: Any, secret: str) -> None:
    file["layers/again"] = file["/"]


def string_bomb(file: Any, secret: str) -> None:
    """Many names that are all one long string in the file."""
    file.create_group("only").create_dataset("kernel", (3, 3, 3, 4), "f4")
    file.attrs["layer_names"] = [b"only"]
    file.create_dataset("filler", data=np.zeros(1 << 20, np.uint8))
    file["only"].attrs.create("weight_names", np.array(["x"] * 4000, object), dtype=h5py.string_dtype())


def names_in_a_dataset(file: Any, secret: str) -> None:
    file["model_weights"] = np.ones(3, np.float32)
    file.attrs["layer_names"] = [b"model_weights"]


HDF5: dict[Callable[[Any, str], None], str] = {
    external_link: "links /layers/conv2d/vars/0 to another place",
    soft_link: "links /layers/conv2d/vars/0 to another place",
    external_storage: "keeps /layers/conv2d/vars/0 in another file",
    virtual_dataset: "keeps /layers/conv2d/vars/0 in another file",
    shape_bomb: "claims to hold 4,398,046,511,104 bytes",
    piece_bomb: "claims to hold 1,073,741,824 bytes of one piece",
    doubling_groups: "under two names",
    group_within_itself: "under two names",
    string_bomb: "of the attribute weight_names",
}


def hdf5_file(fill: Callable[[Any, str], None], directory: pathlib.Path, name: str) -> pathlib.Path:
    (directory / name).write_bytes(hdf5_bytes(lambda file: fill(file, _secret(directory))))
    return directory / name


def keras_file_with(fill: Callable[[Any, str], None], directory: pathlib.Path) -> pathlib.Path:
    return keras_file(directory, weights=hdf5_bytes(lambda file: fill(file, _secret(directory))))


def old_model_with_lambda(directory: pathlib.Path) -> pathlib.Path:
    """A whole model in the format of older Keras, to which no safe mode applies."""
    config = {"name": "l", "function": [code(directory), None, None], "function_type": "lambda"}
    model = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Lambda", "config": config}]}}

    def fill(file: Any) -> None:
        file.attrs["model_config"] = json.dumps(model)
        file.create_group("model_weights/only").create_dataset("kernel", (3, 3, 3, 4), "f4")

    (directory / "hostile.h5").write_bytes(hdf5_bytes(fill))
    return directory / "hostile.h5"


class _Pickled:
    def __init__(self, canary: pathlib.Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (pathlib.Path.touch, (self.canary,))


def pickled_numpy(directory: pathlib.Path) -> pathlib.Path:
    arrays = io.BytesIO()
    np.savez(arrays, weights=np.array([_Pickled(directory / CANARY)], object))
    return keras_file(directory, members={"model.weights.npz": arrays.getvalue()})


def pickle_with_the_name_of(name: str) -> Callable[[pathlib.Path], pathlib.Path]:
    def build(directory: pathlib.Path) -> pathlib.Path:
        (directory / name).write_bytes(pickle.dumps(_Pickled(directory / CANARY)))
        return directory / name

    return build


def safetensors_header_bomb(directory: pathlib.Path) -> pathlib.Path:
    header = json.dumps({"0:only/kernel": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (directory / "hostile.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return directory / "hostile.safetensors"


def zip_bomb(directory: pathlib.Path) -> pathlib.Path:
    return keras_file(directory, weights=bytes(80 << 20), compression=zipfile.ZIP_DEFLATED)


def symlink_member(directory: pathlib.Path) -> pathlib.Path:
    path = keras_file(directory)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("assets")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
    return path


def second_config(directory: pathlib.Path) -> pathlib.Path:
    path = keras_file(directory)
    with zipfile.ZipFile(path, "a") as archive, __import__("warnings").catch_warnings():
        __import__("warnings").simplefilter("ignore")
        archive.writestr("config.json", "{}")
    return path


def large_layer(directory: pathlib.Path) -> pathlib.Path:
    def change(layer: dict[str, Any]) -> None:
        layer.update(module="keras.layers", class_name="Conv2D", build_config=None)
        layer["config"] = {"name": "own_scaling", "filters": 3, "padding": "same"}
        layer["config"]["kernel_size"] = [1 << 20, 1 << 20]

    return keras_file(directory, change=change)


def large_image(directory: pathlib.Path) -> pathlib.Path:
    def change(layer: dict[str, Any]) -> None:
        layer.update(module="keras.layers", class_name="UpSampling2D", build_config=None)
        layer["config"] = {"name": "own_scaling", "size": [1 << 20, 1 << 20]}

    return keras_file(directory, change=change)


PICKLES = ("w.h5", "w.keras", "w.safetensors", "w.pth", "w.npz")
# By name: the file, and words of the one sentence that refuses it.
AS_BACKBONE: dict[str, tuple[Callable[[pathlib.Path], pathlib.Path], str]] = {
    "lambda": (lambda_layer, "asks for .*Lambda|__lambda__"),
    "lambda-without-module": (lambda_without_module, "asks for Lambda"),
    "callable": (replaced(module="os", class_name="system"), "asks for system of os"),
    "function-of-keras": (hidden_in_an_argument, "asks for get_file of keras.utils"),
    "unsafe-mode": (replaced(module="keras.config", class_name="enable_unsafe_deserialization"), "asks for enable_un"),
    "saved-model-layer": (replaced(module="keras.layers", class_name="TFSMLayer"), "asks for TFSMLayer"),
    "saved-model-layer-by-its-file": (
        replaced(module="keras.src.export.tfsm_layer", class_name="TFSMLayer"),
        "asks for TFSMLayer",
    ),
    "lambda-by-its-file": (
        replaced(module="keras.src.layers.core.lambda_layer", class_name="Lambda"),
        "asks for Lambda",
    ),
    "vocabulary-file": (
        replaced(module="keras.layers", class_name="StringLookup", config={"vocabulary": "/etc/passwd"}),
        "asks for StringLookup",
    ),
    "registered-name": (replaced(registered_name="trainer>ScalePixels"), "asks for trainer>ScalePixels"),
    "type-specification": (replaced(class_name="__typespec__"), "asks for __typespec__"),
    "not-a-class": (replaced(module="keras.src.saving.saving_lib", class_name="load_model"), "asks for load_model"),
    "large-layer": (large_layer, r"describes a model of [\d,]{14,} numbers"),
    "large-image": (large_image, r"makes [\d,]{14,} numbers of one image"),
    "deep-json": (lambda d: keras_file(d, config=b"[" * 200_000), "not a readable"),
    "json-bomb": (lambda d: keras_file(d, config=b" " * (17 << 20), compression=8), "claims to hold 17,825,792 bytes"),
    "zip-bomb": (zip_bomb, "claims to hold 83,886,080 bytes"),
    "path-traversal": (lambda d: keras_file(d, members={"../../up": b"x"}), "holds '../../up', which is not"),
    "absolute-path": (lambda d: keras_file(d, members={"/tmp/x": b"x"}), "holds '/tmp/x', which is not"),
    "assets": (lambda d: keras_file(d, members={"assets/layer/x": b"x"}), "holds 'assets/layer/x'"),
    "symlink": (symlink_member, "holds 'assets'"),
    "second-config": (second_config, "holds 'config.json', which is not one of .* each once"),
    "pickled-numpy": (pickled_numpy, "holds 'model.weights.npz'"),
    **{
        f"weights-{fill.__name__}": (lambda d, f=fill: keras_file_with(f, d), words)
        for fill, words in HDF5.items()
        if fill is not string_bomb
    },
}
AS_WEIGHTS: dict[str, tuple[Callable[[pathlib.Path], pathlib.Path], str]] = {
    **{fill.__name__: (lambda d, f=fill: hdf5_file(f, d, "w.weights.h5"), words) for fill, words in HDF5.items()},
    **{f"keras-{name}": entry for name, entry in AS_BACKBONE.items() if not name.startswith("large-")},
    "old-lambda": (old_model_with_lambda, "asks for Lambda"),
    "names-in-a-dataset": (lambda d: hdf5_file(names_in_a_dataset, d, "w.h5"), "it has 0% of its parameters|fit"),
    "safetensors-header": (safetensors_header_bomb, "not a readable .safetensors"),
    **{f"pickle-{n}": (pickle_with_the_name_of(n), "not a readable|of no known kind") for n in PICKLES},
}  # fmt: skip
