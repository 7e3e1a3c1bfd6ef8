"""The graph of what code reaches: a node for each function and class, read once and kept until it has changed."""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain

from dfkd_lib.core import source


@dataclass
class Node:
    """What reading a function or class came to, and later what the fixed ones came to that it reaches.

    Args:
        lines: of the table. reached: {key: what reads it}. taken: keys of the nodes that have been taken in.
        spaces: {id of a namespace, dict, list or set that was read: what it holds, as live views}.
        fixed: whether nothing else was read that may change in place, so that it holds until one of these changes.
        tokens: of a function, of all it uses; None of what its closure holds. alive: what the node's key has ids of.
    """

    lines: set[str] = field(default_factory=set)
    reached: dict[tuple, Callable] = field(default_factory=dict)
    taken: set[tuple] = field(default_factory=set)
    spaces: dict[int, tuple[Collection, ...]] = field(default_factory=dict)
    fixed: bool = True
    tokens: list = field(default_factory=list)
    alive: object = None


# Fixed nodes, all of the library; ids of the spaces that they were read in, what these show, and all that they showed. Ids
# stay theirs: modules, classes and functions of the library live as long as the process.
_nodes: dict[tuple, Node] = {}
_spaces: set[int] = set()
_views: list[Collection] = []
_held: list = []
wholes: dict = {}  # what several fixed nodes came to together; whoever puts it here says of which


def forget() -> None:
    """Drop what this process has read of code, as if it had just begun; caches on disk stay."""
    _drop()
    source.forget()


def _drop() -> None:
    for kept in (_nodes, _spaces, _views, _held, wholes):
        kept.clear()


def drop_changed() -> None:
    """Forget all nodes if a file or anything in a namespace has changed since they were read.

    All of every namespace is compared at each key: a notebook may set anything between two. At a stretch, and by equality,
    that takes 0.05 ms; space by space, by identity, or of the names in use alone it would take longer.
    """
    same = False
    with suppress(Exception):  # arrays do not compare as a whole
        same = [*chain.from_iterable(_views)] == _held
    if source.changed() or not same:
        _drop()


class Walk:
    """One walk through code, node by node; `node` is the one that is being read."""

    def __init__(self) -> None:
        self.node = Node()
        self.inside: list[int] = []
        self.loose: dict[tuple, Node] = {}

    def gathered(self) -> tuple[frozenset[tuple], frozenset[str]]:
        """Of all that is reached: the keys of fixed nodes, each with the fixed ones behind it, and the lines of the others."""
        fixed, lines, seen = set(), set(self.node.lines), set()
        waiting = list(self.node.reached.items())
        while waiting:
            key, read = waiting.pop()
            if key in seen:
                continue
            seen.add(key)
            node = self.read(key, read)
            if node.fixed:
                self.close(node)
                fixed.add(key)
            else:
                lines |= node.lines
            waiting += node.reached.items()
        return frozenset(fixed), frozenset(lines)

    def close(self, node: Node) -> None:
        """Take the fixed nodes that a fixed one reaches into it, once; the others have to be read each time."""
        waiting = [] if node.taken else list(node.reached.items())
        while waiting:
            key, read = waiting.pop()
            if key in node.taken:
                continue
            inner = self.read(key, read)
            if inner.fixed:
                node.reached.pop(key, None)
                node.taken |= {key, *inner.taken}
                node.lines |= inner.lines
                waiting += inner.reached.items()
            else:
                node.reached[key] = read

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


def lines_of(fixed: frozenset[tuple]) -> set[str]:
    """The lines of fixed nodes, by their keys."""
    return set().union(*(_nodes[key].lines for key in fixed))
