"""What is refused of a text model, in words that know nothing of where its settings stand."""

from collections.abc import Collection

import torch
from torch import nn

MISSING = "has no tokenizer"


class Refused(Exception):
    """A model that cannot be used as the settings say.

    Args:
        name: The setting at fault, such as `layer`; None is the path.
        wrong: What is wrong with it.
        remedy: What would be right.
    """

    def __init__(self, name: str | None, wrong: str, remedy: str) -> None:
        self.name, self.wrong, self.remedy = name, wrong, remedy
        super().__init__(name, wrong, remedy)


def check_layer(layer: int, num_layers: int) -> None:
    """Refuses a layer that a model does not have; -1 is the last.

    Raises:
        Refused: There are not so many.
    """
    if -layer > num_layers:
        wrong = f"the model has {num_layers} layers"
        raise Refused("layer", wrong, f"choose a layer from -1 to -{num_layers}")


def check_weights(model: nn.Module, missing: Collection[str], heads: tuple[str, ...]) -> None:
    """Refuses a model with weights that are missing or no numbers.

    Args:
        model: With its weights.
        missing: Names of those that the files lack.
        heads: Beginnings of the names of those that are not used.

    Raises:
        Refused: There are such weights, but for `heads`.
    """
    lacks = sorted(key for key in missing if not key.startswith(heads))
    if lacks:
        raise Refused(None, f"lacks {len(lacks)} weights ({lacks[0]})", "give a whole model")
    for name, weight in model.named_parameters():
        if not name.startswith(heads) and not torch.isfinite(weight).all():
            raise Refused(None, f"has weights that are no numbers ({name})", "give another copy")
