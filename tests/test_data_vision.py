"""Fashion-MNIST, CIFAR and SVHN from small files in their true formats; missing and damaged files; get and doctor."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from eestudy import data, doctor
from eestudy.cli import main
from eestudy.config import EestudyError
from eestudy.data import sources, vision
from eestudy.data.sources import Archive, MissingData, Source
from eestudy.data.splits import Split, channel_normalization, subset
from eestudy.registry import DATASETS

RANDOM = np.random.default_rng(0)
TRAIN, TEST = 200, 100  # samples of the small files
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no data on it; $EESTUDY_DATA is this folder."""
    monkeypatch.setenv("EESTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("EESTUDY_HOME", str(tmp_path / "store"))
    for name, source in vision.SOURCES.items():
        few = dataclasses.replace(source, candidates=(), train=1000 if source.classes == 100 else TRAIN, test=TEST)
        monkeypatch.setitem(vision.SOURCES, name, few)
    return tmp_path / "data"


def samples(count: int, shape: tuple[int, ...], classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Random uint8 images and labels; the same number of each class."""
    return RANDOM.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % classes


def write_idx(path: Path, values: np.ndarray) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes(), compresslevel=1))


def write_fashion(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    written = {"train": samples(TRAIN, (28, 28)), "t10k": samples(TEST, (28, 28))}
    for name, (x, y) in written.items():
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", x)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", y)
    return written


def write_records(path: Path, x: np.ndarray, *labels: np.ndarray) -> None:
    """CIFAR's binary version: label bytes, then the red, green and blue values of 32 rows each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [np.asarray(label, np.uint8)[:, None] for label in labels]
    path.write_bytes(np.concatenate([*columns, x.reshape(len(x), 3072)], axis=1).tobytes())


def write_cifar10(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    x, y = samples(TRAIN, (3, 32, 32))
    for number, chosen in enumerate(np.split(np.arange(TRAIN), 5), 1):
        write_records(folder / f"data_batch_{number}.bin", x[chosen], y[chosen])
    write_records(folder / "test_batch.bin", *samples(TEST, (3, 32, 32)))
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    (folder / "batches.meta.txt").write_text(names.replace(" ", "\n") + "\n\n")
    return x, y


def write_cifar100(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    written = {"train": samples(1000, (3, 32, 32), 100), "test": samples(TEST, (3, 32, 32), 100)}
    for name, (x, y) in written.items():
        write_records(folder / f"{name}.bin", x, y // 5, y)
    (folder / "fine_label_names.txt").write_text("".join(f"class-{number}\n" for number in range(100)))
    return written["train"]


def write_svhn(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {"train": samples(TRAIN, (32, 32, 3)), "test": samples(TEST, (32, 32, 3))}
    for name, (x, y) in written.items():
        ten_for_zero = np.where(y == 0, 10, y)[:, None].astype(np.uint8)
        content = {"X": x.transpose(1, 2, 3, 0), "y": ten_for_zero}
        savemat(folder / f"{name}_32x32.mat", content, do_compression=True)
    return written["train"][0].transpose(0, 3, 1, 2), written["train"][1]


def label_of_image(x: np.ndarray, y: np.ndarray) -> dict[bytes, int]:
    return {image.tobytes(): int(label) for image, label in zip(x, y)}


def of_split(split: Split) -> dict[bytes, int]:
    return label_of_image(split.raw(slice(None)).contiguous().numpy(), split.y.numpy())


def check_splits(loaded: data.DataSet, x: np.ndarray, y: np.ndarray) -> None:
    """Train and validation are what was written, parted by class; the normalization is that of train alone."""
    train, validation = of_split(loaded.train), of_split(loaded.validation)
    assert {**train, **validation} == label_of_image(x, y)
    assert len(train) + len(validation) == len(y)
    assert len(validation) == len(y) // 10
    assert set(np.bincount(loaded.validation.y.numpy()).tolist()) == {len(y) // 10 // loaded.num_classes}
    assert loaded.train.raw(slice(None)).dtype == torch.uint8
    normalization = loaded.train.normalization
    assert normalization is not None
    pixels = loaded.train.raw(slice(None)).numpy().astype(np.float64)
    assert normalization.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)))
    assert normalization.deviation == pytest.approx(pixels.std(axis=(0, 2, 3)))
    assert loaded.validation.normalization == loaded.test.normalization == normalization
    inputs = loaded.train.inputs()
    assert inputs.dtype == torch.float32
    assert inputs.mean(dim=(0, 2, 3)).abs().max() < 1e-4


def test_fashion_mnist(home):
    written = write_fashion(home / "fashion-mnist")
    loaded = vision.fashion_mnist()
    check_splits(loaded, *written["train"])
    assert torch.equal(loaded.test.x, torch.from_numpy(written["t10k"][0])[:, None])
    assert loaded.test.y.tolist() == written["t10k"][1].tolist()
    assert (loaded.input_shape, loaded.num_classes, loaded.classes[9]) == ((1, 28, 28), 10, "ankle boot")


def test_torchvision_s_folder_is_found_too(home):
    write_fashion(home / "fashion-mnist" / "FashionMNIST" / "raw")
    assert len(vision.fashion_mnist().test) == TEST


def test_cifar10(home):
    x, y = write_cifar10(home / "cifar10" / "cifar-10-batches-bin")
    loaded = vision.cifar10()
    check_splits(loaded, x, y)
    assert loaded.input_shape == (3, 32, 32)
    assert (loaded.classes[0], loaded.classes[9]) == ("airplane", "truck")


def test_cifar100_takes_the_fine_labels(home):
    x, y = write_cifar100(home / "cifar100")
    loaded = vision.cifar100()
    check_splits(loaded, x, y)
    assert loaded.num_classes == 100
    assert loaded.classes[7] == "class-7"


def test_svhn(home):
    x, y = write_svhn(home / "svhn")
    loaded = vision.svhn()
    check_splits(loaded, x, y)
    assert loaded.classes == tuple("0123456789")


def test_the_real_fashion_mnist():
    """Where Debian's package is installed its facts are checked; elsewhere the line that says how to get it."""
    if not DEBIAN.exists():
        with pytest.raises(MissingData, match=r"to get it: (apt-get install dataset-|eestudy get )fashion-mnist"):
            dataclasses.replace(vision.SOURCES["fashion-mnist"], needed=("none-such",)).find()
        return
    source = vision.SOURCES["fashion-mnist"]
    assert source.count(DEBIAN) == (60_000, 10_000)
    loaded = data.load("fashion-mnist")
    assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (54_000, 6_000, 10_000)
    assert loaded.test.y[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]  # as published
    assert torch.bincount(loaded.validation.y).tolist() == [600] * 10
    assert loaded.train.normalization is not None
    # The published mean and deviation of all 60,000 are 0.2860 and 0.3530 of 255.
    assert loaded.train.normalization.mean[0] == pytest.approx(0.2860 * 255, rel=0.005)
    assert loaded.train.normalization.deviation[0] == pytest.approx(0.3530 * 255, rel=0.005)


def test_a_subset_keeps_the_normalization_of_the_whole(home):
    write_fashion(home / "fashion-mnist")
    loaded = vision.fashion_mnist()
    part = subset(loaded, 50)
    assert part.train.normalization == loaded.train.normalization
    assert torch.bincount(part.train.y).tolist() == [5] * 10
    whole = of_split(loaded.train)
    assert all(whole[image] == label for image, label in of_split(part.train).items())
    assert part.test is loaded.test


def test_channel_normalization_is_exact_for_one_value_and_for_two():
    x = torch.zeros(3, 2, 4, 4, dtype=torch.uint8)
    x[:, 1, :2] = 255
    normalization = channel_normalization(x)
    assert normalization.mean == (0.0, 127.5)
    assert normalization.deviation == (0.0, 127.5)


def test_batches_in_memory():
    split = Split(torch.arange(10.0), torch.arange(10))
    order = [torch.tensor([3, 1]), torch.tensor([9])]
    assert [batch.tolist() for batch in split.batches(order, workers=2)] == [[3.0, 1.0], [9.0]]
    assert not split.streamed


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # in the checksum at the end of a gzip file
    path.write_bytes(bytes(content))


def first_labels(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    write_idx(folder / "train-labels-idx1-ubyte.gz", change(np.arange(TRAIN) % 10))


FASHION_DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: cut(f / "train-images-idx3-ubyte.gz", 500), "idx3-ubyte.gz: cannot be read (Compressed file"),
    (lambda f: flip_a_byte(f / "t10k-images-idx3-ubyte.gz"), "t10k-images-idx3-ubyte.gz: cannot be read (CRC check"),
    (lambda f: (f / "t10k-labels-idx1-ubyte.gz").write_bytes(b"<html>"), "t10k-labels-idx1-ubyte.gz: cannot be read"),
    (
        lambda f: (f / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\3\0\0\0\2\0\0\0\1\0\0\0\1x")),
        "1 values where its header says 2",
    ),
    (
        lambda f: write_idx(f / "train-images-idx3-ubyte.gz", np.zeros(TRAIN)),
        "train-images-idx3-ubyte.gz: not an IDX file of bytes with 3 dimensions",
    ),
    (
        lambda f: write_idx(f / "train-images-idx3-ubyte.gz", np.zeros((TRAIN, 28, 27))),
        "training images of shape (1, 28, 27); (1, 28, 28) expected",
    ),
    (lambda f: first_labels(f, lambda y: y[1:]), "200 training images but 199 labels"),
    (lambda f: first_labels(f, lambda y: np.where(y == 3, 77, y)), "training label 77; labels are 0 to 9"),
    (lambda f: first_labels(f, lambda y: np.where(y == 3, 4, y)), "no training image of class 3 (dress)"),
    (
        lambda f: [write_idx(f / "t10k-images-idx3-ubyte.gz", np.zeros((50, 28, 28))),
                   write_idx(f / "t10k-labels-idx1-ubyte.gz", np.arange(50) % 10)],
        "50 test samples where fashion-mnist has 100",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "wanted"), FASHION_DAMAGE, ids=[wanted for _, wanted in FASHION_DAMAGE])
def test_damaged_idx_files(home, damage, wanted):
    folder = home / "fashion-mnist"
    write_fashion(folder)
    damage(folder)
    one_line(vision.fashion_mnist, wanted, str(folder))


CIFAR_DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: cut(f / "data_batch_3.bin", 1), "data_batch_3.bin: 122,919 bytes, which are no records of 3073"),
    (lambda f: (f / "test_batch.bin").write_bytes(b""), "test_batch.bin: 0 bytes"),
    (lambda f: cut(f / "data_batch_3.bin", 3073), "199 training samples where cifar10 has 200"),
    (lambda f: (f / "batches.meta.txt").write_text("cat\ndog\n"), "2 names of classes; cifar10 has 10"),
    (lambda f: (f / "batches.meta.txt").write_bytes(b"\xff\xfe"), "batches.meta.txt: cannot be read"),
    (lambda f: (f / "data_batch_5.bin").unlink(), "no readable data_batch_5.bin in "),
]


@pytest.mark.parametrize(("damage", "wanted"), CIFAR_DAMAGE, ids=[wanted for _, wanted in CIFAR_DAMAGE])
def test_damaged_cifar_files(home, damage, wanted):
    folder = home / "cifar10"
    write_cifar10(folder)
    damage(folder)
    one_line(vision.cifar10, wanted, str(folder))


def train_mat(folder: Path, **content: np.ndarray) -> None:
    savemat(folder / "train_32x32.mat", content)


SVHN_DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: cut(f / "train_32x32.mat", 5000), "train_32x32.mat: cannot be read"),
    (lambda f: (f / "test_32x32.mat").write_bytes(b"<html>" * 40), "test_32x32.mat: cannot be read"),
    (lambda f: (f / "test_32x32.mat").write_bytes(b""), "test_32x32.mat: cannot be read"),
    (lambda f: train_mat(f, X=np.zeros((32, 32, 3, 2), np.uint8)), "holds no variable 'y'; X and y are expected"),
    (lambda f: train_mat(f, X=np.zeros((32, 32, 3, 2)), y=np.ones(2)), "X is float64 of shape (32, 32, 3, 2)"),
    (
        lambda f: train_mat(f, X=np.zeros((32, 32, 3, 2), np.uint8), y=np.array([0, 11])),
        "labels from 0 to 11; 1 to 10 expected",
    ),
]


@pytest.mark.parametrize(("damage", "wanted"), SVHN_DAMAGE, ids=[str(place) for place in range(len(SVHN_DAMAGE))])
def test_damaged_svhn_files(home, damage, wanted):
    folder = home / "svhn"
    write_svhn(folder)
    damage(folder)
    one_line(vision.svhn, wanted, str(folder))


def one_line(call: Callable[[], object], *wanted: str) -> None:
    with pytest.raises(EestudyError) as caught:
        call()
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    for part in wanted:
        assert part in said


# Where data is looked for.


def fish(*needed: str, **more: Any) -> Source:
    return Source("fish", (1,), 2, 1, 1, needed, lambda folder: (1, 1), **more)


@pytest.mark.parametrize(("system", "command"), [(True, "apt-get install fish"), (False, "eestudy get fish")])
def test_missing_data_is_one_line_with_the_command_of_this_system(home, tmp_path, monkeypatch, system, command):
    monkeypatch.setattr(sources, "_is_debian", lambda: system)
    debian = {"debian": "apt-get install fish"}
    with pytest.raises(MissingData) as caught:
        fish("a.bin", "b.bin", candidates=(Path("/usr/share/fish"),), how=debian).find()
    assert str(caught.value) == (
        f"dataset: fish was not found: no readable a.bin and 1 more; looked in {home}/fish, "
        f"{tmp_path}/cache/eestudy/fish, /usr/share/fish; to get it: {command}"
    )


@pytest.mark.parametrize(
    ("release", "expected"),
    [({"ID": "debian"}, True), ({"ID": "pop", "ID_LIKE": "ubuntu debian"}, True), ({"ID": "fedora"}, False)],
)
def test_debian_and_its_relatives(monkeypatch, release, expected):
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: release)
    assert sources._is_debian() is expected


def test_a_system_that_does_not_say_what_it_is(monkeypatch):
    def nothing() -> dict[str, str]:
        raise OSError("no os-release")

    monkeypatch.setattr("platform.freedesktop_os_release", nothing)
    assert sources._is_debian() is False


def test_the_first_complete_folder_is_taken(home, tmp_path):
    system, cache = tmp_path / "system", tmp_path / "cache" / "eestudy" / "fish"
    for folder, names in ((system, "ab"), (cache / "inner", "ab"), (home / "fish", "a")):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    assert fish("a", "b", candidates=(system,), inside=("inner",)).find() == cache / "inner"
    assert fish("a", "b", candidates=(system,)).find() == system
    with pytest.raises(MissingData, match=f"no readable b in {home}/fish; looked in"):
        fish("a", "b").find()
    (home / "fish" / "b").touch()
    assert fish("a", "b", candidates=(system,)).find() == home / "fish"


# eestudy get and eestudy doctor.


def publish(folder: Path, written: Path, name: str, monkeypatch: pytest.MonkeyPatch, **changes: str) -> Source:
    """`written` as an archive that is published at a file:// address."""
    archive = folder / f"{name}-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(written, arcname="cifar-10-batches-bin")
    found = {"url": archive.as_uri(), "md5": hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()}
    source = dataclasses.replace(vision.SOURCES[name], archives=(Archive(**{**found, **changes}),))
    monkeypatch.setitem(vision.SOURCES, name, source)
    return source


def test_get_downloads_checks_and_unpacks(home, tmp_path, monkeypatch, capsys):
    x, y = write_cifar10(tmp_path / "elsewhere")
    publish(tmp_path, tmp_path / "elsewhere", "cifar10", monkeypatch)
    assert main(["get", "cifar10"]) == 0
    assert capsys.readouterr().out == f"cifar10 is in {home}/cifar10/cifar-10-batches-bin\n"
    check_splits(vision.cifar10(), x, y)
    assert [path.name for path in home.iterdir()] == ["cifar10"]
    monkeypatch.setattr(sources, "_fetched", None)
    assert main(["get", "cifar10"]) == 0, "what is there is not got again"


def test_get_keeps_files_that_are_no_archives(home, tmp_path, monkeypatch):
    write_fashion(tmp_path / "elsewhere")
    files = sorted((tmp_path / "elsewhere").iterdir())
    archives = tuple(Archive(path.as_uri(), hashlib.md5(path.read_bytes()).hexdigest()) for path in files)
    source = dataclasses.replace(vision.SOURCES["fashion-mnist"], archives=archives)
    assert sources.get(source) == home / "fashion-mnist"
    assert len(vision.fashion_mnist().test) == TEST


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"md5": "0" * 32}, "gave another file: MD5 "),
        ({"url": Path("/none/such.tar.gz").as_uri()}, "No such file"),
        ({"url": "http://127.0.0.1:9/such.tar.gz"}, "is this machine online?"),
    ],
)
def test_get_says_why_it_failed_and_leaves_nothing(home, tmp_path, monkeypatch, capsys, changes, wanted):
    write_cifar10(tmp_path / "elsewhere")
    publish(tmp_path, tmp_path / "elsewhere", "cifar10", monkeypatch, **changes)
    assert main(["get", "cifar10"]) == 2
    said = capsys.readouterr().err
    assert wanted in said
    assert len(said.splitlines()) == 1
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cifar", "dataset: unknown name 'cifar'; nearest: cifar10, cifar100"),
        ("imagenet", "imagenet cannot be downloaded: it needs an account at image-net.org"),
        ("svhn", "svhn is there already but not complete; delete it and call again"),
    ],
)
def test_get_mistakes(home, capsys, name, wanted):
    (home / "svhn").mkdir(parents=True)
    (home / "svhn" / "train_32x32.mat").touch()
    assert main(["get", name]) == 2
    assert wanted in capsys.readouterr().err


def test_doctor_tells_found_missing_and_damaged_apart(home, capsys):
    write_cifar10(home / "cifar10")
    write_cifar100(home / "cifar100")
    write_fashion(home / "fashion-mnist")
    cut(home / "cifar100" / "train.bin", 3074 * 10)
    assert main(["doctor"]) == 1, "something is damaged"
    lines = {line.split()[1].rstrip(":"): line for line in capsys.readouterr().out.splitlines() if line[:4] == "data"}
    sizes = "180 train, 20 validation, 100 test"
    assert f"cifar10: {sizes}, inputs (3, 32, 32), 10 classes, in {home}/cifar10" in lines["cifar10"]
    assert f"fashion-mnist: {sizes}, inputs (1, 28, 28), 10 classes, in {home}" in lines["fashion-mnist"]
    assert "damaged" in lines["cifar100"]
    assert "990 training samples where cifar100 has 1,000" in lines["cifar100"]
    assert "svhn was not found" in lines["svhn"]
    assert "eestudy get svhn" in lines["svhn"]
    assert set(lines) == set(DATASETS)


def test_doctor_reads_what_it_counts(home, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "DATASETS", ["svhn", "fashion-mnist"])
    write_svhn(home / "svhn")
    write_fashion(home / "fashion-mnist")
    assert main(["doctor"]) == 0
    assert f"svhn: 180 train, 20 validation, 100 test, inputs (3, 32, 32), 10 classes, in {home}" in (
        capsys.readouterr().out
    )
    flip_a_byte(home / "fashion-mnist" / "t10k-images-idx3-ubyte.gz")
    assert main(["doctor"]) == 1
    assert "fashion-mnist is damaged" in capsys.readouterr().out


def test_doctor_says_whether_bfloat16_is_fast(home, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "DATASETS", {})
    for found, wanted in (({"amx_bf16": True}, "fast on the processor: amx_bf16"), ({}, "slow on the processor")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        main(["doctor"])
        assert f"bfloat16  {wanted}\n" in capsys.readouterr().out
