"""Files of every type as rows, read as they come; whatever is wrong is named by file and line.

A bad line is told in its turn and the reading goes on. A file that is no file of its type at all ends it.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.data.base import DataError
from engine.data.rows import FileRow, RowOrError, Rows, RowsFile

if TYPE_CHECKING:
    import pyarrow as pa

BOM = b"\xef\xbb\xbf"
JSON_ADVICE = "Give one JSON object per line, or a list of them."


def read_json(path: Path, label: str) -> Rows:
    """JSON lines, or one list of objects: what it is, its first character says."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(BOM).lstrip()[:1]
    return _json_list(path, label) if start == b"[" else _json_lines(path, label)


def _json_lines(path: Path, label: str) -> Rows:
    source = RowsFile(label=label, path=str(path), by_line=True)
    decode = json.JSONDecoder().decode
    with path.open("rb") as file:
        # Bytes end lines at \n alone: a JSON text may hold U+2028 and the like, which are no ends of lines here.
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                text = (line.removeprefix(BOM) if number == 1 else line).decode()
                values = decode(text)
            except UnicodeDecodeError:
                yield source.refused(number, "not UTF-8", value=line, advice="Save the file as UTF-8 text.")
            except (ValueError, RecursionError) as error:
                is_list = number == 1 and text.strip() == "{"
                advice = "Write each object on one line, or put a list around them." if is_list else JSON_ADVICE
                yield source.refused(number, "not JSON", value=text.rstrip("\n"), advice=f"{error}. {advice}")
            else:
                yield _json_row(source, number, values)


def _json_list(path: Path, label: str) -> Rows:
    source = RowsFile(label=label, path=str(path), by_line=False)
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}.", where=str(path), advice="Save it as UTF-8 text.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}.", where=str(path), advice=JSON_ADVICE) from error
    for number, values in enumerate(rows, start=1):
        yield _json_row(source, number, values)


def _json_row(source: RowsFile, number: int, values: Any) -> RowOrError:
    if type(values) is not dict:
        return source.refused(number, "not a JSON object", value=values, advice="Give one JSON object per row.")
    return FileRow(file=source, number=number, values=values)


def read_csv(path: Path, label: str) -> Rows:
    """The first line names the columns; every value is text, and an empty one is none."""
    source = RowsFile(label=label, path=str(path), by_line=True)
    csv.field_size_limit(sys.maxsize)
    # What is not UTF-8 becomes half a surrogate pair, which the row's own check finds.
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, strict=True)
        names = next(reader, [])
        number = reader.line_num + 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield source.refused(number, "not CSV", advice=f"{error}. Check its quotes and commas.")
                return  # where the next row begins, nobody knows
            if cells is None:
                return
            if len(cells) == len(names):
                values = {name: cell or None for name, cell in zip(names, cells, strict=True)}
                yield FileRow(file=source, number=number, values=values)
            elif cells:
                kind = "its number of cells is not that of the first line"
                yield source.refused(
                    number, kind, value=cells, advice=f"The columns are {', '.join(names)}; quote a text with a comma."
                )
            number = reader.line_num + 1


def read_text(path: Path, label: str) -> Rows:
    """Each line that is not blank is a row, in the column `text`."""
    source = RowsFile(label=label, path=str(path), by_line=True)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                text = (line.removeprefix(BOM) if number == 1 else line).decode().rstrip("\r\n")
            except UnicodeDecodeError:
                yield source.refused(number, "not UTF-8", value=line, advice="Save the file as UTF-8 text.")
            else:
                yield FileRow(file=source, number=number, values={"text": text})


def read_parquet(path: Path, label: str) -> Rows:
    from pyarrow import parquet  # half a second, for a type that most runs do not read

    yield from _of_batches(path, label, lambda: parquet.ParquetFile(path).iter_batches(batch_size=1024))


def read_arrow(path: Path, label: str) -> Rows:
    """Arrow's stream format, which `datasets` writes, and its file format (Feather)."""
    yield from _of_batches(path, label, lambda: _arrow_batches(path))


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    from pyarrow import ipc

    with pa.memory_map(str(path)) as file:
        is_file_format = file.read(6) == b"ARROW1"
        file.seek(0)
        if is_file_format:
            reader = ipc.open_file(file)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            yield from ipc.open_stream(file)


def _of_batches(path: Path, label: str, batches: Callable[[], Iterator[pa.RecordBatch]]) -> Rows:
    import pyarrow as pa

    source = RowsFile(label=label, path=str(path), by_line=False)
    number = 0
    try:
        for batch in batches():
            for values in batch.to_pylist():
                number += 1
                yield FileRow(file=source, number=number, values=values)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"cannot be read after row {number}: {error}",
            where=str(path),
            advice=f"Check that it is a whole {path.suffix} file.",
        ) from error


def read_hub(path: str, *, subset: str, split: str, folder: str, streaming: bool) -> Rows:
    """A data set of the Hugging Face hub."""
    from datasets import load_dataset  # takes seconds to import, and most runs read a file

    source = RowsFile(label=f"{path.rpartition('/')[2]}-{split}", path=f"{path}@{split}", by_line=False)
    options = {"data_dir": folder} if folder else {}
    options |= {"streaming": True} if streaming else {}
    try:
        rows = load_dataset(path, *([subset] if subset else []), split=split, **options)
        for number, values in enumerate(rows, start=1):
            yield FileRow(file=source, number=number, values=values)
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot be loaded from the hub: {error}",
            where=path,
            advice="Set data.path to a local .jsonl or other file, or go online.",
        ) from error


READERS: dict[str, Callable[[Path, str], Rows]] = {
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".csv": read_csv,
    ".txt": read_text,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
"""By how a file's name ends."""
