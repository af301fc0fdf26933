"""Trained models by name: "torchvision/resnet18", "timm/resnet18.a1_in1k", "huggingface/FOLDER-OR-NAME"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from eestudy.config import EestudyError, check_name
from eestudy.extras import needed
from eestudy.pretrained import first_line, locate, quiet


def _torchvision(name: str) -> Any:
    from torchvision import models

    check_name("model", name, models.list_models(models))
    return models.get_model(name, weights="DEFAULT")


def _timm(name: str) -> Any:
    try:
        import timm
    except ImportError:
        raise EestudyError("model: timm is not installed; pip install timm") from None
    check_name("model", name.split(".")[0], timm.list_models())
    return timm.create_model(name, pretrained=True)


def _huggingface(name: str) -> Any:
    folder = str(locate("model", name))
    transformers = needed("transformers", "text")
    kinds = ("ForImageClassification", "ForSequenceClassification")
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    made = next((each for each in config.architectures or () if each.endswith(kinds)), None)
    if made is None:
        raise EestudyError(f"model: {name} is {config.architectures}; give one for classification, of images or texts")
    with quiet():
        return getattr(transformers, made).from_pretrained(folder, local_files_only=True)


SOURCES: dict[str, Callable[[str], Any]] = {"torchvision": _torchvision, "timm": _timm, "huggingface": _huggingface}


def named(place: str) -> nn.Module:
    """The model with its trained weights, which torchvision and timm download the first time.

    Raises EestudyError for a source or name that is not known, a package that is missing, and without network.
    """
    source, _, name = place.partition("/")
    make = SOURCES[check_name("model", source, SOURCES)]
    try:
        model = make(name)
    except EestudyError:
        raise
    except Exception as error:
        raise EestudyError(
            f"model: {place}: its weights cannot be had ({type(error).__name__}: {first_line(error)}); without network "
            "give a function that makes the model, and --weights FILE"
        ) from error
    assert isinstance(model, nn.Module)
    return model.eval()
