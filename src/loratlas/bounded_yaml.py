"""YAML as plain data, of a size that its text does not hide: aliases let a line stand for a billion values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

MOST_VALUES = 20_000
"""Values that a document may stand for, keys included."""


class UnboundedError(ValueError):
    """A document whose aliases stand for too much.

    Args:
        found: what it stands for.
        instead: what it should.
    """

    def __init__(self, found: str, instead: str) -> None:
        super().__init__(f"{found}; {instead}")
        self.found = found
        self.instead = instead


def load_yaml(text: str, loader: Any = None, *, most: int = MOST_VALUES) -> Any:
    """Plain data of a YAML text.

    Args:
        text: one document.
        loader: a kind of `yaml.SafeLoader`; that one unless given.
        most: values that it may stand for.

    Raises:
        UnboundedError: it stands for more, or for itself.
        RecursionError: too deep.
        yaml.YAMLError: no YAML.

    >>> load_yaml("a: [1, two]")
    {'a': [1, 'two']}
    >>> load_yaml("a: &a [x, x, x]\\nb: [*a, *a, *a]", most=10)
    Traceback (most recent call last):
    loratlas.bounded_yaml.UnboundedError: 20 values; at most 10
    """
    import yaml

    reader = (loader or yaml.SafeLoader)(text)
    try:
        node = reader.get_single_node()
        total = 0 if node is None else _size(node, {}, set())
        if total > most:
            found = f"aliases that stand for {total:.3g} values" if total > 10 * most else f"{total:,} values"
            raise UnboundedError(found, f"at most {most:,}")
        return None if node is None else reader.construct_document(node)
    finally:
        reader.dispose()


def _size(node: yaml.Node, sizes: dict[int, int], begun: set[int]) -> int:
    """Values that a node stands for, its aliases written out."""
    if id(node) in begun:
        raise UnboundedError("an alias that stands for itself", "the values written out")
    if id(node) not in sizes:
        begun.add(id(node))
        inner: list[Any] = list(node.value) if isinstance(node.value, list) else []
        inner = [each for item in inner for each in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_size(each, sizes, begun) for each in inner)
        begun.discard(id(node))
    return sizes[id(node)]
