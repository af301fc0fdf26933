"""Text as token ids: 20 Newsgroups, and STS-B, which is regression on pairs. WordNet has its own file.

N texts; inputs are ids (N, T), int64, cut off or padded to T = `length` tokens by the encoder's own tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eestudy.config import EestudyError
from eestudy.data.sources import Archive, Source
from eestudy.data.splits import DataSet, Split, with_validation
from eestudy.pretrained import PACKAGED, load_tokenizer

Texts = list[str]
CHUNK = 4096  # texts tokenized at a time: what the tokenizer gives of each is 50 times the size of its ids

GROUPS = (
    "alt.atheism", "comp.graphics", "comp.os.ms-windows.misc", "comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware",
    "comp.windows.x", "misc.forsale", "rec.autos", "rec.motorcycles", "rec.sport.baseball", "rec.sport.hockey",
    "sci.crypt", "sci.electronics", "sci.med", "sci.space", "soc.religion.christian", "talk.politics.guns",
    "talk.politics.mideast", "talk.politics.misc", "talk.religion.misc",
)  # fmt: skip


def newsgroups(length: int = 128, tokenizer: str = PACKAGED, validation: int = 0) -> DataSet:
    """20 Newsgroups, split by date (Lang 1995; Rennie 2008): 18,846 messages from 20 groups, read as Latin-1.

    length: tokens of a message that are read. tokenizer: of which encoder, see `pretrained.locate`. Headers, quotes and
    footers are cut out, because the subject, the sender's organization and quoted answers give the group away (a
    message of nothing else becomes empty).
    """
    source = SOURCES["20newsgroups"]
    folder = source.find()
    parts = [_messages(folder / f"20news-bydate-{name}") for name in ("train", "test")]
    source.confirm(folder, *(len(labels) for _, labels in parts))
    return classified(source.name, parts, GROUPS, length, tokenizer, validation)


def _messages(folder: Path) -> tuple[Texts, np.ndarray]:
    """Messages of the folders of all groups, and their labels (N,)."""
    files = [_files(folder / group) for group in GROUPS]
    for group, found in zip(GROUPS, files):
        if not found:
            raise EestudyError(f"{folder / group}: holds no message; get 20newsgroups again")
    texts = [stripped(path.read_text(encoding="latin-1")) for found in files for path in found]
    return texts, np.repeat(np.arange(len(GROUPS)), [len(found) for found in files])


def stripped(message: str) -> str:
    """A message without its headers, footer and quotes, as scikit-learn's fetch_20newsgroups takes them out."""
    from sklearn.datasets import _twenty_newsgroups as rules

    return rules.strip_newsgroup_quoting(rules.strip_newsgroup_footer(rules.strip_newsgroup_header(message)))


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


def stsb(length: int = 64, tokenizer: str = PACKAGED) -> DataSet:
    """STS benchmark: how alike two sentences are, from 0 to 5 (Cer et al. 2017). Regression on the published scale.

    Pairs are one text with a separator between them. Validation is the published development split.
    """
    source = SOURCES["stsb"]
    folder = source.find()
    parts = [_pairs(folder / f"sts-{name}.csv") for name in ("train", "dev", "test")]
    source.confirm(folder, len(parts[0]) + len(parts[1]), len(parts[2]))
    ids = token_ids(source.name, [[pair[:2] for pair in part] for part in parts], length, tokenizer)
    train, validation, test = (
        Split(x, torch.tensor([score for *_, score in part], dtype=torch.float32)) for x, part in zip(ids, parts)
    )
    return DataSet(source.name, 1, (length,), train, validation, test, task="regression")


def _pairs(path: Path) -> list[tuple[str, str, float]]:
    """Both sentences and the score of each line: genre, file, year, id, score, sentences; with tabs between."""
    pairs: list[tuple[str, str, float]] = []
    for number, line in enumerate(_lines(path), 1):
        fields = line.split("\t")
        try:
            first, second, score = fields[5].strip(), fields[6].strip(), float(fields[4])
        except (IndexError, ValueError):
            raise EestudyError(f"{path}: line {number} is no pair with a score: {line[:40]!r}; get it again") from None
        if not 0 <= score <= 5:
            raise EestudyError(f"{path}: line {number}: score {score:g}; scores are 0 to 5; get it again")
        if not first or not second:
            raise EestudyError(f"{path}: line {number}: a sentence is empty; get it again")
        pairs.append((first, second, score))
    return pairs


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines: it also splits at characters that a sentence may hold.
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise EestudyError(f"{path}: cannot be read as text ({error}); get stsb again") from None


def _count_pairs(folder: Path) -> tuple[int, int]:
    train, validation, test = (len(_lines(folder / f"sts-{name}.csv")) for name in ("train", "dev", "test"))
    return train + validation, test


def token_ids(dataset: str, parts: Sequence[Sequence[Any]], length: int, tokenizer: str) -> list[torch.Tensor]:
    """Ids (N, length), int64, of each part's texts or pairs of texts; special tokens in place, padded.

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
    for texts in parts:
        rows = np.empty((len(texts), length), np.int64)
        for start in range(0, len(texts), CHUNK):
            encoded = backend.encode_batch_fast(texts[start : start + CHUNK])
            rows[start : start + CHUNK] = [text.ids for text in encoded]
        ids.append(torch.from_numpy(rows))
    return ids


def classified(
    name: str, parts: Sequence[tuple[Texts, np.ndarray]], classes: Sequence[str], length: int, tokenizer: str,
    validation: int,
) -> DataSet:  # fmt: skip
    """The data set of texts and labels (N,) for training and test; validation is held out of the former."""
    ids = token_ids(name, [texts for texts, _ in parts], length, tokenizer)
    train, test = (Split(x, torch.from_numpy(y.astype(np.int64))) for x, (_, y) in zip(ids, parts))
    return with_validation(name, train, test, validation, classes)


_EHU = "http://ixa2.si.ehu.eus/stswiki/images/4/48"
_QWONE = "http://qwone.com/~jason/20Newsgroups/20news-bydate.tar.gz"
SOURCES: dict[str, Source] = {
    "20newsgroups": Source(
        "20newsgroups", (128,), 20, 11_314, 7_532, ("20news-bydate-train", "20news-bydate-test"), _count_messages,
        archives=(Archive(_QWONE, sha256="8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610"),),
        text=True,
    ),
    "stsb": Source(
        "stsb", (64,), 1, 7_249, 1_379, ("sts-train.csv", "sts-dev.csv", "sts-test.csv"), _count_pairs,
        inside=("stsbenchmark",),
        archives=(Archive(f"{_EHU}/Stsbenchmark.tar.gz", "4eb0065aba063ef77873d3a9c8088811"),),
        validation=1_500,
        text=True,
    ),
}  # fmt: skip
