"""Text as token ids: 20 Newsgroups, and STS-B, which is regression on pairs. WordNet has its own file.

N texts; inputs are ids (N, T), int64, cut off or padded to T = `length` tokens by the encoder's own tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from eestudy.config import EestudyError, nearest
from eestudy.data.sources import Archive, Source
from eestudy.data.splits import DataSet, Split, hold_out
from eestudy.pretrained import PACKAGED, load_tokenizer

Texts = list[str]
CHUNK = 4096  # texts tokenized at a time: what the tokenizer gives of each is 50 times the size of its ids

# 20 Newsgroups -----------------------------------------------------------------------------------------------------

GROUPS = (
    "alt.atheism", "comp.graphics", "comp.os.ms-windows.misc", "comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware",
    "comp.windows.x", "misc.forsale", "rec.autos", "rec.motorcycles", "rec.sport.baseball", "rec.sport.hockey",
    "sci.crypt", "sci.electronics", "sci.med", "sci.space", "soc.religion.christian", "talk.politics.guns",
    "talk.politics.mideast", "talk.politics.misc", "talk.religion.misc",
)  # fmt: skip
REMOVABLE = ("headers", "footers", "quotes")
# A quoted line, or one that introduces some.
_QUOTE = re.compile(r"^[>|]|^In article|^Quoted from|writes in|(?:writes|wrote|says|said):")


def newsgroups(
    length: int = 128, tokenizer: str = PACKAGED, remove: str = "headers+footers+quotes", validation: int = 0
) -> DataSet:
    """20 Newsgroups, split by date (Lang 1995; Rennie 2008): 18,846 messages from 20 groups, read as Latin-1.

    length: tokens of a message that are read. tokenizer: of which encoder, see `pretrained.locate`. remove: "none", or
    which of headers, footers and quotes are cut out by scikit-learn's rules; all are by default, because the subject,
    the sender's organization and quoted answers give the group away (a message of nothing else becomes empty).
    """
    parts = [] if remove == "none" else str(remove).split("+")
    for part in parts:
        if part not in REMOVABLE:
            hint = nearest(part, ("none", *REMOVABLE))
            raise EestudyError(f"dataset_args: remove: {remove!r} is not valid for 20newsgroups; {hint}, joined by +")
    source = SOURCES["20newsgroups"]
    folder = source.find()
    (train, y), (test, test_y) = (_messages(folder / f"20news-bydate-{name}", parts) for name in ("train", "test"))
    source.confirm(folder, len(y), len(test_y))
    ids = token_ids(source.name, [train, test], length, tokenizer)
    return classified(source, ids[0], y, ids[1], test_y, GROUPS, validation)


def _messages(folder: Path, remove: Sequence[str]) -> tuple[Texts, np.ndarray]:
    """Messages of the folders of all groups, and their labels (N,)."""
    texts, counts = [], []
    for group in GROUPS:
        files = _files(folder / group)
        if not files:
            raise EestudyError(f"{folder / group}: holds no message; get 20newsgroups again")
        texts += [stripped(path.read_text(encoding="latin-1"), remove) for path in files]
        counts.append(len(files))
    return texts, np.repeat(np.arange(len(GROUPS)), counts)


def stripped(message: str, remove: Sequence[str]) -> str:
    """A message without its headers (up to the first empty line), quoted lines, footer (what follows the last line
    that is empty or made of hyphens; kept if there is none), as scikit-learn's fetch_20newsgroups takes them out."""
    if "headers" in remove:
        message = message.partition("\n\n")[2]
    if "footers" in remove:
        lines = message.strip().split("\n")
        rules = [place for place, line in enumerate(lines) if not line.strip().strip("-")]
        message = "\n".join(lines[: rules[-1]]) if rules and rules[-1] else message
    if "quotes" in remove:
        message = "\n".join(line for line in message.split("\n") if not _QUOTE.search(line))
    return message


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise EestudyError(f"{folder}: not a folder that can be read ({error.strerror})") from None


def _count_messages(folder: Path) -> tuple[int, int]:
    train, test = (
        sum(len(_files(folder / f"20news-bydate-{name}" / group)) for group in GROUPS) for name in ("train", "test")
    )
    return train, test


# STS-B -------------------------------------------------------------------------------------------------------------


def stsb(length: int = 64, tokenizer: str = PACKAGED) -> DataSet:
    """STS benchmark: how alike two sentences are, from 0 to 5 (Cer et al. 2017). Regression on the published scale.

    Pairs are one text with a separator between them. Validation is the published development split.
    """
    source = SOURCES["stsb"]
    folder = source.find()
    parts = [_pairs(folder / f"sts-{name}.csv") for name in ("train", "dev", "test")]
    sizes = [len(scores) for _, _, scores in parts]
    source.confirm(folder, sizes[0] + sizes[1], sizes[2])
    ids = token_ids(
        source.name, [first for first, _, _ in parts], length, tokenizer, [second for _, second, _ in parts]
    )
    train, validation, test = (
        Split(x, torch.tensor(scores, dtype=torch.float32)) for x, (_, _, scores) in zip(ids, parts)
    )
    return DataSet(source.name, 1, (length,), train, validation, test, task="regression")


def _pairs(path: Path) -> tuple[Texts, Texts, list[float]]:
    """Both sentences and the score of each line: genre, file, year, id, score, sentences; with tabs between."""
    first, second, scores = [], [], []
    for number, line in enumerate(_lines(path), 1):
        fields = line.split("\t")
        try:
            score = float(fields[4])
            sentences = fields[5].strip(), fields[6].strip()
        except (IndexError, ValueError):
            raise EestudyError(f"{path}: line {number} is no pair with a score: {line[:40]!r}; get it again") from None
        if not 0 <= score <= 5 or not all(sentences):
            what = "a sentence is empty" if 0 <= score <= 5 else f"score {score:g}; scores are 0 to 5"
            raise EestudyError(f"{path}: line {number}: {what}; get it again")
        first.append(sentences[0])
        second.append(sentences[1])
        scores.append(score)
    return first, second, scores


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines: it also splits at characters that a sentence may hold.
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise EestudyError(f"{path}: cannot be read as text ({error}); get stsb again") from None


def _count_pairs(folder: Path) -> tuple[int, int]:
    train, validation, test = (len(_lines(folder / f"sts-{name}.csv")) for name in ("train", "dev", "test"))
    return train + validation, test


# What all text shares ----------------------------------------------------------------------------------------------


def token_ids(
    dataset: str,
    parts: Sequence[Texts],
    length: int,
    tokenizer: str = PACKAGED,
    pairs: Sequence[Texts] | None = None,
) -> list[torch.Tensor]:
    """Ids (N, length), int64, of each part; special tokens in place, padded. pairs: each text's second sentence.

    Raises EestudyError for a length out of range and a tokenizer that cannot be had.
    """
    made = load_tokenizer("dataset_args: tokenizer", tokenizer)
    least, most = 8, min(made.model_max_length, 8192)
    if not isinstance(length, int) or not least <= length <= most:
        raise EestudyError(
            f"dataset_args: length: {length!r} is not valid for {dataset}; it must be from {least} to {most}"
        )
    backend = made.backend_tokenizer
    backend.enable_truncation(length)
    backend.enable_padding(length=length, pad_id=made.pad_token_id, pad_token=made.pad_token)
    ids = []
    for number, texts in enumerate(parts):
        whole = list(zip(texts, pairs[number], strict=True)) if pairs else texts
        rows = np.empty((len(whole), length), np.int64)
        for start in range(0, len(whole), CHUNK):
            rows[start : start + CHUNK] = [text.ids for text in backend.encode_batch_fast(whole[start : start + CHUNK])]
        ids.append(torch.from_numpy(rows))
    return ids


def classified(
    source: Source, x: torch.Tensor, y: np.ndarray, x_test: torch.Tensor, y_test: np.ndarray, classes: Sequence[str],
    validation: int = 0,
) -> DataSet:  # fmt: skip
    """The data set, with some of the training samples held out for validation (`hold_out`)."""
    rest, held_out = (torch.from_numpy(chosen) for chosen in hold_out(y, validation))
    whole = Split(x, torch.from_numpy(y.astype(np.int64)))
    test = Split(x_test, torch.from_numpy(y_test.astype(np.int64)))
    shape = tuple(x.shape[1:])
    return DataSet(
        source.name, len(classes), shape, whole.part(rest), whole.part(held_out), test, classes=tuple(classes)
    )


SOURCES: dict[str, Source] = {
    "20newsgroups": Source(
        "20newsgroups", (128,), 20, 11_314, 7_532, ("20news-bydate-train", "20news-bydate-test"), _count_messages,
        archives=(
            Archive(
                "http://qwone.com/~jason/20Newsgroups/20news-bydate.tar.gz",
                sha256="8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610",
            ),
        ),
        text=True,
    ),
    "stsb": Source(
        "stsb", (64,), 1, 7_249, 1_379, ("sts-train.csv", "sts-dev.csv", "sts-test.csv"), _count_pairs,
        inside=("stsbenchmark",),
        archives=(
            Archive(
                "http://ixa2.si.ehu.eus/stswiki/images/4/48/Stsbenchmark.tar.gz", "4eb0065aba063ef77873d3a9c8088811"
            ),
        ),
        validation=1_500,
        text=True,
    ),
}  # fmt: skip
