"""What a model's folder must hold before and after transformers reads it.

Transformers meets a broken folder with any exception there is, or with none: it builds an empty tokenizer where files
are absent, drops layers that the configuration does not count, and takes a million layers as an order. So the small
files are read first, with limits; the loading itself is one guarded block; and what it gave is checked.

    with guarded(name, source, "CLIP model"):      everything inside fails as one DataError that names the folder
        check_files(name, source, kind)                  config.json, tokenizer, preprocessor, headers of the weights
        model, report = ...from_pretrained(source, **LOADING)
        check_report(name, report, "CLIPModel")    no weight lacking, unread or of another shape
        check_finite(name, model)                  none that is NaN or infinite
        check_tokenizer(name, tokenizer, ...)      its tokens are rows of the embedding
"""

from __future__ import annotations

import contextlib
import math
import numbers
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError, DataError, DuotuneError, one_line
from ..reading import MAX_DESCRIPTION_BYTES, MAX_SHOWN, because, check_file, read_json, shown

if TYPE_CHECKING:
    import torch

MAX_LAYERS = 1_000  # of one tower
MAX_SIZE = 2**24  # any other whole number of a configuration: widths, vocabularies, pixels
MAX_SIDE = 2**14  # pixels of a side of what a model reads
TOKENIZER_FILES = ("tokenizer.json", "vocab.json and merges.txt", "vocab.txt")
PADDED_ROWS = 128  # rows of an embedding beyond the tokenizer's: sizes are rounded up for speed
LOADING: dict[str, Any] = {"dtype": "auto", "output_loading_info": True, "ignore_mismatched_sizes": True}
"""How `from_pretrained` reads weights: what does not fit is in its report, by name, for `check_report`."""
_DESCRIPTIONS = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json")
_DESCRIPTIONS += ("processor_config.json", "tokenizer.json", "vocab.json", "added_tokens.json")
_DESCRIPTIONS += ("model.safetensors.index.json",)
_COUNTS_LAYERS = re.compile(r"layers|depths?$|num_stages|blocks")
# computed by newer releases of transformers, stored by older ones
_COMPUTED = re.compile(r"position_ids$|relative_position_index$|num_batches_tracked$|attn_mask$")


@contextlib.contextmanager
def guarded(name: str, source: str | Path, kind: str) -> Iterator[None]:
    """Turns whatever the libraries raise about a folder's content into one DataError that names it.

    Errors of ours pass, as do interruptions. Memory that does not suffice says so.
    """
    folder = f" ({source})" if str(source) != name else ""
    try:
        yield
    except ArtifactError as error:  # a processor's
        raise DataError(f"cannot load the {kind} {shown(name)}{folder}: {error}") from error
    except DuotuneError:
        raise
    except MemoryError as error:
        raise DataError(f"the {kind} {shown(name)}{folder} needs more memory than this machine gives") from error
    except BaseException as error:
        # the tokenizers of transformers are written in Rust, whose failures are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        headline = len(lines) > 1 and lines[0].endswith(":")  # what follows says it
        reason = one_line(lines[1], MAX_SHOWN) if headline else because(error)
        raise DataError(
            f"cannot load the {kind} {shown(name)}{folder}: {reason}; expected a folder with config.json, "
            "model.safetensors, tokenizer and preprocessor files, or a Hub id that is in the local cache or reachable"
        ) from error


def check_files(name: str, source: str | Path, kind: str) -> None:
    """What can be said of a local folder before anything is built from it. A Hub id's files are not here yet.

    Raises:
        DataError: a file that describes the model is no JSON object or has a number no model has; no tokenizer; a
            weight file that is truncated or foreign.
    """
    folder = Path(source)
    if not folder.is_dir():
        return
    for file in _DESCRIPTIONS:
        if not (folder / file).exists():
            continue
        content = read_json(folder / file, "a file of a model", limit=MAX_DESCRIPTION_BYTES, wide=True)
        if not isinstance(content, dict):
            raise DataError(f"{folder / file} must hold a JSON object, not {shown(content, 40)}; copy it again")
        if file == "config.json":
            for place, value in _whole_numbers(content, ""):
                most = MAX_LAYERS if _COUNTS_LAYERS.search(place) else MAX_SIZE
                if abs(value) > most:
                    raise DataError(f"{folder / file} says {place} = {shown(value)}; the limit is {most:,}")
        if file == "preprocessor_config.json" and not any(key.endswith("mean") for key in content):
            raise DataError(
                f"{folder / file} does not say how pictures are prepared: expected their mean and deviation; copy that "
                "of the same model"
            )
    there = {file.name for file in folder.iterdir()}
    if not any(set(files.split(" and ")) <= there for files in TOKENIZER_FILES):
        raise DataError(
            f"cannot load the {kind} {shown(name)}, which has no tokenizer: {folder} holds none of "
            f"{', '.join(TOKENIZER_FILES)}; copy the tokenizer's files of the same model into it"
        )
    if "preprocessor_config.json" not in there and "processor_config.json" not in there:
        raise DataError(
            f"cannot load the {kind} {shown(name)}, which does not say how pictures are prepared: "
            f"{folder} has no preprocessor_config.json; copy that of the same model into it"
        )
    for path in sorted(folder.glob("*.safetensors")):
        _check_weights(path)


def _whole_numbers(value: Any, place: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _whole_numbers(inner, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from _whole_numbers(inner, place)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield place, value


def _check_weights(path: Path) -> None:
    """The header of a safetensors file against the file's length. Raises DataError."""
    from safetensors import SafetensorError, safe_open

    check_file(path, "the weights of a model")
    try:
        with safe_open(path, framework="pt") as file:
            if not file.keys():
                raise DataError(f"{path} holds no tensors; download or copy it again")
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} is no complete safetensors file ({because(error)}); download or copy it again"
        ) from error


def check_report(name: str, report: Mapping[str, Any], kind: str) -> None:
    """What transformers says of the weights it loaded. Raises DataError if any is lacking, unread or does not fit."""
    if missing := sorted(map(str, report["missing_keys"])):
        raise DataError(
            f"{shown(name)} lacks {len(missing)} weights of a {kind} (first: {missing[0]}); is the file complete?"
        )
    # (name, shape in the file, shape that the configuration asks for)
    if wrong := sorted(str(key[0]) for key in report.get("mismatched_keys") or ()):
        raise DataError(
            f"{shown(name)}: {len(wrong)} weights have other shapes than config.json says (first: {wrong[0]}), so the "
            "two are of different models; copy both from one"
        )
    unread = sorted(key for key in map(str, report.get("unexpected_keys") or ()) if not _COMPUTED.search(key))
    if unread:
        raise DataError(
            f"{shown(name)} holds {len(unread)} weights that config.json has no place for (first: {unread[0]}), so the "
            "two are of different models; copy both from one"
        )


def check_finite(name: str, model: torch.nn.Module) -> None:
    """Raises DataError if a weight is NaN or infinite: whatever it touches would be no number."""
    if bad := [key for key, weight in model.named_parameters() if not weight.isfinite().all()]:
        raise DataError(
            f"{shown(name)} has NaN or infinity in {len(bad)} weights (first: {bad[0]}); download or copy it again"
        )


def check_tokenizer(name: str, tokenizer: Any, rows: int, ends: Iterable[int] = ()) -> None:
    """The tokenizer against the embedding that its tokens are looked up in.

    Args:
        rows: of the embedding (`vocab_size`).
        ends: ids that close a text, by the model; empty: whatever the tokenizer says.

    Raises:
        DataError: more tokens than rows, far fewer, or a text that does not come out between the tokens that open and
            close it.
    """
    where = f"the tokenizer of {shown(name)}"
    size = len(tokenizer)
    if not max(rows - PADDED_ROWS, rows // 2) <= size <= rows:
        raise DataError(
            f"{where} has {size:,} tokens and the model's embedding {rows:,} rows: they are of different models, or a "
            "file of the tokenizer is absent or empty; copy the tokenizer's files of the same model"
        )
    ids = tokenizer(["a photo of a cat."]).input_ids[0]
    opens = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    closes = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    if not ids or ids[0] not in opens or ids[-1] not in closes or max(ids) >= rows:
        raise DataError(f"{where} does not open and close a text with its own tokens; copy the same model's files")
    allowed = {*ends} or closes
    if ids[-1] not in allowed:
        raise DataError(
            f"{where} closes a text with token {ids[-1]}, the model with {sorted(allowed)}, so they are of different "
            "models; copy the tokenizer's files of the same model"
        )


def check_normalisation(name: str, mean: Any, std: Any, scale: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per colour as tuples, of values in 0..`scale`. Raises DataError if no picture has such."""
    for what, values, least in (("mean", mean, 0.0), ("std", std, 1e-6)):
        if (
            not isinstance(values, Sequence)
            or isinstance(values, str)
            or len(values) != 3
            or not all(isinstance(v, numbers.Real) and math.isfinite(v) and least <= v <= scale for v in values)
        ):
            raise DataError(
                f"{shown(name)}: the preprocessor's {what} must be three numbers between {least:g} and {scale:g}, "
                f"not {shown(values, 60)}; copy preprocessor_config.json again"
            )
    return tuple(map(float, mean)), tuple(map(float, std))


def check_side(name: str, **sides: Any) -> None:
    """Sides in pixels. Raises DataError if one is no whole number from 1 to `MAX_SIDE`."""
    for what, value in sides.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
            raise DataError(
                f"{shown(name)}: {what} must be a whole number of pixels from 1 to {MAX_SIDE:,}, not {shown(value, 60)}"
            )
