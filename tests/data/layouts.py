"""Data sets that lie in files, in miniature: each function writes one as its authors distribute it into a folder. Its name is the data set's.

What a data set's default options read must be there, with every class in every split.
"""

from __future__ import annotations

import gzip
import io
import json
import pathlib

import numpy as np


def picture(path: pathlib.Path, seed: int, *, width: int = 24, height: int = 20) -> None:
    """A picture file of noise of its own, in the format that the name ends in."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(content := io.BytesIO(), {".jpg": "JPEG", ".png": "PNG"}[path.suffix])
    path.write_bytes(content.getvalue())


def waterbirds(folder: pathlib.Path) -> None:
    """96 pictures of four species: of 64 in training seven of eight birds are on their own background, in the others half."""
    species = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "014.Indigo_Bunting", "118.House_Sparrow")
    backgrounds = (("/b/bamboo_forest", "/f/forest/broadleaf"), ("/o/ocean", "/l/lake/natural"))
    rows = ["img_id,img_filename,y,split,place,place_filename"]
    for number in range(96):
        kind, turn = number % 4, number // 4
        split = 0 if turn < 16 else 1 if turn < 20 else 2
        label = int(kind < 2)
        place = turn % 2 if split else label if turn % 4 else turn // 4 % 2
        name = f"{species[kind]}/{species[kind][4:]}_{number:04d}.jpg"
        picture(folder / name, number)
        rows.append(f"{number + 1},{name},{label},{split},{place},{backgrounds[place][turn // 2 % 2]}/{number:08d}.jpg")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")


def celeba(folder: pathlib.Path) -> None:
    """60 pictures with four of the attributes; in training one blond of five is a man. Those of number 3k have captions."""
    names = ("Blond_Hair", "Eyeglasses", "Male", "Wavy_Hair")
    rows, parts, mapping = [f"60\n{' '.join(names)}"], [], ["idx     orig_idx   orig_file"]
    for number in range(60):
        blond, split = number % 2, 0 if number < 40 else 1 if number < 50 else 2
        man = int(number % 20 < 2) if blond else int(number % 4 == 0)
        file = f"{number + 1:06d}.jpg"
        values = (blond, number % 3 == 0, man, number % 5 == 0)
        rows.append(f"{file} {' '.join(' 1' if value else '-1' for value in values)}")
        parts.append(f"{file} {split}")
        picture(folder / "img_align_celeba" / file, number, width=18, height=22)
        if number % 3 == 0:
            who, hair = ("This man", "He") if man else ("This woman", "She"), "blonde" if blond else "black"
            caption = folder / "celeba-caption" / f"{len(mapping) - 1}.txt"
            caption.parent.mkdir(exist_ok=True)
            caption.write_text("".join(f"{who[0]} has {hair} hair. {who[1]} smiles {times}.\n" for times in ("once", "twice", "again")))
            mapping.append(f"{len(mapping) - 1}       {number}     {file}")
    (folder / "list_attr_celeba.txt").write_text("\n".join(rows) + "\n")
    (folder / "list_eval_partition.txt").write_text("\n".join(parts) + "\n")
    (folder / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(mapping) + "\n")


def mvsa(folder: pathlib.Path) -> None:
    """MVSA-Single with 60 posts, of which five contradict themselves."""
    said = ("positive,positive", "neutral,positive", "negative,neutral", "neutral,neutral", "negative,negative", "positive,neutral")
    rows = ["ID\ttext,image"]
    for number in range(1, 61):
        rows.append(f"{number}\t{'positive,negative' if number % 12 == 0 else said[number % 6]}")
        picture(folder / "data" / f"{number}.jpg", number)
        (folder / "data" / f"{number}.txt").write_bytes(f"post {number} is {said[number % 6]} #fun ".encode() + b"\xff\xfe http://t.co/x")
    (folder / "labelResultAll.txt").write_text("\n".join(rows) + "\n")


def vqa_cp(folder: pathlib.Path) -> None:
    """VQA-CP v2 with 144 questions about 12 pictures, twelve each: three types with two answers, of which one is three times as frequent as the other
    in training, and the other in test."""
    told = {"what color": (("red", "blue"), "other"), "is there": (("yes", "no"), "yes/no"), "how many": (("2", "3"), "number")}
    for part, first, count in (("train", 0, 120), ("test", 120, 24)):
        questions, annotations = [], []
        for number in range(first, first + count):
            kind = list(told)[number % 3]
            answers, answer_type = told[kind]
            agreed = answers[(number % 4 == 0) ^ (part == "test")]
            image = number // 12 + 1
            split = ("train2014", "val2014")[image % 2]
            ids = {"question_id": 1000 + number, "image_id": image, "coco_split": split}
            questions.append(ids | {"question": f"{kind.capitalize()} the thing {number}?"})
            said = [agreed] * 8 + [answers[0], "thing"]
            of_ten = [{"answer": text, "answer_confidence": "yes", "answer_id": place + 1} for place, text in enumerate(said)]
            kinds = {"question_type": kind, "answer_type": answer_type}
            annotations.append(ids | kinds | {"multiple_choice_answer": agreed, "answers": of_ten})
            if number % 12 == 0:
                picture(folder / split / f"COCO_{split}_{image:012d}.jpg", image)
        (folder / f"vqacp_v2_{part}_questions.json").write_text(json.dumps(questions))
        (folder / f"vqacp_v2_{part}_annotations.json").write_text(json.dumps(annotations))


def coco_spurious(folder: pathlib.Path) -> None:
    """COCO 2017 with 48 pictures, of training 40: a cat, a dog, both, neither, a cat too small to count."""
    names = {17: "cat", 18: "dog", 1: "person"}
    kinds = ({17: 120.0}, {18: 90.0}, {17: 100.0, 18: 100.0}, {1: 200.0}, {17: 2.0}, {18: 60.0}, {17: 50.0, 1: 9.0}, {18: 80.0})
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for part, first, count in (("train2017", 1, 40), ("val2017", 901, 8)):
        images, outlines, captions = [], [], []
        for number in range(first, first + count):
            name = f"{number:012d}.jpg"
            picture(folder / part / name, number)
            images.append({"id": number, "file_name": name, "width": 24, "height": 20, "license": 1})
            for category, area in kinds[(number - first) % 8].items():
                box = [6.0, 5.0, area**0.5, area**0.5]
                ids = {"id": 10 * number + category, "image_id": number, "category_id": category}
                outlines.append(ids | {"bbox": box, "area": area, "iscrowd": 0, "segmentation": [[1.5] * 8]})
            captions += [{"id": 10 * number - i, "image_id": number, "caption": f"Picture {number} said {i} times\n"} for i in range(5)]
        categories = [{"id": number, "name": name, "supercategory": "thing"} for number, name in names.items()]
        content = {"info": {}, "licenses": [], "images": images, "annotations": outlines, "categories": categories}
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
        (folder / "annotations" / f"captions_{part}.json").write_text(json.dumps({"images": images, "annotations": captions}))


def mimic_cxr(folder: pathlib.Path) -> None:
    """MIMIC-CXR-JPG with 60 studies from the front and their side views: pneumonia goes with AP in training. The tables of labels are packed."""
    pictures = ["dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns"]
    splits, labels, people = (
        ["dicom_id,study_id,subject_id,split"],
        ["subject_id,study_id,Edema,No Finding,Pneumonia"],
        ["subject_id,gender,anchor_age"],
    )
    for number in range(60):
        patient, study, split = 10000032 + number, 50000000 + number, "train" if number < 40 else "validate" if number < 50 else "test"
        label = number % 2
        view = "AP" if (number % 5 != 4 if label else number % 10 == 4) else "PA"
        for dicom, position in ((f"f{number}-a", view), *([(f"f{number}-b", "LATERAL")] if number % 3 == 0 else [])):
            pictures.append(f"{dicom},{patient},{study},CHEST ({'PORTABLE AP' if view == 'AP' else 'PA AND LAT'}),{position},20,24")
            splits.append(f"{dicom},{study},{patient},{split}")
            picture(folder / f"files/p10/p{patient}/s{study}/{dicom}.jpg", number)
        labels.append(f"{patient},{study},{('', '1.0', '-1.0')[number % 3]},,{'1.0' if label else ('', '0.0')[number % 4 // 2]}")
        people.append(f"{patient},{'FM'[number % 7 // 4]},60")
        (folder / f"files/p10/p{patient}/s{study}.txt").write_text(
            f"                                 FINAL REPORT\n INDICATION:  ___ year old with cough {number}\n\n TECHNIQUE: {view}\n\n"
            f" FINDINGS: secret{label}\n\n IMPRESSION:  secret{label}.\n"
        )
    (folder / "mimic-cxr-2.0.0-metadata.csv").write_text("\n".join(pictures) + "\n")
    (folder / "mimic-cxr-2.0.0-split.csv").write_text("\n".join(splits) + "\n")
    (folder / "mimic-cxr-2.0.0-chexpert.csv.gz").write_bytes(gzip.compress("\n".join(labels).encode()))
    (folder / "patients.csv").write_text("\n".join(people) + "\n")


def tfds(folder: pathlib.Path) -> None:
    """80 records that TFDS prepared, 48 of them for training and 8 without a class: pictures, texts, numbers and samples of sound. Where they come
    from tells the label in training: three land birds of four, and one water bird of four, come from the land."""
    import shutil
    import tempfile

    import pytest

    pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed: pip install 'cimrl_jax[tfds]'")
    import tensorflow_datasets

    of = tensorflow_datasets.features

    class TinyBirds(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tensorflow_datasets.core.Version("1.2.0")
        code_path = None  # beside it TFDS looks for checksums of downloads, with a package that it may lack

        def _info(self):
            features = {
                "image": of.Image(shape=(8, 8, 3)),
                "photo": of.Image(shape=(None, None, 3)),
                "grey": of.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                "caption": of.Text(),
                "image/name": of.Text(),
                "remarks": of.Sequence({"text": of.Text(), "score": np.float32}),
                "where": {"place": of.ClassLabel(names=["land", "water"]), "Far_away": np.bool_, "metres": np.float32, "box": of.BBoxFeature()},
                "call": of.Tensor(shape=(None,), dtype=np.int64),
                "ringed": np.int32,
                "species": of.Text(),
                "label": of.ClassLabel(names=["landbird", "waterbird"]),
            }
            return tensorflow_datasets.core.DatasetInfo(
                builder=self, features=of.FeaturesDict(features), supervised_keys=("image", "label"), license="CC0,\nof course"
            )

        def _split_generators(self, dl_manager):
            sizes = {"train": 48, "validation": 8, "test": 16, "unlabelled": 8}
            return {name: self._generate_examples(name, size) for name, size in sizes.items()}

        def _generate_examples(self, name, size):
            for number in range(size):
                seed, label, turn = len(name) * 1000 + number, number % 2, number // 2
                place = (turn % 4 != 0) == label if name == "train" else turn % 3 == 0
                picture(small := pathlib.Path(self.data_dir) / "small.png", seed, width=8, height=8)
                picture(large := pathlib.Path(self.data_dir) / "large.jpg", seed)
                yield (
                    number,
                    {
                        "image": small,
                        "photo": large,
                        "grey": np.random.default_rng(seed).integers(0, 256, (8, 8, 1), np.uint8),
                        "caption": f"a bird number {number} Ünder {('trees', 'clouds')[label]}",
                        "image/name": f"{name}/{number}.png",
                        "remarks": {"text": ["very rare", "seen once"][: 1 + turn % 2], "score": [0.5, 1.0][: 1 + turn % 2]},
                        "where": {"place": int(place), "Far_away": turn % 3 == 1, "metres": number / 8, "box": of.BBox(0.0, 0.25, 0.5, 1.0)},
                        "call": np.random.default_rng(seed).integers(-30000, 30000, 800 + 40 * (number % 3)),
                        "ringed": 3 * (number % 3),
                        "species": ("auk", "wren", "teal", "gull")[2 * (turn % 2) + label],
                        "label": -1 if name == "unlabelled" else label,
                    },
                )

    with tempfile.TemporaryDirectory() as work:
        builder = TinyBirds(data_dir=work, file_format="array_record")
        builder.download_and_prepare()
        shutil.copytree(builder.data_dir, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("small.png", "large.jpg"))
