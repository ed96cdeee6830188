"""Reads every import of the project and fails on a wrong arrow: between packages, between layers, or in a circle.

Imports inside functions count for the direction: a lazy import is a dependency all the same. Only for circles do they
not count, since those are what laziness is for.
"""

import ast
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# A package may import those before it. The command line alone looks across.
PACKAGES = ("trainer", "export", "serving")
LOOKS_ACROSS = "trainer.cli.app"
# `python -m trainer`
STARTS = "trainer.__main__"

# Inside trainer: a layer may import itself and those before it. A new module finds its place here.
LAYERS = (
    ("trainer.errors", "trainer.cli.output", "trainer.trust"),
    ("trainer.system",),
    ("trainer.settings",),
    (
        "trainer.atomic",
        "trainer.bounded_read",
        "trainer.config",
        "trainer.environment",
        "trainer.tf_runtime",
    ),
    ("trainer.run_dir", "trainer.distribute.topology"),
    ("trainer.data",),
    ("trainer.model",),
    ("trainer.distribute",),
    (
        "trainer.objective",
        "trainer.train_state",
        "trainer.forward_backward",
        "trainer.steps",
        "trainer.checkpoint",
        "trainer.metric_writers",
        "trainer.metrics",
        "trainer.last_lines",
        "trainer.run",
    ),
    ("trainer.features",),
    (
        "trainer.resolve",
        "trainer.stages",
        "trainer.plan",
        "trainer.streams",
        "trainer.progress",
        "trainer.evaluate",
        "trainer.step_times",
        "trainer.loop",
        "trainer.run_cost",
        "trainer.comparison",
        "trainer.report",
    ),
    ("trainer.actions", "trainer.patience", "trainer.staged_step", "trainer.recipe_choice", "trainer.bad_batch"),
    ("trainer.train",),
    ("trainer.solve",),
    ("trainer.job", "trainer.elastic_worker"),
    ("trainer.launch", "trainer.doctor"),
    ("trainer.dry_run",),
    ("trainer.cli", "trainer.__main__"),
)
# Everything below the commands answers with values and exceptions; only what takes minutes says how far it is.
CONSOLE = "trainer.cli.output"
PRINTS = (
    "trainer.progress",
    "export.publish",
    "trainer.cli",
    "export.cli",
    "export.cli_bench",
    "export.cli_versions",
    "serving.cli",
)
COMMANDS = ("trainer.cli", "export.cli", "export.cli_bench", "export.cli_versions", "serving.cli")


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    at_module_level: bool


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def find_modules(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """Dotted name to file, for every module of the packages under `root`."""
    modules = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def read_imports(root: pathlib.Path) -> list[Import]:
    """Every import by a module of the packages under `root` of another module of them."""
    modules = find_modules(root)
    imports: dict[Import, None] = {}
    for importer, path in modules.items():
        tree = ast.parse(path.read_text(), filename=str(path))
        inside_functions = {
            id(inner)
            for outer in ast.walk(tree)
            if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for inner in ast.walk(outer)
        }
        for node in ast.walk(tree):
            for name in imported_names(node, importer, is_package=path.name == "__init__.py"):
                module = nearest_module(name, modules)
                if module is not None and module != importer:
                    imports[Import(importer, module, node.lineno, id(node) not in inside_functions)] = None
    return list(imports)


def imported_names(node: ast.AST, importer: str, *, is_package: bool) -> Iterator[str]:
    """The dotted names that `node` imports; for `from a import b`, that is a.b, whether module or attribute."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = importer.split(".")
            parents = parts[: len(parts) - node.level + is_package]
            base = ".".join([*parents, base] if base else parents)
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))


def nearest_module(name: str, modules: Iterable[str]) -> str | None:
    """`name` or the module that holds it; None for a name from outside the project."""
    while name:
        if name in modules:
            return name
        name = name.rpartition(".")[0]
    return None


def package_arrows(imports: list[Import]) -> list[str]:
    rank = {package: i for i, package in enumerate(PACKAGES)}
    return [
        f"{i.importer}:{i.line} imports {i.imported}; imports run {' <- '.join(PACKAGES)}"
        for i in imports
        if rank[i.imported.split(".")[0]] > rank[i.importer.split(".")[0]] and i.importer != LOOKS_ACROSS
    ]


def layer_of(module: str) -> int | None:
    """The layer that names `module`, or else the nearest package around it; None where there is none."""
    layers = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    home = nearest_module(module, layers)
    return None if home is None else layers[home]


def layer_arrows(imports: list[Import]) -> list[str]:
    wrong = []
    for i in imports:
        below, above = layer_of(i.importer), layer_of(i.imported)
        if below is not None and above is not None and above > below:
            wrong.append(f"{i.importer}:{i.line} imports {i.imported}, which stands in a higher layer")
    return wrong


def command_arrows(imports: list[Import]) -> list[str]:
    wrong = []
    for i in imports:
        if i.imported == CONSOLE and not any(is_within(i.importer, name) for name in PRINTS):
            wrong.append(f"{i.importer}:{i.line} imports {CONSOLE}; raise or return, and let the command print")
        elif (
            i.imported != CONSOLE
            and any(is_within(i.imported, name) for name in COMMANDS)
            and i.importer not in (LOOKS_ACROSS, STARTS)
        ):
            wrong.append(f"{i.importer}:{i.line} imports {i.imported}; only {LOOKS_ACROSS} gathers the commands")
    return wrong


def circles(imports: list[Import]) -> list[str]:
    """Each circle of module-level imports once, as a chain that ends where it starts."""
    graph: dict[str, list[str]] = {}
    for i in imports:
        if i.at_module_level:
            graph.setdefault(i.importer, []).append(i.imported)
    found: set[str] = set()
    finished: set[str] = set()

    def walk(module: str, chain: list[str]) -> None:
        if module in chain:
            circle = chain[chain.index(module) :]
            start = circle.index(min(circle))
            found.add(" -> ".join([*circle[start:], *circle[: start + 1]]))
            return
        if module not in finished:
            for imported in graph.get(module, []):
                walk(imported, [*chain, module])
            finished.add(module)

    for module in graph:
        walk(module, [])
    return sorted(found)


CHECKS = (package_arrows, layer_arrows, command_arrows, circles)


@pytest.mark.parametrize("check", CHECKS)
def test_imports_of_the_project_run_one_way(check):
    wrong = check(read_imports(REPOSITORY))
    assert not wrong, "\n".join(wrong)


def homeless_modules(root: pathlib.Path) -> list[str]:
    return [name for name in find_modules(root) if name.startswith("trainer.") and layer_of(name) is None]


def test_every_module_of_trainer_has_a_layer():
    assert homeless_modules(REPOSITORY) == [], "give these a place in LAYERS"


def test_every_layer_names_modules_that_exist():
    """A layer whose module was renamed would guard nothing."""
    modules = find_modules(REPOSITORY)
    assert [name for layer in LAYERS for name in layer if name not in modules] == []


PLANTED = [
    (package_arrows, {"trainer/loop.py": "import export.parity"}, "trainer.loop:1 imports export.parity"),
    (package_arrows, {"trainer/loop.py": "def f():\n    from export import parity"}, "trainer.loop:2 imports export"),
    (package_arrows, {"export/parity.py": "from serving.codec import decode"}, "export.parity:1 imports serving.codec"),
    (package_arrows, {"trainer/data/order.py": "import importlib\nimportlib.import_module('serving')"}, "serving;"),
    (package_arrows, {"trainer/cli/launch.py": "import serving.codec"}, "trainer.cli.launch:1 imports serving.codec"),
    (layer_arrows, {"trainer/data/order.py": "from trainer import loop"}, "trainer.data.order:1 imports trainer.loop"),
    (layer_arrows, {"trainer/data/order.py": "from ..loop import train"}, "trainer.data.order:1 imports trainer.loop"),
    (layer_arrows, {"trainer/data/__init__.py": "from .. import loop"}, "trainer.data:1 imports trainer.loop"),
    (layer_arrows, {"trainer/distribute/topology.py": "import trainer.data.order"}, "trainer.distribute.topology:1"),
    (layer_arrows, {"trainer/errors.py": "import trainer.data.order"}, "trainer.errors:1 imports trainer.data.order"),
    (command_arrows, {"trainer/loop.py": "from trainer.cli.output import note"}, "trainer.loop:1 imports"),
    (command_arrows, {"export/cli.py": "from trainer.cli.launch import launch"}, "export.cli:1 imports trainer.cli."),
    (command_arrows, {"serving/codec.py": "import serving.cli"}, "serving.codec:1 imports serving.cli"),
    (
        circles,
        {"trainer/loop.py": "import trainer.evaluate", "trainer/evaluate.py": "from trainer import loop"},
        "trainer.evaluate -> trainer.loop -> trainer.evaluate",
    ),
]  # fmt: skip

RIGHT = {
    "trainer/__init__.py": "",
    "trainer/errors.py": "",
    "trainer/data/__init__.py": "",
    "trainer/data/order.py": "from trainer.errors import DataError",
    "trainer/distribute/__init__.py": "",
    "trainer/distribute/topology.py": "",
    "trainer/loop.py": "import trainer.data.order",
    "trainer/evaluate.py": "def later():\n    from trainer import loop",
    "trainer/cli/__init__.py": "",
    "trainer/cli/output.py": "",
    "trainer/cli/launch.py": "from trainer.cli.output import note\ndef launch():\n    import trainer.loop",
    "trainer/cli/app.py": "import export.cli, serving.cli\nfrom trainer.cli.launch import launch",
    "export/__init__.py": "",
    "export/parity.py": "from trainer import loop, evaluate",
    "export/cli.py": "from trainer.cli.output import note",
    "serving/__init__.py": "",
    "serving/codec.py": "from export import parity\nimport trainer.errors",
    "serving/cli.py": "from trainer.cli.output import note",
}


def write_tree(root: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_a_tree_with_right_arrows_passes(tmp_path):
    imports = read_imports(write_tree(tmp_path, RIGHT))
    assert len(imports) > 10
    assert [check(imports) for check in CHECKS] == [[], [], [], []]


def test_a_planted_module_without_a_layer_is_found(tmp_path):
    assert homeless_modules(write_tree(tmp_path, RIGHT | {"trainer/odd.py": ""})) == ["trainer.odd"]


@pytest.mark.parametrize(("check", "planted", "expected"), PLANTED)
def test_a_planted_wrong_arrow_is_found(tmp_path, check, planted, expected):
    wrong = check(read_imports(write_tree(tmp_path, RIGHT | planted)))
    assert len(wrong) == 1
    assert expected in wrong[0]
