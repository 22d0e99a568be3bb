"""The public names: this list alone says what `clip_randlora` offers, and where it lives."""

from .adapters import (
    GDA as GDA,
    METHODS as METHODS,
    Adapter as Adapter,
    AnchoredHead as AnchoredHead,
    CLIPLoRA as CLIPLoRA,
    DoRA as DoRA,
    Full as Full,
    KRAdapter as KRAdapter,
    LinearProbe as LinearProbe,
    LoRA as LoRA,
    NoLA as NoLA,
    NormTuning as NormTuning,
    RandLoRA as RandLoRA,
    TipAdapterF as TipAdapterF,
    VeRA as VeRA,
    ZeroShot as ZeroShot,
    add_adapters as add_adapters,
    attach as attach,
    find_weights as find_weights,
    load_adapter as load_adapter,
    randlora_delta as randlora_delta,
    save_peft_adapter as save_peft_adapter,
    select_weights as select_weights,
)
from .checking import (
    Duplicates as Duplicates,
    Findings as Findings,
    Outlier as Outlier,
    SmallImage as SmallImage,
    WrongLabel as WrongLabel,
    check_images as check_images,
)
from .classifier import (
    Classifier as Classifier,
)
from .clip.models import (
    SUGGESTIONS as SUGGESTIONS,
    Model as Model,
    Suggestion as Suggestion,
    load_model as load_model,
)
from .cluster import (
    ClusterClassifier as ClusterClassifier,
)
from .data import (
    DATASETS as DATASETS,
    Data as Data,
    decode_image as decode_image,
    list_images as list_images,
    load_data as load_data,
)
from .embedding import (
    Embedded as Embedded,
    embed_images as embed_images,
    embed_texts as embed_texts,
)
from .errors import (
    UserError as UserError,
)
from .evaluation import (
    PairedPredictor as PairedPredictor,
    SideBySide as SideBySide,
    as_mapping as as_mapping,
)
from .export import (
    export_formats as export_formats,
    export_obstacles as export_obstacles,
    export_precisions as export_precisions,
    export_run as export_run,
    loading_snippet as loading_snippet,
)
from .labelling import (
    LabelledImage as LabelledImage,
    Labelling as Labelling,
    label_images as label_images,
    sort_into_folders as sort_into_folders,
    suggest_next as suggest_next,
)
from .tuning import (
    Candidate as Candidate,
    Trial as Trial,
    Tuning as Tuning,
    tune as tune,
)
from .few_shot import (
    Interrupted as Interrupted,
    Run as Run,
    Step as Step,
    StepMetrics as StepMetrics,
    TrainConfig as TrainConfig,
    fit as fit,
)
from .forward.training import (
    training_forward as training_forward,
)
from .runs.held_out import (
    CountedImages as CountedImages,
    find_test_images as find_test_images,
)
from .runs.task import (
    Task as Task,
    read_task as read_task,
)
from .runs.verdict import (
    verdict as verdict,
)
from .training.presets import (
    PRESETS as PRESETS,
    read_preset as read_preset,
)

__version__: str
