"""The graph of what code reaches: a node for each function and class, read once and kept until it has changed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import is_

from dfkd_lib.core import source


@dataclass
class Node:
    """What reading a function or class came to, and later what the fixed ones came to that it reaches.

    Args:
        lines: of the table. reached: {key: what reads it}. taken: keys of the nodes that have been taken in.
        spaces: keys of the namespaces that were read.
        fixed: whether nothing was read that may change in place, so that it holds until one of the namespaces changes.
    """

    lines: set[str] = field(default_factory=set)
    reached: dict[tuple, Callable] = field(default_factory=dict)
    taken: set[tuple] = field(default_factory=set)
    spaces: set[int] = field(default_factory=set)
    fixed: bool = True


# Fixed nodes, all of the library, and the namespaces they were read in with all that stood there. Ids stay theirs: modules,
# classes and functions of the library live as long as the process.
_nodes: dict[tuple, Node] = {}
_spaces: dict[int, tuple[Mapping, list]] = {}


def forget() -> None:
    """Drop what this process has read of code, as if it had just begun; caches on disk stay."""
    _nodes.clear()
    _spaces.clear()
    source.forget()


def drop_changed() -> None:
    """Forget the nodes of files and namespaces that have changed since they were read."""
    if source.changed():
        _nodes.clear()
    stale = {
        key
        for key, (space, held) in _spaces.items()
        if len(space) != len(held) or not all(map(is_, space.values(), held))
    }
    if stale:
        for key in [key for key, node in _nodes.items() if not stale.isdisjoint(node.spaces)]:
            del _nodes[key]
        for space in stale:
            del _spaces[space]


class Walk:
    """One walk through code, node by node; `node` is the one that is being read."""

    def __init__(self) -> None:
        self.node = Node()
        self.inside: list[int] = []
        self.loose: dict[tuple, Node] = {}

    def take_in(self, node: Node, loose: bool) -> Node:
        """Take the nodes that a node reaches into it: all of them, or only the fixed ones."""
        waiting = list(node.reached.items())
        node.reached = {}
        while waiting:
            key, read = waiting.pop()
            if key in node.taken:
                continue
            inner = self.read(key, read)
            if not (inner.fixed or loose):
                node.reached[key] = read
                continue
            node.taken.add(key)
            if loose and inner.fixed and not inner.taken:
                self.take_in(inner, loose=False)
            node.lines |= inner.lines
            node.taken |= inner.taken
            node.spaces |= inner.spaces
            waiting += inner.reached.items()
        return node

    def read(self, key: tuple, read: Callable) -> Node:
        """The node of a key, read now unless it is known."""
        known = _nodes.get(key) or self.loose.get(key)
        if known is None:
            known = self.node = Node()
            read(self)
            (_nodes if known.fixed else self.loose)[key] = known
        return known

    def space(self, key: int, space: Mapping) -> None:
        """Note that the node holds only while this namespace does."""
        self.node.spaces.add(key)
        if key not in _spaces:
            _spaces[key] = (space, list(space.values()))
