"""A model's decoder, which has to be of this family's kind."""

from pathlib import Path

from components.decode.decoder import Decoder
from components.decode.grid.decoder import GridDecoder
from components.step import UserError


def grid_decoder(decoder: Decoder, model: Path) -> GridDecoder:
    """Returns the decoder of a model.

    Raises:
        UserError: It is of another kind, so the model is no DetectNet_v2.
    """
    if not isinstance(decoder, GridDecoder):
        raise UserError(f"{model}: no DetectNet_v2 model: its outputs are decoded as {decoder.settings()['kind']}")
    return decoder
