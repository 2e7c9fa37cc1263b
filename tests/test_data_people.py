"""pins and facescrub: folders of people, FaceScrub's annotations."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from splitveil.data import load_data
from splitveil.data.facescrub import FaceBox
from splitveil.errors import DataError

PEOPLE = {"actors": ("Ann_Onymous_Sr", "Bo_Gus"), "actresses": ("Cy_Pher", "Di_Git")}
NAMES = ("Ann_Onymous_Sr", "Bo_Gus", "Cy_Pher", "Di_Git")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITVEIL_CACHE", str(tmp_path / "cache"))


def picture(seed, size=(50, 50)):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write_people(folder, count=30):
    """Four people with `count` images each; image i of person p is picture 1000·p + i."""
    for gender, names in PEOPLE.items():
        for name in names:
            (folder / gender / name).mkdir(parents=True)
            for number in range(count):
                picture(1000 * NAMES.index(name) + number).save(folder / gender / name / f"{name}_{number}.png")
    return folder


def all_of(data, get):
    return torch.cat([get(part) for part in data.parts.values()])


def rows_of(data, image):
    """Rows that hold exactly this picture."""
    wanted = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    return (all_of(data, lambda part: part.pixels) == wanted).flatten(1).all(1).nonzero().squeeze(1)


def identity(data):
    return all_of(data, lambda part: part.hidden["identity"])


@pytest.mark.parametrize("name", ["pins", "facescrub"])
def test_people_are_labelled_by_their_folders(name, tmp_path):
    write_people(tmp_path / name)
    data = load_data(name, root=tmp_path)
    assert (data.name, data.classes, data.hidden_classes) == (name, ("male", "female"), {"identity": NAMES})
    assert data.input_shape == (3, 50, 50)
    for person in range(4):
        row = rows_of(data, picture(1000 * person + 7))
        assert identity(data)[row].tolist() == [person]
        assert all_of(data, lambda part: part.y)[row].tolist() == [person // 2]


def test_every_person_is_in_every_part(tmp_path):
    write_people(tmp_path / "pins", count=10)
    data = load_data("pins", root=tmp_path)
    for part, count in ((data.train, [6, 8]), (data.val, [1, 2]), (data.test, [1, 2])):
        counts = part.hidden["identity"].bincount(minlength=4)
        assert (counts >= count[0]).all()
        assert (counts <= count[1]).all()


def resaved(number):
    return picture(number), {"format": "JPEG", "quality": 40}


def changed(number):
    """Alike enough for one person's photographs (a correlation of 0.90 to 0.96), not for two people's."""
    return Image.blend(picture(number), picture(number + 5000), 0.24), {}


@pytest.mark.parametrize(
    ("copy", "person"), [(resaved, "Ann_Onymous_Sr"), (resaved, "Bo_Gus"), (changed, "Ann_Onymous_Sr")]
)
def test_copies_share_a_part_even_under_two_names(tmp_path, copy, person):
    folder = write_people(tmp_path / "pins")
    for number in range(30):
        image, how = copy(number)
        image.save(folder / f"actors/{person}/copy{number}.png", **how)
    data = load_data("pins", root=tmp_path)
    pixels = all_of(data, lambda part: part.x)
    parts = np.repeat([0, 1, 2], [len(part) for part in data.parts.values()])
    for number in range(30):
        wanted = torch.from_numpy(np.asarray(picture(number)).transpose(2, 0, 1).copy()) / 255
        nearest = (pixels - wanted).square().flatten(1).mean(1).argsort()[:2]
        assert len(set(parts[nearest.numpy()].tolist())) == 1


def test_a_person_with_few_images_is_left_out_and_said(tmp_path):
    folder = write_people(tmp_path / "pins")
    (folder / "actors/Ed_Ge").mkdir()
    for number in range(9):
        picture(9000 + number).save(folder / f"actors/Ed_Ge/{number}.png")
    data = load_data("pins", root=tmp_path)
    assert data.hidden_classes == {"identity": NAMES}
    assert data.skipped == ("actors/Ed_Ge: 9 images are too few to be in every part (10 are needed)",)


def test_a_person_whose_images_are_all_copies_is_an_error(tmp_path):
    folder = write_people(tmp_path / "pins")
    for number in range(30):
        picture(1000).save(folder / f"actors/Bo_Gus/Bo_Gus_{number}.png")
    with pytest.raises(DataError, match="Bo_Gus cannot be in the val part"):
        load_data("pins", root=tmp_path)


def test_what_does_not_belong_is_refused(tmp_path):
    folder = write_people(tmp_path / "pins")
    picture(1).save(folder / "actors/loose.png")
    with pytest.raises(DataError, match=r"actors/loose\.png in .* is not in a person's folder"):
        load_data("pins", root=tmp_path)
    (folder / "actors/loose.png").rename(folder / "loose.png")
    assert load_data("pins", root=tmp_path).skipped == ()
    (folder / "actresses/Bo_Gus").mkdir()
    for number in range(10):
        picture(9000 + number).save(folder / f"actresses/Bo_Gus/{number}.png")
    with pytest.raises(DataError, match="Bo_Gus is in both actors and actresses"):
        load_data("pins", root=tmp_path)


# FaceScrub's annotations

BOX = (20, 10, 70, 60)


def annotate(folder):
    """Put each picture into a larger photograph, under a name that tells nothing, and list where it is."""
    rows = {gender: ["name\timage_id\tface_id\turl\tbbox\tsha256"] for gender in PEOPLE}
    for path in sorted(folder.rglob("*.png")):
        photograph = Image.new("RGB", (120, 90), (0, 90, 0))
        photograph.paste(Image.open(path), BOX[:2])
        path.unlink()
        photograph.save(path.with_name(f"{path.stem.replace('_', '')}.png"))
        content = path.with_name(f"{path.stem.replace('_', '')}.png").read_bytes()
        number, gender = path.stem.split("_")[-1], path.parent.parent.name
        rows[gender].append(row(path.parent.name, number, BOX, hashlib.sha256(content).hexdigest()))
    write_rows(folder, rows)
    return rows


def row(name, number, box, sha256="0" * 64):
    return "\t".join([name.replace("_", " "), number, f"1{number}", "somewhere", ",".join(map(str, box)), sha256])


def write_rows(folder, rows):
    for gender, lines in rows.items():
        (folder / f"facescrub_{gender}.txt").write_text("\n".join(lines) + "\n")


def test_originals_are_found_by_their_content_and_cropped(tmp_path):
    plain = load_data("facescrub", root=write_people(tmp_path / "plain/facescrub").parent)
    annotate(write_people(tmp_path / "annotated/facescrub"))
    assert load_data("facescrub", root=tmp_path / "annotated").digest == plain.digest


@pytest.mark.parametrize("stem", ["77", "Bo_Gus_77", "some_thing_77"])
def test_originals_are_found_by_their_number_too(tmp_path, stem):
    folder = write_people(tmp_path / "facescrub")
    rows = annotate(folder)
    rows["actors"].append(row("Bo_Gus", "77", BOX))
    rows["actors"].append(row("Ann_Onymous_Sr", "77", (0, 0, 5, 5)))
    write_rows(folder, rows)
    photograph = Image.new("RGB", (100, 100))
    photograph.paste(picture(5000), BOX[:2])
    photograph.save(folder / f"actors/Bo_Gus/{stem}.png")
    data = load_data("facescrub", root=tmp_path)
    assert identity(data)[rows_of(data, picture(5000))].tolist() == [NAMES.index("Bo_Gus")]
    assert sum(len(part) for part in data.parts.values()) == 121


def test_an_image_may_hold_several_faces_and_each_face_counts_once(tmp_path):
    folder = write_people(tmp_path / "facescrub")
    rows = annotate(folder)
    photograph = Image.new("RGB", (120, 60))
    photograph.paste(picture(5000), (0, 0))
    photograph.paste(picture(5001), (60, 0))
    photograph.save(folder / "actresses/Di_Git/88.png")
    boxes = [(0, 0, 50, 50), (60, 0, 110, 50), (0, 0, 50, 50)]
    rows["actresses"] += [row("Di_Git", "88", box) for box in boxes]
    write_rows(folder, rows)
    data = load_data("facescrub", root=tmp_path)
    for seed in (5000, 5001):
        assert identity(data)[rows_of(data, picture(seed))].tolist() == [3]
    assert sum(len(part) for part in data.parts.values()) == 122


def test_a_file_without_annotation_is_skipped_and_said(tmp_path):
    folder = write_people(tmp_path / "facescrub")
    annotate(folder)
    picture(5000).save(folder / "actors/Bo_Gus/unknown.png")
    data = load_data("facescrub", root=tmp_path)
    assert data.skipped == ("actors/Bo_Gus/unknown.png: not in the annotations",)


def test_boxes_are_clipped_to_the_image():
    assert FaceBox(-5, 10, 70, 200)(60, 80) == (0, 10, 60, 80)
    with pytest.raises(ValueError, match="outside the image"):
        FaceBox(60, 0, 70, 10)(60, 80)


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d", ""])
def test_a_malformed_annotation_is_refused(tmp_path, box):
    folder = write_people(tmp_path / "facescrub")
    rows = annotate(folder)
    rows["actors"][1] = rows["actors"][1].replace(",".join(map(str, BOX)), box)
    write_rows(folder, rows)
    with pytest.raises(DataError, match=r"facescrub_actors\.txt line 2 is not an annotated face"):
        load_data("facescrub", root=tmp_path)


def test_annotations_without_their_header_are_refused(tmp_path):
    folder = write_people(tmp_path / "facescrub")
    (folder / "facescrub_actors.txt").write_text("Bo Gus\t1\t2\tsomewhere\t1,2,3,4\t00\n")
    with pytest.raises(DataError, match="has no column 'name'"):
        load_data("facescrub", root=tmp_path)
