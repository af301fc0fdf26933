"""20 Newsgroups, WordNet and STS-B from small files in their true formats; diabetes; subsets for regression."""

from __future__ import annotations

import dataclasses
import hashlib
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes

import eestudy
from eestudy import data, doctor
from eestudy.cli import main
from eestudy.config import EestudyError
from eestudy.data import small, text, wordnet
from eestudy.data.sources import Archive, MissingData
from eestudy.pretrained import load_tokenizer

# Samples of the small files: of each group, of each supersense (with as many that say the same), of pairs.
GROUP, SENSE, PAIRS = (20, 3), 20, (40, 12, 10)
DEBIAN = Path("/usr/share/wordnet")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with no texts on it; $EESTUDY_DATA is this folder."""
    monkeypatch.setenv("EESTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("EESTUDY_HOME", str(tmp_path / "store"))
    sizes: dict[str, dict[str, Any]] = {
        "20newsgroups": {"train": 20 * GROUP[0], "test": 20 * GROUP[1]},
        "wordnet-supersense": {"train": 45 * (SENSE - SENSE // 10), "test": 45 * (SENSE // 10)},
        "stsb": {"train": PAIRS[0] + PAIRS[1], "test": PAIRS[2], "validation": PAIRS[1]},
    }
    for sources in (text.SOURCES, wordnet.SOURCES):
        for name, source in sources.items():
            few = dataclasses.replace(source, candidates=(), **sizes[name])
            monkeypatch.setitem(sources, name, few)
    data._loaded.cache_clear()
    yield tmp_path / "data"
    data._loaded.cache_clear()


def decoded(ids: torch.Tensor) -> list[str]:
    return load_tokenizer("tokenizer", "minilm").batch_decode(ids, skip_special_tokens=True)


MESSAGE = """From: {sender}
Subject: Re: about {group}
Lines: 7

In article <1993@host> ada@host writes:
> why is it so?
I say that caf\xe9 {number} belongs to {group}.
Indeed it does.

--
Ada, department of {group}
"""


def write_newsgroups(folder: Path) -> None:
    for split, count in zip(("train", "test"), GROUP):
        for group in text.GROUPS:
            place = folder / f"20news-bydate-{split}" / group
            place.mkdir(parents=True)
            for number in range(count):
                message = MESSAGE.format(sender=f"ada@{group}", group=group.replace(".", " "), number=number)
                (place / f"{50_000 + number}").write_bytes(message.encode("latin-1"))


def gloss(sense: str, number: int) -> str:
    return f"what {sense} number {number} stands for and seen twice"


def write_wordnet(folder: Path) -> dict[str, int]:
    """Every supersense has SENSE different glosses, and one that says the same as its first; gives each one's class."""
    folder.mkdir(parents=True)
    written: dict[str, int] = {}
    lines: dict[str, list[str]] = {part: [] for part in wordnet.PARTS}
    for label, name in enumerate(wordnet.SUPERSENSES):
        part = name.partition(".")[0]
        sense = name.replace(".", " ")
        glosses = [gloss(sense, number) for number in range(SENSE)]
        written |= {found.lower(): label for found in glosses}
        for number, found in enumerate([*glosses, f"Seen twice; stands for what the number 0 {sense}"]):
            kind = {"noun": "n", "verb": "v", "adj": "s", "adv": "r"}[part]
            frames = " 01 + 02 00" if part == "verb" else ""
            lines[part].append(
                f"{label * 1000 + number:08d} {label:02d} {kind} 01 secret_word 0 001 @ 00001740 {kind} 0000{frames} | "
                f'{found}; "the secret word at work"; "it is a secret word"  \n'
            )
    for part in wordnet.PARTS:
        licence = f"  1 This software and database is being provided to you | {part}  \n  2   \n"
        (folder / f"data.{part}").write_text(licence + "".join(lines[part]))
    return written


def write_pairs(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, count in zip(("train", "dev", "test"), PAIRS):
        rows = []
        for number in range(count):
            score = f"{5 * number / count:.3f}"
            first, second = f'A "plane" {name} {number} takes off.', f"An air plane {number} is leaving."
            # As published, some lines name the sources of both sentences too.
            more = "\tMSRvid\tMSRvid" if number % 2 else ""
            rows.append(f"main-captions\tMSRvid\t2012test\t{number:04d}\t{score}\t{first}\t{second}{more}\n")
        (folder / f"sts-{name}.csv").write_text("".join(rows), encoding="utf-8")


# 20 Newsgroups.


def test_newsgroups(home):
    write_newsgroups(home / "20newsgroups")
    loaded = data.load("20newsgroups", length=24)
    assert (loaded.num_classes, loaded.input_shape, loaded.task) == (20, (24,), "classification")
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (360, 40, 60)
    assert torch.bincount(loaded.validation.y).tolist() == [2] * 20
    assert loaded.train.inputs().dtype == loaded.train.y.dtype == torch.int64
    for split in (loaded.train, loaded.validation, loaded.test):
        for said, label in zip(decoded(split.x), split.y.tolist()):
            group = text.GROUPS[label].replace(".", " ").replace("-", " - ")
            assert said.startswith("i say that cafe "), said
            assert f" belongs to {group}. indeed" in said
    assert data.load("20newsgroups").input_shape == (128,)


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        (MESSAGE, "I say that caf\xe9 {number} belongs to {group}.\nIndeed it does.\n"),
        ("no headers\njust two lines", ""),
        ("Subject: x\n\nfirst\n\nsecond\n\nlast\n\n\n", "first\n\nsecond"),
        (
            "Subject: x\n\n| quoted\nJohn said:\nsaid the king\nx > y\n Quoted from\nhe writes in:\n",
            "said the king\nx > y\n Quoted from\n",
        ),
        ("Subject: x\n\nbody\n - - \nsignature\n---\n", "body\n - - \nsignature"),
        ("", ""),
    ],
)
def test_headers_footers_and_quotes_are_removed(message, kept):
    assert text.stripped(message) == kept


def test_an_empty_message_is_still_a_text():
    ids = text.token_ids("x", [["", "word"]], 8, "minilm")[0]
    assert ids.tolist()[0] == [101, 102, 0, 0, 0, 0, 0, 0]


# WordNet.


def test_wordnet(home):
    written = write_wordnet(home / "wordnet-supersense")
    loaded = data.load("wordnet-supersense")
    assert (loaded.num_classes, loaded.input_shape, loaded.classes[5]) == (45, (32,), "noun.animal")
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (729, 81, 90)
    assert torch.bincount(loaded.test.y).tolist() == [2] * 45
    said = [list(zip(decoded(split.x), split.y.tolist())) for split in (loaded.train, loaded.validation, loaded.test)]
    assert dict(said[0]) | dict(said[1]) | dict(said[2]) == written
    assert sum(map(len, said)) == len(written)


def test_the_test_split_is_that_of_the_hashes(home):
    """Written in another order, the same glosses are tested."""
    write_wordnet(home / "wordnet-supersense")
    first = wordnet.wordnet_supersense().test
    for part in wordnet.PARTS:
        path = home / "wordnet-supersense" / f"data.{part}"
        path.write_text("".join(sorted(path.read_text().splitlines(True), reverse=True)))
    second = wordnet.wordnet_supersense().test
    words = [[wordnet.content_words(said) for said in decoded(split.x)] for split in (first, second)]
    assert words[0] == words[1]
    assert torch.equal(first.y, second.y)
    lowest = min(
        (hashlib.sha256(" ".join(wordnet.content_words(gloss("noun act", number))).encode()).hexdigest(), number)
        for number in range(SENSE)
    )
    act = first.x[first.y == wordnet.SUPERSENSES.index("noun.act")]
    assert f"number {lowest[1]} " in decoded(act)[0]


def test_definitions_and_their_words():
    assert wordnet.definition('a thing; "an example"; "another"') == "a thing"
    assert wordnet.definition('"quoted from the start"') == '"quoted from the start"'
    same = ["the hides of rat kangaroos", "Kangaroo rats: a hide!", "hide, kangaroo and rat"]
    assert len({wordnet.content_words(words) for words in same}) == 1
    assert wordnet.content_words("of the") == ("of", "the"), "nothing but function words is not all the same"
    assert wordnet.content_words("in it") != wordnet.content_words("of the")
    assert len(wordnet.SUPERSENSES) == 45
    assert [wordnet.SUPERSENSES[number] for number in (0, 2, 3, 28, 29, 43, 44)] == [
        "adj.all", "adv.all", "noun.Tops", "noun.time", "verb.body", "verb.weather", "adj.ppl",
    ]  # fmt: skip


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's wordnet-base is not installed")
def test_the_real_wordnet():
    """The published numbers of synsets and classes; no definition of a split has its like in another."""
    (train, labels), (test, test_labels) = wordnet._glosses(DEBIAN)
    source = wordnet.SOURCES["wordnet-supersense"]
    source.confirm(DEBIAN, len(train), len(test))
    parts = [len(wordnet._synsets(DEBIAN / f"data.{part}", part)) for part in wordnet.PARTS]
    assert parts == [82_115, 13_767, 18_156, 3_621]  # wnstats(7WN)
    words = [{wordnet.content_words(said) for said in part} for part in (train, test)]
    assert not words[0] & words[1]
    assert sum(map(len, words)) == len(train) + len(test)
    assert np.bincount(test_labels, minlength=45).min() >= 4
    entity = "that which is perceived or known or inferred to have its own distinct existence (living or nonliving)"
    assert (entity, wordnet.SUPERSENSES.index("noun.Tops")) in {*zip(train, labels), *zip(test, test_labels)}


# STS-B and diabetes: regression.


def test_stsb(home):
    write_pairs(home / "stsb" / "stsbenchmark")
    loaded = data.load("stsb", length=32)
    assert (loaded.task, loaded.num_classes, loaded.input_shape) == ("regression", 1, (32,))
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == PAIRS
    assert loaded.train.y.dtype == torch.float32
    assert loaded.train.x.dtype == torch.int64
    assert loaded.validation.y.tolist() == pytest.approx([5 * number / 12 for number in range(12)], abs=1e-3)
    assert decoded(loaded.validation.x)[3] == 'a " plane " dev 3 takes off. an air plane 3 is leaving.'
    given = load_tokenizer("tokenizer", "minilm")(
        'A "plane" dev 3 takes off.', "An air plane 3 is leaving.", padding="max_length", max_length=32
    )
    assert loaded.validation.x[3].tolist() == given["input_ids"]


def test_diabetes():
    loaded = data.load("diabetes")
    assert (loaded.task, loaded.num_classes, loaded.input_shape) == ("regression", 1, (10,))
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (317, 36, 89)
    assert loaded.train.x.dtype == loaded.train.y.dtype == torch.float32
    assert loaded.train.x.mean(0).abs().max() < 1e-5
    assert (loaded.train.x.std(0, unbiased=False) - 1).abs().max() < 1e-5
    assert float(loaded.train.y.mean()) == pytest.approx(0, abs=1e-5)
    assert float(loaded.train.y.std(unbiased=False)) == pytest.approx(1, abs=1e-5)
    assert float(loaded.test.y.mean()) != pytest.approx(0, abs=1e-3)
    rows = torch.cat(
        [torch.cat([split.x, split.y[:, None]], 1) for split in (loaded.train, loaded.validation, loaded.test)]
    )
    x, y = load_diabetes(return_X_y=True, scaled=False)
    published = np.column_stack([x, y])
    order = [np.lexsort(np.round(table, 3).T) for table in (published, rows.numpy())]
    scale = np.polyfit(rows.numpy()[:, 10], np.sort(y)[rows.numpy()[:, 10].argsort().argsort()], 1)
    assert np.allclose(rows.numpy()[:, 10][order[1]] * scale[0] + scale[1], y[order[0]], atol=0.01), "all, each once"


def test_a_subset_for_regression_is_a_plain_draw():
    whole, part = data.load("diabetes"), data.load("diabetes", train_size=50)
    assert len(part.train) == 50
    assert torch.equal(part.validation.x, whole.validation.x)
    have = {row.numpy().tobytes(): float(y) for row, y in zip(whole.train.x, whole.train.y)}
    assert all(have[row.numpy().tobytes()] == float(y) for row, y in zip(part.train.x, part.train.y))
    assert len({row.numpy().tobytes() for row in part.train.x}) == 50
    assert torch.equal(small.diabetes().train.x, whole.train.x)
    for size in (1, 316):
        assert len(data.load("diabetes", train_size=size).train) == size
    with pytest.raises(EestudyError, match="train_size: 400 is not valid for diabetes; it has 317 training samples"):
        data.load("diabetes", train_size=400)


def test_hardness_scales_both_noises():
    plain, harder, both = (
        data.load("mnist1d", None, samples=1000, **args)  # type: ignore[arg-type]
        for args in ({}, {"hardness": 2.0}, {"noise": 0.04, "correlated_noise": 0.5})
    )
    assert torch.equal(harder.train.x, both.train.x)
    assert not torch.equal(plain.train.x, harder.train.x)
    with pytest.raises(EestudyError, match="hardness: -1 is not valid for mnist1d"):
        small.mnist1d(hardness=-1)


# What is missing or damaged, and what is asked for wrongly.


def cut(path: Path, old: str, new: str) -> None:
    content = path.read_text(encoding="latin-1")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="latin-1")


def remove(path: Path) -> None:
    for inside in path.iterdir():
        inside.unlink()


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("20newsgroups", lambda f: remove(f / "20news-bydate-test" / "sci.med"), "sci.med: holds no message"),
    ("20newsgroups", lambda f: (f / "20news-bydate-test/sci.med").rename(f / "x"), "sci.med: not a folder that can be"),
    (
        "20newsgroups",
        lambda f: (f / "20news-bydate-train/sci.med/50000").unlink(),
        "399 training samples where 20newsg",
    ),
    ("wordnet-supersense", lambda f: cut(f / "data.verb", " | what", " what"), "line 3 is no synset with a gloss"),
    ("wordnet-supersense", lambda f: cut(f / "data.noun", " 05 n ", " 29 n "), "file 29 is none of noun's"),
    ("wordnet-supersense", lambda f: cut(f / "data.adj", " 44 s ", " 45 s "), "file 45 is none of adj's"),
    (
        "wordnet-supersense",
        lambda f: cut(f / "data.adv", "number 7 ", "number 8 "),
        "89 test samples where wordnet",
    ),
    ("wordnet-supersense", lambda f: (f / "data.adv").write_text(""), "fewer than 10 glosses of class adv.all"),
    ("wordnet-supersense", lambda f: (f / "data.adv").write_bytes(b"\xff"), "data.adv: cannot be read as text"),
    ("stsb", lambda f: cut(f / "sts-dev.csv", "\t0.417\t", "\t5.417\t"), "line 2: score 5.417; scores are 0 to 5"),
    ("stsb", lambda f: cut(f / "sts-dev.csv", "\t0.417\t", "\tnan\t"), "line 2: score nan; scores are 0 to 5"),
    ("stsb", lambda f: cut(f / "sts-dev.csv", "\t0.417\t", "\tmuch\t"), "line 2 is no pair with a score"),
    ("stsb", lambda f: cut(f / "sts-test.csv", "An air plane 0 is leaving.", " "), "line 1: a sentence is empty"),
    ("stsb", lambda f: cut(f / "sts-test.csv", "main-captions\tMSRvid\t", "main-captions\t"), "line 1 is no pair"),
    ("stsb", lambda f: (f / "sts-train.csv").write_text((f / "sts-dev.csv").read_text()), "24 training samples where"),
]


@pytest.mark.parametrize(("name", "damage", "wanted"), DAMAGE, ids=[wanted for _, _, wanted in DAMAGE])
def test_damaged_files(home, name, damage, wanted):
    folder = home / name
    {"20newsgroups": write_newsgroups, "wordnet-supersense": write_wordnet, "stsb": write_pairs}[name](folder)
    damage(folder)
    with pytest.raises(EestudyError) as caught:
        data.load(name)
    assert wanted in str(caught.value)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "needed", "command"),
    [
        ("20newsgroups", "20news-bydate-train and 1 more", "eestudy get 20newsgroups"),
        ("wordnet-supersense", "data.noun and 3 more", "apt-get install wordnet-base"),
        ("stsb", "sts-train.csv and 2 more", "eestudy get stsb"),
    ],
)
def test_missing_data(home, monkeypatch, name, needed, command):
    monkeypatch.setattr("eestudy.data.sources._is_debian", lambda: True)
    with pytest.raises(MissingData) as caught:
        data.load(name)
    assert f"no readable {needed}; looked in {home}/{name}, " in str(caught.value)
    assert str(caught.value).endswith(f"to get it: {command}")


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        ({"length": 7}, "length: 7 is not valid for stsb; it must be from 8 to 512"),
        ({"length": 513}, "length: 513 is not valid"),
        ({"length": 32.0}, "length: 32.0 is not valid"),
        ({"tokenizer": "some/where"}, "dataset_args: tokenizer: 'some/where' is neither minilm"),
        ({"lenght": 32}, "unknown key 'lenght' for stsb; nearest: length"),
    ],
)
def test_mistakes(home, args, wanted):
    write_pairs(home / "stsb")
    with pytest.raises(EestudyError) as caught:
        data.load("stsb", **args)
    assert wanted in str(caught.value)


def test_folders_that_hold_no_tokenizer(home, tmp_path):
    write_pairs(home / "stsb")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EestudyError, match=r"tokenizer: .* holds no tokenizer; save one there"):
        data.load("stsb", tokenizer=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(EestudyError, match="cannot be read") as caught:
        data.load("stsb", tokenizer=str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_get_unpacks_by_sha256(home, tmp_path, monkeypatch, capsys):
    write_newsgroups(tmp_path / "elsewhere")
    archive = tmp_path / "20news-bydate.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as opened:
        opened.add(tmp_path / "elsewhere", arcname=".")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    for checksum, code in (("0" * 64, 2), (found, 0)):
        source = dataclasses.replace(text.SOURCES["20newsgroups"], archives=(Archive(archive.as_uri(), "", checksum),))
        monkeypatch.setitem(text.SOURCES, "20newsgroups", source)
        assert main(["get", "20newsgroups"]) == code
    said = capsys.readouterr()
    assert f"gave another file: SHA256 {found}, expected 000" in said.err
    assert said.out == f"20newsgroups is in {home}/20newsgroups\n"
    assert (home / "20newsgroups" / "20news-bydate-test" / "sci.med" / "50000").is_file()


def test_doctor_counts_texts(home, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "DATASETS", [*text.SOURCES, *wordnet.SOURCES])
    write_newsgroups(home / "20newsgroups")
    write_wordnet(home / "wordnet-supersense")
    write_pairs(home / "stsb" / "stsbenchmark")
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "20newsgroups: 360 train, 40 validation, 60 test, inputs (128,), 20 classes, in " in said
    assert "wordnet-supersense: 729 train, 81 validation, 90 test, inputs (32,), 45 classes, in " in said
    assert "stsb: 40 train, 12 validation, 10 test, inputs (64,), 1 classes, in " in said


def test_an_encoder_learns_from_texts(home, tmp_path):
    """From files to predictions: a small BERT on the small WordNet, whose glosses name their class."""
    from transformers import AutoConfig, AutoModel

    write_wordnet(home / "wordnet-supersense")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "bert", vocab_size=30_522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / "encoder")
    run = eestudy.run(
        eestudy.RunConfig(
            architecture="minilm", dataset="wordnet-supersense", strategy="mixed", epochs=4, batch_size=32,
            architecture_args={"encoder": str(tmp_path / "encoder")}, dataset_args={"length": 16}, checkpoints=(100,),
        ),
        device="cpu",
    )  # fmt: skip
    logits, labels = run.predictions("test")
    assert logits.shape == (2, 90, 45)
    assert (logits[-1].argmax(1) == labels).mean() > 0.3, "chance is 0.02"
    with torch.no_grad():
        again = torch.stack(run.model()(run.data().test.x)).numpy()
    assert abs(again - logits).max() < 1e-4
