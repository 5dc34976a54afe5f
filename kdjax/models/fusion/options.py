"""What a model of image and text is built with."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an image and its caption become one vector. Where a fusion is named, the option is of that one alone."""

    fusion: str = "simple"  # see FUSIONS
    dim: int = 512  # of the embeddings of image and text, and of what is made of them
    layers: int = 2  # simple, transformer_concat: of the encoder; concat_mlp: of the MLP
    heads: int = 8  # wherever there is attention
    dropout: float = 0.1  # of attention and hidden layers, of what is made of both, and once more before each head
    hidden: int = 2  # concat_mlp: the width of its hidden layers, in `dim`s
    drop_image: float = 0.3  # modality_dropout: the chance in training that the image is left out
    drop_text: float = 0.3  # modality_dropout: the chance that the text is
    drop_examples: bool = False  # modality_dropout: each example has its own chance; else all of a batch share one
    threshold: float = 0.6  # shomr: the confidence in one of both above which one route is taken
    sample_at_evaluation: bool = False  # energy_aware_adaptive: a route by chance, as the original; else their mean
    costs: tuple[float, ...] = (3.2, 4.1, 9.8)  # of reading the image, the text or both, in mJ of an example
    dtype: Any = "float32"  # of the computation; parameters stay float32
