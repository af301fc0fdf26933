"""Data sets of small images in a few files: Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN. In memory, uint8.

N images; pixels are (N, C, H, W). Published files are read as they are, compared with the published sizes, and nothing
in them is run: of CIFAR it is the binary version, because the other ones are pickles.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eestudy.config import EestudyError
from eestudy.data.sources import Archive, Source
from eestudy.data.splits import DataSet, split_images

Arrays = tuple[np.ndarray, np.ndarray]  # pixels (N, C, H, W) uint8, labels (N,)
FASHION = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def fashion_mnist(validation: int = 0) -> DataSet:
    """Fashion-MNIST (Xiao et al. 2017): 70,000 grey pictures of clothes, 28x28, ten classes."""
    folder = SOURCES["fashion-mnist"].find()
    train, test = (
        (_idx(folder / f"{name}-images-idx3-ubyte.gz", 3)[:, None], _idx(folder / f"{name}-labels-idx1-ubyte.gz", 1))
        for name in ("train", "t10k")
    )
    return _data_set(SOURCES["fashion-mnist"], folder, train, test, FASHION, validation)


def cifar10(validation: int = 0) -> DataSet:
    """CIFAR-10 (Krizhevsky 2009): 60,000 colour pictures, 32x32, ten classes."""
    folder = SOURCES["cifar10"].find()
    classes = [name for name in _text(folder / "batches.meta.txt").splitlines() if name]
    batches = [_records(folder / f"data_batch_{number}.bin", 1) for number in range(1, 6)]
    train = np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])
    return _data_set(SOURCES["cifar10"], folder, train, _records(folder / "test_batch.bin", 1), classes, validation)


def cifar100(validation: int = 0) -> DataSet:
    """CIFAR-100 (Krizhevsky 2009): 60,000 colour pictures, 32x32, with its hundred fine labels."""
    folder = SOURCES["cifar100"].find()
    classes = [name for name in _text(folder / "fine_label_names.txt").splitlines() if name]
    train, test = (_records(folder / f"{name}.bin", 2) for name in ("train", "test"))
    return _data_set(SOURCES["cifar100"], folder, train, test, classes, validation)


def svhn(validation: int = 0) -> DataSet:
    """SVHN, cropped digits (Netzer et al. 2011): 99,289 colour pictures of house numbers, 32x32; without `extra`."""
    folder = SOURCES["svhn"].find()
    train, test = (_matlab(folder / f"{name}_32x32.mat") for name in ("train", "test"))
    return _data_set(SOURCES["svhn"], folder, train, test, [str(digit) for digit in range(10)], validation)


def _data_set(
    source: Source, folder: Path, train: Arrays, test: Arrays, classes: Sequence[str], validation: int
) -> DataSet:
    """The data set, after its files were found to hold what they should."""
    if len(classes) != source.classes:
        raise EestudyError(f"{folder}: {len(classes)} names of classes; {source.name} has {source.classes}")
    for split, (x, y) in (("training", train), ("test", test)):
        if len(x) != len(y):
            raise EestudyError(f"{folder}: {len(x):,} {split} images but {len(y):,} labels; get {source.name} again")
        if x.shape[1:] != source.input_shape:
            raise EestudyError(f"{folder}: {split} images of shape {x.shape[1:]}; {source.input_shape} expected")
    source.confirm(folder, len(train[0]), len(test[0]))
    for split, (_, y) in (("training", train), ("test", test)):
        counts = np.bincount(y, minlength=len(classes))
        if len(counts) > len(classes):
            raise EestudyError(f"{folder}: {split} label {y.max()}; labels are 0 to {len(classes) - 1}")
        if not counts.all():
            empty = int(counts.argmin())
            raise EestudyError(
                f"{folder}: no {split} image of class {empty} ({classes[empty]}); get {source.name} again"
            )
    return split_images(source.name, *train, *test, classes, validation)


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """uint8 array of a gzipped IDX file (LeCun et al. 1998): two zeros, type 8, dimensions; sizes; values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None
    shape = _idx_shape(path, content, dimensions)
    start, size = 4 + 4 * dimensions, math.prod(shape)
    if len(content) - start != size:
        raise EestudyError(f"{path}: {len(content) - start:,} values where its header says {size:,}; get it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()  # one that torch may write to


def _idx_shape(path: Path, content: bytes, dimensions: int) -> tuple[int, ...]:
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < 4 + 4 * dimensions:
        raise EestudyError(f"{path}: not an IDX file of bytes with {dimensions} dimensions; it begins {content[:4]!r}")
    return tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())


def _records(path: Path, labels: int) -> Arrays:
    """Images and labels of CIFAR's binary version: records of `labels` bytes, the last of which counts, and 3,072."""
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise _unreadable(path, error) from None
    length = labels + 3072
    if not len(content) or len(content) % length:
        raise EestudyError(f"{path}: {len(content):,} bytes, which are no records of {length}; get it again")
    records = content.reshape(-1, length)
    return records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1].astype(np.int64)


def _matlab(path: Path) -> Arrays:
    """Images and labels of an SVHN file: X (32, 32, 3, N), y (N, 1) from 1 to 10, which stands for the digit 0."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=("X", "y"))
        x, y = content["X"], content["y"]
    except KeyError as error:
        raise EestudyError(f"{path}: holds no variable {error}; X and y are expected") from None
    except (OSError, ValueError, TypeError, NotImplementedError, zlib.error, MatReadError) as error:
        raise _unreadable(path, error) from None
    if x.ndim != 4 or x.dtype != np.uint8:
        raise EestudyError(f"{path}: X is {x.dtype} of shape {x.shape}; uint8 (32, 32, 3, N) expected")
    y = y.ravel().astype(np.int64)
    if len(y) and (y.min() < 1 or y.max() > 10):
        raise EestudyError(f"{path}: labels from {y.min()} to {y.max()}; 1 to 10 expected")
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y % 10


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> EestudyError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return EestudyError(f"{path}: cannot be read ({reason}); get the data set again")


# How many images the files hold, by their headers or sizes: what `eestudy doctor` looks at.


def _count_idx(folder: Path) -> tuple[int, int]:
    counts = []
    for path in (folder / f"{name}-images-idx3-ubyte.gz" for name in ("train", "t10k")):
        try:
            with gzip.open(path) as opened:
                head = opened.read(16)
        except (OSError, EOFError, zlib.error) as error:
            raise _unreadable(path, error) from None
        counts.append(_idx_shape(path, head, 3)[0])
    return counts[0], counts[1]


def _count_cifar10(folder: Path) -> tuple[int, int]:
    sizes = [(folder / f"data_batch_{number}.bin").stat().st_size for number in range(1, 6)]
    return sum(sizes) // 3073, (folder / "test_batch.bin").stat().st_size // 3073


def _count_cifar100(folder: Path) -> tuple[int, int]:
    return (folder / "train.bin").stat().st_size // 3074, (folder / "test.bin").stat().st_size // 3074


def _count_svhn(folder: Path) -> tuple[int, int]:
    from scipy.io import whosmat
    from scipy.io.matlab import MatReadError

    counts = []
    for path in (folder / f"{name}_32x32.mat" for name in ("train", "test")):
        try:
            shapes = {name: shape for name, shape, _ in whosmat(path)}
        except (OSError, ValueError, TypeError, NotImplementedError, zlib.error, MatReadError) as error:
            raise _unreadable(path, error) from None
        counts.append(shapes.get("X", (0,))[-1])
    return counts[0], counts[1]


_KRIZHEVSKY = "https://www.cs.toronto.edu/~kriz"
_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_STANFORD = "http://ufldl.stanford.edu/housenumbers"
SOURCES: dict[str, Source] = {
    "fashion-mnist": Source(
        "fashion-mnist", (1, 28, 28), 10, 60_000, 10_000,
        (
            "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz",
        ),
        _count_idx,
        candidates=(Path("/usr/share/datasets/fashion-mnist"),),  # Debian's package
        inside=("FashionMNIST/raw",),  # torchvision's layout
        archives=(
            Archive(f"{_ZALANDO}/train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            Archive(f"{_ZALANDO}/train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
            Archive(f"{_ZALANDO}/t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
            Archive(f"{_ZALANDO}/t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
        how={"debian": "apt-get install dataset-fashion-mnist"},
    ),
    "cifar10": Source(
        "cifar10", (3, 32, 32), 10, 50_000, 10_000,
        ("batches.meta.txt", *(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"),
        _count_cifar10,
        inside=("cifar-10-batches-bin",),
        archives=(Archive(f"{_KRIZHEVSKY}/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
    ),
    "cifar100": Source(
        "cifar100", (3, 32, 32), 100, 50_000, 10_000, ("fine_label_names.txt", "train.bin", "test.bin"),
        _count_cifar100,
        inside=("cifar-100-binary",),
        archives=(Archive(f"{_KRIZHEVSKY}/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),),
    ),
    "svhn": Source(
        "svhn", (3, 32, 32), 10, 73_257, 26_032, ("train_32x32.mat", "test_32x32.mat"), _count_svhn,
        archives=(
            Archive(f"{_STANFORD}/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            Archive(f"{_STANFORD}/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
    ),
}  # fmt: skip
