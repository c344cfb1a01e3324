"""Make the data of the model in the box: pictures with captions, questions and classes, as COCO and VQAv2 have them.

    python examples/box/make_data.py

Two sources: easy-VQA (shapes of one colour) and the emoji, drawn once by Twitter (to train on) and once by Google (to
be tested on), with labels and keywords from emojibase. All come from package registries, once, into ``.cache`` beside
this file. What calibration and evaluation need goes to ``data``, the training set to ``.cache/train``. From the same
archives come the same files. Needs Pillow, and ecoflap for reading images as it reads them.
"""

import json
import re
import tarfile
import unicodedata
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

from ecoflap.adapting import read_image

HERE = Path(__file__).parent
CACHE, DATA = HERE / ".cache", HERE / "data"
NPM, PYPI = "https://registry.npmjs.org", "https://files.pythonhosted.org/packages"
ARCHIVES = {
    f"{NPM}/emoji-datasource-twitter/-/emoji-datasource-twitter-16.0.0.tgz": (
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"
    ),
    f"{NPM}/emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz": (
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
    ),
    f"{NPM}/emojibase-data/-/emojibase-data-17.0.0.tgz": (
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"
    ),
    f"{PYPI}/32/e7/dbdd733ea110ff04c8b0b7ce7d49acce06f1dd18ed304d9f8f9b3f26c1a3/easy_vqa-1.0-py3-none-any.whl": (
        "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f"
    ),
}
STYLES = ("twitter", "google")
SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
LEAST = 8
"""Pictures of the training set that a keyword must be true of to be asked about."""
ASKED = 2
"""Keywords of one picture that are asked about outside the training set, and as many that are wrong."""
EASY_ASKED = 5
"""Questions of easy-VQA's ten or so a picture that ship, those for shape and colour among them."""
SHIPPED = {"calibration": (128, 128), "validation": (420, 180), "test": (560, 300)}
"""Pictures of emoji and of easy-VQA in what ships."""
GENDER = re.compile(
    r"\b(wo)?m[ae]n('s)?\b|\b(old |older )?(person|people|adult)\b|\b(boy|girl|child|prince|princess|mr|mrs|mx|santa)\b"
)


@dataclass(frozen=True)
class Question:
    """One question with its one answer; ``kind`` is its ``question_type``."""

    text: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Picture:
    """An image with all that is said and asked of it.

    :param number: Its ``image_id``, which names its file.
    :param source: ``twitter``, ``google`` or ``easy``.
    :param concept: Pictures of one concept are all in the training set or all outside.
    :param words: The keywords that are true of it.
    """

    number: int
    source: str
    concept: str
    png: bytes = field(repr=False)
    captions: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()

    @property
    def file(self) -> str:
        return f"{self.number:012d}.png"

    @property
    def label(self) -> str:
        return self.captions[0]


def share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone: what is drawn is the same on every machine."""
    return int.from_bytes(sha256(text.encode()).digest()[:6], "big") / 2**48


def archive(end: str) -> Path:
    """A file of a registry, downloaded once and checked against its known hash."""
    url = next(url for url in ARCHIVES if end in url)
    file = CACHE / url.rpartition("/")[2]
    if not file.exists():
        CACHE.mkdir(exist_ok=True)
        print(f"downloading {url}")
        with urllib.request.urlopen(url) as answer:
            file.write_bytes(answer.read())
    if sha256(file.read_bytes()).hexdigest() != ARCHIVES[url]:
        raise SystemExit(f"{file} is not the file that was published as {url}: delete it and run this again.")
    return file


def members(file: Path, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """Those files of a .tgz whose whole name matches."""
    with tarfile.open(file) as archive:
        found = (member for member in archive if wanted.fullmatch(member.name))
        return {member.name: archive.extractfile(member).read() for member in found}  # type: ignore[union-attr]


def plain(text: str) -> str:
    """Lower case, without accents and typographic quotes: what the tokenizer knows."""
    text = unicodedata.normalize("NFKD", text.replace("’", "'")).lower()
    return re.sub(r"\s+", " ", re.sub(r"[^a-z0-9 :,.'!?#*&<>+()-]", "", text)).strip()


def concept_of(label: str) -> str:
    """What a label shows whoever does it: man, woman or person running are one concept, and so are all families."""
    if label.startswith(("family", "kiss:", "couple with heart")):
        return "family"
    first = re.sub(r": facing right", "", label)
    return re.sub(r"[\s:,]+", " ", GENDER.sub("", first)).strip() or "person"


def emoji() -> Iterator[Picture]:
    """Each emoji in both styles, without questions; those of a lone skin tone are left out, for they are swatches."""
    base = members(archive("emojibase-data"), re.compile(r"package/en/(data|messages)\.json"))
    known = {entry["hexcode"]: entry for entry in json.loads(base["package/en/data.json"])}
    groups = {group["order"]: group["key"] for group in json.loads(base["package/en/messages.json"])["subgroups"]}
    for offset, style in enumerate(STYLES):
        wanted = re.compile(rf"package/(emoji\.json|img/{style}/64/.*\.png)")
        files = members(archive(f"emoji-datasource-{style}"), wanted)
        listed = sorted(json.loads(files["package/emoji.json"]), key=lambda entry: str(entry["unified"]))
        for number, entry in enumerate(listed):
            code = entry["unified"]
            about = known.get(code) or known[code.replace("-FE0F", "")]
            kind = groups[about["subgroup"]].replace("-", " ") if "subgroup" in about else ""
            if kind and kind != "skin tone":
                png = files[f"package/img/{style}/64/{entry['image']}"]
                yield described(10_000 * (1 + offset) + number, style, png, about, kind)


def described(number: int, style: str, png: bytes, about: Mapping[str, Any], kind: str) -> Picture:
    """Captions are the label, then the keywords as a phrase; of a flag the letters of its country are no keyword."""
    label = plain(about["label"])
    tags = [tag for tag in about.get("tags", ()) if not (kind == "country flag" and tag.isupper())]
    words = tuple(dict.fromkeys(filter(None, map(plain, tags))))
    captions = (label, ", ".join(words)) if words else (label,)
    questions = (Question("what is this?", label, "label"), Question("what kind is this?", kind, "kind"))
    return Picture(number, style, concept_of(label), png, captions, words, questions)


def easy() -> Iterator[Picture]:
    """easy-VQA's pictures with its own questions; a caption only where its questions give away shape and colour."""
    with zipfile.ZipFile(archive("easy_vqa")) as wheel:
        for offset, part in enumerate(("train", "test")):
            folder = f"easy_vqa/data/{part}"
            asked: dict[int, list[Question]] = {}
            for text, answer, image in json.loads(wheel.read(f"{folder}/questions.json")):
                asked.setdefault(image, []).append(Question(text, answer, easy_kind(answer)))
            for image, questions in sorted(asked.items()):
                png = wheel.read(f"{folder}/images/{image}.png")
                said = {question.kind: question.answer for question in questions}
                whole = "easy shape" in said and "easy colour" in said
                captions = (f"a {said['easy colour']} {said['easy shape']}",) if whole else ()
                number = 10_000 * (3 + offset) + image
                yield Picture(number, "easy", f"{part} {image}", png, captions, (), tuple(questions))


def easy_kind(answer: str) -> str:
    return f"easy {'shape' if answer in SHAPES else 'colour' if answer in COLOURS else 'yes/no'}"


def split_of(picture: Picture) -> str:
    """Emoji: by concept, and a concept of the training set in the other style. easy-VQA: a part of its training set."""
    if picture.source == "easy":
        part = picture.concept.partition(" ")[0]
        return "validation" if part == "train" and share(f"easy {picture.number}") < 0.05 else part
    drawn = share(f"concept {picture.concept}")
    held_out = "test" if drawn < 0.1 else "validation" if drawn < 0.2 else ""
    if picture.source == "twitter":
        return held_out or "train"
    if held_out:
        return "test" if held_out == "test" else ""
    return "validation" if share(f"style {picture.concept}") < 0.2 else "test"


def shortened(picture: Picture) -> Picture:
    """A picture of easy-VQA with fewer of its questions, in their order."""
    if picture.source != "easy":
        return picture
    first = sorted(picture.questions, key=lambda question: question.kind == "easy yes/no")[:EASY_ASKED]
    return replace(picture, questions=tuple(question for question in picture.questions if question in first))


def drawn(pictures: Sequence[Picture], of_emoji: int, of_easy: int) -> list[Picture]:
    """The parts that ship, in the order of their numbers."""
    groups = ([p for p in pictures if p.source != "easy"], [p for p in pictures if p.source == "easy"])
    chosen: list[Picture] = []
    for group, count in zip(groups, (of_emoji, of_easy), strict=True):
        chosen += sorted(group, key=lambda picture: share(f"ship {picture.number}"))[:count]
    return sorted(map(shortened, chosen), key=lambda picture: picture.number)


def with_keywords(pictures: Sequence[Picture], keywords: set[str], asked: int | None) -> list[Picture]:
    """Ask of each emoji whether it is about so many of its keywords, and about as many that are wrong.

    Each keyword is as often right as wrong in a split, so that the question alone gives nothing away.
    """
    random = Random("keywords")
    right: list[tuple[int, str]] = []
    for index, picture in enumerate(pictures):
        own = [word for word in picture.words if word in keywords]
        right += [(index, word) for word in (own if asked is None else random.sample(own, min(asked, len(own))))]
    pairs = shuffled_away(pictures, right, random)
    asks: dict[int, list[Question]] = {}
    for (index, word), wrong in pairs:
        for text, answer in ((word, "yes"), (wrong, "no")):
            asks.setdefault(index, []).append(Question(f"is this about {text}?", answer, "keyword"))
    return [replace(p, questions=(*p.questions, *asks.get(index, ()))) for index, p in enumerate(pictures)]


def shuffled_away(
    pictures: Sequence[Picture], right: Sequence[tuple[int, str]], random: Random
) -> list[tuple[tuple[int, str], str]]:
    """Each right pair with the keyword of another picture that is wrong here; the few left over are dropped."""
    wrong = [word for _, word in right]
    random.shuffle(wrong)

    def fits(place: int, word: str) -> bool:
        picture = pictures[right[place][0]]
        same = (wrong[other] for other in near[right[place][0]] if other != place)
        kind = next(q.answer for q in picture.questions if q.kind == "kind")
        return word not in picture.words and word not in f"{picture.label} {kind}".split() and word not in same

    near: dict[int, list[int]] = {}
    for place, (index, _) in enumerate(right):
        near.setdefault(index, []).append(place)
    for place in range(len(right)):
        for _ in range(200 * (not fits(place, wrong[place]))):
            other = random.randrange(len(right))
            if fits(place, wrong[other]) and fits(other, wrong[place]):
                wrong[place], wrong[other] = wrong[other], wrong[place]
                break
    kept = balanced([(right[place], wrong[place]) for place in range(len(right)) if fits(place, wrong[place])])
    return kept


def balanced(pairs: list[tuple[tuple[int, str], str]]) -> list[tuple[tuple[int, str], str]]:
    """Drop pairs until each keyword is as often right as wrong."""
    while True:
        more = Counter(word for (_, word), _ in pairs)
        more.subtract(wrong for _, wrong in pairs)
        uneven = next((pair for pair in pairs if more[pair[0][1]] > 0 or more[pair[1]] < 0), None)
        if uneven is None:
            return pairs
        pairs.remove(uneven)


def seen_or_not(picture: Picture, seen: set[str]) -> Picture:
    """Say so in each question's type; what an unseen emoji is called nobody can know, so it is not asked."""
    if picture.source == "easy":
        return picture
    known = picture.concept in seen
    questions = (q for q in picture.questions if known or q.kind != "label")
    word = "seen" if known else "unseen"
    return replace(picture, questions=tuple(replace(q, kind=f"emoji {q.kind} {word}") for q in questions))


def write(name: str, folder: Path, pictures: Iterable[Picture], classes: Sequence[str]) -> None:
    """Images, and the indexes of one split."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    questions, annotations, images, captions, shown = [], [], [], [], []
    for picture in pictures:
        image = read_image(picture.png)
        buffer = BytesIO()
        image.save(buffer, "PNG", optimize=True)
        (folder / "images" / picture.file).write_bytes(buffer.getvalue())
        images.append({"id": picture.number, "file_name": picture.file, "source": picture.source})
        for place, caption in enumerate(picture.captions):
            captions.append({"id": 10 * picture.number + place, "image_id": picture.number, "caption": caption})
        for place, question in enumerate(picture.questions):
            ids = {"question_id": 100 * picture.number + place, "image_id": picture.number}
            questions.append({**ids, "question": question.text})
            annotations.append({**ids, **annotated(question)})
        if picture.captions and picture.label in classes:
            number = classes.index(picture.label)
            shown.append({"file_name": picture.file, "label": number, "class": picture.label})
    info = {"description": f"The {name} part of easy-VQA 1.0 and of the emoji of Twitter and Google"}
    about = {"info": info, "data_subtype": name}
    captioned = {caption["image_id"] for caption in captions}
    some = [image for image in images if image["id"] in captioned]
    save(folder / f"{name}_questions.json", {**about, "images": images, "questions": questions})
    save(folder / f"{name}_annotations.json", {**about, "annotations": annotations})
    save(folder / f"{name}_captions.json", {"info": info, "images": some, "annotations": captions})
    emoji = [image for image in images if image["source"] in STYLES]
    drawn = {image["id"] for image in emoji}
    said = [caption for caption in captions if caption["image_id"] in drawn]
    save(folder / f"{name}_emoji.json", {"info": info, "images": emoji, "annotations": said})
    save(folder / f"{name}_classes.json", shown)
    print(
        f"{name}: {len(images)} images, {len(captions)} captions, {len(questions)} questions, {len(shown)} classified"
    )


def annotated(question: Question) -> dict[str, Any]:
    """As VQAv2 has it, with one answer in place of ten."""
    return {
        "question_type": question.kind,
        "answer_type": "yes/no" if question.answer in ("yes", "no") else "other",
        "multiple_choice_answer": question.answer,
        "answers": [{"answer": question.answer, "answer_confidence": "yes", "answer_id": 1}],
    }


def save(file: Path, content: Any) -> None:
    """JSON with a row a line, so that a change of one row is a change of one line."""
    if isinstance(content, list):
        text = rows(content) + "\n"
    else:
        parts = (f"{json.dumps(key)}: {rows(value)}" for key, value in content.items())
        text = "{\n" + ",\n".join(parts) + "\n}\n"
    file.write_bytes(text.encode())


def rows(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(value)
    return "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in value) + "\n]"


def main() -> None:
    """Everything, in about half a minute once the archives are there."""
    splits: dict[str, list[Picture]] = {"train": [], "validation": [], "test": []}
    for picture in [*emoji(), *easy()]:
        if split_of(picture):
            splits[split_of(picture)].append(picture)
    train = splits["train"]
    counted = Counter(word for picture in train for word in picture.words)
    keywords = {word for word, count in counted.items() if count >= LEAST}
    seen = {picture.concept for picture in train if picture.source != "easy"}
    classes = sorted({picture.label for picture in train if picture.source != "easy"})
    ready = {"train": with_keywords(train, keywords, None)}
    ready["calibration"] = drawn(ready["train"], *SHIPPED["calibration"])
    for name in ("validation", "test"):
        ready[name] = with_keywords(drawn(splits[name], *SHIPPED[name]), keywords, ASKED)
    DATA.mkdir(exist_ok=True)
    (DATA / "classes.txt").write_bytes(("\n".join(classes) + "\n").encode())
    for name, pictures in ready.items():
        folder = CACHE / "train" if name == "train" else DATA
        write(name, folder, (seen_or_not(picture, seen) for picture in pictures), classes)


if __name__ == "__main__":
    main()
