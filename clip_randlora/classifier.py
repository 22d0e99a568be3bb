"""Classify images with a finished run."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from clip_randlora.adapters import Adapter, ZeroShot, attach, check_strength, load_adapter
from clip_randlora.clip.models import Model, load_model
from clip_randlora.clip.none_of_these import none_labels
from clip_randlora.clip.prompts import (
    AS_IT_IS,
    Prompts,
    check_prompts,
    class_words,
    find_cut,
    make_prompts,
    note_cut,
)
from clip_randlora.clip.templates import check_templates
from clip_randlora.clip.text import TextClassifier
from clip_randlora.confidence import Confidence
from clip_randlora.confidence.unknown import margins, nearest
from clip_randlora.data import Skipped, Split, UnreadableImage, summarize_skipped
from clip_randlora.data.inputs import Input, each_input
from clip_randlora.errors import UserError
from clip_randlora.evaluation import (
    BATCH,
    PairedPredictor,
    Predictions,
    as_mapping,
    encode_images,
    predict_split,
)
from clip_randlora.runs.confidence_file import read_confidence, read_known
from clip_randlora.runs.publish import push_run
from clip_randlora.runs.run_source import local_run
from clip_randlora.runs.task import read_task
from clip_randlora.utils.hub import HubName
from clip_randlora.utils.parallel import parallel_map
from clip_randlora.utils.progress import OnProgress
from clip_randlora.utils.wording import join_names

_SMALLEST = 1e-37  # probability; its logarithm is finite
_UNIT = 1e-2  # how far from 1 the length of features may be that were stored in half precision


@dataclass(frozen=True)
class Answers:
    """What `Classifier.classify` answers for N images.

    Attributes:
        names: of all of them.
        errors: why an image cannot be used, else None, for each of them.
        zero_shot, tuned: probabilities of the others, float32 (M, C).
        unknown: whether they are of none of the classes, bool (M,); None if that was not asked.
    """

    names: list[str]
    errors: list[UnreadableImage | None]
    zero_shot: Tensor
    tuned: Tensor
    unknown: Tensor | None = None

    def each(self, classes: Sequence[str], on_error: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name and the answer of each image as `Classifier.predict_each` does."""
        first = next(filter(None, self.errors), None)
        if first is not None and on_error == "raise":
            raise first
        rows = zip(self.zero_shot, self.tuned, strict=True)
        unknown = iter(self.unknown.tolist() if self.unknown is not None else ())
        for name, error in zip(self.names, self.errors, strict=True):
            if error is not None:
                yield name, {"error": str(error)}
                continue
            answers = zip(("zero_shot", "tuned"), next(rows), strict=True)
            answer: dict[str, Any] = {which: as_mapping(classes, p) for which, p in answers}
            if self.unknown is not None:
                answer["unknown"] = next(unknown)
            yield name, answer


@dataclass(frozen=True)
class Encoded:
    """What `Classifier.encode_and_classify` answers for N images.

    Attributes:
        names, errors: as in `Answers`.
        rows: unit features (M, E) and tuned probabilities (M, C) of those without an error; None
            if there are none.
        unknown: whether these are of none of the classes, bool (M,); None if that was not asked.
    """

    names: list[str]
    errors: list[UnreadableImage | None]
    rows: tuple[Tensor, Tensor] | None
    unknown: Tensor | None = None


@dataclass(frozen=True)
class ImageFeatures:
    """What `Classifier.encode_image_batches` answers for N images.

    Attributes:
        names, errors: as in `Answers`.
        features: of the M images without an error, for each strength: float32 (M, E), of length 1.
    """

    names: list[str]
    errors: list[UnreadableImage | None]
    features: list[Tensor]


@dataclass(frozen=True)
class TextFeatures:
    """What `Classifier.encode_text_batches` answers for N texts.

    Attributes:
        texts: N of them.
        cut: those that are longer than what the model reads.
        features: for each strength, float32 (N, E), of length 1.
    """

    texts: list[str]
    cut: list[str]
    features: list[Tensor]


class Classifier:
    """Classifies images zero-shot and tuned side by side, in any number of threads.

    Attributes:
        model: the base model.
        adapter: attached to it.
        text: the prompts of the classes.
        classes: the class names, as the folders of the training images spelt them.
        confidence: the temperatures of the answers, and from where on an image is of no class.
        known: zero-shot features of training images, float32 (N, E); None if there are none.
        folder: of the run that was loaded; None if it was not of a folder.
    """

    def __init__(
        self,
        model: Model,
        adapter: Adapter,
        text: TextClassifier,
        confidence: Confidence | None = None,
        known: Tensor | None = None,
    ):
        self.model, self.adapter, self.text = model, adapter, text
        self.classes, self.confidence = text.classes, confidence or Confidence()
        self.known = known
        self.folder: Path | None = None
        self._both: PairedPredictor | None = None
        self._lock = threading.Lock()  # held while `_both` is built, so that only one thread does

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        strength: float = 1.0,
        device: str | torch.device | None = None,
        model: Model | None = None,
    ) -> Classifier:
        """Load a run folder, or only its adapter file.

        Args:
            path: a folder that `fit` or ``clip-randlora train`` wrote, the ``adapter.safetensors``
                in it, or ``hf-hub:ORG/NAME[@REVISION]``, see `from_pretrained`.
            strength: 0 (zero-shot) to 1 (tuned), see `Adapter.strength`.
            device: where to compute; by default the best there is.
            model: the base model without an adapter, if it is in memory already.

        Raises:
            UserError: the path is neither a run folder nor its adapter, the run is not finished, or
                its base model cannot be loaded.
        """
        path = local_run(path)
        task, confidence = read_task(path), read_confidence(path)
        model = model or load_model(task.model, task.pretrained, device)
        text = TextClassifier(model, task.classes, [task.prompts[name] for name in task.classes])
        adapter = load_adapter(model.net, task.adapter)
        if adapter.head is not None and not _fits(adapter.head, text):
            adapter.detach()
            raise UserError(
                f"{task.adapter}: damaged adapter file, its head does not fit the "
                f"{len(task.classes)} classes on {task.model}; use another copy"
            )
        adapter.strength = strength
        classifier = cls(model, adapter, text, confidence, read_known(path))
        classifier.folder = path if path.is_dir() else None
        return classifier

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        strength: float = 1.0,
        device: str | torch.device | None = None,
        model: Model | None = None,
    ) -> Classifier:
        """Load a run of the Hugging Face hub, or of a folder.

        Only YAML, JSON, CSV and safetensors files with the names of a run's are fetched, into the
        hub's cache. If the hub cannot be reached, the copy there is used.

        Args:
            name: ``ORG/NAME``, as `push_to_hub` takes it, or a path as for `load`.
            revision: a branch, tag or commit of the repository; by default its newest.
            token: for private repositories; by default that of ``hf auth login`` or HF_TOKEN.
            strength: as for `load`.
            device: as for `load`.
            model: as for `load`.

        Raises:
            UserError: there is no such repository or revision, it needs a login, it holds no run,
                the hub cannot be reached and nothing is in the cache, or as for `load`.
        """
        path = Path(name)
        if not path.exists():
            found = HubName.parse(name)
            path = local_run(str(replace(found, revision=revision or found.revision)), token)
        elif revision is not None:
            raise UserError(f"revision {revision}: {name} is a path; leave it out")
        return cls.load(path, strength=strength, device=device, model=model)

    def push_to_hub(
        self, repository: str, *, private: bool | None = None, token: str | None = None
    ) -> str:
        """Upload the run to the Hugging Face hub; see `clip_randlora.runs.publish.push_run`.

        Returns:
            The repository's address.

        Raises:
            UserError: the classifier was not loaded from the folder of a run, or as for `push_run`.
        """
        if self.folder is None:
            raise UserError("push_to_hub: the classifier is of no run folder; load one")
        return push_run(self.folder, repository, private=private, token=token)

    @classmethod
    def zero_shot(
        cls,
        model: Model,
        classes: Sequence[str],
        templates: Sequence[str] | None = None,
        names: Prompts | None = None,
    ) -> Classifier:
        """Return a classifier that no image has trained: its tuned answers are the zero-shot ones.

        Args:
            model: without an adapter.
            classes: as for `for_classes`.
            templates: as for `for_classes`.
            names: as for `for_classes`.

        Raises:
            UserError: there are fewer than two classes, one is there twice, or the prompts do not
                tell them apart.
        """
        repeated = [name for name, count in Counter(classes).items() if count > 1]
        if repeated or len(classes) < 2:
            wrong = f"{repeated[0]!r} is there twice" if repeated else "at least two are needed"
            raise UserError(f"classes: {wrong}; give two or more different ones")
        text = _encode_classes(model, classes, templates, names)
        return cls(model, attach(model.net, ZeroShot()), text)

    def for_classes(
        self,
        classes: Sequence[str],
        templates: Sequence[str] | None = None,
        names: Prompts | None = None,
    ) -> Classifier:
        """Return a classifier of other classes, with the same model and adapter.

        The tuned encoders answer for them, though they were not trained on them. The temperature
        is 1, as the run's was fitted for its own classes.

        Args:
            classes: class names as folders spell them, at least two.
            templates: prompt templates with one ``{}`` each; by default "a photo of a {}."
            names: ``{class: names in its prompts}``; by default the cleaned class names.

        Raises:
            UserError: the run has a head, which answers for its own classes alone; or the prompts
                do not tell the classes apart.
        """
        if self.adapter.head is not None:
            raise UserError(
                f"{self.adapter.config.method}: its head answers only for the classes it was "
                f"trained on ({join_names(self.classes, 5)}); take a run that tunes the encoders"
            )
        text = _encode_classes(self.model, classes, templates, names)
        return Classifier(self.model, self.adapter, text)

    def close(self) -> None:
        """Detach the adapter, so that another classifier can use the model.

        Calls that are running in other threads still return their answers.
        """
        self._both = None
        self.adapter.detach()

    def side_by_side(self) -> PairedPredictor:
        """Return a predictor for batches of tensors, at the adapter's current strength."""
        return PairedPredictor(self.model, self.adapter, self.text, confidence=self.confidence)

    def _predictor(self) -> PairedPredictor:
        """Return the predictor of the last call, or a new one if the parameters changed since."""
        both = self._both
        if both is not None and both.is_current and both.strength == self.adapter.strength:
            return both
        with self._lock:
            both = self._both
            if both is None or not both.is_current:
                both = self._both = self.side_by_side()
            elif both.strength != self.adapter.strength:
                both.strength = self.adapter.strength
        return both

    def predict(
        self, images: Any, *, on_error: str = "raise", reject: bool = False
    ) -> list[dict[str, Any]]:
        """Classify images.

        The first call forms the tuned weights; later calls reuse them.

        Args:
            images: one of these, or an iterable of them: a path, a folder or ``.zip`` (all its
                images, naturally sorted), a glob, an http or https URL, a PIL image, the bytes of a
                file, an open binary file, a numpy array (H, W), (H, W, 1 | 3 | 4) or
                (N, H, W, 1 | 3 | 4), a tensor (H, W), (1 | 3 | 4, H, W) or (N, 1 | 3 | 4, H, W).
                Arrays and tensors are uint8, or floats in [0, 1], not normalised.
            on_error: ``raise``, or ``return``: then the answer for an image that cannot be used is
                ``{"error": why}``, and the others are answered.
            reject: also say of each image whether it is of none of the classes, by the tuned
                answer and the training images: see `unknown_scores`.

        Returns:
            A list, even for a single image, of
            ``{"zero_shot": {class: p}, "tuned": {class: p}}``, the most probable class first; with
            ``reject`` also ``"unknown": bool``.

        Raises:
            UserError: an image cannot be used (it is named), the adapter was detached, or
                ``reject`` was asked of a run that has no threshold.
        """
        found = self.predict_each(images, on_error=on_error, reject=reject)
        return [answer for _, answer in found]

    def predict_each(
        self, images: Any, *, on_error: str = "raise", reject: bool = False
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Classify images a batch at a time, and yield the name and the answer of each, in order.

        For folders, and for more images than fit into memory. Takes the arguments of `predict`. The
        name is the path or URL, or for example ``image 3`` for the third image if it has none.
        Files of a folder without an image's suffix are left out with a warning.
        """
        batches = self.classify(check_inputs(images, on_error), reject)
        return chain.from_iterable(batch.each(self.classes, on_error) for batch in batches)

    def predict_split(self, split: Split, on_progress: OnProgress | None = None) -> Predictions:
        """Classify every image of a split.

        Args:
            split: such as that of `find_test_images`; it has at least one image.
            on_progress: see `clip_randlora.utils.progress.OnProgress`.

        Raises:
            UserError: no image can be decoded, or the adapter was detached.
        """
        both = PairedPredictor(self.model, self.adapter, self.text, on_progress, self.confidence)
        scores = self.unknown_scores if self._has_threshold else None
        return predict_split(both, split, on_progress, unknown_scores=scores)

    def unknown_scores(self, features: Tensor, tuned: Tensor) -> Tensor:
        """Return how much images are of one of the classes, float32 (N,).

        See `clip_randlora.confidence.unknown`. `unknown_threshold` is the score below which an
        image is of none.

        Args:
            features: zero-shot features of the images (N, E), of `PairedPredictor`.
            tuned: their tuned probabilities (N, C), at the classifier's strength.

        Raises:
            UserError: the run has no threshold.
        """
        self._refuse_without_threshold()
        assert self.known is not None
        temperature = self.confidence.temperature_at(self.adapter.strength)
        logits = temperature * tuned.clamp(min=_SMALLEST).log()
        margin = margins(logits) / float(self.model.logit_scale())
        return margin + nearest(features.float().cpu(), self.known)

    @property
    def unknown_threshold(self) -> float:
        """The score of `unknown_scores` below which an image is of none of the classes."""
        self._refuse_without_threshold()
        assert self.confidence.unknown is not None
        return self.confidence.unknown.score_at(self.adapter.strength)

    @property
    def _has_threshold(self) -> bool:
        return self.confidence.unknown is not None and self.known is not None

    def _refuse_without_threshold(self) -> None:
        if not self._has_threshold:
            raise UserError(
                "reject: the run has no threshold for images of no class; it is an older one, an "
                "adapter file on its own, or was trained with calibrate off: train it again, or "
                "leave it out"
            )

    def _is_unknown(self, features: Tensor, tuned: Tensor) -> Tensor:
        below = self.unknown_scores(features, tuned) < self.unknown_threshold
        none = torch.tensor(none_labels(self.classes), dtype=torch.int64)
        return below | torch.isin(tuned.argmax(dim=1), none)

    def classify(self, entries: Iterable[Input], reject: bool = False) -> Iterator[Answers]:
        """Classify images, and yield the answers for 256 of them at a time, in order.

        While a batch is computed, threads decode the next one.
        """
        if reject:
            self._refuse_without_threshold()
        both = self._predictor()
        for names, errors, images in self._decode_batches(entries):
            empty = torch.empty(0, len(self.classes))
            rows, unknown = (empty, empty), torch.empty(0, dtype=torch.bool) if reject else None
            if images is not None:
                features = both.zero_shot_features(images)
                rows = both.probabilities(images, features)
                if reject:
                    unknown = self._is_unknown(features, rows[1])
            yield Answers(names, errors, *rows, unknown)

    def encode_and_classify(
        self, entries: Iterable[Input], reject: bool = False
    ) -> Iterator[Encoded]:
        """Classify images tuned only, 256 at a time as `classify`; also yield their features.

        With ``reject`` every image is encoded zero-shot as well: see `unknown_scores`.
        """
        both = self._predictor()
        if reject:
            self._refuse_without_threshold()
        for names, errors, images in self._decode_batches(entries):
            rows = unknown = None
            if images is not None:
                rows = both.tuned_answers(images)
                if reject:
                    unknown = self._is_unknown(both.zero_shot_features(images), rows[1])
            yield Encoded(names, errors, rows, unknown)

    # --- features, for search ---------------------------------------------------------------------

    def encode_images(self, images: Any, strength: float | None = None) -> Tensor:
        """Encode images, to search among them: see `similarity`.

        The first call at a strength forms its weights; the last ones are kept. If the run did not
        tune the image encoder, the features are the zero-shot ones at any strength.

        Args:
            images: as for `predict`.
            strength: 0 is zero-shot, 1 is tuned, see `Adapter.strength`; by default the
                classifier's.

        Returns:
            Features of length 1, float32 (N, E) on the CPU, in the order of the images.

        Raises:
            UserError: an image cannot be used (it is named), the adapter was detached, or the run
                has a head, which tunes no encoder, and the strength is not 0.
        """
        parts = [torch.empty(0, self._width())]
        for batch in self.encode_image_batches(check_inputs(images, "raise"), (strength,)):
            first = next(filter(None, batch.errors), None)
            if first is not None:
                raise first
            parts += batch.features
        return torch.cat(parts)

    def encode_texts(
        self,
        texts: str | Sequence[str],
        strength: float | None = None,
        *,
        templates: Sequence[str] | None = None,
    ) -> Tensor:
        """Encode texts: words, classes that were not trained, whole sentences; nothing is trained.

        If the run did not tune the text encoder, the features are the zero-shot ones at any
        strength. A warning names texts that are longer than what the model reads.

        Args:
            texts: T of them, or a single one.
            strength: as for `encode_images`.
            templates: prompt templates with one ``{}`` each, into which every text is put; its
                feature is the normalised mean. By default a text is encoded as it stands. The
                classes of a run were trained in "a photo of a {}." unless its settings say
                otherwise.

        Returns:
            Features of length 1, float32 (T, E) on the CPU.

        Raises:
            UserError: a text is empty, a template is wrong, or as for `encode_images`.
        """
        texts = [texts] if isinstance(texts, str) else texts
        batches = list(self.encode_text_batches(texts, (strength,), templates))
        if cut := [text for batch in batches for text in batch.cut]:
            warnings.warn(note_cut(self.model, cut), stacklevel=2)
        return torch.cat([torch.empty(0, self._width()), *(batch.features[0] for batch in batches)])

    def similarity(self, images: Any, texts: Any, strength: float | None = None) -> Tensor:
        """Return how alike images and texts are: the cosines of their features.

        The zero-shot logits are ``model.logit_scale()`` times these.

        Args:
            images: N, as for `predict`; or their features from `encode_images`, (N, E).
            texts: T, as for `encode_texts`; or their features from it, (T, E).
            strength: as for `encode_images`. Features are taken as they are.

        Returns:
            Cosines from -1 to 1, float32 (N, T) on the CPU.

        Raises:
            UserError: as for `encode_images` and `encode_texts`.
        """
        rows = self._as_features(images)
        columns = self._as_features(texts)
        rows = self.encode_images(images, strength) if rows is None else rows
        columns = self.encode_texts(texts, strength) if columns is None else columns
        return rows @ columns.T

    def encode_image_batches(
        self, entries: Iterable[Input], strengths: Sequence[float | None]
    ) -> Iterator[ImageFeatures]:
        """Encode images at several strengths, 256 images at a time, each decoded once.

        While a batch is encoded, threads decode the next one. See `encode_images`.
        """
        chosen = [self._strength_of_features(strength) for strength in strengths]
        both = self._predictor()
        models = [both.image_model(strength) for strength in chosen]
        for names, errors, images in self._decode_batches(entries):
            if images is None:
                features = [torch.empty(0, both.zero_shot_classes.shape[1]) for _ in models]
            else:
                features = _encode_with_each(models, images)
            yield ImageFeatures(names, errors, features)

    def encode_text_batches(
        self,
        texts: Iterable[str],
        strengths: Sequence[float | None],
        templates: Sequence[str] | None = None,
    ) -> Iterator[TextFeatures]:
        """Encode texts at several strengths, 256 texts at a time. See `encode_texts`."""
        chosen = [self._strength_of_features(strength) for strength in strengths]
        templates = AS_IT_IS if templates is None else check_templates(templates)
        both = self._predictor()
        nets = [both.text_net(strength) for strength in chosen]
        numbered = enumerate(texts, 1)
        while some := [_check_text(*pair) for pair in islice(numbered, BATCH)]:
            prompts = [[template.format(text) for template in templates] for text in some]
            encoder = TextClassifier(self.model, some, prompts)
            flat = list(chain.from_iterable(prompts))
            places = find_cut(self.model, encoder.tokens.cpu(), flat)
            cut = [some[row] for row in sorted({place // len(templates) for place in places})]
            features = [_as_unit(encoder.features_in_parts(net)) for net in nets]
            yield TextFeatures(some, cut, features)

    def _strength_of_features(self, strength: float | None) -> float:
        """Return the strength at which to encode; refuse a run whose encoders are not tuned."""
        strength = self.adapter.strength if strength is None else check_strength(strength)
        if strength and self.adapter.head is not None:
            raise UserError(
                f"{self.adapter.config.method}: its head answers for its classes and tunes no "
                f"encoder, so there are no tuned features; give strength 0 for the zero-shot ones"
            )
        return strength

    def _width(self) -> int:
        return self._predictor().zero_shot_classes.shape[1]

    def _as_features(self, values: Any) -> Tensor | None:
        """Return features as float32 (N, E), or None: no image has rows of length 1 and width E."""
        is_array = isinstance(values, np.ndarray | Tensor)
        if not is_array or values.shape[1:] != (self._width(),):
            return None
        rows = torch.as_tensor(values).detach().float().cpu()
        is_unit = bool(((rows.norm(dim=1) - 1).abs() < _UNIT).all())
        return rows if is_unit else None

    def _decode_batches(
        self, entries: Iterable[Input]
    ) -> Iterator[tuple[list[str], list[UnreadableImage | None], Tensor | None]]:
        """Yield the names and errors of 256 images, and the good ones as uint8, if any is good."""
        decoded = parallel_map(partial(_decode, self.model.square()), entries, BATCH)
        while some := list(islice(decoded, BATCH)):
            names, pixels = zip(*some, strict=True)
            good = [p for p in pixels if isinstance(p, Tensor)]
            errors = [p if isinstance(p, UnreadableImage) else None for p in pixels]
            yield list(names), errors, torch.stack(good) if good else None


@torch.inference_mode()
def _encode_with_each(models: Sequence[Model], images: Tensor) -> list[Tensor]:
    """Encode uint8 images (N, 3, S, S) with each of some models, which may be the same one."""
    encoded: dict[int, Tensor] = {}
    for model in models:
        if id(model) not in encoded:
            encoded[id(model)] = _as_unit(encode_images(model, images))
    return [encoded[id(model)] for model in models]


def _as_unit(features: Tensor) -> Tensor:
    """Return features as float32 on the CPU, of length 1 also if they were in half precision."""
    return nn.functional.normalize(features.float().cpu(), dim=1)


def _check_text(number: int, text: str) -> str:
    if not isinstance(text, str) or not text.strip():
        said = "is empty" if isinstance(text, str) else f"is of type {type(text).__name__}"
        raise UserError(f"text {number}: {said}; give words")
    return text


def check_inputs(images: Any, on_error: str) -> Iterator[Input]:
    """Return the images of `Classifier.predict_each`; warn of files that are left out.

    Raises:
        UserError: ``on_error`` is neither ``raise`` nor ``return``.
    """
    if on_error not in ("raise", "return"):
        raise UserError(f"on_error {on_error}: give raise or return")
    return each_input(images, warn_left_out)


def _encode_classes(
    model: Model,
    classes: Sequence[str],
    templates: Sequence[str] | None,
    names: Prompts | None,
) -> TextClassifier:
    """Return the prompts of classes, which tell them apart."""
    prompts = make_prompts(classes, templates, names)
    text = TextClassifier(model, classes, prompts)
    by_class = dict(zip(classes, prompts, strict=True))
    check_prompts(model, text.tokens, by_class, class_words(classes, names))
    return text


@torch.inference_mode()
def _fits(head: nn.Module, text: TextClassifier) -> bool:
    """Return whether a head takes the model's features and answers for the classes."""
    classes = text.features().float()
    try:
        return head(classes).shape[1] == len(classes)
    except RuntimeError:  # its width is another
        return False


def _decode(
    square: Callable[[Image.Image], Tensor], entry: Input
) -> tuple[str, Tensor | UnreadableImage]:
    try:
        return entry.name, square(entry.open())
    except UnreadableImage as error:
        return entry.name, error


def warn_left_out(left_out: list[Skipped]) -> None:
    """Warn of files of a folder, ``.zip`` or glob that are no images."""
    warnings.warn(summarize_skipped(left_out), stacklevel=2)
