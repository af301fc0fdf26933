"""Data sets of small images in a few files: Fashion-MNIST, CIFAR-10, CIFAR-100 and SVHN. In memory, uint8.

N images; pixels are (N, C, H, W). Published files are read as they are, compared with the published sizes, and nothing
in them is run: of CIFAR it is the binary version, because the other ones, which torchvision reads, are pickles.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from eestudy.config import EestudyError
from eestudy.data.sources import Archive, Source
from eestudy.data.splits import DataSet, Split, channel_normalization, hold_out, with_validation
from eestudy.pretrained import first_line

Arrays = tuple[np.ndarray, np.ndarray]  # pixels (N, C, H, W) uint8, labels (N,)
FASHION = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def fashion_mnist(validation: int = 0) -> DataSet:
    """Fashion-MNIST (Xiao et al. 2017): 70,000 grey pictures of clothes, 28x28, ten classes."""
    return _data_set("fashion-mnist", _read_fashion, lambda folder: FASHION, validation)


def cifar10(validation: int = 0) -> DataSet:
    """CIFAR-10 (Krizhevsky 2009): 60,000 colour pictures, 32x32, ten classes."""
    return _data_set("cifar10", _read_cifar10, lambda folder: _names(folder / "batches.meta.txt"), validation)


def cifar100(validation: int = 0) -> DataSet:
    """CIFAR-100 (Krizhevsky 2009): 60,000 colour pictures, 32x32, with its hundred fine labels."""
    return _data_set("cifar100", _read_cifar100, lambda folder: _names(folder / "fine_label_names.txt"), validation)


def svhn(validation: int = 0) -> DataSet:
    """SVHN, cropped digits (Netzer et al. 2011): 99,289 colour pictures of house numbers, 32x32; without `extra`."""
    return _data_set("svhn", _read_svhn, lambda folder: tuple("0123456789"), validation)


def _data_set(
    name: str,
    read: Callable[[Path], tuple[Arrays, Arrays]],
    names: Callable[[Path], tuple[str, ...]],
    validation: int,
) -> DataSet:
    """The data set, after its files were found to hold what they should; normalized by what is left of training."""
    source = SOURCES[name]
    folder = source.find()
    classes, (train, test) = names(folder), read(folder)
    if len(classes) != source.classes:
        raise EestudyError(f"{folder}: {len(classes)} names of classes; {name} has {source.classes}")
    for part, (x, y) in (("training", train), ("test", test)):
        if len(x) != len(y):
            raise EestudyError(f"{folder}: {len(x):,} {part} images but {len(y):,} labels; get {name} again")
        if x.shape[1:] != source.input_shape:
            raise EestudyError(f"{folder}: {part} images of shape {x.shape[1:]}; {source.input_shape} expected")
    source.confirm(folder, len(train[0]), len(test[0]))
    for part, (_, y) in (("training", train), ("test", test)):
        counts = np.bincount(y, minlength=len(classes))
        if len(counts) > len(classes):
            raise EestudyError(f"{folder}: {part} label {y.max()}; labels are 0 to {len(classes) - 1}")
        if not counts.all():
            empty = int(counts.argmin())
            raise EestudyError(f"{folder}: no {part} image of class {empty} ({classes[empty]}); get {name} again")
    rest, _ = hold_out(train[1], validation)
    normalization = channel_normalization(torch.from_numpy(train[0][rest]))
    whole, tested = (
        Split(torch.from_numpy(x), torch.from_numpy(y.astype(np.int64)), normalization) for x, y in (train, test)
    )
    return with_validation(name, whole, tested, validation, classes)


def _read_fashion(folder: Path) -> tuple[Arrays, Arrays]:
    train, test = (
        (_idx(folder / f"{name}-images-idx3-ubyte.gz", 3)[:, None], _idx(folder / f"{name}-labels-idx1-ubyte.gz", 1))
        for name in ("train", "t10k")
    )
    return train, test


def _read_cifar10(folder: Path) -> tuple[Arrays, Arrays]:
    x, y = zip(*(_records(folder / f"data_batch_{number}.bin", 1) for number in range(1, 6)))
    return (np.concatenate(x), np.concatenate(y)), _records(folder / "test_batch.bin", 1)


def _read_cifar100(folder: Path) -> tuple[Arrays, Arrays]:
    return _records(folder / "train.bin", 2), _records(folder / "test.bin", 2)


def _read_svhn(folder: Path) -> tuple[Arrays, Arrays]:
    return _matlab(folder / "train_32x32.mat"), _matlab(folder / "test_32x32.mat")


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """uint8 array of a gzipped IDX file (LeCun et al. 1998): two zeros, type 8, dimensions; sizes; values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None
    start = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < start:
        raise EestudyError(f"{path}: not an IDX file of bytes with {dimensions} dimensions; it begins {content[:4]!r}")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    if len(content) - start != math.prod(shape):
        found, wanted = len(content) - start, math.prod(shape)
        raise EestudyError(f"{path}: {found:,} values where its header says {wanted:,}; get it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()  # one that torch may write to


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
    return records[:, labels:].reshape(-1, 3, 32, 32), records[:, labels - 1]


def _matlab(path: Path) -> Arrays:
    """Images and labels of an SVHN file: X (32, 32, 3, N), y (N, 1) from 1 to 10, which stands for the digit 0."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=("X", "y"))
        x, y = content["X"], content["y"].ravel()
    except KeyError as error:
        raise EestudyError(f"{path}: holds no variable {error}; X and y are expected") from None
    except (OSError, ValueError, TypeError, NotImplementedError, zlib.error, MatReadError) as error:
        raise _unreadable(path, error) from None
    if x.ndim != 4 or x.dtype != np.uint8:
        raise EestudyError(f"{path}: X is {x.dtype} of shape {x.shape}; uint8 (32, 32, 3, N) expected")
    if len(y) and (y.min() < 1 or y.max() > 10):
        raise EestudyError(f"{path}: labels from {y.min()} to {y.max()}; 1 to 10 expected")
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1)), y.astype(np.int64) % 10


def _names(path: Path) -> tuple[str, ...]:
    try:
        return tuple(name for name in path.read_text(encoding="utf-8").splitlines() if name)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> EestudyError:
    return EestudyError(f"{path}: cannot be read ({first_line(error)}); get the data set again")


def _counted(read: Callable[[Path], tuple[Arrays, Arrays]]) -> Callable[[Path], tuple[int, int]]:
    def count(folder: Path) -> tuple[int, int]:
        (x, _), (x_test, _) = read(folder)
        return len(x), len(x_test)

    return count


_KRIZHEVSKY = "https://www.cs.toronto.edu/~kriz"
_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_STANFORD = "http://ufldl.stanford.edu/housenumbers"
_FASHION_FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
SOURCES: dict[str, Source] = {
    "fashion-mnist": Source(
        "fashion-mnist", (1, 28, 28), 10, 60_000, 10_000, tuple(_FASHION_FILES), _counted(_read_fashion),
        candidates=(Path("/usr/share/datasets/fashion-mnist"),),  # Debian's package
        inside=("FashionMNIST/raw",),  # torchvision's layout
        archives=tuple(Archive(f"{_ZALANDO}/{name}", md5) for name, md5 in _FASHION_FILES.items()),
        how={"debian": "apt-get install dataset-fashion-mnist"},
    ),
    "cifar10": Source(
        "cifar10", (3, 32, 32), 10, 50_000, 10_000,
        ("batches.meta.txt", *(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"),
        _counted(_read_cifar10), inside=("cifar-10-batches-bin",),
        archives=(Archive(f"{_KRIZHEVSKY}/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
    ),
    "cifar100": Source(
        "cifar100", (3, 32, 32), 100, 50_000, 10_000, ("fine_label_names.txt", "train.bin", "test.bin"),
        _counted(_read_cifar100), inside=("cifar-100-binary",),
        archives=(Archive(f"{_KRIZHEVSKY}/cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),),
    ),
    "svhn": Source(
        "svhn", (3, 32, 32), 10, 73_257, 26_032, ("train_32x32.mat", "test_32x32.mat"), _counted(_read_svhn),
        archives=(
            Archive(f"{_STANFORD}/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            Archive(f"{_STANFORD}/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
    ),
}  # fmt: skip
