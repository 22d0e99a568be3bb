"""Images that are easily opened wrongly, as phones, scanners and drawing programs write them."""

from pathlib import Path

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112


def write_difficult_images(folder: Path, drawing: Image.Image) -> dict[str, list[str]]:
    """Write variants of a drawing; return their paths by what goes wrong if it is not seen to.

    ``plain`` and ``shape`` look right to everybody.
    """
    rgb = drawing.convert("RGB").resize((420, 301))
    grey, alpha = rgb.convert("L"), Image.linear_gradient("L").resize(rgb.size)
    paths: dict[str, list[str]] = {}

    def save(kind: str, image: Image.Image, name: str, orientation: int = 0, **options) -> None:
        if orientation:
            options["exif"] = Image.Exif()
            options["exif"][_ORIENTATION] = orientation
        path = folder / name
        image.save(path, **options)
        paths.setdefault(kind, []).append(str(path))

    for orientation in range(1, 9):
        name = f"phone{orientation}.jpg"
        save("turned" if orientation > 1 else "plain", rgb, name, orientation, quality=95)
    save("turned", rgb, "turned.png", 6)
    save("turned", rgb, "turned.webp", 8, lossless=True)
    save("plain", rgb, "turned.tif", 5)  # which Pillow itself turns

    transparent = rgb.copy()
    transparent.putalpha(alpha)
    save("transparent", transparent, "rgba.png")
    save("transparent", transparent, "rgba.webp", lossless=True)
    save("transparent", Image.merge("LA", (grey, alpha)), "la.png")
    palette = rgb.quantize(16)
    save("transparent", palette, "palette.png", transparency=bytes(range(0, 256, 17)))
    save("transparent", palette, "palette.gif", transparency=palette.getpixel((210, 150)))
    save("transparent", rgb, "key.png", transparency=rgb.getpixel((210, 150)))
    save("transparent", transparent, "turned_rgba.png", 3)

    save("plain", grey, "grey.png")
    save("plain", grey, "grey.jpg")
    save("plain", grey.convert("1"), "bits.png")

    values = np.asarray(grey).astype(np.uint16) * 257
    wide = Image.fromarray(values)
    save("16-bit", wide, "wide.png")
    save("16-bit", wide, "wide.tif")
    save("16-bit", Image.fromarray(np.asarray(grey).astype(np.uint16) * 16), "twelve.tif")
    save("16-bit", wide, "wide.pgm")
    big = Image.frombytes("I;16B", wide.size, values.astype(">u2").tobytes())
    save("16-bit", big, "big_endian.tif")
    save("16-bit", wide, "turned_wide.tif", 6)
    save("16-bit", wide, "wide_key.png", transparency=int(values[150, 210]))

    save("plain", rgb.convert("CMYK"), "cmyk.jpg", quality=95)
    save("plain", rgb.convert("CMYK"), "cmyk.tif")

    save("shape", rgb.resize((50, 400)), "tall.png")
    save("shape", rgb.resize((400, 30)), "flat.png")
    save("shape", rgb.resize((9, 7)), "tiny.png")
    save("shape", rgb.resize((3, 200)), "three.png")
    save("shape", rgb.resize((64, 70)), "uneven.png")  # cut by 3 pixels at a size of 32
    save("shape", rgb.resize((454, 448)), "large_uneven.png")  # and at one of 224
    save("turned", rgb.resize((64, 70)), "turned_uneven.jpg", 6)
    return paths
