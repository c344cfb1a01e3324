"""Writes and edits what a run leaves, with the seals that docs/run.md describes, computed here once more."""

import json
from hashlib import sha256


def write_sealed(path, content):
    """Write a JSON or YAML file with its seal; a text as it is, anything else as JSON."""
    body = content if isinstance(content, str) else json.dumps(content, indent=1)
    body, before, after = (
        (body.removesuffix("}").removesuffix("\n"), ',\n "seal": "', '"\n}\n')
        if path.suffix == ".json"
        else (body.removesuffix("\n"), "\n# seal: ", "\n")
    )
    lines = "".join(sha256(line).hexdigest()[:4] for line in body.encode().split(b"\n"))
    path.write_text(f"{body}{before}{sha256(body.encode()).hexdigest()}-{lines}{after}", encoding="utf-8")


def read_sealed(path):
    """Read a JSON file without its seal."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "seal"}


def edit_sealed(path, change):
    """Change a JSON file by a function of its value, and seal it anew."""
    content = read_sealed(path)
    write_sealed(path, change(content) or content)


def write_lines(path, lines):
    """Write JSON lines, each with a seal over the one before and its own text."""
    seal, text = "", ""
    for line in lines:
        body = json.dumps(line, ensure_ascii=False)[:-1]
        seal = sha256(f"{seal}\n{body}".encode()).hexdigest()
        text += f'{body}, "seal": "{seal}"}}\n'
    path.write_text(text, encoding="utf-8")


def read_lines(path):
    """Read JSON lines without their seals."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seal"} for line in lines]
