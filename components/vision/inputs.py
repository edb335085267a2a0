"""How images become a network's input: wherever it is trained, run, calibrated or served."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from components.decode.instances import Placement

if TYPE_CHECKING:
    from torch import Tensor

    from components.formats.images import Resampling

Image = NDArray[np.uint8]
Images = NDArray[np.uint8]
Fit = Literal["letterbox", "stretch", "crop"]
# What a server calls images that are prepared, whatever the network calls its input: it is TAO's name.
PIXELS = "input_1"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """What a network takes.

    Attributes:
        width: Pixels.
        height: Pixels.
        channels: 3 colours, or 1 grey.
        order: Order of the colours.
        layout: Order of a tensor's dimensions after the batch.
        mean: Subtracted from the values 0 to 255; one for all channels or one for each.
        scale: What remains is divided by this; one for all channels or one for each.
        fit: `letterbox` keeps the aspect ratio and leaves the rest black, `stretch` does not keep it, `crop` keeps it
            and cuts off what is beyond the input.
        resampling: `area` averages where it shrinks, `cubic` is TAO's; see `components.formats.images.resize`.
    """

    width: int
    height: int
    channels: Literal[1, 3] = 3
    order: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["CHW", "HWC"] = "CHW"
    mean: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (255.0,)
    fit: Fit = "letterbox"
    resampling: "Resampling" = "area"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Builds it of its fields as JSON has them.

        Raises:
            TypeError: They are not its fields.
        """
        fields: dict[str, Any] = {**values}
        for name in ("mean", "scale"):
            if name in fields:
                fields[name] = tuple(fields[name])
        return cls(**fields)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image's tensor."""
        if self.layout == "CHW":
            return self.channels, self.height, self.width
        return self.height, self.width, self.channels

    def place(self, image: Image) -> tuple[Image, Placement]:
        """Fits an image [h, w, 3] BGR into the input.

        Returns:
            [height, width, channels] in the network's order of colours, and where the image lies in it.
        """
        import cv2

        from components.formats.images import Letterbox, resize

        height, width = image.shape[:2]
        size = self.width, self.height
        if self.fit == "letterbox":
            fitted = Letterbox.fit(width, height, *size).apply(image, self.resampling)
        elif self.fit == "stretch":
            fitted = resize(image, size, self.resampling)
        else:
            whole, left, top = self._covering(width, height)
            fitted = resize(image, whole, self.resampling)[top : top + self.height, left : left + self.width]
        placement = self.placement(width, height)
        if self.channels == 1:
            return np.asarray(cv2.cvtColor(fitted, cv2.COLOR_BGR2GRAY), np.uint8)[..., None], placement
        return fitted[..., ::-1] if self.order == "RGB" else fitted, placement

    def placement(self, width: int, height: int) -> Placement:
        """Returns where an image of this size lies in the input."""
        from components.formats.images import Letterbox

        if self.fit == "letterbox":
            letterbox = Letterbox.fit(width, height, self.width, self.height)
            return Placement((letterbox.scale, letterbox.scale), (float(letterbox.dx), float(letterbox.dy)))
        if self.fit == "stretch":
            return Placement((self.width / width, self.height / height))
        whole, left, top = self._covering(width, height)
        return Placement((whole[0] / width, whole[1] / height), (-float(left), -float(top)))

    def _covering(self, width: int, height: int) -> tuple[tuple[int, int], int, int]:
        """Returns the size at which an image covers the input, and what is cut off at the left and at the top."""
        scale = max(self.width / width, self.height / height)
        whole = max(self.width, round(width * scale)), max(self.height, round(height * scale))
        return whole, (whole[0] - self.width) // 2, (whole[1] - self.height) // 2

    def prepare(self, images: Sequence[Image] | Images) -> NDArray[np.float32]:
        """Turns images as `place` gives them into the network's input [N, *shape]."""
        prepared = np.empty((len(images), *self.shape), np.float32)
        mean, scale = (self._by_channel(values) for values in (self.mean, self.scale))
        for image, target in zip(images, prepared, strict=True):
            # Converted first, then in place: half the time of a division that converts.
            target[...] = image.transpose(2, 0, 1) if self.layout == "CHW" else image
            if any(self.mean):
                target -= mean
            target /= scale
        return prepared

    def prepare_tensor(self, images: "Tensor") -> "Tensor":
        """As `prepare`, of a tensor [N, height, width, channels] on its device; the channels stay last in memory."""
        pixels = (images.permute(0, 3, 1, 2) if self.layout == "CHW" else images).float()
        if any(self.mean):
            pixels.sub_(pixels.new_tensor(self._by_channel(self.mean)))
        return pixels.div_(self.scale[0] if len(self.scale) == 1 else pixels.new_tensor(self._by_channel(self.scale)))

    def _by_channel(self, values: tuple[float, ...]) -> NDArray[np.float32]:
        """Returns values in a shape that spreads over one image's tensor."""
        if len(values) == 1:
            return np.array(values[0], np.float32)
        return np.array(values, np.float32).reshape((-1, 1, 1) if self.layout == "CHW" else (-1,))
