"""BERT-family encoders through the transformers library: token ids in, every layer is a stage (Devlin et al. 2019).

B batch, T tokens, D width. A state is (hidden (B, T, D), mask (B, 1, 1, T), True where there is a token to attend to).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eestudy.config import EestudyError
from eestudy.models.backbone import Backbone
from eestudy.models.families.vit import ClassToken
from eestudy.pretrained import PACKAGED, first_line, has_tokenizer, load_tokenizer, locate, quiet

State = tuple[Tensor, Tensor]
# Model types that are tested. Others are taken too if, cut into layers, they give what they give whole.
SUPPORTED = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "ernie")
PROBE = 16  # tokens of the input on which the two are compared


class Encoder(Backbone):
    """A Backbone that takes token ids (B, T), int64."""

    input_dtype = torch.int64


class Embed(nn.Module):
    """Token ids (B, T) -> the first state: what tokens, positions and sentences are embedded as.

    Padding is what equals `pad`. The second sentence of a pair is what follows the first `separator`.
    """

    def __init__(self, embeddings: nn.Module, project: nn.Module | None, pad: int, separator: int | None) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.project = project
        self.pad = pad
        words = getattr(embeddings, "word_embeddings", None)
        self.vocabulary: int = words.num_embeddings if isinstance(words, nn.Embedding) else 0
        self.positions = positions(embeddings)
        # One type of sentence (RoBERTa) or none (DistilBERT): there is nothing to tell apart.
        types = getattr(embeddings, "token_type_embeddings", None)
        self.separator = separator if types is not None and types.num_embeddings > 1 else None

    def forward(self, ids: Tensor) -> State:
        if self.positions is not None and ids.shape[1] > self.positions:
            raise EestudyError(f"encoder: {ids.shape[1]} tokens, but it has positions for {self.positions}")
        mask = ids != self.pad
        mask[:, 0] = True  # a row that is all padding, such as a dry run's, would have nothing to attend to
        try:
            hidden = self.embeddings(input_ids=ids, **self.sentences(ids))
        except IndexError:  # on a GPU it is not raised, and there a look at all ids would stop the work at each step
            raise EestudyError(
                f"encoder: token ids from {ids.min()} to {ids.max()}, but it knows 0 to {self.vocabulary - 1}; "
                "dataset_args: tokenizer must name the same model as architecture_args: encoder"
            ) from None
        return (hidden if self.project is None else self.project(hidden)), mask[:, None, None]

    def sentences(self, ids: Tensor) -> dict[str, Tensor]:
        """Which sentence each token is of, as an argument of the embeddings that tell them apart."""
        return {} if self.separator is None else {"token_type_ids": sentence_numbers(ids, self.separator, self.pad)}


class Layer(nn.Module):
    """A transformers layer, state -> state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, state: State) -> State:
        hidden, mask = state
        result = self.layer(hidden, attention_mask=mask)
        return (result[0] if isinstance(result, tuple) else result), mask


class TokenClassifier(nn.Module):
    """The class token of the last state, then linear: (B, C)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.token = ClassToken()
        self.linear = nn.Linear(width, num_classes)  # the token is layer-normed already: these layers norm last

    def forward(self, state: State) -> Tensor:
        return self.linear(self.token(state[0]))


def minilm(input_shape: tuple[int, ...], num_classes: int, encoder: str = PACKAGED) -> Backbone:
    """A pretrained encoder for token ids (T,). Features: tokens (B, T, D).

    encoder: "minilm", which is all-MiniLM-L6-v2 (Wang et al. 2020; Reimers and Gurevych 2019); a folder where
    transformers saved a model; or a name in the local cache of the Hugging Face hub. Weights are read from safetensors
    only. Fine-tuning wants a learning rate of 1e-4 or less.

    Every exit, the last too, reads the class token, as DeeBERT, PABEE and BERxiT do. MiniLM's sentence vectors are
    means over tokens, but with the same reader everywhere exits differ in depth alone, and one token is cheap to read.
    """
    field = "architecture_args: encoder"
    folder = locate(field, encoder)
    model = _loaded(folder)
    separator = load_tokenizer(field, encoder).sep_token_id if has_tokenizer(folder) else None
    return cut_encoder(model, input_shape, num_classes, separator)


def cut_encoder(model: Any, input_shape: tuple[int, ...], num_classes: int, separator: int | None = None) -> Backbone:
    """A backbone of the embeddings and layers of `model`, from transformers' AutoModel; its pooler is left out.

    separator: id of the token between two sentences. The stages are compared with what the whole model gives.
    Raises EestudyError for a model that is not embeddings and layers in a row, and for more tokens than its positions.
    """
    kind = getattr(model.config, "model_type", type(model).__name__)
    embeddings = getattr(model, "embeddings", None)
    body = getattr(model, "encoder", None) or getattr(model, "transformer", None)
    layers, pad = getattr(body, "layer", None), getattr(model.config, "pad_token_id", None)
    if not isinstance(embeddings, nn.Module) or not isinstance(layers, nn.ModuleList) or pad is None:
        raise _unsupported(kind, "it is not embeddings and layers in a row, with a padding token")
    if getattr(model.config, "_attn_implementation", None) != "sdpa":  # others read a mask in their own ways
        raise _unsupported(kind, "its attention is not torch's scaled_dot_product_attention")
    embed = Embed(embeddings, getattr(model, "embeddings_project", None), pad, separator)
    if not embed.vocabulary:
        raise _unsupported(kind, "its embeddings have no table of words")
    if embed.positions is not None and input_shape[0] > embed.positions:
        raise EestudyError(
            f"dataset_args: length: {input_shape[0]} tokens, but the {kind} encoder has positions for {embed.positions}"
        )
    first, *later = map(Layer, layers)
    classifier = TokenClassifier(model.config.hidden_size, num_classes)
    backbone = Encoder([nn.Sequential(embed, first), *later], classifier, input_shape, num_classes, "tokens")
    _check(model, backbone, embed, kind)
    return backbone


def sentence_numbers(ids: Tensor, separator: int, pad: int) -> Tensor:
    """0 up to and with the first separator, 1 after it, 0 for padding: what BERT's tokenizers give. ids: (B, T)."""
    is_separator = ids == separator
    after = (is_separator.cumsum(1) - is_separator.long()) > 0
    return (after & (ids != pad)).long()


def positions(embeddings: nn.Module) -> int | None:
    """How many tokens it has positions for; None: it has no table of them."""
    table = getattr(embeddings, "position_embeddings", None)
    if not isinstance(table, nn.Embedding):
        return None
    # RoBERTa counts positions from the one after padding's.
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def _loaded(folder: Path) -> Any:
    """The model saved in `folder`; EestudyError if it cannot be read or lacks weights of its layers."""
    from safetensors import SafetensorError
    from transformers import AutoModel

    try:
        # Weights that are not there (an unused pooler's) are drawn: the run's own random numbers stay untouched.
        with quiet(), torch.random.fork_rng(devices=[]):
            model, report = AutoModel.from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, AttributeError, SafetensorError) as error:
        raise EestudyError(
            f"architecture_args: encoder: {folder} cannot be loaded by transformers ({first_line(error)})"
        ) from None
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise EestudyError(f"architecture_args: encoder: {folder} lacks {len(missing)} weights, such as {missing[0]}")
    return model


@torch.no_grad()
def _check(model: Any, backbone: Backbone, embed: Embed, kind: str) -> None:
    """EestudyError unless each stage gives what the whole model gives after the same layer, on two rows of tokens."""
    ids = torch.arange(2 * PROBE).view(2, PROBE)[:, : min(PROBE, *backbone.input_shape)] % embed.vocabulary
    ids[ids == embed.pad] = (embed.pad + 1) % embed.vocabulary
    ids[1, -(ids.shape[1] // 2) :] = embed.pad
    mask = (ids != embed.pad).long()
    model.eval()
    try:
        whole = model(ids, attention_mask=mask, output_hidden_states=True, **embed.sentences(ids)).hidden_states
        state: Any = ids
        for number, stage in enumerate(backbone.stages, 1):
            state = stage.eval()(state)
            if not torch.allclose(backbone.features(state), whole[number], atol=1e-4, rtol=1e-4):
                raise _unsupported(kind, f"cut into layers it gives something else after layer {number}")
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        if isinstance(error, EestudyError):
            raise
        raise _unsupported(kind, f"its layers want more than tokens and a mask: {first_line(error)}") from None
    backbone.train()  # as a new network is; transformers' come in eval mode


def _unsupported(kind: str, why: str) -> EestudyError:
    return EestudyError(
        f"architecture_args: encoder: a {kind} model cannot be cut after its layers ({why}); "
        f"tested: {', '.join(SUPPORTED)}"
    )
