"""Layouts of folders that people have, and which classes and splits are read from each."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from helpers.images import expand, write_images

from clip_randlora.data import load_data
from clip_randlora.errors import UserError


@dataclass
class Case:
    """A layout and what is to be read from it.

    Attributes:
        files: patterns of the images.
        classes: the class names, in their order.
        train: patterns of the training images; without ``test`` some of them are held out.
        test: patterns of the test images.
        error: in place of classes; a pattern that the one line matches.
        note: a pattern that one of the notes matches.
        skipped: files that are left out by name.
        texts: contents of files that are no images.
        options: of `load_data`.
    """

    files: str
    classes: str = ""
    train: str = ""
    test: str = ""
    error: str = ""
    note: str = ""
    skipped: str = ""
    texts: dict[str, str | bytes] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)


def split(train: str, test: str, **more) -> Case:
    """Class folders cat and dog below a training and a test folder."""
    train, test = f"{train}/{{cat,dog}}/{{1..2}}.png", f"{test}/{{cat,dog}}/{{3..4}}.png"
    extra = more.pop("extra", "")
    files = " + ".join(filter(None, (train, test, extra)))
    return Case(files, "cat dog", train, test, **more)


def flat(*folders: str, error: str = "", **more) -> Case:
    """Folders of images and nothing else: classes, or an error."""
    files = " + ".join(f"{name}/{{1..3}}.png" for name in folders)
    return Case(files, error=error, train="" if error else files, **more)


IDS = "id,label\n" + "".join(f"{n}.png,{'cat' if n % 2 else 'dog'}\n" for n in range(1, 7))
IMAGES_TXT = "".join(f"{n} {c}/{c[4:]}_{n}.png\n" for n, c in enumerate(
    ["001.Auk"] * 4 + ["002.Jay"] * 4, 1))  # fmt: skip
SPLIT_TXT = "".join(f"{n} {n % 2}\n" for n in range(1, 9))

SPLITS = {
    "plain": split("train", "test"),
    "training, testing": split("training", "testing"),
    "trn, tst": split("trn", "tst"),
    "tr, ts": split("tr", "ts"),
    "tr, te": split("tr", "te"),
    "capitals": split("TRAIN", "TEST"),
    "sets": split("training_set", "test_set"),
    "glued sets": split("trainset", "testset"),
    "camel": split("TrainSet", "TestSet"),
    "data": split("train_data", "test_data"),
    "spaces": split("Training Data", "Test Data"),
    "hyphens": split("my-train", "my-test"),
    "a prefix": split("cats_train", "cats_test"),
    "a suffix": split("train_flowers", "test_flowers"),
    "two prefixes": split("imagenette_train", "other_val", note="other_val/ is the test split"),
    "years": split("train2017", "val2017", note="val2017/ is the test split"),
    "images before": split("images_train", "images_test"),
    "images after": split("train_images", "test_images"),
    "numbers": split("01_train", "02_test"),
    "a size": split("train_224x224", "test_224x224"),
    "augmented": split("train_augmented", "test"),
    "eval": split("train", "eval"),
    "evaluation": split("Training", "Evaluation"),
    "dev": split("train", "dev", note="dev/ is the test split"),
    "holdout": split("train", "hold-out"),
    "only val": split("train", "val", note="val/ is the test split"),
    "train_val": split("train_val", "test"),
    "German": split("Trainingsdaten", "Testdaten"),
    "German, validation": split("Training", "Validierung", note="Validierung/ is the test split"),
    "French": split("entraînement", "évaluation"),
    "French, no accents": split("entrainement", "test"),
    "Spanish": split("entrenamiento", "prueba"),
    "Spanish, set": split("conjunto_de_entrenamiento", "conjunto_de_prueba"),
    "Portuguese": split("treino", "teste"),
    "Portuguese, validation": split("treinamento", "validação", note="is the test split"),
    "Italian": split("addestramento", "prova"),
    "Dutch": split("training", "validatie", note="is the test split"),
    "Polish": split("zbiór_treningowy", "zbiór_testowy"),
    "Chinese": split("训练", "测试"),
    "Chinese sets": split("训练集", "测试集"),
    "Chinese, validation": split("训练数据", "验证数据", note="is the test split"),
    "Chinese, traditional": split("訓練集", "測試集"),
    "Japanese": split("学習用データ", "テストデータ"),
    "Japanese, validation": split("訓練", "検証", note="is the test split"),
    "Korean": split("훈련", "테스트"),
    "Korean, data": split("학습데이터", "검증데이터", note="is the test split"),
    "Russian": split("обучение", "тест"),
    "Russian, set": split("обучающая выборка", "тестовая выборка"),
    "Ukrainian": split("навчання", "тест"),
    "Turkish": split("eğitim", "sınama"),
    "Indonesian": split("data latih", "data uji"),
    "Vietnamese": split("huấn luyện", "kiểm tra"),
    "Arabic": split("تدريب", "اختبار"),
    "Hindi": split("प्रशिक्षण", "परीक्षण"),
    "val and test": split(
        "train", "test", extra="val/{cat,dog}/5.png", note=r"val/ is left out \(2 images\)"
    ),
    "dev, eval and test": split(
        "train", "test", extra="dev/cat/5.png + eval/cat/6.png", note="eval/ is left out"
    ),
    "doubled": split("seg_train/seg_train", "seg_test/seg_test"),
    "doubled, and images to guess": split(
        "seg_train/seg_train", "seg_test/seg_test", extra="seg_pred/seg_pred/{5..7}.png",
        note=r"seg_pred/ is left out \(3 images",
    ),
    "doubled in other words": split("Training Data/train", "Test Data/test"),
    "doubled by images": split("train/images", "test/images"),
    "a folder around the classes": split("train/animals", "test/animals"),
    "one level down": split("dataset/train", "dataset/test"),
    "two levels down": split("archive/data/train", "archive/data/test"),
    "one level down, beside papers": split(
        "fruits/Training", "fruits/Test", extra="papers/fig.png", note="papers/ is left out"
    ),
    "the set a second time": split(
        "xray/train", "xray/test", extra="xray/xray/{train,test}/{cat,dog}/{7..8}.png",
        note="xray/xray/ is left out",
    ),
    "another test folder without classes": split(
        "Training", "Test", extra="test-multiple_fruits/{5..6}.png",
        note="test-multiple_fruits/ is left out",
    ),
    "unlabelled images beside": split(
        "train", "test", extra="unlabeled/{5..8}.png", note=r"unlabeled/ is left out \(4 images"
    ),
    "a loose image above": split("set/train", "set/test", extra="cover.png", skipped="cover.png"),
    "a test class fewer": Case(
        "train/{cat,dog}/{1..2}.png + test/cat/3.png", "cat dog", "train/{cat,dog}/{1..2}.png",
        "test/cat/3.png", note="No test images for dog",
    ),
    "below each class": Case(
        "{cat,dog}/{train,test}/{cat,dog}{1..2}.png", "cat dog",
        "{cat,dog}/train/{cat,dog}{1..2}.png", "{cat,dog}/test/{cat,dog}{1..2}.png",
    ),
    "below each class, one level down": Case(
        "set/{cat,dog}/{Train,Valid}/{1..2}.png", "cat dog", "set/{cat,dog}/Train/{1..2}.png",
        "set/{cat,dog}/Valid/{1..2}.png", note="val is the test split",
    ),
    "below each class, called after it": Case(
        "cat/cat_{train,test}/{1..2}.png + dog/dog_{train,test}/{1..2}.png", "cat dog",
        "cat/cat_train/{1..2}.png + dog/dog_train/{1..2}.png",
        "cat/cat_test/{1..2}.png + dog/dog_test/{1..2}.png",
    ),
    "below each class, with val": Case(
        "{cat,dog}/{train,val,test}/{1..2}.png", "cat dog", "{cat,dog}/train/{1..2}.png",
        "{cat,dog}/test/{1..2}.png", note=r"validation folders are left out \(4 images\)",
    ),
    "below each class, one without test": Case(
        "{cat,dog}/train/{1..2}.png + cat/test/3.png", "cat dog", "{cat,dog}/train/{1..2}.png",
        "cat/test/3.png", note="No test images for dog",
    ),
    "below each class, train alone": Case(
        "{cat,dog}/train/{1..3}.png", "cat dog", "{cat,dog}/train/{1..3}.png", note="No test split"
    ),
    "below each class, with folders that differ": Case(
        "cat/{train,test}/{tabby,manx}/1.png + dog/{train,test}/pug/1.png", "cat dog",
        "cat/train/{tabby,manx}/1.png + dog/train/pug/1.png",
        "cat/test/{tabby,manx}/1.png + dog/test/pug/1.png", note="classes are the upper ones",
    ),
    "below images of each class": Case(
        "{cat,dog}/images/{train,test}/1.png", "cat dog", "{cat,dog}/images/train/1.png",
        "{cat,dog}/images/test/1.png", options={"class_folders": "leaves"},
    ),
    "images and masks of each split": Case(
        "{train,test}_{images,masks}/{cat,dog}/{1..2}.png", "cat dog",
        "train_images/{cat,dog}/{1..2}.png", "test_images/{cat,dog}/{1..2}.png",
        note="train_masks/ is left out",
    ),
    "splits of images and masks": Case(
        "{images,masks}/{train,test}/{cat,dog}/{1..2}.png", "cat dog",
        "images/train/{cat,dog}/{1..2}.png", "images/test/{cat,dog}/{1..2}.png",
    ),
    "below each species": Case(
        "felis/{catus,silvestris}/{train,test}/{1..2}.png + canis/lupus/{train,test}/{1..2}.png",
        "canis felis",
        "felis/{catus,silvestris}/train/{1..2}.png + canis/lupus/train/{1..2}.png",
        "felis/{catus,silvestris}/test/{1..2}.png + canis/lupus/test/{1..2}.png",
        note="the classes are the upper ones",
    ),
    "Tiny ImageNet": Case(
        "train/{n01,n02}/images/{1..4}.png + val/images/{5..6}.png", "n01 n02",
        "train/{n01,n02}/images/{1..4}.png", note=r"val/ is left out \(2 images, no class folders",
    ),
    "train and unlabelled": Case(
        "train/{cat,dog}/{1..4}.png + unlabeled/{5..6}.png", "cat dog",
        "train/{cat,dog}/{1..4}.png", note="unlabeled/ is left out",
    ),
    "train, and images to show": Case(
        "train/{cat,dog}/{1..4}.png + images/{5..6}.png", "cat dog",
        "train/{cat,dog}/{1..4}.png", note="images/ is left out",
    ),
    "train alone": Case(
        "train/{cat,dog}/{1..4}.png", "cat dog", "train/{cat,dog}/{1..4}.png", note="No test split"
    ),
}  # fmt: skip

CLASSES = {
    "test and control": flat("a test", "a control", classes="a~control a~test"),
    "valid and expired": flat("valid", "expired", classes="expired valid"),
    "masks beside their images": Case(
        "{benign,malignant}/{a,b,c,a_mask,b_mask_1,b_mask}.png", "benign malignant",
        "{benign,malignant}/{a,b,c}.png", note="6 masks beside their images are left out",
    ),
    "a class called train": flat("train", "car", "bus", "bicycle", classes="bicycle bus car train"),
    "train among two": flat("train", "tram", classes="train tram"),
    "train and a test tube": flat("train", "test tube", classes="test~tube train"),
    "words with train in them": flat("trainers", "strain", "rain", classes="rain strain trainers"),
    "trains": flat("steam_train", "bullet_train", classes="bullet_train steam_train"),
    "tests": flat("covid_test", "pregnancy_test", classes="covid_test pregnancy_test"),
    "training and match": flat("training", "match", classes="match training"),
    "valid and invalid": flat("valid", "invalid", classes="invalid valid"),
    "languages": flat("tr", "ts", "de", "en", classes="de en tr ts"),
    "masks": flat("with_mask", "without_mask", classes="with_mask without_mask"),
    "mask and no mask": flat("mask", "no_mask", classes="mask no_mask"),
    "numbers": flat("1", "2", "10", classes="1 2 10"),
    "numbered classes": flat("class1", "class2", classes="class1 class2"),
    "bricks": flat("2x2", "2x4", classes="2x2 2x4"),
    "sizes of clothes": flat("small", "medium", "large", classes="large medium small"),
    "grades": flat("grade_0", "grade_1", "grade_2", classes="grade_0 grade_1 grade_2"),
    "train is a class, it is said": flat(
        "train", "test", classes="test train", options={"class_folders": "top"}
    ),
    "train is a class that has folders": Case(
        "train/{steam,diesel}/{1..2}.png + {bus,car}/{1..3}.png", "bus car train",
        "train/{steam,diesel}/{1..2}.png + {bus,car}/{1..3}.png", note="classes are the upper ones",
    ),
    "an empty class and what systems leave": Case(
        "{cat,dog}/{1..4}.png", "cat dog", "{cat,dog}/{1..4}.png", note="No images in cow/",
        texts={"cow/": "", "__MACOSX/cat/._1.png": "x", "cat/.DS_Store": "x", ".git/1.png": "x"},
    ),
    "images and masks with the same classes": Case(
        "images/{cat,dog}/{1..4}.png + masks/{cat,dog}/{5..6}.png", "cat dog",
        "images/{cat,dog}/{1..4}.png", note=r"masks/ is left out \(4 images\)",
    ),
    "images and masks below each class": Case(
        "{COVID,Normal}/{images,masks}/{1..4}.png", "COVID Normal",
        "{COVID,Normal}/images/{1..4}.png", note=r"Normal/masks/ are left out \(8 images",
    ),
    "Stanford Dogs": Case(
        "Images/{n01-Chihuahua,n02-Pug}/{1..4}.png", "n01-Chihuahua n02-Pug",
        "Images/{n01-Chihuahua,n02-Pug}/{1..4}.png",
        texts={"Annotation/n01-Chihuahua/1": "<xml>", "lists/train_list.mat": "x"},
    ),
    "genus and species": Case(
        "felis/{catus,silvestris}/{1..4}.png + canis/{lupus,latrans}/{1..4}.png", "canis felis",
        "felis/{catus,silvestris}/{1..4}.png + canis/{lupus,latrans}/{1..4}.png",
        note=r"\(canis/: latrans/ and lupus/ and 1 more\): the classes are the upper ones; "
        "--class-folders leaves",
    ),
    "genus and species, leaves": Case(
        "felis/{catus,silvestris}/{1..4}.png + canis/{lupus,latrans}/{1..4}.png",
        "catus latrans lupus silvestris",
        "felis/{catus,silvestris}/{1..4}.png + canis/{lupus,latrans}/{1..4}.png",
        note="the lowest ones", options={"class_folders": "leaves"},
    ),
    "leaves of one name": Case(
        "red/{apple,wine}/{1..2}.png + green/{apple,leaf}/{1..2}.png",
        "green~apple leaf red~apple wine",
        "red/{apple,wine}/{1..2}.png + green/{apple,leaf}/{1..2}.png",
        options={"class_folders": "leaves"},
    ),
    "leaves at several depths": Case(
        "a/b/{c,d}/{1..2}.png + a/e/{1..2}.png + f/{1..2}.png + a/loose.png", "c d e f",
        "a/b/{c,d}/{1..2}.png + a/e/{1..2}.png + f/{1..2}.png", skipped="a/loose.png",
        options={"class_folders": "leaves"},
    ),
    "leaves below splits": Case(
        "{train,test}/{felis/catus,canis/lupus,canis/latrans}/{1..2}.png", "catus latrans lupus",
        "train/{felis/catus,canis/lupus,canis/latrans}/{1..2}.png",
        "test/{felis/catus,canis/lupus,canis/latrans}/{1..2}.png",
        options={"class_folders": "leaves"},
    ),
    "leaves of splits below": Case(
        "{felis/catus,canis/lupus,canis/latrans}/{train,test}/{1..2}.png", "catus latrans lupus",
        "{felis/catus,canis/lupus,canis/latrans}/train/{1..2}.png",
        "{felis/catus,canis/lupus,canis/latrans}/test/{1..2}.png",
        options={"class_folders": "leaves"},
    ),
    "first letters, leaves": Case(
        "a/{abbey,attic}/{1..4}.png + b/{bar,bay}/{1..4}.png", "abbey attic bar bay",
        "a/{abbey,attic}/{1..4}.png + b/{bar,bay}/{1..4}.png",
        options={"class_folders": "leaves"},
    ),
}  # fmt: skip

ERRORS = {
    "flat splits": flat("train", "test", error="but there are no class folders in train/"),
    "flat splits of COCO": flat("train2017", "val2017", error="look like splits"),
    "flat splits of a competition": flat("train", "test1", error="look like splits"),
    "flat cars": flat("cars_train", "cars_test", error="look like splits"),
    "flat and doubled": Case(
        "cars_train/cars_train/1.png + cars_test/cars_test/2.png", error="look like splits"
    ),
    "flat persons": flat("bounding_box_train", "bounding_box_test", "query", error="splits"),
    "flat Chinese": flat("训练集", "测试集", error="look like splits"),
    "flat train and unlabelled": flat("train", "unlabeled", error="look like splits"),
    "one class of a split flat": flat("train", "test", "car", error="look like splits"),
    "classes in the names of splits": flat(
        "cat_train", "dog_train", "cat_test", "dog_test", error="look like splits"
    ),
    "trainA and trainB": flat("trainA", "trainB", "testA", "testB", error="look like splits"),
    "no training": flat("test", "val", error="look like splits, and none or more than one"),
    "no training, with classes": Case(
        "{test,val}/{cat,dog}/{1..2}.png", error="look like splits, and none"
    ),
    "two for training": Case(
        "{train1,train2,test}/{cat,dog}/{1..2}.png",
        error=r"train1/ and train2/ both look like the train split; say which is meant, as .*/"
        r"train1 --test .*/test",
    ),
    "two for testing": Case(
        "{Training,PublicTest,PrivateTest}/{cat,dog}/{1..2}.png",
        error="PrivateTest/ and PublicTest/ both look like the test split",
    ),
    "folds": Case("fold{1..5}/{cat,dog}/{1..2}.png", error="look like parts, folds or sizes"),
    "flat folds": flat("fold_0", "fold_1", "fold_2", error="look like parts, folds or sizes"),
    "folds of splits": Case("fold_{0..1}/{train,test}/{cat,dog}/1.png", error="same class|parts"),
    "parts": flat("HAM_images_part_1", "HAM_images_part_2", error="look like parts"),
    "lettered parts": flat("part_a", "part_b", error="look like parts"),
    "cameras": flat("cam1", "cam2", error="look like parts"),
    "sizes": flat("224x224", "64x64", error="look like parts, folds or sizes"),
    "sizes with classes": Case("{224x224,64x64}/{cat,dog}/{1..2}.png", error="sizes"),
    "sizes in words": Case(
        "{small,large}/{cat,dog}/{1..2}.png",
        error=r"large/ and small/ hold the same folders \(cat/ and dog/\).*/large, with --test",
    ),
    "domains": Case(
        "{amazon,dslr,webcam}/images/{mug,pen,desk}/{1..2}.png", error="hold the same folders"
    ),
    "colours": Case("{color,grayscale}/{cat,dog,cow}/{1..2}.png", error="the same folders"),
    "views of each class": Case(
        "{cat,dog}/{front,side}/{1..2}.png", error="if the upper are the classes, say "
    ),
    "folds in a split": Case(
        "train/{fold1,fold2}/{cat,dog}/1.png + test/{cat,dog}/2.png", error="look like parts"
    ),
    "sites with splits": Case(
        "{north,south}/{train,test}/{cat,dog}/1.png", error="splits with the same class folders"
    ),
    "a split set beside a class": Case(
        "set/{train,test}/{cat,dog}/1.png + cow/2.png", error="set/ has splits of its own and cow/"
    ),
    "one class without a split below": Case(
        "cat/{train,test}/{1..2}.png + dog/{1..2}.png",
        error="some folders have a split below them and others, like dog/, have none",
    ),
    "images and masks": flat("images", "masks", error="look like images and their masks"),
    "image and mask": flat("img", "mask", error="look like images and their masks"),
    "images and labels": flat("images", "labels", "overlay", error="look like images and their"),
    "images and annotations": Case(
        "images/{1..4}.png + annotations/trimaps/{1..4}.png", error="images/ look like images and"
    ),
    "test images beside the classes": flat(
        "cat", "dog", "test", error="test/ beside cat/ and dog/ does not look like a class"
    ),
    "test images beside each class": flat(
        "cat", "dog", "cat_test", "dog_test",
        error="cat_test/ and dog_test/ beside cat/ and dog/ do not look like classes",
    ),
    "a training set beside other images": Case(
        "train/{cat,dog}/{1..2}.png + plots/1.png", error="train/ holds 2 folders and is beside plo"
    ),
    "unlabelled images beside the classes": flat(
        "cat", "dog", "Unlabeled", error="Unlabeled/ beside cat/ and dog/ does not look like a cla"
    ),
    "two levels above the splits": Case(
        "{north,south}/{cat,dog}/{train,test}/1.png", error="north/ and south/ hold the same fold"
    ),
    "a copy of the classes": Case(
        "{cat,dog}/{1..2}.png + augmented/{cat,dog}/{3..4}.png",
        error=r"augmented/ holds folders that are beside it too \(cat/ and dog/\)",
    ),
    "training beside the classes": Case(
        "{cat,dog}/{1..2}.png + train/{cat,dog}/{3..4}.png", error="train/ holds folders that are"
    ),
    "raw, processed and more": Case(
        "{raw,processed}/{cat,dog}/{1..2}.png + plots/1.png",
        error="processed/ and raw/ hold the same folders",
    ),
    "a set beside images": Case(
        "data/{cat,dog}/{1..2}.png + plots/1.png", error=r"data/ holds 2 folders and is beside plot"
    ),
    "objects with splits of the same folders": Case(
        "{bottle,cable}/train/good/{1..2}.png + {bottle,cable}/test/{good,bad}/3.png",
        error="bottle/ and cable/ each have splits with the same class folders",
    ),
    "folds below each class": Case(
        "{cat,dog}/fold{1..2}/1.png", error="hold the same", options={"class_folders": "leaves"}
    ),
    "VOC": flat(
        "VOC2007/JPEGImages", "VOC2007/SegmentationClass", "VOC2007/SegmentationObject",
        error="JPEGImages/, SegmentationClass/ and SegmentationObject/ look like images and",
    ),
    "nnU-Net": flat("imagesTr", "labelsTr", "imagesTs", error="look like"),
    "YOLO": Case(
        "images/{train,val}/{1..2}.png", error="look like splits",
        texts={"labels/train/1.txt": "0 0.5 0.5 1 1", "data.yaml": "nc: 1"},
    ),
    "YOLO the other way": Case(
        "{train,valid,test}/images/{1..2}.png", error="look like splits",
        texts={"train/labels/1.txt": "0 0.5 0.5 1 1"},
    ),
    "Cityscapes": Case(
        "{leftImg8bit,gtFine}/{train,val}/{aachen,bochum}/1.png", error="same class folders"
    ),
    "flat images": Case("{1..4}.png", error="4 images but no class folders"),
    "flat images in a folder": flat("images", error="images/ holds 3 images and no class folders"),
    "flat images in jpg": flat("jpg", error="jpg/ holds 3 images and no class folders"),
    "one class": flat("cat", error=r'only one class \("cat"\)'),
    "first letters": Case(
        "a/{abbey,attic}/{1..2}.png + b/{bar,bay}/{1..2}.png", error="by their first letter"
    ),
    "test classes unknown": Case(
        "train/{cat,dog}/1.png + test/cow/2.png", error="test classes that training has not: cow"
    ),
}  # fmt: skip

TABLES = {
    "a table": Case(
        "train/{1..6}.png + test/{1..3}.png", "cat dog", "train/{1..6}.png",
        note=r"test/ is left out \(3 images", texts={"train.csv": IDS},
    ),
    "a table in another folder": Case(
        "train_images/{1..6}.png + test_images/{1..3}.png", "cat dog", "train_images/{1..6}.png",
        note="labels of train_images/ are those of csv/train.csv", texts={"csv/train.csv": IDS},
    ),
    "a table one level down": Case(
        "set/train/{1..6}.png + set/test/{1..3}.png", "cat dog", "set/train/{1..6}.png",
        texts={"set/train_labels.csv": IDS},
    ),
    "ids without extension, semicolons, a mark": Case(
        "train/{1..6}.png + test/{7..8}.png", "cat dog", "train/{1..6}.png",
        texts={"labels.csv": "\ufeff" + IDS.replace(".png", "").replace(",", ";")},
    ),
    "tabs and paths": Case(
        "train/{1..6}.png", "cat dog", "train/{1..6}.png",
        texts={"labels.tsv": re.sub(r"(\d)", r"data/train/\1", IDS).replace(",", "\t")},
    ),
    "a column of breeds": Case(
        "train/{1..6}.png", "pug vizsla", "train/{1..6}.png",
        texts={"labels.csv": "id,age,breed\n" + "".join(
            f"{n},{n % 3},{'pug' if n < 4 else 'vizsla'}\n" for n in range(1, 7))},
    ),
    "numbers and their names": Case(
        "train/{1..6}.png", "cat dog", "train/{1..6}.png",
        texts={"train.csv": "file,class_id,class_name\n" + "".join(
            f"{n}.png,{n % 2},{'cat' if n % 2 else 'dog'}\n" for n in range(1, 7))},
    ),
    "no header": Case(
        "train/{1..6}.png", "cat dog", "train/{1..6}.png",
        texts={"train.csv": IDS.split("\n", 1)[1]},
    ),
    "rows and files too many": Case(
        "train/{1..8}.png", "cat dog", "train/{1..6}.png",
        note=r"1 row has no image \(9.png\); 2 images have no row and are left out "
        r"\(train/7.png and train/8.png\)",
        texts={"train.csv": IDS + "9.png,cat\n"},
    ),
    "tables of both": Case(
        "train/{1..6}.png + test/{1..4}.png", "cat dog", "train/{1..6}.png", "test/{1..4}.png",
        texts={"train.csv": IDS, "test.csv": "id,label\n1,dog\n2,dog\n3,cat\n4,cat\n"},
    ),
    "one table of both": Case(
        "train/{1..4}.png + test/{5..6}.png", "cat dog", "train/{1..4}.png", "test/{5..6}.png",
        texts={"labels.csv": IDS},
    ),
    "a test table with class folders to train on": Case(
        "Train/{0,1}/{1..2}.png + Test/{5..8}.png + Meta/{0..1}.png", "0 1",
        "Train/{0,1}/{1..2}.png", "Test/{5..8}.png", note="Meta/ is left out",
        texts={"Test.csv": "Width,ClassId,Path\n" + "".join(
            f"30,{n % 2},Test/{n}.png\n" for n in range(5, 9))},
    ),
    "a table to fill in is none": Case(
        "train/{1..6}.png + test/{7..8}.png", "cat dog", "train/{1..6}.png",
        texts={"train.csv": IDS, "sample_submission.csv": "id,label\n7.png,cat\n8.png,cat\n"},
    ),
    "a table of images in one folder": Case(
        "images/{1..6}.png", "cat dog", "images/{1..6}.png", texts={"labels.csv": IDS}
    ),
    "images beside their table": Case(
        "{1..6}.png", "cat dog", "{1..6}.png", texts={"labels.csv": IDS}
    ),
    "a table in each split": Case(
        "Training/{1..4}.png + Test/{1..4}.png", "a b", "Training/{1..4}.png", "Test/{1..4}.png",
        texts={"Training/labels.csv": "id,label\n1,a\n2,a\n3,b\n4,b\n",
               "Test/labels.csv": "id,label\n1,b\n2,a\n3,b\n4,b\n"},
    ),
    "the same names in both": Case(
        "train/{1..6}.png + test/{1..3}.png", "cat dog", "train/{1..6}.png",
        note="test/ is left out", texts={"labels.csv": IDS},
    ),
    "images and masks with a table": Case(
        "images/{1..6}.png + masks/{1..6}.png", "cat dog", "images/{1..6}.png",
        note="masks/ is left out", texts={"labels.csv": IDS},
    ),
    "boxes": Case(
        "train/{1..6}.png", "cat dog", "train/{1..6}.png",
        texts={"train.csv": "file,x,y,class\n" + "".join(
            f"{n}.png,{n},{n % 2},{'cat' if n < 4 else 'dog'}\n" for n in range(1, 7))},
    ),
    "only a table to fill in": Case(
        "train/{1..6}.png + test/{7..8}.png", error="look like splits",
        texts={"sample_submission.csv": "id,label\n7.png,cat\n8.png,cat\n"},
    ),
    "two columns": Case(
        "train/{1..6}.png", error=r"train.csv: 2 columns may be the label \(colour, size\)",
        texts={"train.csv": "id,colour,size\n" + "".join(
            f"{n},{'red' if n < 4 else 'blue'},{'s' if n % 2 else 'l'}\n" for n in range(1, 7))},
    ),
    "two labels of one image": Case(
        "train/{1..6}.png", error="train.csv: 1.png has the labels cat and dog",
        texts={"train.csv": IDS + "1.png,dog\n"},
    ),
    "two tables": Case(
        "train/{1..6}.png", error="label the same images differently",
        texts={"a.csv": IDS, "b.csv": IDS.replace("1.png,cat", "1.png,dog")},
    ),
    "another encoding": Case(
        "train/{1..6}.png", error="train.csv: not in UTF-8",
        texts={"train.csv": IDS.replace("cat", "кошка").encode("cp1251")},
    ),
    "a broken row": Case(
        "train/{1..6}.png", error="train.csv: row 8 has 3 fields, the first 2",
        texts={"train.csv": IDS + "7,cat,dog\n"},
    ),
    "a table of other things": Case(
        "train/{1..6}.png + test/{7..8}.png", error="look like splits",
        texts={"train.csv": "house,price\n1a,100\n1b,200\n1c,300\n"},
    ),
}  # fmt: skip

LISTS = {
    "CUB": Case(

        "images/001.Auk/Auk_{1..4}.png + images/002.Jay/Jay_{5..8}.png", "001.Auk 002.Jay",
        "images/001.Auk/Auk_{1,3}.png + images/002.Jay/Jay_{5,7}.png",
        "images/001.Auk/Auk_{2,4}.png + images/002.Jay/Jay_{6,8}.png",
        note="The split is that of images.txt and train_test_split.txt.",
        texts={"images.txt": IMAGES_TXT, "train_test_split.txt": SPLIT_TXT},
    ),
    "CUB as it is unpacked": Case(
        "CUB_200_2011/images/001.Auk/Auk_{1..4}.png + CUB_200_2011/images/002.Jay/Jay_{5..8}.png"
        " + segmentations/{001.Auk,002.Jay}/{1..2}.png",
        "001.Auk 002.Jay",
        "CUB_200_2011/images/001.Auk/Auk_{1,3}.png + CUB_200_2011/images/002.Jay/Jay_{5,7}.png",
        "CUB_200_2011/images/001.Auk/Auk_{2,4}.png + CUB_200_2011/images/002.Jay/Jay_{6,8}.png",
        texts={
            "CUB_200_2011/images.txt": IMAGES_TXT,
            "CUB_200_2011/train_test_split.txt": SPLIT_TXT,
            "CUB_200_2011/README": "x", "attributes.txt": "1 has_bill",
        },
    ),
    "CUB with images missing and others added": Case(
        "images/001.Auk/Auk_{1..3}.png + images/002.Jay/Jay_{5..8}.png + images/001.Auk/new.png",
        "001.Auk 002.Jay",
        "images/001.Auk/Auk_{1,3}.png + images/002.Jay/Jay_{5,7}.png",
        "images/001.Auk/Auk_2.png + images/002.Jay/Jay_{6,8}.png",
        note=r"1 images are left out \(in none of the lists\); 1 listed images are not there "
        r"\(001.Auk/Auk_4.png\)",
        texts={"images.txt": IMAGES_TXT, "train_test_split.txt": SPLIT_TXT},
    ),
    "NABirds": Case(
        "images/{0001,0002}/{1..4}.png", "House~Sparrow Jay", "images/{0001,0002}/{1,2}.png",
        "images/{0001,0002}/{3,4}.png",
        texts={
            "images.txt": "".join(f"{c}-{n} {c}/{n}.png\n" for c in ("0001", "0002") for n in
                                  range(1, 5)),
            "train_test_split.txt": "".join(f"{c}-{n} {int(n < 3)}\n" for c in ("0001", "0002")
                                            for n in range(1, 5)),
            "image_class_labels.txt": "".join(f"{c}-{n} {int(c)}\n" for c in ("0001", "0002")
                                              for n in range(1, 5)),
            "classes.txt": "1 House Sparrow\n2 Jay\n",
        },
    ),
    "CUB, damaged": Case(
        "images/{001.Auk,002.Jay}/{1..4}.png", error="train_test_split.txt: not 0 or 1 for each id",
        texts={"images.txt": IMAGES_TXT, "train_test_split.txt": SPLIT_TXT[:-4]},
    ),
    "CUB without test images": Case(
        "images/001.Auk/Auk_{1..4}.png + images/002.Jay/Jay_{5..8}.png", "001.Auk 002.Jay",
        "images/001.Auk/Auk_{1..4}.png + images/002.Jay/Jay_{5..8}.png", note="The split is that",
        texts={"images.txt": IMAGES_TXT,
               "train_test_split.txt": re.sub(r"\d$", "1", SPLIT_TXT, flags=re.M)},
    ),
    "CUB of other images": Case(
        "images/{001.Auk,002.Jay}/{1..4}.png", error="none of the 8 images that it lists is there",
        texts={"images.txt": IMAGES_TXT, "train_test_split.txt": SPLIT_TXT},
    ),
    "Food-101": Case(
        "food-101/images/{pie,soup}/{1..4}.png", "pie soup", "food-101/images/{pie,soup}/{1,2}.png",
        "food-101/images/{pie,soup}/{3,4}.png",
        note="The split is that of food-101/meta/test.txt and food-101/meta/train.txt",
        texts={
            "food-101/meta/train.txt": "pie/1\npie/2\nsoup/1\nsoup/2\n",
            "food-101/meta/test.txt": "pie/3\npie/4\nsoup/3\nsoup/4\n",
            "food-101/meta/classes.txt": "pie\nsoup\n",
        },
    ),
    "MIT Indoor": Case(
        "Images/{bar room,gym}/{1..4}.png", "bar~room gym", "Images/{bar room,gym}/{1,2}.png",
        "Images/{bar room,gym}/3.png", note=r"2 images are left out \(in none of the lists\)",
        texts={
            "TrainImages.txt": "bar room/1.png\nbar room/2.png\ngym/1.png\ngym/2.png\n",
            "TestImages.txt": "bar room/3.png\ngym/3.png\n",
        },
    ),
    "a test list alone, with labels": Case(
        "{bar,gym}/{1..4}.png", "bar gym", "{bar,gym}/{1..3}.png", "{bar,gym}/4.png",
        texts={"testing_list.txt": "bar/4.png 0\ngym/4.png 1\n"},
    ),
    "ten partitions": Case(
        "images/{bar,gym}/{1..4}.png", "bar gym", "images/{bar,gym}/{1..4}.png",
        note=r"2 lists of one split \(labels/test1.txt, labels/test2.txt\): none is used|of one",
        texts={f"labels/{split}{n}.txt": "bar/1.png\ngym/2.png\n"
               for split in ("train", "test") for n in (1, 2)},
    ),
    "a text that is called train": Case(
        "{bar,gym}/{1..4}.png", "bar gym", "{bar,gym}/{1..4}.png",
        texts={"train.txt": "how it was trained\n", "test.txt": "tomorrow\n"},
    ),
}  # fmt: skip

ALL = SPLITS | CLASSES | ERRORS | TABLES | LISTS


def build(root: Path, case: Case) -> Path:
    """Write a layout's files: images that all differ."""
    write_images(root, case.files)
    for name, text in case.texts.items():
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def check(source: Path, case: Case) -> None:
    """Read a layout, and compare the classes, the splits, the notes or the error."""
    if case.error:
        with pytest.raises(UserError, match=case.error) as caught:
            load_data(source, **case.options)
        assert "\n" not in str(caught.value)
        assert str(source) in str(caught.value)
        return
    data = load_data(source, **case.options)
    train, test = ({item.name for item in part} for part in (data.train, data.test))
    assert list(data.classes) == [name.replace("~", " ") for name in case.classes.split()]
    if case.test:
        assert (train, test) == (set(expand(case.train)), set(expand(case.test)))
        assert not data.held_out
    else:
        assert train | test == set(expand(case.train))
        assert test
        assert not train & test
        assert data.held_out
    assert not case.note or any(re.search(case.note, note) for note in data.notes), data.notes
    assert not case.skipped or case.skipped in {entry.name for entry in data.skipped}


@pytest.mark.parametrize("name", ALL)
def test_layout(tmp_path, name):
    """A zip is read as its folder is."""
    root = build(tmp_path / "data", ALL[name])
    check(root, ALL[name])
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*")):
            file.write(path, path.relative_to(root).as_posix())
    check(archive, ALL[name])
