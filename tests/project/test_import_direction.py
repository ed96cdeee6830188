"""Read every import of the project; fail on a wrong arrow between packages or folders, a circle, or a loose module.

Imports inside functions count for the direction: a lazy import is a dependency all the same. Only for circles do they
not count, since those are what laziness is for.
"""

import ast
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]

# A package may import itself and those before it; `trainer.cli`, the roof, imports from everywhere.
PACKAGES = ("trainer", "export", "serving")
ROOF = "trainer.cli"
# `python -m trainer` starts the roof. The public functions of `trainer/__init__.py` import when they are called.
STARTS = "trainer.__main__"
PUBLIC = "trainer"

# Folders, from the ground up: a folder may import itself, its level's neighbours and what is below.
LEVELS = (
    ("errors", "console"),
    ("system", "config"),
    ("distribute", "model", "metrics"),
    ("data", "run", "doctor"),
    ("step",),
    ("features", "evaluation"),
    ("plan", "report", "cleaning"),
    ("training",),
    ("launch",),
    ("dry_run", "acceptance"),
    ("cli",),
)
SERVING_LEVELS = (
    ("protocol",),
    ("batching", "monitoring"),
    ("models",),
    ("inference", "http", "page", "clients", "k8s"),
    ("rpc", "verification"),
    ("open_inference", "load"),
    ("rest",),
    ("server",),
)
# The modules that may stand at the root of a package, beside its folders.
AT_ROOT = {
    "trainer": {"__init__", "__main__", "errors"},
    "export": {"__init__"},
    "serving": {"__init__"},
}
# What export may import of trainer.
EXPORT_NEEDS = {"errors", "console", "system", "config", "data", "run", "model", "metrics", "step", "distribute"}


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


def folder_of(module: str) -> str:
    """Return the folder that `module` is in, or its own name at the root of its package."""
    return module.split(".")[1] if "." in module else ""


def package_arrows(imports: list[Import]) -> list[str]:
    """Return the imports of a package by one that comes before it, and imports of the roof."""
    rank = {package: i for i, package in enumerate(PACKAGES)}
    wrong = []
    for i in imports:
        below, above = i.importer.split(".")[0], i.imported.split(".")[0]
        if is_within(i.importer, ROOF) or i.importer in (STARTS, PUBLIC):
            continue
        if rank[above] > rank[below]:
            wrong.append(f"{i.importer}:{i.line} imports {i.imported}; imports run {' <- '.join(PACKAGES)}")
        elif is_within(i.imported, ROOF):
            wrong.append(f"{i.importer}:{i.line} imports {i.imported}; nobody imports the command line")
        elif below == "export" and above == "trainer" and folder_of(i.imported) not in {*EXPORT_NEEDS, ""}:
            wrong.append(f"{i.importer}:{i.line} imports {i.imported}, which an export does not need")
    return wrong


def folder_arrows(imports: list[Import]) -> list[str]:
    """Return the imports within trainer, or within serving, that run upwards from one level of folders to another."""
    wrong = []
    for package, levels in (("trainer", LEVELS), ("serving", SERVING_LEVELS)):
        height = {name: i for i, level in enumerate(levels) for name in level}
        wrong += [
            f"{i.importer}:{i.line} imports {i.imported}, which stands on a higher level"
            for i in imports
            if i.importer.startswith(f"{package}.") and i.imported.startswith(f"{package}.") and i.importer != STARTS
            if height.get(folder_of(i.imported), 0) > height.get(folder_of(i.importer), 0)
        ]
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


def folder_circles(imports: list[Import]) -> list[str]:
    """Return the pairs of folders of one package that import each other, at whatever depth of a function."""
    arrows = {
        (".".join(i.importer.split(".")[:2]), ".".join(i.imported.split(".")[:2])): f"{i.importer}:{i.line}"
        for i in imports
        if i.importer not in (STARTS, PUBLIC)
    }
    return [
        f"{a} and {b} import each other, {where} and {arrows[b, a]}"
        for (a, b), where in arrows.items()
        if a < b and (b, a) in arrows
    ]


CHECKS = (package_arrows, folder_arrows, circles, folder_circles)


@pytest.mark.parametrize("check", CHECKS)
def test_imports_of_the_project_run_one_way(check):
    wrong = check(read_imports(REPOSITORY))
    assert not wrong, "\n".join(wrong)


def loose_modules(root: pathlib.Path) -> list[str]:
    return [
        f"{package}/{path.name}"
        for package in PACKAGES
        for path in sorted((root / package).glob("*.py"))
        if path.stem not in AT_ROOT[package]
    ]


def test_no_module_lies_loose_at_the_root_of_a_package():
    assert loose_modules(REPOSITORY) == [], "which folder is theirs?"


def test_every_folder_has_a_level_and_says_what_lives_in_it():
    for package, levels, others in (("trainer", LEVELS, {"errors"}), ("serving", SERVING_LEVELS, set())):
        folders = {path.parent.name for path in (REPOSITORY / package).glob("*/__init__.py")}
        assert folders | others == {name for level in levels for name in level}
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("__init__.py"):
            documentation = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            assert len(documentation.splitlines()) >= 3, f"{path} must say what lives there and what to read first"


PLANTED = [
    (package_arrows, {"trainer/training/loop.py": "import export.gate"}, "trainer.training.loop:1 imports"),
    (package_arrows, {"trainer/training/loop.py": "def f():\n    from export import gate"}, "loop:2 imports export"),
    (package_arrows, {"export/gate/run_gate.py": "import serving.clients.rest_client"}, "run_gate:1 imports serving"),
    (package_arrows, {"trainer/data/order.py": "import importlib\nimportlib.import_module('serving')"}, "serving;"),
    (package_arrows, {"serving/rest/codec.py": "from trainer.cli.launch import f"}, "nobody imports the command line"),
    (package_arrows, {"export/prediction/predict.py": "from trainer.training import loop"}, "an export does not need"),
    (folder_arrows, {"trainer/data/order.py": "from trainer.training import loop"}, "data.order:1"),
    (folder_arrows, {"serving/models/model.py": "from serving.clients import rest_client"}, "models.model:1"),
    (folder_arrows, {"trainer/data/order.py": "from ..training.loop import train"}, "data.order:1 imports"),
    (folder_arrows, {"trainer/data/__init__.py": "from ..training import loop"}, "trainer.data:1 imports"),
    (folder_arrows, {"trainer/distribute/topology.py": "import trainer.data.order"}, "trainer.distribute.topology:1"),
    (folder_arrows, {"trainer/errors.py": "import trainer.data.order"}, "trainer.errors:1 imports trainer.data.order"),
    (
        circles,
        {"trainer/data/order.py": "import trainer.data.b", "trainer/data/b.py": "from trainer.data import order"},
        "trainer.data.b -> trainer.data.order -> trainer.data.b",
    ),
    (
        folder_circles,
        {"trainer/data/order.py": "import trainer.run", "trainer/run/a.py": "def f():\n    import trainer.data"},
        "trainer.data and trainer.run import each other",
    ),
]  # fmt: skip

RIGHT = {
    "trainer/__init__.py": "def train():\n    from trainer.training import loop",
    "trainer/__main__.py": "from trainer.cli.app import main",
    "trainer/errors.py": "",
    "trainer/data/__init__.py": "",
    "trainer/data/order.py": "from trainer.errors import DataError",
    "trainer/data/records.py": "def later():\n    from trainer.data import order",
    "trainer/distribute/__init__.py": "",
    "trainer/distribute/topology.py": "",
    "trainer/run/__init__.py": "",
    "trainer/run/run_dir.py": "import trainer.data.order",
    "trainer/training/__init__.py": "",
    "trainer/training/loop.py": "import trainer.data.order\nfrom trainer.run import run_dir",
    "trainer/cli/__init__.py": "",
    "trainer/cli/launch.py": "def launch():\n    import trainer.training.loop",
    "trainer/cli/app.py": "import serving.clients.rest_client\nfrom trainer.cli.launch import launch",
    "export/__init__.py": "",
    "export/gate/__init__.py": "",
    "export/gate/run_gate.py": "from trainer.data import order",
    "export/prediction/predict.py": "from export.gate import run_gate",
    "serving/__init__.py": "",
    "serving/clients/rest_client.py": "from export.prediction import predict\nimport trainer.errors",
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
    assert loose_modules(tmp_path) == []


def test_a_planted_loose_module_is_found(tmp_path):
    assert loose_modules(write_tree(tmp_path, RIGHT | {"trainer/odd.py": "", "export/x.py": ""})) == [
        "trainer/odd.py",
        "export/x.py",
    ]


@pytest.mark.parametrize(("check", "planted", "expected"), PLANTED)
def test_a_planted_wrong_arrow_is_found(tmp_path, check, planted, expected):
    wrong = check(read_imports(write_tree(tmp_path, RIGHT | planted)))
    assert len(wrong) == 1
    assert expected in wrong[0]
