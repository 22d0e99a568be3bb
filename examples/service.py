"""A web service that answers with a run, before and after the training, for many at once.

    RUN=runs/pets uvicorn --app-dir examples service:app
    curl --form image=@cat.jpg http://127.0.0.1:8000/predict

It needs `pip install 'clip-randlora[app]'`, which brings FastAPI and uvicorn.
"""

import os

from fastapi import FastAPI, HTTPException, UploadFile

import clip_randlora as cr

LARGEST = 20_000_000  # bytes of an uploaded image

classifier = cr.Classifier.load(os.environ["RUN"])
app = FastAPI(title="clip-randlora")


@app.get("/classes")
def classes() -> list[str]:
    """Return the names of the classes."""
    return classifier.classes


@app.post("/predict")
def predict(image: UploadFile) -> dict[str, dict[str, float]]:
    """Return the probability of each class, zero-shot and tuned.

    FastAPI calls a plain ``def`` in a thread, and threads may share the classifier.
    """
    content = image.file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise HTTPException(413, f"the image is larger than {LARGEST // 10**6} MB")
    try:
        (answer,) = classifier.predict([content])
    except cr.UserError as error:
        raise HTTPException(422, str(error)) from error
    return answer
