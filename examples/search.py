"""Search images by words, before and after a training.

    clip-randlora demo --out runs/demo
    python examples/search.py runs/demo photos/ "a bird" "something to drink"

The features of the images are written once, to photos.parquet. FAISS searches them if it is
installed (pip install faiss-cpu), else NumPy: both are exact, and find the same images.
"""

import argparse
from pathlib import Path

import numpy as np
from pyarrow import parquet

import clip_randlora as cr


def read(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the names of N images, and their features of length 1, float32 (N, E), by column."""
    table = parquet.read_table(path)
    features = {name: np.stack(table[name].to_numpy()) for name in ("zero_shot", "tuned")}
    return table["image"].to_pylist(), features


def nearest(images: np.ndarray, queries: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines and the places (Q, first) of the images that are most like each query."""
    first = min(first, len(images))
    try:
        import faiss
    except ImportError:
        cosines = queries @ images.T
        places = np.argsort(-cosines, axis=1, kind="stable")[:, :first]
        return np.take_along_axis(cosines, places, axis=1), places
    index = faiss.IndexFlatIP(images.shape[1])  # exact; faiss.IndexHNSWFlat for millions of images
    index.add(images)
    return index.search(queries, first)


def main(arguments: list[str] | None = None) -> None:
    """Write the features if there are none yet, and print the images found for each query."""
    parser = argparse.ArgumentParser(description="Search images by words, before and after.")
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("photos", help="folder of images")
    parser.add_argument("queries", nargs="+", metavar="query", help="what to look for")
    parser.add_argument("--index", type=Path, help="default: PHOTOS.parquet, here")
    parser.add_argument("--first", type=int, default=5, help="images to show")
    options = parser.parse_args(arguments)
    file = options.index or Path(f"{Path(options.photos).resolve().name}.parquet")

    classifier = cr.Classifier.load(options.run)
    if not file.exists():
        done = cr.embed_images(classifier, options.photos, file)
        print(f"{file}: {done.rows} images, {len(done.errors)} could not be read")
    names, images = read(file)
    for query in options.queries:
        print(f"\n{query}")
        for column, strength in (("zero_shot", 0), ("tuned", 1)):
            text = classifier.encode_texts(query, strength).numpy()
            cosines, places = nearest(images[column], text, options.first)
            for cosine, place in zip(cosines[0], places[0], strict=True):
                print(f"  {column:9}  {cosine:6.3f}  {names[place]}")


if __name__ == "__main__":
    main()
