"""Training of a head: encode the training images once, then fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from clip_randlora.adapters import Adapter
from clip_randlora.adapters.heads import HeadConfig, HeadData
from clip_randlora.clip.models import Model
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data import ImageBatch, TrainingImages, draw_crops
from clip_randlora.forward.inference import inference_model
from clip_randlora.training.config import TrainConfig
from clip_randlora.training.state import OnStep, TrainState
from clip_randlora.utils.progress import OnProgress, one_stage, report_progress

_BATCH = 64


class HeadTrainer:
    """Fits a head to the frozen features of the training images."""

    def __init__(
        self,
        model: Model,
        adapter: Adapter,
        text: TextClassifier,
        train_images: TrainingImages,
        config: TrainConfig,
        state: TrainState,
        validation_images: ImageBatch | None = None,
        on_progress: OnProgress | None = None,
    ):
        """Give the adapter a head, which is the zero-shot classifier until `run`.

        Args:
            model: the model, to which the adapter is attached.
            adapter: gets the head.
            text: the classes and their prompts.
            train_images: images in the model's size.
            config: has the method, and the settings of the augmentation.
            state: kept up to date.
            validation_images: of the data set, where the method chooses settings by them.
            on_progress: told how many images are encoded.
        """
        assert isinstance(config.method, HeadConfig)
        self.model, self.config, self.state = model, config, state
        self.method, self.on_progress = config.method, on_progress
        self.train_images, self.validation_images = train_images, validation_images
        classes = text.features_in_parts(on_progress=on_progress).float().cpu()
        self.data = HeadData(
            torch.empty(0, 0, classes.shape[1]),
            train_images.labels.cpu(),
            classes,
            float(model.logit_scale().detach()),
        )
        self.head = adapter.head = self.method.zero_shot_head(self.data).to(model.device)

    def run(
        self, on_step: OnStep | None = None, should_stop: Callable[[], bool] | None = None
    ) -> None:
        """Encode every view of the images once, and fit on the CPU; neither argument is called."""
        start = time.perf_counter()
        count, views = len(self.train_images), self.method.number_of_views
        encoded = self._encode(views)
        features, rest = encoded[: count * views], encoded[count * views :]
        validation = None
        if self.validation_images is not None:
            validation = rest, self.validation_images.labels.cpu()
        features = features.unflatten(0, (views, count))
        self.data = replace(self.data, features=features, validation=validation)
        with one_stage("fitting the head", self.on_progress):
            fit = self.method.fit(self.head.cpu(), self.data)
        self.head.to(self.model.device)
        self.state.notes += fit.notes
        self.state.step = self.state.steps = fit.iterations
        self.state.seconds = time.perf_counter() - start

    def _encode(self, views: int) -> Tensor:
        """Return unit features, float32 (views N + M, E), on the CPU.

        They are those of the N training images, of their other views, and of M validation images.
        """
        validation = self.validation_images
        self.model.net.eval()
        ready = inference_model(self.model)
        with torch.no_grad():
            done = report_progress(
                self._batches(views),
                "encoding images",
                len(self.train_images) * views + (len(validation) if validation is not None else 0),
                self.on_progress,
                len,
            )
            return torch.cat([ready.encode_image(batch).float().cpu() for batch in done])

    def _batches(self, views: int) -> Iterator[Tensor]:
        """Yield what `_encode` encodes: whole images as uint8, augmented ones as floats."""
        images, size = self.train_images, self.model.image_size
        generator = torch.Generator().manual_seed(self.config.seed)
        rows = torch.arange(len(images)).split(_BATCH)
        yield from images.stream(rows)
        for _ in range(views - 1):
            crops = draw_crops(
                len(images), size, generator, self.config.crop_scale, self.config.flip
            )
            for chosen, pixels in zip(rows, images.stream(rows), strict=True):
                yield crops.cut(pixels, size, chosen)
        if self.validation_images is not None:
            yield from self.validation_images.images.split(_BATCH)
