"""What a folder's name says: a split, images and masks, a numbered part, a size.

Names are compared by whole words, so that ``trainers``, ``strain`` and ``test tube`` are none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import lru_cache

TRAIN, TEST, EVALUATION, VALIDATION = "train", "test", "evaluation", "validation"

# The words by which people call the folders of a split, in the languages where they are common.
_SPLIT_WORDS = {
    TRAIN: """
        train trains training trainings trainval trn tr traing learn learning
        lern lernen entrainement apprentissage entrenamiento entreno treino treinamento
        addestramento allenamento trening treningowy treningowe treningowa uczacy uczace uczaca
        trenovaci trenovacie treningove obuka treniranje entrenament traning træning trainen
        opetus koulutus tanito antrenare antrenament
        egitim latih pelatihan latihan huanluyen εκπαιδευση
        обучение обучающая обучающий обучающие тренировка тренировочная тренировочный
        тренировочные трейн навчання навчальна навчальний тренувальна тренувальний
        训练 訓練 学習 訓練用 学習用 トレーニング 훈련 학습 훈련용 학습용 트레이닝
        تدريب التدريب آموزش אימון ট্রেন প্রশিক্ষণ प्रशिक्षण ฝึก
    """,
    TEST: """
        test tests testing tst ts te holdout heldout prufung
        prueba pruebas teste testes prova toets essai testowy testowe testowa testy testovaci
        testovacie testi teszt
        testare sinama tes uji pengujian kiemtra δοκιμη τεστ
        тест контрольная тестовая тестовый тестовые тестирование тестова тестовий
        测试 測試 测验 テスト テスト用 試験 테스트 테스트용 시험
        اختبار الاختبار آزمون تست בדיקה מבחן পরীক্ষা টেস্ট परीक्षण ทดสอบ
    """,
    EVALUATION: """
        eval evals evaluation evaluate evaluating evaluacion avaliacao valutazione evaluierung
        auswertung degerlendirme evaluasi оценка оценочная 评估 評価 평가
    """,
    VALIDATION: """
        val vals valid validation validate validating validierung validierungs crossvalidation
        crossval dev devel development validacion validacao validazione convalida validatie
        walidacja walidacyjny walidacyjne walidacyjna validace validacni validointi validacios
        validare dogrulama gecerleme validasi επικυρωση
        валидация валидационная валидационный валидационные проверка проверочная проверочный
        валідація 验证 驗證 検証 検証用 バリデーション 검증 검증용 تحقق التحقق اعتبارسنجی אימות
    """,
}
_ABBREVIATIONS = {"tr", "ts", "te", "tes"}  # languages' codes, among others: see find_splits
# Words beside a split's own that change nothing.
_FILLERS = """
    set sets data dataset datasets subset split splits image images img imgs pic pics picture
    pictures photo photos folder folders dir directory file files list lists names ids jpg jpeg
    png
    x y px my the of for labeled labelled
    daten satz datensatz bilder donnees jeu ensemble images de des datos conjunto imagenes dados
    imagens dati insieme immagini di gegevens beelden dane zbior zdjecia veri verileri seti kumesi
    resimler goruntuler tap dulieu данные данных набор выборка изображения для дані вибірка
    集 数据 数据集 图片 图像 图 样本 用 數據 資料 資料集 圖片 圖像 樣本
    データ データセット セット 画像
    데이터 데이터셋 셋 세트 용 이미지 بيانات مجموعة
"""
_SOFT_FILLERS = """
    small full new final clean cleaned resized processed preprocessed raw original originals aug
    augmented big mini tiny balanced v version cropped
"""
_UNLABELLED = """
    unlabeled unlabelled unlab unsup unsupervised nolabel nolabels pred preds predict prediction
    predictions inference submission submissions meta metadata annotation annotations anno
    segmentation segmentations masks ohnelabel sinetiquetar 无标签 未标注
"""
_UNLABELLED_ALONE = {"unlabeled", "unlabelled", "unlab"}
_CLASSES_TOO = {"valid", "validate", "dev", "devel", "development", "evaluate"}
_BESIDE = """
    sample samples examples extra extras docs papers models checkpoints logs results outputs
    scripts notebooks
"""
_IMAGES = """
    image images img imgs jpegimages pics pictures photos frames inputs input rgb originals jpg
    jpeg png bilder imagenes imagens immagini 图片 图像 画像 이미지
"""
_MASKS = """
    mask masks label labels annotation annotations annot annots anno ann groundtruth gt
    segmentation segmentations seg segmap segmaps trimap trimaps matte mattes bbox bboxes xml xmls
    class object masken etiquetas mascaras 掩码 标签 标注
"""
_MASK_ONLY = {"class", "object", "label", "xml", "seg", "ann"}  # say nothing on their own
_CONTAINERS = _IMAGES + " data dataset files all"
_PARTS = """
    fold folds kfold part parts split splits batch batches chunk chunks shard shards subset
    partition partitions video videos clip clips sequence seq session cam camera kamera image
    images img imgs set block archive dataset data
    teil partie parte часть камера 折
"""
_LETTERS = str.maketrans({"ı": "i", "ł": "l", "ø": "o", "æ": "ae", "ß": "ss"})


@dataclass(frozen=True)
class SplitName:
    """A folder's name that has a split's word in it, and the words that are left of it."""

    split: str
    rest: tuple[str, ...] = ()
    is_abbreviation: bool = False
    is_bare: bool = True  # no word beside it but those that change nothing


def _fold(text: str) -> str:
    """Lower case, without accents."""
    text = unicodedata.normalize("NFKD", text.casefold().translate(_LETTERS))
    bare = "".join(char for char in text if not unicodedata.category(char).startswith("M"))
    return unicodedata.normalize("NFC", bare)


@lru_cache(maxsize=65536)
def words_of(name: str) -> tuple[str, ...]:
    """Split a name into its words and numbers, in lower case: ``TestSet_01`` is test, set, 01."""
    text = unicodedata.normalize("NFC", name)
    text = re.sub(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    return tuple(re.findall(r"[^\W\d_]+|\d+", _fold(text)))


def word_table(text: str) -> frozenset[str]:
    """The words of a text, as `words_of` spells them."""
    return frozenset(_fold(word) for word in text.split())


_SPLIT_OF = {_fold(word): split for split, text in _SPLIT_WORDS.items() for word in text.split()}
_FILLER, _SOFT, _IMAGE, _MASK = map(word_table, (_FILLERS, _SOFT_FILLERS, _IMAGES, _MASKS))
_CONTAINER, _PART = map(word_table, (_CONTAINERS, _PARTS))
WITHOUT_LABELS, _LEFT_OUT = word_table(_UNLABELLED), word_table(_UNLABELLED + _BESIDE)


def _any_of(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_GLUED = _any_of(word for word in _FILLER if len(word) > 2 or not word.isascii())
_WHOLE = re.compile(f"(?:{_GLUED})*({_any_of(_SPLIT_OF)})(?:{_GLUED})*")  # testset, 训练集


@lru_cache(maxsize=4096)
def split_name(name: str) -> SplitName | None:
    """Read a folder's name as that of a split; None if it has no such word, or several."""
    words, found, rest, soft = words_of(name), [], [], False
    position = 0
    while position < len(words):
        pair = "".join(words[position : position + 2])  # hold out, huấn luyện
        word = words[position]
        position += 1
        if pair != word and pair in _SPLIT_OF and not pair.isdigit():
            found.append(pair)
            position += 1
        elif match := _WHOLE.fullmatch(word):
            found.append(match[1])
        elif word in _SOFT:
            soft = True
        elif not word.isdigit() and word not in _FILLER:
            rest.append(word)
    splits = {_SPLIT_OF[word] for word in found}
    if splits == {TRAIN, VALIDATION} and not rest:
        splits = {TRAIN}  # train_val
    if len(splits) != 1:
        return None
    return SplitName(splits.pop(), tuple(rest), set(found) <= _ABBREVIATIONS, not (rest or soft))


def find_splits(folders: Mapping[str, Set[str]]) -> dict[str, str]:
    """Which of the folders beside each other are splits; none without one for training.

    A name with a word of its own, like ``seg_train``, counts where another split has the same
    (``seg_test``), or the same folders. An abbreviation counts where all folders are splits, and
    ``train`` without a test where all others are left out by their names.

    Args:
        folders: their names, and the names of the folders in each.
    """
    read = {name: found for name in folders if (found := split_name(name))}
    others = [name for name in folders if name not in read]
    if not all(is_left_out(name) for name in others):
        read = {name: found for name, found in read.items() if not found.is_abbreviation}

    def is_split(name: str) -> bool:
        own = read[name]
        rivals = [other for other in read if read[other].split != own.split]
        return (
            not own.rest
            or any(read[other].rest == own.rest for other in rivals)
            or (
                all(is_left_out(other) for other in others)
                and any(folders[name] & folders[other] for other in rivals)
            )
        )

    splits = {name: found.split for name, found in read.items() if is_split(name)}
    kinds = set(splits.values())
    if TRAIN not in kinds:
        return {}
    if kinds == {TRAIN}:
        rest = [name for name in folders if name not in splits]
        known = _LEFT_OUT if any(folders[name] for name in splits) else WITHOUT_LABELS
        bare = all(read[name].is_bare for name in splits)
        empty = [name for name in rest if known is _LEFT_OUT and not folders[name]]
        if not bare or not all(
            is_left_out(name, known) or (name in empty and is_container(name)) for name in rest
        ):
            return {}
        if not rest and len(splits) < 2:
            return {}
    return splits


def are_all_splits(names: Iterable[str]) -> bool:
    """Whether all folders are called after splits and nothing else."""
    found = [split_name(name) for name in names]
    return len(found) > 1 and all(name and name.is_bare for name in found)


def is_left_out(name: str, known: Set[str] | None = None) -> bool:
    """Whether a folder beside others says by its name, or one of the words, that it is no class."""
    return any(word in (_LEFT_OUT if known is None else known) for word in words_of(name))


def is_no_class(name: str, beside: Iterable[str]) -> bool:
    """Whether a folder beside classes is called ``test``, ``unlabeled``, or ``cat_test``."""
    found = split_name(name)
    if found and found.rest and found.rest in {tuple(words_of(other)) for other in beside}:
        return True
    if found is None:
        return bool(set(words_of(name)) & _UNLABELLED_ALONE)
    clear = found.is_bare and not found.is_abbreviation and found.split != TRAIN
    return clear and not set(words_of(name)) & _CLASSES_TOO


def is_container(name: str) -> bool:
    """Whether a folder is called ``images``, or such, which is no class."""
    words = [word for word in words_of(name) if not word.isdigit()]
    return bool(words) and all(word in _CONTAINER for word in words)


def find_masks(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Which of the folders beside each other are images, and which their masks or labels."""
    words = {name: [word for word in words_of(name) if not word.isdigit()] for name in names}
    images, masks = [], []
    for name, own in words.items():
        rest = tuple(word for word in own if word not in _IMAGE)
        if len(rest) < len(own):
            images.append((name, rest))
    for name, own in words.items():
        rest = tuple(word for word in own if word not in _MASK and word not in _IMAGE)
        is_mask = any(word in _MASK for word in own)
        partners = [image for image, left in images if left == rest and image != name]
        if is_mask and partners and (set(own) - _MASK_ONLY or rest or set(own) & {"label", "seg"}):
            masks.append(name)
    found = {name for name, rest in images if name not in masks}
    return ([name for name in words if name in found], masks) if masks else ([], [])


def are_parts(names: Iterable[str]) -> bool:
    """Whether all names are one with numbers, like ``fold1`` and ``fold2``, or sizes of images."""
    names = list(names)
    if len(names) < 2:
        return False
    if all(_size(name) for name in names):
        return True
    read = [words_of(name) for name in names]
    stems = {tuple(word for word in words if not _is_number(word)) for words in read}
    numbers = {tuple(word for word in words if _is_number(word)) for words in read}
    if len(stems) != 1 or len(numbers) != len(names):
        return False
    return any(word in _PART for word in stems.pop())


def _is_number(word: str) -> bool:
    return word.isdigit() or (len(word) == 1 and word.isascii())


def _size(name: str) -> bool:
    """Whether a name has a size of images in it, like ``224x224`` or ``256px``; not ``2x4``."""
    found = re.search(r"(?<!\d)(\d{2,5})(?: ?[x×] ?(\d{2,5})| ?px| ?pixels)", name.casefold())
    return bool(found) and all(int(side) >= 24 for side in found.groups() if side)
