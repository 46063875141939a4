"""Data sets in Hugging Face's format, on disk or from their hub; installed by the extra `hugging_face`.

The package `datasets` runs no code that comes with a data set since its version 4.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compressor.console import Console
from compressor.data.decoding import decoded
from compressor.data.photograph import opened
from compressor.data.reading import Read, Request, Undecoded
from compressor.errors import DataError, first_line, pass_on_out_of_memory

VALIDATION = ("validation", "val", "valid")
UNKNOWN = -1  # how `datasets` writes that an image has no class


class HuggingFace:
    """A column of images and one of classes, found by their types."""

    def labels(self, request: Request) -> Sequence[str]:
        splits = _named(request)
        return _names(splits["train"], request)

    def own_splits(self, request: Request) -> frozenset[str]:
        return frozenset(_roles(_named(request), request)) - {"train"}

    def read(self, request: Request, console: Console) -> Read:
        named = _named(request)
        roles = _roles(named, request)
        labels = _names(named["train"], request)
        for name in roles.values():
            if _names(named[name], request) != labels:
                raise DataError(f"{_where(request)}: the splits train and {name} have different classes")
        splits = {role: _undecoded(named[name], name, request) for role, name in roles.items()}
        read, remarks = decoded(splits, request, console)
        if roles.get("test", "test") != "test":
            remarks.append(f"{roles['test']} is the test split; validation images are carved from train")
        unused = sorted(set(named) - set(roles.values()))
        if unused:
            remarks.append(f"splits left out: {', '.join(unused)} (another name than is used, or no classes)")
        return Read(read["train"], read.get("test"), labels, read.get("validation"), remarks)


def _where(request: Request) -> str:
    return request.hub or str(request.root)


def _named(request: Request) -> Mapping[str, Any]:
    """The data set's splits by name, `train` among them.

    Raises:
        DataError: it cannot be read, or `datasets` is not installed.
    """
    if find_spec("datasets") is None:
        raise DataError("name: hugging_face needs a package; install it with pip install 'compressor[hugging_face]'")
    import datasets

    datasets.disable_progress_bars()
    root = request.root
    try:
        if request.hub is not None:
            cache = str(root / "hugging_face")
            found = datasets.load_dataset(request.hub, revision=request.revision, cache_dir=cache)
        elif any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(root)
        elif any(root.rglob("*.parquet")):
            found = datasets.load_dataset("parquet", data_dir=str(root))
        else:
            raise DataError(
                f"data.root: {root.absolute()} is no data set of Hugging Face's; give a folder that `save_to_disk` "
                "wrote, or one of parquet files, or name one on the hub with `hub:`"
            )
    except DataError:
        raise
    except Exception as error:  # what is wrong in a file may raise anything
        pass_on_out_of_memory(error)
        raise DataError(f"{_where(request)} cannot be read as a data set: {first_line(error)}") from error
    splits: Mapping[str, Any] = found if isinstance(found, dict) else {"train": found}
    if "train" not in splits:
        raise DataError(f"{_where(request)} has no split named train; it has {', '.join(splits)}")
    return {name: rows.with_format(None) for name, rows in splits.items()}


def _roles(named: Mapping[str, Any], request: Request) -> dict[str, str]:
    """The name of the split that serves as `train`, `test` and `validation`, as in a folder of images.

    A split without classes, as that of a competition, is left out.
    """
    whole = [name for name, rows in named.items() if name == "train" or (_classes(rows, request) != UNKNOWN).all()]
    validation = next((name for name in VALIDATION if name in whole), None)
    roles = {"train": "train"}
    if "test" in whole:
        roles["test"] = "test"
    if validation is not None:
        roles["validation" if "test" in whole else "test"] = validation
    return roles


def _names(rows: Any, request: Request) -> Sequence[str]:
    """The names of the classes."""
    import datasets

    names: Sequence[str] = rows.features[_column(rows, request, "label", datasets.ClassLabel)].names
    if len(names) < 2:
        raise DataError(f"{_where(request)} needs at least two classes; it has {len(names)}")
    return names


def _classes(rows: Any, request: Request) -> NDArray[np.int64]:
    """The class of every image, `[N]`."""
    import datasets

    column = _column(rows, request, "label", datasets.ClassLabel)
    return np.array([UNKNOWN if label is None else label for label in rows[column]], np.int64)


def _column(rows: Any, request: Request, what: str, kind: type) -> str:
    """The name of the column that holds the `image` or the `label`.

    Raises:
        DataError: there is none of that type, or several.
    """
    found = [name for name, feature in rows.features.items() if isinstance(feature, kind)]
    asked: str | None = getattr(request.columns, what)
    if asked is not None and asked not in found:
        raise DataError(f"data.columns.{what}: {asked!r} is no column of type {kind.__name__}; those are: {found}")
    if asked is None and len(found) != 1:
        raise DataError(
            f"{_where(request)} has {len(found)} columns of type {kind.__name__}, {found}; "
            + (f"name one, as in columns: {{{what}: {found[0]}}}" if found else "cast one to it with `cast_column`")
        )
    return asked or found[0]


def _undecoded(rows: Any, name: str, request: Request) -> Undecoded:
    """The images of a split, which are in its own files; none is read from a path that these name."""
    import datasets

    column = _column(rows, request, "image", datasets.Image)
    classes = _classes(rows, request)
    if (classes == UNKNOWN).any():
        raise DataError(f"{_where(request)}: {(classes == UNKNOWN).sum()} images of the split {name} have no class")
    content = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    names = [f"{_where(request)}: {name}[{index}]" for index in range(len(rows))]

    def open_image(index: int) -> AbstractContextManager[Image.Image]:
        held = content[index][column]
        if held is None or held["bytes"] is None:
            raise DataError(f"{names[index]} is not a usable image: its bytes are not in the data set")
        return opened(names[index], held["bytes"])

    files = [file["filename"] for file in rows.cache_files]
    return Undecoded(names, classes.tolist(), open_image, files, f"{rows._fingerprint} {name} {column}")


READERS = {"hugging_face": HuggingFace()}
