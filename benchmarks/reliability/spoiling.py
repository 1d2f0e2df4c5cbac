"""Strategies of hypothesis for files that are nearly right: trees, texts and bytes with something wrong.

What is wrong is drawn from what has broken readers: numbers too large for any type, halves of surrogate
pairs, paths that lead out, texts for numbers, lists for tables. `OUTSIDE` stands for the path of a file out
of the folder, which whoever writes the file knows. Knows nothing about readers.
"""

from __future__ import annotations

import copy
import gzip
import json
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

OUTSIDE = "@OUTSIDE@"
Mutants = SearchStrategy[bytes]
DEEP = 100_000  # brackets
NUMBERS: tuple[Any, ...] = (
    0, -1, 1, 2, 7, 100, 1023, 65536, 2**31 - 1, 2**31, -(2**31), 2**40 + 1, 2**63 - 1, 2**63, 2**64, 10**30,
    10**400, -(10**18), 0.0, -0.5, 0.5, 1.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
TEXTS = (
    "", " ", "\0", "a\0b", "\ud800", "\u202e", "\x1b[31m", "\n\n", "é", "é", "ﬁ", "💥", "a" * 300, "9" * 5000,
    "-1", "1e999", "nan", "None", "true", "0x10", "../outside.bin", OUTSIDE, "/etc/passwd", "/dev/zero", ".",
    "..", "a/../../outside.bin", "C:\\outside.bin", "file:///etc/passwd", "https://example.com/x", "x.onnx",
    "x.safetensors", "{{ 7 * 7 }}", "{% for i in x %}", "os.system", "__class__", "torch.nn.Linear", "%s%n",
    "<script>", "(a+)+$", "*", "[", "cuda:0", "float8_e4m3fn", "2026-01-01",
)  # fmt: skip
SCALARS: tuple[Any, ...] = (None, True, False, *NUMBERS, *TEXTS)
NESTED: tuple[Any, ...] = (
    [], {}, [[]], [{}], {"a": 1}, {"": None}, [0] * 200, ["a", 1, None], [[1, 2], [3]],
    {"a": {"a": {"a": []}}}, {"bytes": "x", "path": OUTSIDE}, {"__class__": "x"},
    {"_type": "Value", "dtype": "int64"},
)  # fmt: skip
CHUNKS = (
    b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n", b'"', b"'", b",", b":", b"{",
    b"}", b"[", b"]", b"\\", b"\\u0000", b"\\ud800", b"9" * 5000, b"1e999", b"-", b"NaN", b"null",
    b"[" * 2000, b"\x80" * 9, b"\x7f\xff\xff\xff", b"\xff" * 8, b"\x00" * 64, b"../outside.bin",
    OUTSIDE.encode(),
)  # fmt: skip
_TOKENS = re.compile(rb"\w+|\s+|[^\w\s]")

scalars = st.sampled_from(SCALARS) | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12)
values = scalars | st.sampled_from(NESTED)


@st.composite
def _mostly(draw: DrawFn, often: Mutants, seldom: Mutants) -> bytes:
    """Return three files of one kind for each of the other; of equal branches, `|` keeps one."""
    return draw((seldom, often, often, often)[draw(st.integers(0, 3))])


# --- trees ----------------------------------------------------------------------------------


def _places(tree: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all nodes, the root's first."""
    found = [place]
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        found += _places(child, (*place, key))
    return found


def _at(tree: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _retagged(node: Any) -> Any:
    """Return a node as another type."""
    if isinstance(node, dict):
        return list(node.values())
    if isinstance(node, list):
        return dict(zip(map(str, range(len(node))), node, strict=True))
    if isinstance(node, str):
        return [node]
    return str(node)


def _value(draw: DrawFn) -> Any:
    return copy.deepcopy(draw(values))  # what is drawn again must be the same


def _changed(draw: DrawFn, tree: Any) -> Any:
    """Change a tree at one place."""
    places = _places(tree)
    place = draw(st.sampled_from(places))
    if not place:
        return _value(draw) if draw(st.integers(0, 9)) == 0 else tree
    holder, key = _at(tree, place[:-1]), place[-1]
    node = holder[key]
    what = draw(
        st.sampled_from(("replace", "replace", "number", "retag", "delete", "repeat", "graft", "rename"))
    )
    if what == "replace":
        holder[key] = _value(draw)
    elif what == "number" and isinstance(node, (int, float)):
        holder[key] = draw(st.sampled_from(NUMBERS))
    elif what == "retag":
        holder[key] = _retagged(node)
    elif what == "delete":
        del holder[key]
    elif what == "repeat" and isinstance(holder, list):
        times = draw(st.sampled_from((1, 2, 50)))
        holder[key:key] = [copy.deepcopy(node) for _ in range(times)]
    elif what == "rename" and isinstance(holder, dict):
        holder[draw(st.sampled_from(TEXTS) | st.text(max_size=5))] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(_at(tree, draw(st.sampled_from(places))))
    return tree


def _dumped(draw: DrawFn, tree: Any) -> bytes:
    plain = draw(st.booleans())
    return json.dumps(tree, ensure_ascii=plain).encode("utf-8", "surrogatepass")


@st.composite
def _trees(draw: DrawFn, seeds: Sequence[Any]) -> Any:
    tree = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        tree = _changed(draw, tree)
    return tree


@st.composite
def _json(draw: DrawFn, seeds: Sequence[Any]) -> bytes:
    return _dumped(draw, draw(_trees(seeds)))


def of_json(seeds: Sequence[bytes]) -> Mutants:
    """Return JSON files of which some nodes are others, and such of which some bytes are."""
    strategy = _json([json.loads(seed) for seed in seeds])
    return _mostly(strategy, of_bytes(seeds))


@st.composite
def _lines(draw: DrawFn, seeds: Sequence[Any]) -> bytes:
    tree = draw(_trees(seeds))
    return b"\n".join(_dumped(draw, line) for line in (tree if isinstance(tree, list) else [tree])) + b"\n"


def of_json_lines(seeds: Sequence[bytes]) -> Mutants:
    """Return the same of JSON Lines."""
    strategy = _lines([[json.loads(line) for line in seed.splitlines()] for seed in seeds])
    return _mostly(strategy, of_bytes(seeds))


# --- bytes ----------------------------------------------------------------------------------


def _spoilt(draw: DrawFn, content: bytes) -> bytes:
    """Change bytes at one place."""
    start = draw(st.integers(0, max(0, len(content) - 1)))
    end = min(len(content), start + draw(st.sampled_from((1, 1, 2, 8, 64, 1000))))
    what = draw(st.sampled_from(("flip", "flip", "chunk", "insert", "delete", "repeat", "cut", "random")))
    if what == "flip" and content:
        flipped = bytearray(content)
        flipped[start] ^= 1 << draw(st.integers(0, 7))
        return bytes(flipped)
    if what == "chunk":
        return content[:start] + draw(st.sampled_from(CHUNKS)) + content[end:]
    if what == "insert":
        return content[:start] + draw(st.sampled_from(CHUNKS)) + content[start:]
    if what == "delete":
        return content[:start] + content[end:]
    if what == "repeat":
        return content[:start] + content[start:end] * draw(st.sampled_from((2, 20, 1000))) + content[end:]
    if what == "cut":
        return content[:start]
    return content[:start] + draw(st.binary(max_size=8)) + content[end:]


def _encoded(draw: DrawFn, content: bytes) -> bytes:
    """Return a text in another encoding, or packed."""
    how = draw(st.sampled_from(("utf-16", "latin-1", "utf-8-sig", "utf-32", "gzip")))
    if how == "gzip":
        return gzip.compress(content, mtime=0)
    return content.decode("utf-8", "replace").encode(how, "replace")


@st.composite
def of_bytes(draw: DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Return files of which some bytes are others."""
    content = draw(st.sampled_from(list(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        content = _spoilt(draw, content)
    return _encoded(draw, content) if draw(st.integers(0, 15)) == 0 else content


# --- texts ----------------------------------------------------------------------------------


@st.composite
def _texts(draw: DrawFn, seeds: Sequence[Sequence[bytes]], words: Sequence[bytes]) -> bytes:
    tokens = list(draw(st.sampled_from(seeds)))
    token = st.sampled_from(words) | st.sampled_from([t for seed in seeds for t in seed])
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(tokens)))
        what = draw(st.sampled_from(("replace", "insert", "delete", "repeat")))
        if what == "insert" or place == len(tokens):
            tokens[place:place] = [draw(token)]
        elif what == "replace":
            tokens[place] = draw(token)
        elif what == "delete":
            del tokens[place : place + draw(st.integers(1, 5))]
        else:
            tokens[place:place] = tokens[place : place + 3] * draw(st.sampled_from((1, 3, 100)))
    return b"".join(tokens)


def of_text(*words: str) -> Callable[[Sequence[bytes]], Mutants]:
    """Return what makes texts of which some words are others.

    Args:
        words: What a grammar has more of than the seeds show.
    """
    known = [word.encode("utf-8", "surrogatepass") for word in (*words, *TEXTS)] + list(CHUNKS)

    def mutants(seeds: Sequence[bytes]) -> Mutants:
        strategy = _texts([_TOKENS.findall(seed) for seed in seeds], known)
        return _mostly(strategy, of_bytes(seeds))

    return mutants


# --- files with a header, and messages ------------------------------------------------------


@st.composite
def _headers(draw: DrawFn, seeds: Sequence[tuple[Any, bytes]]) -> bytes:
    header, body = draw(st.sampled_from(seeds))
    text = json.dumps(_changed(draw, copy.deepcopy(header))).encode()
    length = draw(
        st.sampled_from((len(text), len(text), len(text), len(text) - 1, 0, 1 << 31, (1 << 64) - 1))
    )
    return struct.pack("<Q", length) + text + body


def of_safetensors(seeds: Sequence[bytes]) -> Mutants:
    """Return safetensors files whose header says something else."""
    parts = []
    for seed in seeds:
        (length,) = struct.unpack("<Q", seed[:8])
        parts.append((json.loads(seed[8 : 8 + length]), seed[8 + length :]))
    return _mostly(_headers(parts), of_bytes(seeds))


# What a graph may well name elsewhere.
NAMES = (
    "input_ids", "logits", "Add", "MatMul", "If", "Loop", "Identity", "Constant", "value_1_0", "value_9_0",
    "value_20_0", "weight_0", "weight_5", "location", "offset", "length", "com.microsoft",
)  # fmt: skip
_INTEGERS = st.sampled_from((0, 1, 2, -1, 7, 10**9, 2**31 - 1)) | st.integers(-5, 40)
_FIELDS: dict[int, SearchStrategy[Any]] = {  # by `cpp_type` of a field's descriptor; bytes are texts to it
    5: st.sampled_from((0.0, 1e30, float("nan"))),
    6: st.sampled_from((0.0, 1e300, float("nan"))),
    9: st.sampled_from(TEXTS) | st.sampled_from(NAMES) | st.sampled_from(NAMES),
}


def _messages(message: Any) -> list[Any]:
    """Return a protobuf message and all messages in it."""
    found = [message]
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for part in value if hasattr(value, "append") or hasattr(value, "add") else (value,):
                found += _messages(part)
    return found


def _set(draw: DrawFn, message: Any) -> None:
    """Change one field of a message."""
    descriptor = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    name, value = descriptor.name, getattr(message, descriptor.name)
    if hasattr(value, "add"):  # messages
        what = draw(st.sampled_from(("delete", "repeat", "swap", "empty")))
        if what == "empty" or not value:
            value.add()
        elif what == "delete":
            del value[draw(st.integers(0, len(value) - 1))]
        else:
            one, other = (value[draw(st.integers(0, len(value) - 1))] for _ in range(2))
            value.add().CopyFrom(one) if what == "repeat" else one.CopyFrom(copy.deepcopy(other))
        return
    if descriptor.message_type is not None:
        message.ClearField(name)
        return
    is_bytes = descriptor.type == descriptor.TYPE_BYTES
    drawn = draw(st.sampled_from(CHUNKS) if is_bytes else _FIELDS.get(descriptor.cpp_type, _INTEGERS))
    try:
        if not hasattr(value, "append"):
            setattr(message, name, drawn)
        elif value and draw(st.booleans()):
            value[draw(st.integers(0, len(value) - 1))] = drawn
        else:
            value.append(drawn)
    except (ValueError, TypeError, UnicodeError):  # what protobuf itself does not let be written
        message.ClearField(name)


@st.composite
def _protos(draw: DrawFn, seeds: Sequence[Any]) -> bytes:
    proto = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        _set(draw, draw(st.sampled_from(_messages(proto))))
    return bytes(proto.SerializeToString())


def of_onnx(seeds: Sequence[bytes]) -> Mutants:
    """Return ONNX files of which some fields are others."""
    import onnx

    strategy = _protos([onnx.load_model_from_string(seed) for seed in seeds])
    return _mostly(strategy, of_bytes(seeds))
