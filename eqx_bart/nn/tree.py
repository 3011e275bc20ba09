"""Ways through a model's tree."""

from collections.abc import Iterator
from typing import Any

import jax.tree_util as jtu


def along(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """The nodes on a path of `jax.tree_util`, each with the key to the next one. What lies
    in a container other than a module, a tuple, a list or a dict is `None`.
    """
    for key in path:
        yield tree, key
        match key:
            case jtu.GetAttrKey():
                tree = getattr(tree, key.name)
            case jtu.SequenceKey():
                tree = tree[key.idx]
            case jtu.DictKey():
                tree = tree[key.key]
            case _:
                tree = None
