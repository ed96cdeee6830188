"""YAML as settings use it: keys are names, as they are written.

YAML 1.1 reads the plain keys 07, yes, null and 1_000 as the numbers 7 and 1000, a boolean and nothing. Every key of a
recipe is the name of a section, a setting or a class, so that here they stay text, and none of them is lost to another.
"""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """The safe loader with keys as text."""


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
    """The value that `text` is.

    Raises:
        yaml.YAMLError: it is not YAML, or holds a key twice.
    """
    return yaml.load(text, _Loader)  # noqa: S506  a safe loader
