"""What once broke a reader, by name: fed first, whenever that reader is fed.

Each was found by feeding, ended in a traceback, took memory without bound or led out of its folder, and is
answered by one line since.
"""

from __future__ import annotations

import json

from .seeds import FINGERPRINT

DIGITS = "f" * 5000  # hexadecimal; Python does not write as many decimal ones
HEADER = json.dumps({"kind": "search", "schema_version": 1, "fingerprint": FINGERPRINT}) + "\n"
INFO, STATE = (f"samples, {name}.json of a saved dataset" for name in ("dataset_info", "state"))


def _journal(**changes: object) -> bytes:
    line = {"sets": [[0]], "rows": [0, 1], "values": [[1.0, 0.0]], "losses": [[0.5, 0.25]], 
            "layer_forwards": 2, "layer_tokens": 9}  # fmt: skip
    return (HEADER + json.dumps({**line, **changes}) + "\n").encode()


def _safetensors(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def _bomb(first: str, twice: str) -> bytes:
    """Return YAML in which each of thirty names stands for the one before, twice."""
    parts = [f"a0: &a0 {first}", *(f"a{n}: &a{n} {twice.replace('*', f'*a{n - 1}')}" for n in range(1, 31))]
    return f"columns: {{{', '.join(parts)}}}\n".encode()


# name: (reader, file)
CRASHES: dict[str, tuple[str, bytes]] = {
    "a dataset without features": (INFO, b"null"),
    "a class without a name": (
        INFO, b'{"features": {"text": {"dtype": "string", "_type": "Value"}, '
        b'"label": {"names": ["a"], "_type": "ClassLabel"}}}',
    ),
    "a dataset of no files": (
        STATE, b'{"_data_files": {}, "_fingerprint": "", "_format_type": null, "_split": null}',
    ),
    "a dataset whose split is a table": (
        STATE, b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "", '
        b'"_format_columns": null, "_format_kwargs": {}, "_format_type": null, "_output_all_columns": false, '
        b'"_split": {}}',
    ),
    "a dataset nested too deeply": (STATE, b"[" * 100_000),
    "a dataset with rows elsewhere": (STATE, b'{"_data_files": [{"filename": "../../../outside.bin"}]}'),
    "a dataset with rows at an absolute path": (STATE, b'{"_data_files": [{"filename": "@OUTSIDE@"}]}'),
    "a journal of more rows than there are": ("journals", _journal(rows=[0, 9])),
    "a journal of rows before the first": ("journals", _journal(rows=[0, -1])),
    "a journal of half the values": ("journals", _journal(values=[[1.0]])),
    "a journal of texts": ("journals", _journal(values=[["a", "b"]])),
    "a journal that costs a list": ("journals", _journal(layer_forwards=[])),
    "a journal without costs": ("journals", HEADER.encode() + b'{"values": [], "sets": [], "rows": []}\n'),
    "a journal of sets of sets": ("journals", _journal(sets=[[[0]]])),
    "a setting without a value": ("config file, YAML", b"protect-first:\n"),
    "a list with a gap": ("config file, YAML", b"alphas:\n-\n- 0.5\n"),
    "a whole number without digits": ("config file, YAML", b"epsilon: !!int ''\n"),
    "a truth that is none": ("config file, YAML", b"overwrite: !!bool maybe\n"),
    "a number of thousands of digits": ("config file, YAML", f"seed: 0x{DIGITS}\n".encode()),
    "names that stand for names": ("config file, YAML", _bomb("[x, x]", "[*, *]")),
    "tables that hold tables": ("config file, YAML", _bomb("{x: 1}", "{<<: [*, *]}")),
    "thousands of digits in TOML": ("config file, TOML", f"epsilon = 0x{DIGITS}\n".encode()),
    "a path with a NUL": (
        "config file, TOML", b'objective = "mean"\n[target]\na = "a\\u0000"\nb = "b"\n',
    ),
    "a repetition beyond all bounds": (
        "options", b"run\n--model\nx\n--extract\na{99999999999}\n--max-new-tokens\n9",
    ),
    "a template nested too deeply": ("prompt templates", b"{{ " + b"(" * 5000 + b" }}"),
    "a template of a huge power": ("prompt templates", b"{{ 10 ** (10 ** 10) }}"),
    "a template that repeats a lot": ("prompt templates", b"{{ 'a' * 10000000000 }}"),
    "a template that pads a lot": ("prompt templates", b"{{ '%9999999999d' % 1 }}"),
    "a template that calls itself": (
        "prompt templates", b"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ),
    "architectures in a table": ("config.json, gpt2", b'{"model_type": "gpt2", "architectures": {"0": "x"}}'),
    "a number of architectures": ("config.json, gpt2", b'{"model_type": "gpt2", "architectures": 4}'),
    "architectures in lists": ("config.json, gpt2", b'{"model_type": "gpt2", "architectures": [["x"]]}'),
    "a head without end": ("genai_config.json", b'{"model": {"decoder": {"head_size": Infinity}}}'),
    "a tensor described by a list": ("safetensors", _safetensors(b'{"a": ["F32", [1], [0, 4]]}', bytes(4))),
    "images of 14 million pixels a side": (
        "preprocessor_config.json", b'{"image_processor_type": "ViTImageProcessor", "size": 14258397}',
    ),
    "a card with a number without digits": ("metadata of a model card", b"---\n!!int : x\n---\n"),
    "modules that are no text": ("modules.json", b'[{"type": "\x80"}]'),
    "a pooling that is no text": ("1_Pooling/config.json", b'{"pooling_mode": "\xff"}'),
}  # fmt: skip
