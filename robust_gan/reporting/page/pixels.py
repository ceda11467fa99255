"""Images and perturbations as embedded PNG, enlarged without interpolation."""

import base64
import html
import io

import numpy as np
import PIL.Image

_SIDE = 52
_LOW, _MIDDLE, _HIGH = np.array([33, 102, 172.0]), np.array([247, 247, 247.0]), np.array([178, 24, 43.0])


def picture(image: np.ndarray, caption: str) -> str:
    """Returns an image.

    Args:
        image: `[H, W, C]` in [0, 1]; one channel is grey, three are colours, of others the mean is shown.
        caption: What it is, for who cannot see it.

    >>> picture(np.zeros((2, 2, 1)), "nothing")[:31]
    '<img class="px" alt="nothing" w'
    """
    if image.shape[-1] not in (1, 3):
        image = image.mean(axis=-1, keepdims=True)
    return _tag(np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8), caption)


def noise(values: np.ndarray, caption: str) -> str:
    """Returns a perturbation: one channel from blue over white to red, three as colours about grey.

    Args:
        values: `[H, W, C]` in [-1, 1].
        caption: What it is.

    >>> noise(np.zeros((2, 2, 3)), "none").startswith("<img")
    True
    """
    values = np.clip(values, -1, 1)
    if values.shape[-1] == 3:
        return picture((values + 1) / 2, caption)
    share = values.mean(axis=-1, keepdims=True)
    end = np.where(share < 0, _LOW, _HIGH)
    return _tag(np.rint(_MIDDLE + np.abs(share) * (end - _MIDDLE)).astype(np.uint8), caption)


def _tag(pixels: np.ndarray, caption: str) -> str:
    height, width = pixels.shape[:2]
    scale = max(1, round(_SIDE / max(height, width)))
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG", optimize=True)
    address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    size = f'width="{scale * width}" height="{scale * height}"'
    return f'<img class="px" alt="{html.escape(caption)}" {size} src="{address}">'
