"""Pickles as data: an interpreter that imports nothing, and calls only what a table allows.

Source: `pickletools` of the standard library, which describes the opcodes. This file has
those that Python 3 writes, in protocols 2 to 5, for dicts of tensors and plain values.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, no_type_check


def unpickle(
    stream: io.BytesIO, names: Mapping[str, Any], persistent: Callable[[Any], Any]
) -> Any:
    """The value of a pickle.

    It may be nested, and shared, without end: do not compare, hash or print what may be a
    container.

    **Arguments:**

    - `stream`: where the pickle begins; it is read up to the pickle's end.
    - `names`: what the pickle may name, as `module.name`. The callables among them are
        called with any arguments that the pickle gives.
    - `persistent`: gives the value of a persistent id, which may be anything.

    **Raises** `ValueError` if the pickle is malformed, `TypeError` for a call with too many
    or too few arguments, and what the callables raise.
    """
    machine = _Machine(names, persistent)
    while (code := stream.read(1)) != b".":
        if not code:
            raise ValueError("the pickle does not end where it should")
        if code not in _OPCODES:
            raise ValueError(
                f"the pickle has the opcode {code!r}, which no checkpoint needs"
            )
        read_argument, step = _OPCODES[code]
        step(machine, read_argument(stream))
    return machine.pop(1)[0]


@no_type_check  # a check at every call would take ten times as long
class _Machine:
    def __init__(self, names: Mapping[str, Any], persistent: Callable[[Any], Any]):
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise ValueError("the pickle takes more from its stack than there is")
        values = self.stack[-count:]
        del self.stack[-count:]
        return values

    def top(self, kind: type) -> Any:
        value = self.stack[-1] if self.stack else None
        if type(value) is not kind:
            raise ValueError(
                f"the pickle takes a {type(value).__name__} for a {kind.__name__}"
            )
        return value

    def mark(self) -> None:
        self.below_marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        if not self.below_marks:
            raise ValueError("the pickle goes back to a mark that it has not set")
        values, self.stack = self.stack, self.below_marks.pop()
        return values

    def extend(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def update(self, keys_and_values: list[Any]) -> None:
        keys, values = keys_and_values[::2], keys_and_values[1::2]
        if not all(type(key) in (str, int) for key in keys):
            raise ValueError(
                "the pickle holds a dict whose keys are not all strings or integers"
            )
        self.top(dict).update(zip(keys, values, strict=True))

    def put(self, index: int) -> None:
        [value] = self.pop(1)
        self.push(value)
        self.memo[index] = value

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"the pickle recalls {index}, which it has not memorised")
        self.push(self.memo[index])

    def name(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("the pickle calls for what has no name")
        if f"{module}.{name}" not in self.names:
            raise ValueError(
                f"the pickle calls for {module}.{name}, which no checkpoint needs; save "
                "the weights alone, as a dict of tensors"
            )
        self.push(self.names[f"{module}.{name}"])

    def call(self) -> None:
        function, arguments = self.pop(2)
        if not callable(function) or type(arguments) is not tuple:
            raise ValueError("the pickle calls what cannot be called")
        self.push(function(*arguments))

    def build(self) -> None:
        """Drops the attributes of a dict, such as the `_metadata` of a state dict."""
        self.pop(1)
        self.top(dict)


_Step = Callable[[_Machine, Any], None]

_STEPS: dict[str, _Step] = {
    "PROTO": lambda *_: None,
    "FRAME": lambda *_: None,
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),  # noqa: FBT003
    "NEWFALSE": lambda m, _: m.push(False),  # noqa: FBT003
    "BININT": _Machine.push,
    "BININT1": _Machine.push,
    "BININT2": _Machine.push,
    "LONG1": _Machine.push,
    "BINFLOAT": _Machine.push,
    "BINUNICODE": _Machine.push,
    "SHORT_BINUNICODE": _Machine.push,
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
    "MARK": lambda m, _: m.mark(),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "APPEND": lambda m, _: m.extend(m.pop(1)),
    "APPENDS": lambda m, _: m.extend(m.pop_mark()),
    "SETITEM": lambda m, _: m.update(m.pop(2)),
    "SETITEMS": lambda m, _: m.update(m.pop_mark()),
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": lambda m, _: m.put(len(m.memo)),
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": lambda m, names: m.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.pop(2)),
    "REDUCE": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.push(m.persistent(*m.pop(1))),
}

# For each opcode, the function that reads its argument, and what the opcode does.
_OPCODES: dict[bytes, tuple[Callable[[Any], Any], _Step]] = {
    opcode.code.encode("latin-1"): (
        opcode.arg.reader if opcode.arg else lambda _: None,
        _STEPS[opcode.name],
    )
    for opcode in pickletools.opcodes
    if opcode.name in _STEPS
}
