"""Read YAML as settings use it: true and false are the booleans, 1e-3 is a number, and keys are text.

PyYAML reads YAML 1.1, where on, off, yes and no are booleans and 1e-3 is text; here they are read as in YAML 1.2. A key
is the name of a section, a setting or a class, so it stays as it is written: 07, null and 1_000, too. PyYAML quotes
what the two versions read differently, so any reader understands what it writes.
"""

import re
from typing import Any

import yaml

_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """The safe loader with the booleans and floats of YAML 1.2, and keys as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  as PyYAML declares it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(_BOOL, re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF"))
_Loader.add_implicit_resolver(_FLOAT, re.compile(r"[+-]?\d+(?:\.\d*)?[eE][+-]?\d+\Z"), list("+-0123456789"))


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[str, Any]:
    written: set[str] = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key is not text", key_node.start_mark)
        if key_node.value in written:
            problem = f"the key {key_node.value!r} is there twice"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        written.add(key_node.value)
    # What is merged in comes first, and what is written here wins.
    loader.flatten_mapping(node)
    return {key_node.value: loader.construct_object(value_node, deep=True) for key_node, value_node in node.value}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def read_yaml(text: str) -> Any:
    """Return the value that `text` stands for.

    Raises:
        yaml.YAMLError: it is not YAML, or holds a key twice.
    """
    return yaml.load(text, _Loader)  # noqa: S506  a safe loader
