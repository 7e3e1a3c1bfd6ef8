"""The graph of what code reaches: a node for each function and class, read once and kept until it has changed."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import chain
from operator import is_

from dfkd_lib.core import source


@dataclass
class Node:
    """What reading a function or class came to, and later what the fixed ones came to that it reaches.

    Args:
        lines: of the table. reached: {key: what reads it}. taken: keys of the nodes that have been taken in.
        spaces: {id of a namespace, dict, list or set that was read: what it holds, as live views}.
        fixed: whether nothing else was read that may change in place, so that it holds until one of these changes.
    """

    lines: set[str] = field(default_factory=set)
    reached: dict[tuple, Callable] = field(default_factory=dict)
    taken: set[tuple] = field(default_factory=set)
    spaces: dict[int, tuple[Collection, ...]] = field(default_factory=dict)
    fixed: bool = True


# Fixed nodes, all of the library; ids of the spaces that they were read in, what these show, and all that they showed. Ids
# stay theirs: modules, classes and functions of the library live as long as the process.
_nodes: dict[tuple, Node] = {}
_spaces: set[int] = set()
_views: list[Collection] = []
_held: list = []


def forget() -> None:
    """Drop what this process has read of code, as if it had just begun; caches on disk stay."""
    _drop()
    source.forget()


def _drop() -> None:
    for kept in (_nodes, _spaces, _views, _held):
        kept.clear()


def drop_changed() -> None:
    """Forget all nodes if a file or anything in a namespace has changed since they were read.

    All of every namespace is compared at each key, by identity: a notebook may set anything between two. At a stretch that
    takes 0.1 ms; space by space, or the names in use alone, would take longer.
    """
    same = sum(map(len, _views)) == len(_held)
    if source.changed() or not same or not all(map(is_, chain.from_iterable(_views), _held)):
        _drop()


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
            waiting += inner.reached.items()
        return node

    def read(self, key: tuple, read: Callable) -> Node:
        """The node of a key, read now unless it is known."""
        known = _nodes.get(key) or self.loose.get(key)
        if known is None:
            known = self.node = Node()
            read(self)
            (_nodes if known.fixed else self.loose)[key] = known
            for space in known.spaces.keys() - _spaces if known.fixed else ():
                _spaces.add(space)
                _views.extend(known.spaces[space])
                _held.extend(chain(*known.spaces[space]))
        return known

    def space(self, space: object, *views: Collection) -> None:
        """Note that the node holds only while all that these live views show of a namespace, class or container does."""
        if self.node.fixed and id(space) not in self.node.spaces:
            self.node.spaces[id(space)] = views
