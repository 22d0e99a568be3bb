"""Names of all kinds in prompts, and prompts that do not tell classes apart."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers.images import write_colors

import clip_randlora as cr
from clip_randlora.clip.class_names import clean_class_names
from clip_randlora.clip.prompts import (
    check_prompts,
    class_words,
    knows_script,
    make_prompts,
    record_prompts,
    recorded_prompts,
)
from clip_randlora.clip.text import TextClassifier
from clip_randlora.data.dataset_spec import find_dataset_spec, name_classes, packaged_specs

# each row is a class set: its folders, and their names in prompts
SETS = [
    # numbers that say how many, how large or which
    ("10 rupees|20 rupees|50 rupees|100 rupees", "10 rupees|20 rupees|50 rupees|100 rupees"),
    ("010_rupees|020_rupees|100_rupees", "010 rupees|020 rupees|100 rupees"),
    ("1_rupee|2_rupees|5_rupees", "1 rupee|2 rupees|5 rupees"),
    ("1 cent|2 euro|5 dollar|20 yen", "1 cent|2 euro|5 dollar|20 yen"),
    ("1_person|2_people", "1 person|2 people"),
    ("2-door|4-door", "2-door|4-door"),
    ("3 musketeers|24 hours|7 samurai", "3 musketeers|24 hours|7 samurai"),
    ("1st place|2nd place|3rd place", "1st place|2nd place|3rd place"),
    ("1980s|1990s", "1980s|1990s"),
    ("2019 Honda Civic|2012 Tesla Model S", "2019 honda civic|2012 tesla model S"),
    ("2019-2020 season|2020-2021 season", "2019-2020 season|2020-2021 season"),
    ("5 cm|10 cm|0.5 cm|-5 cm", "5 cm|10 cm|0.5 cm|-5 cm"),
    ("0 to 1|1 to 2|2 to 3", "0 to 1|1 to 2|2 to 3"),
    ("0|1|2|9", "0|1|2|9"),
    ("007|042", "007|042"),
    ("08:30|09:45", "08:30|09:45"),
    ("1. FC Köln|1. FC Nürnberg", "1. FC köln|1. FC nürnberg"),
    ("7_eleven|Aldi|Lidl", "7 eleven|aldi|lidl"),
    # numbers that order
    ("01_cat|02_dog|10_bird|100_fish", "cat|dog|bird|fish"),
    ("012.golden_retriever|013.Beagle", "golden retriever|beagle"),
    ("107.Common_Raven|152.Vireo", "common raven|vireo"),
    ("1. cat|2. dog", "cat|dog"),
    ("(1) cat|(2) dog", "cat|dog"),
    ("1) cat|2) dog", "cat|dog"),
    ("0_benign|1_malignant", "benign|malignant"),
    ("1-cat|2-dog|3-bird", "cat|dog|bird"),
    ("1 cat|2 dog|3 bird", "cat|dog|bird"),
    ("1 - cat|2 - dog", "cat|dog"),
    ("1_cat|2_dog|3_bird|4_fish|6_cow", "cat|dog|bird|fish|cow"),
    ("０１_cat|０２_dog", "cat|dog"),
    ("٠١_cat|٠٢_dog", "cat|dog"),
    ("01_cat|02_dog|other", "cat|dog|other"),
    ("01_😀|02_猫", "😀|猫"),
    ("001_7 samurai|002_24 hours", "7 samurai|24 hours"),
    # numbers that seem to order, but are all that differs, or are not every class's
    ("01_cat|02_cat|03_dog", "01 cat|02 cat|03 dog"),
    ("01_Cat|cat|02_dog", "01 cat|cat|02 dog"),
    ("01_cat|01_dog", "01 cat|01 dog"),
    ("1_cat|dog", "1 cat|dog"),
    # WordNet's numbers
    ("n02085620-Chihuahua|n02088094-Afghan_hound", "chihuahua|afghan hound"),
    ("n02085620_Chihuahua|tench n01440764|goldfish (n01443537)", "chihuahua|tench|goldfish"),
    ("n02085620|n02088094", "n02085620|n02088094"),
    ("n02012849_crane|n03126707_crane|n02085620_Chihuahua",
     "n02012849 crane|n03126707 crane|chihuahua"),
    # one word, several words, brands
    ("goldenRetriever|GoldenRetriever2", "golden retriever|golden retriever2"),
    ("AnnualCrop|SeaLake|PlayingGuitar", "annual crop|sea lake|playing guitar"),
    ("7-Eleven|iPhone 12|McDonalds|3M", "7-eleven|iPhone 12|McDonalds|3M"),
    ("7up|eBay|AC-DC|iPad", "7up|eBay|AC-DC|iPad"),
    ("LaTeX|YouTube|PayPal|PhD", "LaTeX|YouTube|PayPal|PhD"),
    ("USB|USB_cable|USBCable2|HDMI_Cable", "USB|USB cable|USB cable2|HDMI cable"),
    ("NORMAL|PNEUMONIA", "NORMAL|PNEUMONIA"),
    ("t-shirt|T-Shirt2|can't|Rock'n'Roll", "t-shirt|T-shirt2|can't|rock'n'roll"),
    # signs
    ("crane (bird)|crane (machine)", "crane (bird)|crane (machine)"),
    ("AT&T|Salt & Pepper|a/b|one + two", "AT&T|salt & pepper|a/b|one + two"),
    ("c++|c#|c|a.b.c", "c++|c#|c|a.b.c"),
    ("__cat__| dog |tabby__cat|black \t bird", "cat|dog|tabby cat|black bird"),
    ("St. Bernard|Mr. Potato|vol. 1", "st. bernard|mr. potato|vol. 1"),
    ("Acme Inc.|Umbrella|U.S.A.|Wait...", "acme inc|umbrella|U.S.A|wait"),
    ("...|_", "...|_"),
    # languages
    ("猫|ねこ|고양이|قط", "猫|ねこ|고양이|قط"),
    ("Золотистый_Ретривер|золотистыйРетривер2", "золотистый ретривер|золотистый ретривер2"),
    ("cafe\u0301|Scha\u0308ferhund", "caf\u00e9|sch\u00e4ferhund"),
    ("ＡＢＣ＿dog|ｃａｔ", "ABC dog|cat"),
]  # fmt: skip


@pytest.mark.parametrize(("folders", "words"), SETS)
def test_what_prompts_call_the_classes(folders, words):
    folders = folders.split("|")
    assert list(clean_class_names(folders)) == words.split("|")
    prompts = [prompt for (prompt,) in make_prompts(folders)]
    assert prompts == [f"a photo of a {word}." for word in words.split("|")]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("012.golden_retriever", "golden retriever"),
        ("01_cat", "cat"),
        ("1. cat", "cat"),
        ("003-dog", "dog"),
        ("10 rupees", "10 rupees"),
        ("1_cat", "1 cat"),
        ("7", "7"),
    ],
)
def test_one_name_alone(folder, words):
    assert clean_class_names([folder]) == (words,)


def test_only_an_entry_of_ones_own_with_a_full_stop_is_a_whole_prompt():
    prompts = make_prompts(["Acme Inc.", "dog"], ["{} here"], {"dog": ["A very good boy."]})
    assert prompts == [["acme inc here"], ["A very good boy."]]


@pytest.mark.parametrize("name", packaged_specs())
def test_no_two_classes_of_a_described_set_share_a_prompt(name, lite0):
    entry = find_dataset_spec(name)
    source = list(entry.classes) if isinstance(entry.classes, dict) else None
    classes, names = name_classes(entry, source, entry.number_of_classes)
    assert checked(lite0, classes, entry.templates, names) == []


def test_a_full_stop_in_a_description_makes_no_whole_prompt(tmp_path):
    write_colors(tmp_path / "photos", {"": 2})
    (tmp_path / "set.yaml").write_text(
        "name: mine\nfolder: photos\nclasses: {red: Acme Inc., blue: Umbrella}\n"
    )
    data = cr.load_data(tmp_path / "set.yaml")
    assert data.prompts == {"Acme Inc.": ("Acme Inc",), "Umbrella": ("Umbrella",)}


# --- prompts that do not tell classes apart ------------------------------------------------------


@pytest.fixture(scope="module")
def lite0() -> cr.Model:
    return cr.load_model("lite0", device="cpu")


def checked(model, classes, templates=None, names=None) -> list[str]:
    """Check the prompts of classes; return the notes."""
    prompts = dict(zip(classes, make_prompts(classes, templates, names), strict=True))
    text = TextClassifier(model, classes, list(prompts.values()))
    return check_prompts(model, text.tokens, prompts, class_words(classes, names))


BEADS = ("b e a d s " * 30)[:180]


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        (["dog", "Cat", "cat"], {}, "'Cat' and 'cat' have the same prompt 'a photo of a cat.'"),
        (["tabby_cat", "tabby cat"], {}, "'tabby_cat' and 'tabby cat' have the same prompt"),
        (["Acme Inc", "Acme Inc."], {}, "'Acme Inc' and 'Acme Inc.' have the same prompt"),
        (["USB", "usb"], {}, "'USB' and 'usb' .* for the model's tokenizer"),
        (["caf\u00e9", "cafe\u0301"], {}, "have the same prompt"),
        (["a", "b", "c", "d"], {name: ["x"] for name in "abcd"}, "'a', 'b', 'c' and 1 more have"),
        (["a", "b", "c", "d"], {"b": ["a"], "d": ["c"]}, "so have the classes of 1 more prompts"),
        (["a", "b"], {"a": ["x", "y"], "b": ["y", "x", "y"]}, "the same prompt 'a photo of a x.'"),
        ([f"{BEADS}on a bird", f"{BEADS}on a house"], {},
         f"'{BEADS}on a bird' and '{BEADS}on a house' have .* in its first 77 tokens"),
    ],
)  # fmt: skip
def test_classes_with_the_same_prompts_are_refused(lite0, classes, names, message):
    with pytest.raises(cr.UserError, match=message) as error:
        checked(lite0, classes, names=names)
    assert "rename a class, or give it words of its own under `prompts`" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_shared_or_cut_or_only_a_number_is_noted(lite0):
    (shared,) = checked(lite0, ["crane", "bird"], names={"bird": ["bird", "crane"]})
    assert shared.startswith(
        "The classes 'crane' and 'bird' share the prompt 'a photo of a crane.'"
    )
    names = ["cat", *(f"{number} {BEADS}" for number in ("one", "two", "three", "four"))]
    (cut,) = checked(lite0, names)
    assert "Prompts of 4 classes are longer than the 77 tokens" in cut
    assert names[1] in cut and names[3] in cut and "and 1 more" in cut and "'cat'" not in cut
    (ids,) = checked(lite0, ["n02085620", "n02088094-Afghan_hound"])
    assert "1 class hold" in ids and "'n02085620'" in ids


@pytest.mark.parametrize(("words", "is_cut"), [(69, False), (70, False), (71, True), (200, True)])
def test_a_prompt_that_fills_the_context_is_not_cut(lite0, words, is_cut):
    # a start, "a photo of a", the words, a full stop, an end: 70 words make 77 tokens
    notes = checked(lite0, ["dog", " ".join(["cat"] * words)])
    assert any("are cut" in note for note in notes) == is_cut


@pytest.fixture(scope="module")
def word_model(lite0, tmp_path_factory) -> cr.Model:
    """A model whose tokenizer is one of transformers, with whole words and an unknown token."""
    from open_clip.tokenizer import HFTokenizer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", ".", "a", "photo", "of", "cat", "собака", "пёс"]
    known = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    known.normalizer = normalizers.Lowercase()
    folder = tmp_path_factory.mktemp("words")
    PreTrainedTokenizerFast(
        tokenizer_object=known, unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)
    model = cr.Model(lite0.net, "words", "default", lite0.device)
    model.__dict__["tokenizer"] = HFTokenizer(str(folder), context_length=16)
    return model


def tokens_checked(model, classes) -> list[str]:
    prompts = {name: [f"a photo of a {name}."] for name in classes}
    tokens = model.tokenizer([prompt for (prompt,) in prompts.values()])
    return check_prompts(model, tokens, prompts, class_words(classes))


def test_a_tokenizer_with_an_unknown_token(word_model):
    assert tokens_checked(word_model, ["cat", "собака", "пёс"]) == []
    (note,) = tokens_checked(word_model, ["cat", "собака", "猫"])
    assert "hardly knows the script of 1 class: '猫'" in note
    with pytest.raises(cr.UserError, match=r"'кот' and '猫' .* for the model's tokenizer"):
        tokens_checked(word_model, ["cat", "кот", "猫"])
    (note,) = tokens_checked(word_model, ["cat", "cat " * 15])
    assert "longer than the 16 tokens" in note


KNOWN = (
    "cat|golden retriever|Schäferhund|façade|čokoláda|žirafa|smørrebrød|phở|bánh mì|Nguyễn"
    "|kedi köpeği|Żubrówka|Škoda|Pokémon|Xiaomi|McDonalds|iPhone 12|7up|3M|c++|c#|BMW|LG"
    "|AC-DC|a|K|x1|5 cm"
    "|0|Ω|qwrtzp|Llanfairpwllgwyngyll|😀|❤️|👨‍👩‍👧|→|½|cat (猫)|قط cat|n02085620"
)  # fmt: skip
HARDLY_KNOWN = (
    "собака|кошка|Золотистый ретривер|кіт|γάτα|αυτοκίνητο|猫|金毛犬|红色|ねこ|ゴールデンレトリバー"
    "|ラーメン|寿司|고양이|개|골든 리트리버|قط|كلب|سيارة|گربه|חתול|ציפור|बिल्ली|घर|แมว|บ้าน"
    "|বিড়াল|பூனை|పిల్లి|ბულდოგი|կատու|ድመት|ឆ្មា|ကြောင်|猫 2|Łódź"
)  # fmt: skip


def test_scripts_that_the_tokenizer_hardly_knows(lite0):
    known, hardly = KNOWN.split("|"), HARDLY_KNOWN.split("|")
    wrong = [n for n, knows in zip(known, knows_script(lite0, known), strict=True) if not knows]
    wrong += [n for n, knows in zip(hardly, knows_script(lite0, hardly), strict=True) if knows]
    assert wrong == []
    (note,) = checked(lite0, ["cat", "собака", "猫"])
    assert "hardly knows the script of 2 classes: 'собака' and '猫'" in note
    assert "give English names under `prompts`" in note
    assert checked(lite0, ["cat", "собака"], names={"собака": ["dog"]}) == []


# --- a training ----------------------------------------------------------------------------------


RUPEES = {"10 rupees": (30, 60, 220), "20 rupees": (30, 200, 60), "Acme Inc.": (220, 40, 30)}
PROMPTS = {name: [f"a photo of a {name.rstrip('.').lower()}."] for name in RUPEES}


@pytest.fixture(scope="module")
def rupees(tmp_path_factory) -> Path:
    return write_colors(tmp_path_factory.mktemp("rupees"), {"train": 2, "test": 1}, RUPEES)


@pytest.fixture(scope="module")
def run(tiny_folder, rupees, tmp_path_factory) -> cr.Run:
    out = tmp_path_factory.mktemp("runs") / "run"
    model, data = cr.load_model(str(tiny_folder)), cr.load_data(rupees)
    return cr.fit(model, data, cr.TrainConfig(steps=2), out=out)


def test_the_prompts_stand_in_config_card_and_adapter_file(run):
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert config["prompts"] == PROMPTS
    card = (run.folder / "README.md").read_text()
    for name, (prompt,) in PROMPTS.items():
        assert f"- {name}: {prompt}\n" in card
    for path in (run.folder, run.folder / "adapter.safetensors"):
        assert {name: list(own) for name, own in cr.read_task(path).prompts.items()} == PROMPTS


def test_what_is_recorded_counts_whatever_names_would_become_today(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    config["prompts"]["20 rupees"] = ["twenty rupees", "A banknote."]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert cr.read_task(tmp_path / "run").prompts["20 rupees"] == ("twenty rupees", "A banknote.")
    cr.export_run(tmp_path / "run", "adapter", tmp_path / "exported")
    adapter = tmp_path / "exported" / "adapter.safetensors"
    assert cr.read_task(adapter).prompts == cr.read_task(tmp_path / "run").prompts


def older(run: Path, folder: Path, **train) -> Path:
    """Copy a run as an older version wrote it, which did not record the prompts."""
    shutil.copytree(run, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["prompts"], config["templates"]
    config["train"] |= train
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_an_older_run_keeps_the_prompts_of_its_time(run, tmp_path):
    """Its classes are rupees twice, which is refused today, and a whole prompt."""
    before = older(run.folder, tmp_path / "older")
    prompts = cr.read_task(before).prompts
    assert prompts == {
        "10 rupees": ("a photo of a rupees.",),
        "20 rupees": ("a photo of a rupees.",),
        "Acme Inc.": ("acme inc.",),
    }
    classifier = cr.Classifier.load(before)
    (answer,) = classifier.predict([next((before / "..").resolve().rglob("curves.png"))])
    ten, twenty = (answer["tuned"][f"{number} rupees"] for number in (10, 20))
    assert ten == pytest.approx(twenty, abs=1e-5)
    task = {
        "model": "lite0",
        "pretrained": "default",
        "classes": ["012.goldenRetriever", "iPhone", "b"],
        "templates": ["a {}.", "the {}"],
        "prompts": {"b": ["bee", "One bee."]},
    }
    run.adapter.save(tmp_path / "adapter.safetensors", task)
    assert cr.read_task(tmp_path / "adapter.safetensors").prompts == {
        "012.goldenRetriever": ("a golden retriever.", "the golden retriever"),
        "iPhone": ("a i phone.", "the i phone"),
        "b": ("One bee.", "a bee.", "the bee"),
    }


def test_very_many_prompts_are_recorded_by_their_templates():
    classes = [f"0{number}_class {number}x" for number in range(100, 300)]
    templates, names = [f"photo {number} of a {{}}." for number in range(60)], {classes[0]: ["a."]}
    prompts = dict(zip(classes, make_prompts(classes, templates, names), strict=True))
    record = record_prompts(prompts, templates, names)
    assert record["templates"] == templates
    assert record["prompts"][classes[1]] == ["class 101x"]
    assert (
        recorded_prompts(classes, **{"templates": templates, "names": record["prompts"]}) == prompts
    )


def stopped(model_folder: Path, data: Path, out: Path) -> None:
    def stop(_) -> None:
        raise KeyboardInterrupt

    with pytest.raises(cr.Interrupted):
        model = cr.load_model(str(model_folder))
        cr.fit(model, cr.load_data(data), cr.TrainConfig(steps=3), out, on_step=stop)


def test_an_older_run_goes_on_with_the_prompts_of_its_time(tiny_folder, tmp_path):
    colors = {"012.iPhone": (30, 60, 220), "dog": (30, 200, 60)}
    data = write_colors(tmp_path / "data", {"train": 2, "test": 1}, colors)
    stopped(tiny_folder, data, tmp_path / "now")
    run = older(tmp_path / "now", tmp_path / "before")
    model, config = cr.load_model(str(tiny_folder)), cr.TrainConfig(steps=3)
    cr.fit(model, cr.load_data(data), config, run, resume=True).adapter.detach()
    assert cr.read_task(run / "adapter.safetensors").prompts["012.iPhone"] == (
        "a photo of a i phone.",
    )
    shutil.copytree(tmp_path / "now", tmp_path / "other")
    config = cr.TrainConfig(steps=3, prompts={"dog": ["hound"]})
    with pytest.raises(cr.UserError, match=r"was begun with train.prompts.dog = None"):
        cr.fit(model, cr.load_data(data), config, tmp_path / "other", resume=True)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a cat."], "damaged, prompts"),
        ({"10 rupees": "a."}, "damaged, prompts"),
        ({"cow": ["a cow."]}, "damaged settings: .*no class 'cow'"),
    ],
)
def test_damaged_prompts_are_refused(run, tmp_path, prompts, message):
    shutil.copytree(run.folder, tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) | {"prompts": prompts}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(cr.UserError, match=rf"config.yaml: {message}"):
        cr.read_task(tmp_path / "run")


@pytest.mark.parametrize("method", ["randlora", "linear_probe", "zero_shot"])
def test_no_method_starts_with_two_classes_alike(tiny, tmp_path, method):
    write_colors(
        tmp_path / "data", {"train": 2, "test": 1}, {"Cat": (9, 9, 9), "cat_": (200, 9, 9)}
    )
    data, weights = cr.load_data(tmp_path / "data"), tiny.net.state_dict()
    before = {name: tensor.clone() for name, tensor in weights.items()}
    with pytest.raises(cr.UserError, match="'Cat' and 'cat_' have the same prompt"):
        cr.fit(tiny, data, cr.TrainConfig(method=method, steps=1), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(before[name], tensor) for name, tensor in weights.items())
