"""Writes the packed files beside this script: one dataset as gzip and as parquet in every compression that is read, and, in
../malformed, the packed files that lie.

Run with any Python that has pyarrow:  python make.py
"""

import gzip
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent
MALFORMED = HERE.parent / "malformed"

ROWS = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "ü 🙂"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{\"z\": 1}"}}]},
            {"role": "tool", "content": "2", "tool_call_id": "x"},
            {"role": "assistant", "content": "c" * 300},
        ],
        "tools": json.dumps([{"type": "function", "function": {"name": "f"}}]),
    },
    {"messages": [{"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}]},
]

FUNCTION = pa.struct([("name", pa.string()), ("arguments", pa.string())])
MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("tool_calls", pa.list_(pa.struct([("function", FUNCTION)]))),
        ("tool_call_id", pa.string()),
    ]
)
SCHEMA = pa.schema([("messages", pa.list_(MESSAGE)), ("tools", pa.string()), ("embedding", pa.list_(pa.float32()))])


def table(rows, schema=SCHEMA):
    return pa.Table.from_pylist(rows, schema=schema)


def packed():
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
    half = lines.index(b"\n") + 1
    # two members, as `cat a.gz b.gz` makes them
    members = [gzip.compress(part, mtime=0) for part in (lines[:half], lines[half:])]
    (HERE / "chat.jsonl.gz").write_bytes(b"".join(members))
    (HERE / "chat.json.gz").write_bytes(gzip.compress(json.dumps(ROWS, indent=1).encode(), mtime=0))
    for compression in ("none", "snappy", "gzip", "zstd"):
        path = HERE / f"chat_{compression}.parquet"
        pq.write_table(table(ROWS), path, compression=compression, row_group_size=2, store_schema=False)
    pairs = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(pairs), HERE / "pairs.parquet", data_page_version="2.0", store_schema=False)
    turns = [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    pq.write_table(pa.Table.from_pylist(turns), HERE / "turns.parquet", store_schema=False)


def malformed():
    whole = (HERE / "chat.jsonl.gz").read_bytes()
    (MALFORMED / "truncated.jsonl.gz").write_bytes(whole[:-30])
    (MALFORMED / "checksum.jsonl.gz").write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])
    whole = (HERE / "chat_snappy.parquet").read_bytes()
    (MALFORMED / "truncated.parquet").write_bytes(whole[:-40])
    (MALFORMED / "footer_of_noise.parquet").write_bytes(whole[:-60] + b"\xff" * 52 + whole[-8:])
    (MALFORMED / "pages_of_noise.parquet").write_bytes(whole[:4] + b"\x15\x99" * 60 + whole[124:])
    none = (HERE / "chat_none.parquet").read_bytes()
    # the same number of rows stands in the footer as i64 zigzag: 3 -> 6; 9 -> 18
    footer = len(none) - 8 - int.from_bytes(none[-8:-4], "little")
    rows = none.index(b"\x16\x06", footer)
    (MALFORMED / "footer_lies.parquet").write_bytes(none[: rows + 1] + b"\x12" + none[rows + 2 :])
    (MALFORMED / "footer_points_outside.parquet").write_bytes(b"PAR1" + none[footer:])
    pq.write_table(table(ROWS), MALFORMED / "brotli.parquet", compression="brotli", store_schema=False)
    numbers = pa.schema([("messages", pa.int64())])
    pq.write_table(table([{"messages": 7}], numbers), MALFORMED / "column_of_numbers.parquet", store_schema=False)
    binary = pa.schema([("text", pa.binary())])
    pq.write_table(table([{"text": b"\xff\xfe\x00"}], binary), MALFORMED / "column_of_bytes.parquet", store_schema=False)


packed()
malformed()
