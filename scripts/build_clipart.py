"""Build the bundled ``clipart`` image set from Debian's package openclipart-png.

    apt-get download openclipart-png
    dpkg-deb -x openclipart-png_*.deb openclipart
    python scripts/build_clipart.py openclipart clip_randlora/bundled/clipart

The drawings are in the public domain (creative commons dedication, see the package's copyright
file). The choice depends on the package alone: naturally sorted names, without the exclusions
below and near-duplicates, split by counter-based random bits. It takes half a minute.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

from clip_randlora.data.images import UnreadableImage, decode_image
from clip_randlora.data.sampling import permutation
from clip_randlora.data.sources import natural_key

SIDE = 176  # pixels; the drawing fills 94 % of it, the rest is white
QUALITY = 82
MAX_TRAIN, MIN_TEST, MAX_TEST = 20, 15, 35
LEAST_DETAIL = 48  # pixels of the drawing's longer side in the package
NEAR = 0.12  # two drawings are the same if a smaller share of their ink differs

# class -> folders of the package (with what lies below), and single files of other folders
SOURCES: dict[str, tuple[list[str], list[str]]] = {
    "bird": (
        ["animals/birds"],
        ["animals/pinguino_col_piccolo_arc_01", "animals/tux_head_fco._andrade_01"],
    ),
    "computer": (
        [],
        [
            *(
                f"computer/hardware/{name}"
                for name in (
                    "computer",
                    "computer-aj_aj_ashton_01",
                    "computer1",
                    "computer2",
                    "flat_screen_gino_rivera_01",
                    "gis-computer_glenn_rolla_01",
                    "gnome-fs-client",
                    "laptop",
                    "laptop_01",
                    "lcd",
                    "lcd_monitor_shandy_brown_",
                    "lcd_monitor_the_structor_",
                    "monitor",
                    "schermo_macintosh_archit_01",
                    "tower",
                    "video1_sergio_luiz_arauj_01",
                    "video_lcd_sergio_luiz_ar_01",
                    "workstation_01",
                    "workstation_hash_0x89c79_01",
                    "racked",
                    "desktop",
                )
            ),
            *(
                f"computer/{name}"
                for name in (
                    "computer_zazou",
                    "crt_monitor_01",
                    "doublesight_dual_monito_01",
                    "etiquette_laptop_01",
                    "green_computer_merzok_01",
                    "pale_server_teudimundo_01",
                    "pc_box_sergio_luiz_arauj_02",
                    "server_mimooh_",
                    "server_mimooh_01",
                    "server_olivier_boyer_01",
                    "server_zazou",
                    "tft_screen_zazou",
                    "thin_client_risto_pekkal_01",
                )
            ),
        ],
    ),
    "dessert": (["food/desserts"], ["food/cake_and_candle_anton_fr_01", "food/candied_apples"]),
    "drink": (["food/beverages"], []),
    "fruit": (["food/fruit"], ["food/apple_bitten_dan_gerhard_01"]),
    "house": (
        ["buildings/homes"],
        ["computer/residential_house_zazou", "buildings/perspectival_house_01"],
    ),
    "insect": (["animals/bugs"], ["animals/mosquito_peterm_01"]),
    "mammal": (["animals/mammals"], ["animals/armadillo", "animals/bison", "animals/seal_sek_"]),
    "musical_instrument": (["recreation/music"], []),
    "tool": (["tools/*"], []),
    "vehicle": (["transportation/*", "transportation/vehicles"], []),
}

# class -> reason -> how the names of the files that are left out begin
EXCLUDED: dict[str, dict[str, list[str]]] = {
    "bird": {
        "not a bird": ["contour_bat", "mirjam_meijer"],
        "shows an error message": ["duck_yellow_ii", "tux_didier"],
        "a roast, not a bird": ["turkey_on_platter"],
        "only a part": ["wing_mitchell"],
        "drawing repeated": ["ninja_tux", "ralf_ark", "seagull_contour"],
        "carries a brand": ["baby_tux_rory"],
        "too small to recognise": ["stormo_di_uccelli"],
    },
    "computer": {},
    "dessert": {
        "drawing repeated in other colours": ["candy_21", "candy_22", "candy_31", "cone_soft_va"],
    },
    "drink": {
        "not a drink": [
            "ice_cube", "icecube", "wine_corks", "a_teapot", "macchina_caffe", "teapot_ganson",
            "flower-pot", "baby_bottle",
        ],
    },
    "fruit": {
        "not a fruit": ["straw_tote", "turkey_platter", "juice_glass", "tree_whit_fruit"],
        "a nut": ["gumnut"],
        "drawing repeated in other colours": [
            "lime_half_g", "lime_half_s", "lime_slice", "lime_wedge", "lime_whole",
            "rondelle_orange", "pear_jean-victo",
        ],
        "carries a letter": ["eris_apple"],
    },
    "house": {
        "not a house": ["lighthouse", "houses_jon_phil"],
        "drawing repeated": ["pinkhome-simple"],
    },
    "insect": {
        "not an insect": [
            "lumaca", "ragnetto", "ragno_figo", "spider", "virus", "mostriciattolo_",
        ],
        "a person dressed up": ["zanzara_cretina"],
        "drawing repeated": ["bee2_mimooh"],
    },
    "mammal": {
        "not a mammal": ["cat_scrathing"],
        "carries a word": ["mhooo", "shaezy", "skoynk", "squeek"],
        "not recognisable": ["sleeping_bear", "elephant_outline", "toro_al_tramonto", "mechorse"],
        "drawing repeated": [
            "dog_02_drawn", "dog_on_leash_gerald_g._02", "sleeping_cat_rg", "b_w_tiger",
        ],
    },
    "musical_instrument": {
        "music, not an instrument": [
            "45_rpm", "bass_clef", "boombox", "rca_stereo", "double_croche", "double_note",
            "fifties_jukebox", "funny_music_note", "headphones", "microphone", "musical_note",
            "piano_theory", "quaver", "simple_croche", "sixteenth", "treble", "vinyl",
        ],
        "a part of an instrument": ["trumpet_harmon", "trumpet_straight"],
        "drawing repeated": [
            "cello_mo_02", "trumpet_b_flat__ganson", "trumpet_pocket__ganson", "violin_ganson",
        ],
    },
    "tool": {
        "not a tool": [
            "bottle_jean", "calamita", "electric_lighter", "green_burner", "orange_burner",
            "hurricane", "insecticide", "kexi", "lampada", "lock", "mattone", "metal_cage",
            "natural_gas", "nodding", "panel_", "pansement", "smoke", "umbrella", "scolapasta",
            "pan_frouke", "paint_roller_banner", "paint_roller_border",
        ],
        "a machine of the household": [
            "blue_vacuum", "vacuum_cleaner", "vavuum", "ferro_da_stiro", "ironing_board",
        ],
        "shows an execution": ["gallows"],
        "a part of a machine": ["cog_", "engrenagem", "ruota_dentata", "viti_"],
        "an icon": ["mag2", "mag3", "mag4", "lente_meno"],
        "too faint or too small": ["bucket_michael", "scart_connector", "stefan_graubner"],
    },
    "vehicle": {
        "a road sign": [
            "Evel_Knievel", "Motorway_on", "airplane", "bambi", "bus_lane", "bus_opposite",
            "buses_and_bikes", "cattle", "crosswind", "cycle_", "cycles", "drawbridge", "end_daul",
            "grounded", "horse", "kaboom", "lorry_length", "no_", "old_folks", "pass_either",
            "street_sign", "crossroads", "curve_ahead",
        ],
        "not a vehicle": ["anchor", "little_tan_suitcase", "lighthouse", "the_mad_little_ship"],
        "a blueprint": ["shelby_cobra", "soviet_shuttle"],
        "a weapon": ["hummer_01", "hummer_02", "military_airplane"],
        "drawing repeated": [
            "1989_chevrolet_celebrit_02", "bus1_bw", "bus2_bw", "dodge_neon_pink", "hummer_05",
        ],
    },
}  # fmt: skip


def main() -> None:
    """Read the unpacked package, write ``train`` and ``test`` folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, help="where the .deb was unpacked")
    parser.add_argument("out", type=Path, help="folder to write; replaced if it exists")
    arguments = parser.parse_args()
    root = arguments.package / "usr/share/openclipart/png"
    if not root.is_dir():
        parser.error(f"{root}: no such folder; unpack openclipart-png with dpkg-deb -x")
    shutil.rmtree(arguments.out, ignore_errors=True)
    for name, (folders, extra) in SOURCES.items():
        files = class_files(root, folders, extra)
        drawings, report = prepare(name, exclude(name, files))
        order = [list(drawings)[i] for i in permutation(len(drawings), "clipart", 0, name)]
        train = min(MAX_TRAIN, len(order) - MIN_TEST)
        splits = {"train": order[:train], "test": order[train : train + MAX_TEST]}
        for split, names in splits.items():
            for stem in names:
                write(drawings[stem], arguments.out / split / name / f"{stem}.webp")
        counts = ", ".join(f"{split} {len(names)}" for split, names in splits.items())
        print(f"{name}: {counts} of {len(files)} files; {report}")
    size = sum(path.stat().st_size for path in arguments.out.rglob("*.webp"))
    print(f"{size / 1e6:.2f} MB")


def class_files(root: Path, folders: list[str], extra: list[str]) -> list[Path]:
    """The class's files, naturally sorted; a folder ending in ``/*`` without its subfolders."""
    found = []
    for folder in folders:
        deep = not folder.endswith("/*")
        found += (root / folder.removesuffix("/*")).glob("**/*.png" if deep else "*.png")
    for prefix in extra:
        path = root / f"{prefix}.png"
        found += [path] if path.exists() else sorted(path.parent.glob(f"{path.stem}*.png"))[:1]
    files = {path for path in found if path.is_file() and not path.is_symlink()}
    return sorted(files, key=lambda path: natural_key(str(path)))


def exclude(name: str, files: list[Path]) -> list[Path]:
    """Leave out what ``EXCLUDED`` names, and outlines of drawings that are there in colour."""
    prefixes = [prefix for group in EXCLUDED[name].values() for prefix in group]
    for prefix in prefixes:
        if not any(path.name.startswith(prefix) for path in files):
            raise SystemExit(f"{name}: no file begins with {prefix}; mend EXCLUDED")
    return [
        path
        for path in files
        if not path.name.startswith(tuple(prefixes)) and not re.search(r"_bw(_|\.)", path.name)
    ]


def prepare(name: str, files: list[Path]) -> tuple[dict[str, Image.Image], str]:
    """Decode, crop, resize; of drawings that look the same the first is kept."""
    kept: dict[str, Image.Image] = {}
    looks: dict[str, np.ndarray] = {}
    small, same = [], []
    for path in files:
        stem = re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_")
        try:
            drawing = square(decode_image(path))
        except UnreadableImage as error:
            print(f"  {name}: {path.name} left out: {error.reason}")
            continue
        if drawing is None:
            small.append(stem)
            continue
        look = 255.0 - np.asarray(drawing.convert("L").resize((16, 16), Image.Resampling.BOX))
        twin = next((stem for stem, other in looks.items() if alike(look, other)), None)
        if twin is not None:
            same.append(f"{stem} = {twin}")
            continue
        kept[stem] = drawing
        looks[stem] = look
    return kept, f"too small: {small}, near-duplicates: {same}"


def alike(ink: np.ndarray, other: np.ndarray) -> bool:
    """Whether two 16x16 pictures of ink (0 = white) show the same drawing."""
    return np.abs(ink - other).sum() < NEAR * (ink.sum() + other.sum())


def square(image: Image.Image) -> Image.Image | None:
    """Cut the white margin off, fit the drawing into a white square; None if it is too small."""
    box = ImageChops.invert(image.convert("L")).point(lambda v: 255 * (v > 8)).getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) < LEAST_DETAIL:
        return None
    drawing = image.crop(box)
    scale = 0.94 * SIDE / max(drawing.size)
    size = [max(1, round(side * scale)) for side in drawing.size]
    drawing = drawing.resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    canvas.paste(drawing, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return canvas


def write(drawing: Image.Image, path: Path) -> None:
    """Save as lossy WebP: at equal looks a third smaller than JPEG, a third of PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.save(path, "WEBP", quality=QUALITY, method=4)


if __name__ == "__main__":
    main()
