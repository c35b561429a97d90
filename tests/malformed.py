"""Files and words as they must not be: valid ones, harmed at random. No test of its own."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import tomli_w
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

NUMBERS = (0, 1, -1, 3, 2**31, 10**6, 10**12, 2**63, 10**30, 0.5, -0.0, 1e-300, 1e308, math.inf, -math.inf, math.nan)
WORDS = (
    *(
        "",
        " ",
        "church",
        "nothing",
        "auto",
        "fp32",
        "../../x",
        "/dev/zero",
        "a/b",
        "x" * 5000,
        "\x00",
        "\u202e",
        "é\u0301",
    ),
    *(
        "**",
        "[a-",
        "a(b",
        "{}",
        "%s",
        "\\",
        "]]>",
        "<script>",
        "\n\n",
        "1",
        "true",
        "nan",
        "ddim",
        "cuda",
        "\U0001f41f",
    ),
)
KEYS = ("", "name", "path", "seed", "auto_map", "_class_name", "\u202e", "é", "x" * 300, "__class__", "steps")
PIECES = (
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"nan",
        b"-inf",
        b"1e999",
        b"9" * 400,
        b"9" * 5000,
        b"[[x]]",
    ),
    *(
        b"1979-05-27",
        b'"\\ud800"',
        b'"',
        b"'",
        b"\r",
        b"\n\n",
        b",",
        b"[" * 3000,
        b'{"a":' * 3000,
        b"{",
        b"}",
        b"#",
        b"=",
    ),
    *(b"null", b"-1", b"0x7f", b"true", b"NaN", b"\\u0000", b"1_0", b"'''", b"[a]\n", b"a.b.c=1\n", b"\x1b[31m", b"-"),
)


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def wrong() -> st.SearchStrategy[Any]:
    """A value that is most likely of the wrong type, or out of range."""
    plain = st.sampled_from([None, True, False, *NUMBERS, *WORDS])
    return (
        plain
        | st.lists(plain, max_size=4)
        | st.dictionaries(st.sampled_from(KEYS), plain, max_size=3)
        | st.just(nested(60))
    )


def harmed_table(draw: Draw, table: dict[str, Any], times: int = 3) -> dict[str, Any]:
    """The table with a few of its values, at any depth, replaced, left out, renamed or added to."""
    table = copy.deepcopy(table)
    for _ in range(draw(st.integers(1, times))):
        owner: Any = table
        for _ in range(draw(st.integers(0, 4))):
            inner = [value for value in _entries(owner) if isinstance(value, dict | list) and value]
            if not inner:
                break
            owner = draw(st.sampled_from(inner))
        keys = list(owner) if isinstance(owner, dict) else list(range(len(owner)))
        what = draw(st.sampled_from(["replace", "replace", "replace", "drop", "add", "twice"]))
        if what == "add" or not keys:
            _add(owner, draw(st.sampled_from(KEYS)), draw(wrong()))
        elif what == "replace":
            owner[draw(st.sampled_from(keys))] = draw(wrong())
        elif what == "drop":
            del owner[draw(st.sampled_from(keys))]
        else:
            _add(owner, draw(st.sampled_from(KEYS)), copy.deepcopy(owner[draw(st.sampled_from(keys))]))
    return table


def _entries(owner: Any) -> list[Any]:
    return list(owner.values()) if isinstance(owner, dict) else list(owner)


def _add(owner: Any, key: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[key] = value
    else:
        owner.append(value)


def harmed_bytes(draw: Draw, content: bytes, times: int = 4) -> bytes:
    """The bytes with a few of them replaced, left out, repeated or added to."""
    for _ in range(draw(st.integers(1, times))):
        first = draw(st.integers(0, len(content)))
        last = draw(st.integers(first, min(len(content), first + 40)))
        put = draw(st.sampled_from(PIECES) | st.binary(max_size=6) | st.just(content[first:last] * 2))
        content = content[:first] + put + content[last:]
        if draw(st.integers(0, 9)) == 0:
            content = content[: draw(st.integers(0, len(content)))]
    return content


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_toml(value: Any) -> bytes:
    return tomli_w.dumps(_tomlish(value)).encode()


def _tomlish(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tomlish(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_tomlish(entry) for entry in value if entry is not None]
    return value


def harmed(draw: Draw, table: dict[str, Any], write: Callable[[Any], bytes]) -> bytes:
    """A table's file, harmed in what it says or in its bytes, or both."""
    how = draw(st.sampled_from(["table", "table", "bytes", "both"]))
    content = write(table if how == "bytes" else harmed_table(draw, table))
    return content if how == "table" else harmed_bytes(draw, content)


def harmed_safetensors(draw: Draw, content: bytes) -> bytes:
    """A safetensors file with a header that lies: of its length, names, types, shapes, places; or cut short."""
    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    how = draw(st.sampled_from(["header", "header", "header", "length", "bytes", "cut"]))
    if how == "cut":
        return content[: draw(st.integers(0, len(content)))]
    if how == "bytes":
        return harmed_bytes(draw, content)
    if how == "length":
        told = draw(st.sampled_from([0, 1, length - 1, length + 1, 10**6, 10**9, 2**63, 2**64 - 1]))
        return told.to_bytes(8, "little") + content[8:]
    for _ in range(draw(st.integers(1, 3))):
        _harm_header(draw, header, len(data))
    told = json.dumps(header).encode()
    return len(told).to_bytes(8, "little") + told + data


def _harm_header(draw: Draw, header: dict[str, Any], size: int) -> None:
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return
    name = draw(st.sampled_from(names))
    entry = header.get(name)
    if not isinstance(entry, dict):
        entry = header[name] = {}
    match draw(st.sampled_from(["dtype", "shape", "offsets", "name", "drop", "metadata", "entry"])):
        case "dtype":
            entry["dtype"] = draw(st.sampled_from(["F64", "F16", "BF16", "I8", "I64", "BOOL", "F8_E4M3", "X", None, 1]))
        case "shape":
            entry["shape"] = draw(
                st.sampled_from([[], [0], [10**12], [10**6, 10**6], [-1], [1.5], [2**63, 2], "x", [10**12, 0], None])
            )
        case "offsets":
            entry["data_offsets"] = draw(
                st.sampled_from([[0, 0], [0, 10**12], [-1, 4], [8, 4], [0], [0, size], "x", [0, 2**64]])
            )
        case "name":
            header[draw(st.sampled_from(KEYS) | st.just(f"unet.{name}"))] = header.pop(name, entry)
        case "drop":
            header.pop(name, None)
        case "metadata":
            header["__metadata__"] = draw(wrong())
        case "entry":
            header[name] = draw(wrong())


def harmed_csv(draw: Draw, content: str) -> bytes:
    """A list of prompts with columns and fields that do not fit, in an encoding of any kind."""
    rows = [line.split(",") for line in content.splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from(rows))
        if row:
            at = draw(st.integers(0, len(row) - 1))
            field = draw(
                st.sampled_from(
                    ["", "1.5", "-1", "nan", "inf", "1e400", '"', '""', "a\0b", "x" * 200_000, "9" * 5000, "١"]
                )
                | st.text(max_size=5)
            )
            row[at : at + draw(st.integers(0, 1))] = [field]
    text = draw(st.sampled_from(["\n", "\r", "\r\n", "\n\n"])).join(",".join(row) for row in rows)
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-16", "latin-1", "utf-8-sig", "utf-32"]))
    content_ = text.encode(encoding, errors="replace")
    return harmed_bytes(draw, content_, 2) if draw(st.booleans()) else content_
