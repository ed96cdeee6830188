"""Private names of Keras, TensorFlow and Horovod: each is still there, and none is used outside of one package.

`make upgrade` runs this file before all others.
"""

import ast
import importlib
import importlib.metadata
import inspect
import pathlib
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trainer.system.private_api.names import PRIVATE_NAMES, PrivateName

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "trainer/system/private_api"
# Names that tests alone use, in the file that `module` names.
OF_TESTS = (
    PrivateName(
        "tensorflow.tsl.profiler.protobuf.xplane_pb2.XSpace",
        "tests/distribute/compiled_clusters",
        "to read from a profile what XLA ran",
        "find the module of this protocol buffer, which has moved before",
    ),
)
# In these packages only what stands at the top is public.
PRIVATE_PACKAGES = re.compile(r"(keras|keras_hub)\.src\b|tensorflow\.(?!keras\b)|horovod\.(?!tensorflow$)")
# Of Python's own objects.
OF_PYTHON = {"_replace", "_asdict", "_fields", "_exit", "_environ", "_ntuple_diskusage"}


def file_of(name: PrivateName) -> str:
    return f"{name.module if '/' in name.module else f'{PACKAGE}/{name.module}'}.py"


# Each name is there


def small_network() -> Any:
    import keras

    inputs = keras.Input((4, 4, 3))
    return keras.Model(inputs, keras.layers.BatchNormalization()(inputs))


def first_node() -> Any:
    (first,), *_ = small_network()._nodes_by_depth.values()
    return first


def uninitialized_variables() -> Any:
    from keras.src.backend.common import global_state

    from trainer.system.private_api.keras_scopes import variables_without_memory

    with variables_without_memory():
        small_network()
        return global_state.get_global_attribute("uninitialized_variables")


def seed_path() -> Any:
    import keras

    path = keras.random.SeedGenerator(0).state.path
    return path if path.endswith("seed_generator_state") else None


def rendezvous_socket() -> Any:
    from trainer.system.private_api.horovod_server import rendezvous_server

    with rendezvous_server() as (server, _):
        return server._httpd


# What instances have and classes do not, or what must be tried.
TRIED: dict[str, Callable[[], Any]] = {
    "keras.Model._nodes_by_depth": lambda: small_network()._nodes_by_depth,
    "keras.layers.BatchNormalization._reduction_axes": lambda: small_network().layers[-1]._reduction_axes,
    "keras.random.SeedGenerator.state.path": seed_path,
    "keras.src.backend.common.global_state.uninitialized_variables": uninitialized_variables,
    "keras.src.ops.node.Node.arguments": lambda: first_node().arguments.kwargs is not None,
    "keras.src.ops.node.Node.operation": lambda: first_node().operation,
    "keras.src.ops.node.Node.outputs": lambda: first_node().outputs,
    "horovod.runner.http.http_server.RendezvousServer._httpd": rendezvous_socket,
}


def resolve(name: str) -> Any:
    """Return the object that a dotted name means. Raises ImportError or AttributeError."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as e:
            if e.name is None or not name.startswith(e.name) or end == 1:
                raise
        else:
            for part in parts[end:]:
                found = getattr(found, part)
            return found
    raise AssertionError("the last turn returns or raises")


def complaint_about(name: PrivateName) -> str | None:
    """Return what is wrong where the installed version no longer has `name` as it is needed."""
    library = name.name.split(".")[0]
    try:
        found = TRIED[name.name]() if name.name in TRIED else resolve(name.name)
        if found is None:
            raise AttributeError("it is there, and is nothing")
        missing = [a for a in name.arguments if a not in inspect.signature(found).parameters]
        if missing:
            raise TypeError(f"it takes no {', '.join(missing)}")
    except (ImportError, AttributeError, TypeError, KeyError, ValueError) as e:
        version = importlib.metadata.version(library)
        return (
            f"{library} {version} has taken away {name.name} ({e}). {file_of(name)} needs it {name.needed_for}; "
            f"without it: {name.otherwise}"
        )
    return None


def _param(name: PrivateName) -> Any:
    marks = [pytest.mark.horovod] if name.name.startswith("horovod") else []
    return pytest.param(name, id=name.name, marks=marks)


@pytest.mark.parametrize("name", [_param(name) for name in (*PRIVATE_NAMES, *OF_TESTS)])
def test_the_installed_version_has_the_private_name(name):
    complaint = complaint_about(name)
    assert complaint is None, complaint


def test_a_name_that_is_gone_is_named_with_its_place_and_the_way_out():
    gone = PrivateName("keras.src.saving.serialization_lib.Gone", "keras_scopes", "to load", "use the public one")
    assert re.fullmatch(
        r"keras [\d.]+ has taken away keras\.src\.saving\.serialization_lib\.Gone \(.*\)\. "
        r"trainer/system/private_api/keras_scopes\.py needs it to load; without it: use the public one",
        str(complaint_about(gone)),
    )
    assert "keras" in str(complaint_about(gone._replace(name="keras.src.gone.Gone")))
    argument = gone._replace(name="keras.StatelessScope", arguments=("gone",))
    assert "it takes no gone" in str(complaint_about(argument))


# None is used elsewhere


def own_private_names(trees: list[ast.Module]) -> set[str]:
    """Return the names with one underscore that this project itself gives to attributes."""
    own: set[str] = set(OF_PYTHON)
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in own if is_private(name)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def foreign_private_names(tree: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each use of a private module or attribute that is not this project's."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if PRIVATE_PACKAGES.match(a.name))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if PRIVATE_PACKAGES.match(str(node.module)) or (PRIVATE_PACKAGES.match(name) and alias.name == "src"):
                    yield node.lineno, name
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.lineno, node.attr
        elif isinstance(node, ast.Attribute) and node.attr in ("__internal__", "python", "src"):
            if re.fullmatch(r"(tf|tensorflow|keras)\.\w+", ast.unparse(node)):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("attr", "import_module", "patch", "object")
        ):
            for value in (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)):
                if PRIVATE_PACKAGES.match(value) or (is_private(value) and value not in own):
                    yield node.lineno, value


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    command = ["git", "ls-files", "-co", "--exclude-standard", "*.py"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split()
    there = [path for path in listed if (REPOSITORY / path).exists()]
    return {path: ast.parse((REPOSITORY / path).read_text(encoding="utf-8"), path) for path in there}


@pytest.fixture(scope="module")
def own(trees) -> set[str]:
    return own_private_names([tree for path, tree in trees.items() if not is_inside(path)])


def is_inside(path: str) -> bool:
    is_generated = path.endswith("_pb2.py")
    return is_generated or path.startswith(f"{PACKAGE}/") or REPOSITORY / path == pathlib.Path(__file__).resolve()


def found_in(path: str, tree: ast.Module, own: set[str]) -> list[str]:
    allowed = [name.name for name in OF_TESTS if file_of(name) == path]
    return [
        f"{path}:{line} uses {name}, a private name; give it a function in {PACKAGE}/ and an entry in names.py there"
        for line, name in foreign_private_names(tree, own)
        if not any(private.startswith(name) for private in allowed)
    ]


def test_no_private_name_is_used_outside_of_one_package(trees, own):
    found = [line for path, tree in trees.items() if not is_inside(path) for line in found_in(path, tree, own)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "planted",
    [
        "from keras.src.saving import serialization_lib",
        "from keras import src",
        "import tensorflow.python.eager.context",
        "from tensorflow.core.protobuf import saved_model_pb2",
        "from horovod.runner.http import http_server",
        "for layer in model._flatten_layers(): pass",
        "class A(Layer):\n    def call(self, x):\n        return self._reduction_axes",
        "nodes = getattr(model, '_nodes_by_depth', None)",
        "tf.__internal__.tracking.Trackable",
        "import keras\nkeras.src.ops.node.Node",
        "importlib.import_module('keras.src.saving')",
    ],
)
def test_a_planted_private_name_is_found(planted, own):
    assert found_in("trainer/model/planted.py", ast.parse(planted), own)


def test_the_list_is_of_what_the_package_uses(trees):
    listed = {name.name for name in PRIVATE_NAMES}
    texts = {path: (REPOSITORY / path).read_text() for path in trees if path.startswith(f"{PACKAGE}/")}
    for name in PRIVATE_NAMES:
        last = name.name.split(".")[-2 if name.name.endswith("state.path") else -1]
        assert re.search(rf"\b{last}\b|{last}_generator", texts[file_of(name)]), f"{name.name} is listed and not used"
    for path, tree in trees.items():
        if path.startswith(f"{PACKAGE}/"):
            for line, used in foreign_private_names(tree, set()):
                known = any(name == used or name.startswith(f"{used}.") or name.endswith(f".{used}") for name in listed)
                assert known, f"{path}:{line} uses {used}, which names.py does not list"
