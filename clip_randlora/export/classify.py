import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(Path(__file__).with_name("classifier.onnx"))
facts = {key: json.loads(v) for key, v in session.get_modelmeta().custom_metadata_map.items()}
size, keeps_shape = facts["image_size"], facts["resize_mode"] == "shortest"
for path in sys.argv[1:]:  # python classify.py IMAGE...
    rgba = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    sides = [size * side // min(image.size) if keeps_shape else size for side in image.size]
    left, top = (round((side - size) / 2) for side in sides)
    image = image.resize(sides, facts["resample"]).crop((left, top, left + size, top + size))
    pixels = ((np.asarray(image) / 255 - facts["mean"]) / facts["std"]).transpose(2, 0, 1)[None]
    (probabilities,) = session.run(None, {"pixels": pixels.astype(np.float32)})[0]
    print(path, facts["classes"][probabilities.argmax()], f"{probabilities.max():.1%}", sep="\t")
