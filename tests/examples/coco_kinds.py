"""Every kind of file that is refused, with the message.

``python tests/examples/coco_kinds.py`` writes the table in examples/DATA.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from small_coco import (
    SQUARE,
    Edit,
    all_boxes,
    annotation,
    bomb,
    by_rows,
    category,
    exchanged_sizes,
    image,
    picture,
    polygons,
    runs,
    text,
    top,
    turned_by_exif,
)

DATA_PAGE = Path(__file__).resolve().parents[2] / "examples" / "DATA.md"
MARKS = ("<!-- refused: written by tests/examples/coco_kinds.py -->", "<!-- end of refused -->")


class Kind(NamedTuple):
    name: str
    edit: Edit
    message: str  # "…" stands for any text

    def matches(self, text: str) -> bool:
        return re.search(".*".join(map(re.escape, self.message.split("…"))), text) is not None


A0 = "annotation 0 of image 10 ('a.png')"
A1 = "annotation 1 of image 11 ('b.png')"
POLYGON = (
    "segmentation must be run lengths or polygons [[x1, y1, x2, y2, x3, y3, ...], ...], each a "
    f"flat list of at least three points; {A0}"
)
BOX = "bbox of every annotation must be four numbers x, y, width, height in pixels, no size below 0"
LENGTHS = (
    "run lengths must be whole numbers of at least 0 whose sum is height x width of the picture"
)
FINITE = "coordinates of polygons must be finite, in pixels, at most one picture size outside"
SIDE = "of every image must be a whole number from 1 to 65535; image 10 ('a.png') has"
INSIDE = "file_name of every image must be a path that stays in the folder of images; image 10"
JSON = "must be a COCO file in JSON"
BOX_KIND = "bbox must be x, y, width, height in pixels"
NAN, INF = float("nan"), float("inf")

FILE = [
    Kind("not JSON", text(lambda t: "hello"), f"{JSON}: "),
    Kind("truncated", text(lambda t: t[:-40]), f"{JSON}: …; the file ends too early"),
    Kind("truncated in a string", text(lambda t: t[:25]), f"{JSON}: …; the file ends too early"),
    Kind("empty file", text(lambda t: ""), f"{JSON}: …; the file ends too early"),
    Kind("a list at the top", text(lambda t: f"[{t}]"), f"{JSON}, an object …; got list"),
    Kind("UTF-16", text(lambda t: t.encode("utf-16")), "must be JSON in UTF-8: "),
    Kind("nested 100,000 deep", text(lambda t: "[" * 100_000), "it is nested too deeply"),
    Kind("a number of 10,000 digits", text(lambda t: t.replace("36", "9" * 10_000)), f"{JSON}: "),
    Kind(
        "a key twice",
        text(lambda t: t.replace('"area"', '"area": 1, "area"')),
        "an object has the key 'area' twice",
    ),
    Kind(
        "no images",
        top(images=[]),
        "must have images, a list that is not empty, got []; it has the keys",
    ),
    Kind("no categories", top(categories=None), "must have categories, a list …, got nothing"),
    Kind("no annotations", top(annotations=[]), "must have annotations, a list …, got []"),
    Kind("annotations as an object", top(annotations={"1": 2}), "must have annotations, a list"),
    Kind("records that are not objects", top(images=[3]), "every image must be an object; element"),
]
RECORDS = [
    Kind(
        "repeated annotation ids",
        annotation(id=2),
        "the id of every annotation must be unique; annotation 2 of image 10 ('a.png') has 2; "
        "annotation 2 of image 11 ('b.png') has 2",
    ),
    Kind("repeated image ids", image(id=11), "the id of every image must be unique; image 11"),
    Kind(
        "repeated category ids",
        category(id=7),
        "the id of every category must be unique; category 7 ('cat') has 7; category 7 ('dog')",
    ),
    Kind("ids as text", annotation(id="1"), "id of every annotation must be a whole"),
    Kind("ids as fractions", image(id=10.0), "id of every image must be a whole number"),
    Kind("ids as booleans", category(id=True), "id of every category must be a whole number"),
    Kind("ids beyond 64 bits", annotation(id=2**64), "id of every annotation must be a whole"),
    Kind(
        "no id",
        annotation(id=...),
        "annotations[0] without a whole number as id, nothing",
    ),
    Kind(
        "an undeclared image",
        annotation(image_id=5),
        "image_id of every annotation must be an id in images; annotation 0 of image_id 5 has 5",
    ),
    Kind(
        "image_id as text",
        annotation(image_id="10"),
        "image_id of every annotation must",
    ),
    Kind(
        "an undeclared category",
        annotation(category_id=5),
        f"category_id of every annotation must be an id in categories; {A0} has 5",
    ),
    Kind("categories without a name", category(name=...), "name of every category must be text"),
    Kind("categories with a blank name", category(name=" "), "name of every category must be text"),
    Kind(
        "two used categories with one name",
        category(name="dog"),
        "the name of every category must be unique; category 0 ('dog') has 'dog'; category 7",
    ),
    Kind("no width", image(width=...), f"width {SIDE} nothing"),
    Kind("a width as text", image(width="20"), f"width {SIDE} '20'"),
    Kind("a height of zero", image(height=0), f"height {SIDE} 0"),
    Kind("a negative height", image(height=-10), f"height {SIDE} -10"),
    Kind("a height that is not a number", image(height=NAN), f"height {SIDE} nan"),
    Kind("an enormous width", image(width=10**30), f"width {SIDE} 1000"),
    Kind(
        "more pixels than Pillow reads",
        image(width=60_000, height=60_000),
        "pictures must have at most 178956970 pixels, …decompression bomb",
    ),
    Kind(
        "repeated file names",
        image(file_name="./b.png"),
        "the file_name of every image must be unique; image 10 ('./b.png')",
    ),
    Kind("no file name", image(file_name=...), "file_name of every image must be text; image 10"),
    Kind("a file name that leaves the folder", image(file_name="../a.png"), INSIDE),
    Kind(
        "a file name that is too long",
        image(file_name="a" * 5000 + "/a.png"),
        "every file_name must be a picture in …; image 10 ('aaa",
    ),
    Kind("an absolute file name", image(file_name="/etc/passwd"), INSIDE),
    Kind("a file name with NUL", image(file_name="a\0.png"), INSIDE),
    Kind("half a surrogate pair as a file name", image(file_name="\ud800"), INSIDE),
    Kind("no iscrowd", annotation(iscrowd=...), "iscrowd of every annotation must be 0 or 1"),
    Kind(
        "iscrowd 2",
        annotation(iscrowd=2),
        f"iscrowd of every annotation must be … 1; {A0} has 2",
    ),
    Kind("iscrowd as text", annotation(iscrowd="0"), "iscrowd of every annotation must be 0 or 1"),
    Kind("ignore", annotation(ignore=1), "ignore of every annotation must be 0: COCO's scoring"),
    Kind(
        "only crowd regions",
        lambda coco, folder: [item.update(iscrowd=1) for item in coco["annotations"]] and None,
        f"at least one object must not be a crowd region …to 0); {A0} has 1; {A1} has 1",
    ),
    Kind("no area", annotation(area=...), f"area of every annotation must be a number …; {A0}"),
    Kind("a negative area", annotation(area=-1), "area of every annotation must be a number of at"),
    Kind("a non-finite area", annotation(area=NAN), "area of every annotation must be a"),
    Kind("an enormous area", annotation(area=10**400), "area of every annotation must be a number"),
]
BOXES = [
    Kind("no bbox", annotation(bbox=...), f"{BOX}; {A0} has nothing"),
    Kind("a bbox of three numbers", annotation(bbox=[1, 2, 3]), f"{BOX}; {A0} has [1, 2, 3]"),
    Kind("a bbox of text", annotation(bbox=["1", 2, 3, 4]), f"{BOX}; {A0} has ['1', 2, 3, 4]"),
    Kind("a non-finite bbox", annotation(bbox=[1, 2, 3, INF]), f"{BOX}; {A0}"),
    Kind("a bbox of negative size", annotation(bbox=[8, 8, -6, -6]), f"{BOX}; {A0}"),
    Kind(
        "bboxes as two corners",
        all_boxes(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]),
        f"{BOX_KIND}, not two corners x1, y1, x2, y2; {A0} has [2, 2, 8, 8]",
    ),
    Kind(
        "bboxes in fractions",
        all_boxes(lambda b: [v / 20 for v in b]),
        f"{BOX_KIND}, not in fractions of the picture; {A0}",
    ),
    Kind(
        "bboxes as centre and size",
        all_boxes(lambda b: [b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]]),
        f"{BOX_KIND}, not the centre, width and height; {A0} has [5.0, 5.0, 6, 6]",
    ),
    Kind(
        "bboxes with y first",
        all_boxes(lambda b: [b[1], b[0], b[3], b[2]]),
        f"{BOX_KIND}, not y, x, height, width; {A1} has [0, 1, 16, 2]",
    ),
    Kind(
        "bboxes of a larger picture",
        all_boxes(lambda b: [4 * v for v in b]),
        f"{BOX_KIND}, most of these reach far out of the picture; {A0} has [8, 8, 24, 24]",
    ),
    Kind(
        "bboxes without area",
        all_boxes(lambda b: [*b[:2], 0, 0]),
        f"{BOX_KIND}, around the segmentation: most of these overlap it little; {A0}",
    ),
    Kind(
        "run lengths by row instead of by column",
        lambda coco, folder: coco.update(annotations=[by_rows(coco["annotations"][1])]),
        f"{BOX_KIND}, around the segmentation: most of these overlap it little; {A1}",
    ),
    Kind(
        "a bbox away from its mask",
        annotation(bbox=[14, 2, 3, 3]),
        f"{BOX_KIND}, around the segmentation; {A0} has [14, 2, 3, 3]",
    ),
]
MASKS = [
    Kind(
        "boxes without masks",
        polygons([]),
        "every annotation must have a segmentation, boxes alone",
    ),
    Kind("no segmentation", polygons(...), "segmentation of every annotation must be polygons"),
    Kind("`[[]]`", polygons([[]]), POLYGON + " has [[]]"),
    Kind("a polygon of one point", polygons([[2, 2]]), POLYGON),
    Kind("a polygon of two points", polygons([[2, 2, 8, 8]]), POLYGON),
    Kind("a valid polygon and one of two points", polygons([SQUARE, [2, 2, 8, 8]]), POLYGON),
    Kind("a flat list", polygons(SQUARE), POLYGON),
    Kind("points as pairs", polygons([[2, 2], [8, 2], [8, 8]]), POLYGON),
    Kind("points as pairs in a polygon", polygons([[[2, 2], [8, 2], [8, 8]]]), POLYGON),
    Kind("points as pairs in a longer polygon", polygons([[[2, 2], [8, 2]] * 3]), POLYGON),
    Kind("an odd number of coordinates", polygons([[*SQUARE, 3]]), POLYGON),
    Kind("coordinates as text", polygons([[str(v) for v in SQUARE]]), POLYGON),
    Kind("coordinates as booleans", polygons([[*SQUARE, True, False]]), POLYGON),
    Kind("a list of run lengths", polygons([{"size": [10, 20], "counts": [200]}]), POLYGON),
    Kind("non-finite coordinates", polygons([[*SQUARE, NAN, 1]]), f"{FINITE}; {A0}"),
    Kind("enormous coordinates", polygons([[*SQUARE, 10**400, 1]]), f"{FINITE}; {A0}"),
    Kind("coordinates far outside", polygons([[*SQUARE, 1e8, 1]]), f"{FINITE}; {A0}"),
    Kind(
        "run lengths of another size",
        runs([200], (10, 20)),
        f"the size of run lengths must be height, width of the picture; {A1}",
    ),
    Kind(
        "run lengths with height and width exchanged",
        runs([16, 32, 144], (12, 16)),
        f"height, width of the picture: height and width are exchanged; {A1}",
    ),
    Kind("run lengths without a size", runs([192], ()), "run lengths must be {"),
    Kind("run lengths with a size as text", runs([192], ("16", "12")), "run lengths must be {"),
    Kind("run lengths as a number", runs(192), "run lengths must be {"),
    Kind("too few run lengths", runs([16, 32]), f"{LENGTHS}; {A1}"),
    Kind("too many run lengths", runs([16, 32, 145]), f"{LENGTHS}; {A1}"),
    Kind("negative run lengths", runs([200, -8]), f"{LENGTHS}; {A1}"),
    Kind("fractional run lengths", runs([16.0, 32, 144]), f"{LENGTHS}; {A1}"),
    Kind("enormous run lengths", runs([2**32, 192 - 2**32]), f"{LENGTHS}; {A1}"),
    Kind("no run lengths", runs([]), f"{LENGTHS}; {A1}"),
    Kind("an empty string of run lengths", runs(""), f"{LENGTHS}; {A1}"),
    Kind("a truncated string of run lengths", runs("`0P1`"), f"{LENGTHS}; {A1}"),
    Kind("another string of run lengths", runs("`0P1a4"), f"{LENGTHS}; {A1}"),
    Kind("text as run lengths", runs("run lengths"), f"{LENGTHS}; {A1}"),
    Kind("a string of run lengths beyond ASCII", runs("`0P1\u00e4"), f"{LENGTHS}; {A1}"),
    Kind("an unterminated number in run lengths", runs("o" * 50 + "0"), f"{LENGTHS}; {A1}"),
    Kind("run lengths that cover nothing", runs([192]), f"run lengths must cover …; {A1}"),
]
READABLE = "pictures must be readable and have the width and height of their records; image 10"
PICTURES = [
    Kind(
        "a missing picture",
        picture(lambda path: path.unlink()),
        "every file_name must be a picture in …; image 10 ('a.png')",
    ),
    Kind(
        "a file name in another case",
        image(file_name="A.PNG"),
        "every file_name must be a picture in …; image 10 ('A.PNG'), there is 'a.png'",
    ),
    Kind(
        "a folder as a picture",
        picture(lambda path: (path.unlink(), path.mkdir())),
        "every file_name must be a picture in",
    ),
    Kind(
        "a file that is not a picture",
        picture(lambda path: path.write_text("hello")),
        f"{READABLE} ('a.png'): …a.png must be a picture that Pillow reads",
    ),
    Kind("an empty picture", picture(lambda path: path.write_bytes(b"")), READABLE),
    Kind(
        "a decompression bomb",
        picture(bomb),
        f"{READABLE} ('a.png'): …a.png must be a picture …decompression bomb",
    ),
    Kind(
        "a picture of another size",
        image(width=21),
        f"{READABLE} ('a.png'): …a.png is 20 x 10 pixels …, the annotation file gives 21 x 10",
    ),
    Kind(
        "width and height exchanged",
        exchanged_sizes,
        f"{READABLE} … gives 10 x 20: width and height are exchanged",
    ),
    Kind(
        "the size before EXIF rotation",
        turned_by_exif,
        f"{READABLE} … gives 20 x 10, its size before EXIF turns it: give the size as seen if",
    ),
]
GROUPS = {
    "the file": FILE,
    "records": RECORDS,
    "boxes": BOXES,
    "masks": MASKS,
    "pictures": PICTURES,
}


def table() -> str:
    lines = ["| kind | message | test |", "|---|---|---|"]
    for group, kinds in GROUPS.items():
        lines.append(f"| **{group}** | | |")
        for kind in kinds:
            lines.append(f"| {kind.name} | {kind.message} | `test_coco_check.py` |")
    return "\n".join(lines)


def page() -> str:
    """DATA.md with the current table."""
    before, rest = DATA_PAGE.read_text("utf-8").split(MARKS[0])
    return f"{before}{MARKS[0]}\n\n{table()}\n\n{MARKS[1]}{rest.split(MARKS[1])[1]}"


if __name__ == "__main__":
    DATA_PAGE.write_text(page(), "utf-8")
