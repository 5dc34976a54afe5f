"""BERT (Devlin et al. 2019, arXiv 1810.04805), in the small sizes of Turc et al. 2019 (arXiv 1908.08962) and as MiniLM
(Wang et al. 2020, arXiv 2002.10957); DistilBERT (Sanh et al. 2019, arXiv 1910.01108).

Module names follow those of transformers' BertModel: `encoder/layer_3/attention/self/query`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from kdjax.config import ConfigError, nearest
from kdjax.models.inputs import Input, TokenMaskInput, TokensInput
from kdjax.models.layers.activation import ACTIVATIONS, activation_faults
from kdjax.models.layers.attention import attention
from kdjax.models.layers.dense import dense
from kdjax.models.options import options_of

POOLS = ("token", "mean")

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 128, "depth": 2, "heads": 2},
    "mini": {"dim": 256, "depth": 4, "heads": 4},
    "small": {"dim": 512, "depth": 4, "heads": 8},
    "medium": {"dim": 512, "depth": 8, "heads": 8},
    "base": {"dim": 768, "depth": 12, "heads": 12},  # Bio_ClinicalBERT too, with a vocabulary of 28,996
    "minilm_l6": {"dim": 384, "depth": 6, "heads": 12},
}
DISTILBERT_VARIANTS: dict[str, dict[str, Any]] = {"base": {"dim": 768, "depth": 6, "heads": 12}}

# Parameters as published: of transformers' BertModel, its pooler counted; of DistilBertModel, which has none.
PARAMETERS = {
    "tiny": 4_385_920,
    "mini": 11_170_560,
    "small": 28_763_648,
    "medium": 41_373_184,
    "base": 109_482_240,
    "minilm_l6": 22_713_216,
}
DISTILBERT_PARAMETERS = {"base": 66_362_880}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The dimensions of a BERT and how it computes."""

    family: ClassVar[str] = "BERT"

    vocab_size: int = 30_522
    vocabulary: str = ""  # the digest of the tokenizer's table (kdjax/vocabulary.py); "" where it is not known
    dim: int  # width of the tokens
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    positions: int = 512  # tokens of the longest text
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1  # in training: of the embeddings, of what each branch adds, and of what the classes read
    pool: str = "token"  # what `features` are: the first token after the last layer, or the mean of all but padding
    dtype: Any = "float32"  # of the computation; parameters stay float32
    remat: bool = False  # recompute each layer in the backward pass: less memory, more time

    def __post_init__(self):
        if faults := self.faults():
            raise ConfigError(f"{self.family} cannot be built:\n  " + "\n  ".join(faults))

    def faults(self) -> list[str]:
        """All that keeps a model from being built."""
        sizes = {"vocab_size": self.vocab_size, "positions": self.positions}
        faults = [f"{name}: expected at least 1, found {size}" for name, size in sizes.items() if size < 1]
        if self.heads < 1 or self.dim % self.heads:
            faults.append(f"heads: expected a divisor of dim {self.dim}, found {self.heads}")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout: expected a rate in [0, 1), found {self.dropout}")
        if self.pool not in POOLS:
            faults.append(f"pool: no {self.pool!r}; {nearest(self.pool, POOLS)}")
        return faults + activation_faults(self.activation)

    @property
    def inputs(self) -> dict[str, Input]:
        tokens = TokensInput(self.positions, self.vocab_size, self.vocabulary)
        return {"input_ids": tokens, "attention_mask": TokenMaskInput(self.positions)}

    def check(self, input_ids: Int[Array, "b n"]) -> None:
        """Refuses texts that are longer than the table of positions."""
        if input_ids.shape[1] > self.positions:
            raise ConfigError(
                f"{self.family} was built for texts of at most {self.positions} tokens and got {input_ids.shape[1]}: "
                "cut the texts, or build the model with more positions and train them"
            )


class Bert(nn.Module):
    """Text -> tokens, one of them or their mean, and with `num_classes` an answer to that.

    `attention_mask` is 1 for a token, 0 for padding, which nothing attends to. Endpoints: `tokens` [b, n, d], after the
    last layer; `layer_i` [b, n, d], after layer i; `features` [b, d], see Options.pool. With `num_classes` also
    `logits` [b, k], the answer to `features` through the pooler, a dense layer that only classes have.
    """

    options: Options
    num_classes: int = 0

    segments = 2  # rows of `token_type_embeddings`; all tokens are of the first, a text is one segment
    pooled = staticmethod(jnp.tanh)  # the pooler's activation

    @property
    def endpoints(self) -> tuple[str, ...]:
        layers = (f"layer_{i}" for i in range(self.options.depth))
        return (*(("logits",) if self.num_classes else ()), "features", "tokens", *layers)

    @property
    def inputs(self) -> dict[str, Input]:
        return self.options.inputs

    @nn.compact
    def __call__(
        self, input_ids: Int[Array, "b n"], attention_mask: Int[Array, "b n"], train: bool = False
    ) -> dict[str, Array]:
        o = self.options
        o.check(input_ids)
        there = attention_mask > 0
        x = Embeddings(o, self.segments, train, name="embeddings")(input_ids)
        after = Encoder(o, train, name="encoder")(x, there)
        tokens = after[-1] if after else x
        features = tokens[:, 0] if o.pool == "token" else _mean(tokens, there)
        out = {"features": features, "tokens": tokens, **{f"layer_{i}": x for i, x in enumerate(after)}}
        if self.num_classes:
            y = self.pooled(Pooler(o, name="pooler")(features))
            out["logits"] = _dense(o, self.num_classes, "classifier")(_dropout(o, y, train))
        return out


class DistilBert(Bert):
    """As `bert`, without kinds of tokens, and with a ReLU before the classes in place of a tanh.

    Endpoints and module names are Bert's.
    """

    segments = 0
    pooled = staticmethod(jax.nn.relu)


def _mean(tokens: Float[Array, "b n d"], there: Bool[Array, "b n"]) -> Float[Array, "b d"]:
    """Of the tokens that are no padding; zeros where all are."""
    share = there / jnp.maximum(1, there.sum(axis=1, keepdims=True))
    return jnp.einsum("bnd,bn->bd", tokens, share.astype(tokens.dtype))


class Embeddings(nn.Module):
    options: Options
    segments: int
    train: bool

    @nn.compact
    def __call__(self, input_ids: Int[Array, "b n"]) -> Float[Array, "b n d"]:
        o, first = self.options, jnp.zeros((1, 1), jnp.int32)

        def table(name: str, rows: int) -> nn.Embed:
            return nn.Embed(rows, o.dim, dtype=o.dtype, embedding_init=nn.initializers.normal(0.02), name=name)

        x = table("word_embeddings", o.vocab_size)(input_ids)
        if self.segments:
            x = x + table("token_type_embeddings", self.segments)(first)
        x = x + table("position_embeddings", o.positions)(jnp.arange(input_ids.shape[1])[None])
        return _dropout(o, _norm(o)(x), self.train)


class Encoder(nn.Module):
    options: Options
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], there: Bool[Array, "b n"]) -> list[Float[Array, "b n d"]]:
        """The tokens after each layer."""
        layer = nn.remat(Layer) if self.options.remat else Layer
        after = []
        for i in range(self.options.depth):
            x = layer(self.options, self.train, name=f"layer_{i}")(x, there)
            after.append(x)
        return after


class Layer(nn.Module):
    options: Options
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], there: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        x = Attention(self.options, self.train, name="attention")(x, there)
        y = Intermediate(self.options, name="intermediate")(x)
        return Output(self.options, self.train, name="output")(y, x)


class Attention(nn.Module):
    options: Options
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], there: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        y = SelfAttention(self.options, name="self")(x, there)
        return Output(self.options, self.train, name="output")(y, x)


class SelfAttention(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], there: Bool[Array, "b n"]) -> Float[Array, "b n d"]:
        o = self.options
        query, key, value = (
            _dense(o, o.dim, name)(x).reshape(*x.shape[:2], o.heads, o.dim // o.heads)
            for name in ("query", "key", "value")
        )
        return attention(query, key, value, mask=there).reshape(x.shape)


class Intermediate(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n c"]:
        o = self.options
        return ACTIVATIONS[o.activation](_dense(o, int(o.dim * o.mlp_ratio), "dense")(x))


class Output(nn.Module):
    """The end of a branch: what it adds, and the norm of the sum."""

    options: Options
    train: bool

    @nn.compact
    def __call__(self, branch: Float[Array, "b n c"], x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        o = self.options
        return _norm(o)(x + _dropout(o, _dense(o, o.dim, "dense")(branch), self.train))


class Pooler(nn.Module):
    options: Options

    @nn.compact
    def __call__(self, features: Float[Array, "b d"]) -> Float[Array, "b d"]:
        return _dense(self.options, self.options.dim, "dense")(features)


def _norm(o: Options) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=o.norm_eps, dtype=o.dtype, name="LayerNorm")


def _dense(o: Options, features: int, name: str) -> nn.Dense:
    return dense(features, dtype=o.dtype, kernel_init=nn.initializers.truncated_normal(0.02), name=name)


def _dropout(o: Options, x: Float[Array, "..."], train: bool) -> Float[Array, "..."]:
    return nn.Dropout(o.dropout, deterministic=not train)(x)


def build_bert(variant: str = "base", num_classes: int = 0, **overrides) -> Bert:
    """Without classes, features alone; `overrides` are fields of Options."""
    _check_classes(num_classes)
    return Bert(options_of(Options, "BERT", VARIANTS, variant, overrides), num_classes)


def build_distilbert(variant: str = "base", num_classes: int = 0, **overrides) -> DistilBert:
    """As `build_bert`."""
    _check_classes(num_classes)
    return DistilBert(options_of(Options, "DistilBERT", DISTILBERT_VARIANTS, variant, overrides), num_classes)


def _check_classes(num_classes: int) -> None:
    if num_classes < 0:
        raise ConfigError(f"num_classes: expected at least 0, for features alone, found {num_classes}")
