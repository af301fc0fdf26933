"""Supersenses of WordNet's definitions, from the files of its database as Debian and NLTK bring them along."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from eestudy.config import EestudyError
from eestudy.data.sources import Archive, Source
from eestudy.data.splits import DataSet
from eestudy.data.text import classified
from eestudy.pretrained import PACKAGED

# The lexicographer files, in the order of their numbers (lexnames(5WN)).
SUPERSENSES = (
    "adj.all", "adj.pert", "adv.all",
    *(f"noun.{name}" for name in (
        "Tops", "act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling",
        "food", "group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process",
        "quantity", "relation", "shape", "state", "substance", "time",
    )),
    *(f"verb.{name}" for name in (
        "body", "change", "cognition", "communication", "competition", "consumption", "contact", "creation", "emotion",
        "motion", "perception", "possession", "social", "stative", "weather",
    )),
    "adj.ppl",
)  # fmt: skip
PARTS = ("noun", "verb", "adj", "adv")
_SYNSET = re.compile(r"\d{8} (\d\d) [nvasr] [^|]+ \| (.+)")  # wndb(5WN): offset, file, type, words and pointers | gloss
_WORD = re.compile(r"[a-z0-9]+")
_FUNCTION_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "been", "being", "by", "for", "from", "her", "his", "in", "is", "it",
    "its", "of", "on", "one", "or", "s", "that", "the", "their", "to", "was", "were", "which", "who", "whose", "with",
})  # fmt: skip
Glosses = tuple[list[str], np.ndarray]


def wordnet_supersense(length: int = 32, tokenizer: str = PACKAGED, validation: int = 0) -> DataSet:
    """Which of WordNet 3.0's 45 lexicographer files a definition is from (Fellbaum 1998): noun.animal, verb.motion, ...

    A text is a synset's definition without its examples, which would name the word. Definitions that say the same - the
    same words but for their order, plurals and function words - count once, as the first of them; of 117,659 synsets
    116,403 are left, and no text of one split has its like in another. The test split is the tenth of each class whose
    words have the lowest SHA-256, so no seed chooses it. length, tokenizer: as for 20newsgroups; 97 % of the
    definitions fit.
    """
    source = SOURCES["wordnet-supersense"]
    folder = source.find()
    parts = _glosses(folder)
    source.confirm(folder, *(len(labels) for _, labels in parts))
    return classified(source.name, parts, SUPERSENSES, length, tokenizer, validation)


def _glosses(folder: Path) -> tuple[Glosses, Glosses]:
    """Definitions and classes (N,), of training and test."""
    classes: dict[int, list[tuple[str, str]]] = defaultdict(list)  # class -> (hash of the words, definition)
    seen: set[tuple[str, ...]] = set()
    for part in PARTS:
        for text, label in _synsets(folder / f"data.{part}", part):
            words = content_words(text)
            if words not in seen:
                seen.add(words)
                classes[label].append((hashlib.sha256(" ".join(words).encode()).hexdigest(), text))
    missing = [name for label, name in enumerate(SUPERSENSES) if len(classes[label]) < 10]
    if missing:
        raise EestudyError(f"{folder}: fewer than 10 glosses of class {missing[0]}; get wordnet-supersense again")
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label in range(len(SUPERSENSES)):
        glosses = [(text, label) for _, text in sorted(classes[label])]
        share = len(glosses) // 10
        test += glosses[:share]
        train += glosses[share:]
    return _apart(train), _apart(test)


def _apart(glosses: list[tuple[str, int]]) -> Glosses:
    return [text for text, _ in glosses], np.array([label for _, label in glosses])


def _synsets(path: Path, part: str) -> list[tuple[str, int]]:
    """Definition and class of each synset in a file of WordNet's database."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EestudyError(f"{path}: cannot be read as text ({error}); get wordnet-supersense again") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.startswith("  ") or not line:  # the licence
            continue
        parsed = _SYNSET.match(line)
        if not parsed:
            raise EestudyError(f"{path}: line {number} is no synset with a gloss: {line[:40]!r}; get it again")
        label, gloss = int(parsed[1]), parsed[2].strip()
        if label >= len(SUPERSENSES) or not SUPERSENSES[label].startswith(f"{part}."):
            raise EestudyError(
                f"{path}: line {number}: lexicographer file {label:02d} is none of {part}'s; get it again"
            )
        found.append((definition(gloss), label))
    return found


def definition(gloss: str) -> str:
    """A gloss up to its first example, which is what stands in quotes; all of it if nothing stands before."""
    return gloss.partition('"')[0].rstrip(" ;:,") or gloss


def content_words(text: str) -> tuple[str, ...]:
    """The words that make it what it is: lower case, sorted, each once, without function words and plural endings."""
    words = _WORD.findall(text.lower())
    content = {
        word[:-1] if len(word) > 3 and word[-1] == "s" else word for word in words if word not in _FUNCTION_WORDS
    }
    return tuple(sorted(content)) or tuple(words)


def _count_glosses(folder: Path) -> tuple[int, int]:
    (train, _), (test, _) = _glosses(folder)
    return len(train), len(test)


def _nltk_folders() -> tuple[Path, ...]:
    """Where NLTK keeps WordNet."""
    named = [Path(folder) for folder in os.environ.get("NLTK_DATA", "").split(os.pathsep) if folder]
    return tuple(folder / "corpora" / "wordnet" for folder in (*named, Path.home() / "nltk_data"))


_NLTK = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/corpora/wordnet.zip"
SOURCES: dict[str, Source] = {
    "wordnet-supersense": Source(
        "wordnet-supersense", (32,), 45, 104_782, 11_621, tuple(f"data.{part}" for part in PARTS), _count_glosses,
        candidates=(Path("/usr/share/wordnet"), *_nltk_folders()),  # Debian's package, NLTK's download
        inside=("wordnet",),
        archives=(Archive(_NLTK, sha256="cbda5ea6eef7f36a97a43d4a75f85e07fccbb4f23657d27b4ccbc93e2646ab59"),),
        how={"debian": "apt-get install wordnet-base"},
        text=True,
    ),
}  # fmt: skip
