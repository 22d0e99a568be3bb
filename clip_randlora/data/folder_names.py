"""What the name of a folder says: a split, images, masks, a numbered part, a size of images.

Names are compared word by word, so ``trainers``, ``strain`` and ``test tube`` are not splits.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import lru_cache

TRAIN, TEST, EVALUATION, VALIDATION = "train", "test", "evaluation", "validation"

_LETTERS = str.maketrans({"ı": "i", "ł": "l", "ø": "o", "æ": "ae", "ß": "ss"})


def _fold(text: str) -> str:
    """Return a text in lower case, without accents."""
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
    """Return the words of a text, as `words_of` spells them."""
    return frozenset(_fold(word) for word in text.split())


# Words for the splits, in the languages in which people name folders.
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
_SPLIT_OF = {_fold(word): split for split, text in _SPLIT_WORDS.items() for word in text.split()}
_ABBREVIATIONS = {"tr", "ts", "te", "tes"}  # also codes of languages: see `find_splits`
# Words that may stand beside a split's word without changing what it says.
_FILLERS = word_table("""
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
""")
_SOFT_FILLERS = word_table("""
    small full new final clean cleaned resized processed preprocessed raw original originals aug
    augmented big mini tiny balanced v version cropped
""")
UNLABELLED = word_table("""
    unlabeled unlabelled unlab unsup unsupervised nolabel nolabels pred preds predict prediction
    predictions inference submission submissions meta metadata annotation annotations anno
    segmentation segmentations masks ohnelabel sinetiquetar 无标签 未标注
""")
_NEVER_A_CLASS = {"unlabeled", "unlabelled", "unlab"}
_MAYBE_A_CLASS = {"valid", "validate", "dev", "devel", "development", "evaluate"}
EXTRAS = UNLABELLED | word_table("""
    sample samples examples extra extras docs papers models checkpoints logs results outputs
    scripts notebooks
""")
_IMAGES = word_table("""
    image images img imgs jpegimages pics pictures photos frames inputs input rgb originals jpg
    jpeg png bilder imagenes imagens immagini 图片 图像 画像 이미지
""")
_MASKS = word_table("""
    mask masks label labels annotation annotations annot annots anno ann groundtruth gt
    segmentation segmentations seg segmap segmaps trimap trimaps matte mattes bbox bboxes xml xmls
    class object masken etiquetas mascaras 掩码 标签 标注
""")
_MASK_ONLY = {"class", "object", "label", "xml", "seg", "ann"}  # not masks on their own
_CONTAINERS = _IMAGES | word_table("data dataset files all")
_PARTS = word_table("""
    fold folds kfold part parts split splits batch batches chunk chunks shard shards subset
    partition partitions video videos clip clips sequence seq session cam camera kamera image
    images img imgs set block archive dataset data
    teil partie parte часть камера 折
""")


def _any_of(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_GLUED = _any_of(word for word in _FILLERS if len(word) > 2 or not word.isascii())
_SPLIT_WORD = re.compile(f"(?:{_GLUED})*({_any_of(_SPLIT_OF)})(?:{_GLUED})*")  # testset, 训练集


@dataclass(frozen=True)
class SplitName:
    """A folder's name with a split's word in it.

    Attributes:
        split: one of the four splits.
        rest: the other words, without fillers such as ``set`` or ``images``.
        is_abbreviation: whether the split's word is an abbreviation such as ``tr``.
        is_bare: whether there are no other words except fillers.
    """

    split: str
    rest: tuple[str, ...] = ()
    is_abbreviation: bool = False
    is_bare: bool = True


@lru_cache(maxsize=4096)
def split_name(name: str) -> SplitName | None:
    """Read a folder's name as the name of a split; None if it names no split, or several."""
    words, found, rest, is_soft = words_of(name), [], [], False
    position = 0
    while position < len(words):
        pair = "".join(words[position : position + 2])  # hold out, huấn luyện
        word = words[position]
        position += 1
        if pair != word and pair in _SPLIT_OF and not pair.isdigit():
            found.append(pair)
            position += 1
        elif match := _SPLIT_WORD.fullmatch(word):
            found.append(match[1])
        elif word in _SOFT_FILLERS:
            is_soft = True
        elif not word.isdigit() and word not in _FILLERS:
            rest.append(word)
    splits = {_SPLIT_OF[word] for word in found}
    if splits == {TRAIN, VALIDATION} and not rest:
        splits = {TRAIN}  # train_val
    if len(splits) != 1:
        return None
    is_bare = not rest and not is_soft
    return SplitName(splits.pop(), tuple(rest), set(found) <= _ABBREVIATIONS, is_bare)


def bare_splits(names: Iterable[str]) -> dict[str, str]:
    """Return the split of each folder if all are named after splits and nothing else, else {}."""
    found = {name: split_name(name) for name in names}
    bare = {name: own.split for name, own in found.items() if own and own.is_bare}
    return bare if len(bare) == len(found) else {}


def pick_test_split(splits: Iterable[str]) -> str | None:
    """Return the split that is tested on, of those that there are, or None."""
    existing = set(splits)
    return next((split for split in (TEST, EVALUATION, VALIDATION) if split in existing), None)


def find_splits(folders: Mapping[str, Set[str]]) -> dict[str, str]:
    """Find which of the folders beside each other are splits.

    - A name with other words, like ``seg_train``, counts if another split has the same words
      (``seg_test``), or if it holds the same folders and all folders that are no splits are extras.
    - An abbreviation counts if all other folders are splits or extras.
    - ``train`` without a test split counts if all other folders are extras.

    Args:
        folders: ``{name of a folder: names of the folders in it}``.

    Returns:
        ``{name: split}``; {} if none of them is for training.
    """
    read = {name: found for name in folders if (found := split_name(name))}
    others = [name for name in folders if name not in read]
    all_extra = all(is_extra(name) for name in others)
    if not all_extra:
        read = {name: found for name, found in read.items() if not found.is_abbreviation}

    def is_split(name: str) -> bool:
        own = read[name]
        rivals = [other for other in read if read[other].split != own.split]
        return (
            not own.rest
            or any(read[other].rest == own.rest for other in rivals)
            or (all_extra and any(folders[name] & folders[other] for other in rivals))
        )

    splits = {name: found.split for name, found in read.items() if is_split(name)}
    kinds = set(splits.values())
    if TRAIN not in kinds:
        return {}
    if kinds == {TRAIN}:
        rest = [name for name in folders if name not in splits]
        has_classes = any(folders[name] for name in splits)

        def is_beside(name: str) -> bool:
            if not has_classes:
                return is_extra(name, UNLABELLED)
            return is_extra(name) or (not folders[name] and is_container(name))

        if not all(read[name].is_bare for name in splits) or not all(map(is_beside, rest)):
            return {}
        if not rest and len(splits) < 2:
            return {}
    return splits


def is_extra(name: str, words: Set[str] = EXTRAS) -> bool:
    """Whether a word of a folder's name says that it holds no class: predictions, papers."""
    return any(word in words for word in words_of(name))


def is_stray(name: str, beside: Iterable[str]) -> bool:
    """Whether a folder beside classes is called ``test``, ``unlabeled``, or ``cat_test``."""
    found = split_name(name)
    if found is None:
        return bool(set(words_of(name)) & _NEVER_A_CLASS)
    if found.rest and found.rest in {words_of(other) for other in beside}:
        return True
    is_clear = found.is_bare and not found.is_abbreviation and found.split != TRAIN
    return is_clear and not set(words_of(name)) & _MAYBE_A_CLASS


def is_container(name: str) -> bool:
    """Whether a folder is called ``images``, ``data`` or alike, and so is no class."""
    words = [word for word in words_of(name) if not word.isdigit()]
    return bool(words) and all(word in _CONTAINERS for word in words)


def find_masks(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Find folders of masks or labels among the folders beside each other.

    Returns:
        Folders of images and folders of their masks: ``train_images`` and ``train_masks``. Both
        are empty if there are no such pairs.
    """
    words = {name: [word for word in words_of(name) if not word.isdigit()] for name in names}
    images = {  # name -> its other words
        name: rest
        for name, own in words.items()
        if len(rest := [word for word in own if word not in _IMAGES]) < len(own)
    }
    masks = []
    for name, own in words.items():
        rest = [word for word in own if word not in _MASKS and word not in _IMAGES]
        is_mask = any(word in _MASKS for word in own)
        has_images = any(other == rest and image != name for image, other in images.items())
        is_clear = set(own) - _MASK_ONLY or rest or set(own) & {"label", "seg"}
        if is_mask and has_images and is_clear:
            masks.append(name)
    return ([name for name in images if name not in masks], masks) if masks else ([], [])


def are_parts(names: Iterable[str]) -> bool:
    """Whether all names are one with numbers, like ``fold1`` and ``fold2``, or sizes of images."""
    names = list(names)
    if len(names) < 2:
        return False
    if all(map(_has_size, names)):
        return True
    read = [words_of(name) for name in names]
    stems = {tuple(word for word in words if not _is_number(word)) for words in read}
    numbers = {tuple(word for word in words if _is_number(word)) for words in read}
    if len(stems) != 1 or len(numbers) != len(names):
        return False
    return any(word in _PARTS for word in stems.pop())


def _is_number(word: str) -> bool:
    return word.isdigit() or (len(word) == 1 and word.isascii())


def _has_size(name: str) -> bool:
    """Whether a name has a size of images in it, like ``224x224`` or ``256px``; not ``2x4``."""
    found = re.search(r"(?<!\d)(\d{2,5})(?: ?[x×] ?(\d{2,5})| ?px| ?pixels)", name.casefold())
    return found is not None and all(int(side) >= 24 for side in found.groups() if side)
