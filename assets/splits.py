"""Split files in CoOp's form: lists train, val and test of [picture, label, class name].

Pictures are relative paths in the picture folder; labels run from 0.
"""
import contextlib
import json
import secrets

from assets import datasets, files


def read(path):
    """A split file in CoOp's form, {"train": [[picture, label, class name], ...], "val", "test"}.

    Returns (class names in label order, {"train": items, "val": ..., "test": ...}, other keys,
    which are ignored). ValueError for anything wrong, with list and position of what is at fault.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path}: not a JSON file ({problem})") from None
    names, seen, parts = {}, {}, {"train": [], "val": [], "test": []}
    if not isinstance(content, dict) or not all(isinstance(content.get(p), list) for p in parts):
        raise ValueError(f"{path}: expected an object with the lists train, val and test")
    for part, items in parts.items():
        for i, entry in enumerate(content[part]):
            try:
                items.append(read_entry(entry, names, seen, f"{part}[{i}]"))
            except ValueError as problem:
                here = f"{path.name}: {part}[{i}] {str(entry)[:120]}"
                raise ValueError(f"{here}: {problem}") from None
    if not parts["train"]:
        raise ValueError(f"{path}: the list train is empty")
    present = {label for _, label in parts["train"]}
    first_gap = next(k for k in range(len(present) + 1) if k not in present)
    for part, items in parts.items():
        for i, (_, label) in enumerate(items):
            if label not in present or label > first_gap:
                gap = min(label, first_gap) if label in present else label
                raise ValueError(f"{path.name}: {part}[{i}] {content[part][i]}: no entry of train "
                                 f"has label {gap}; labels run from 0 without a gap, each with a "
                                 "training picture")
    return [names[k] for k in sorted(names)], parts, sorted(content.keys() - parts.keys())


def read_entry(entry, names, seen, here):
    """[picture, label, class name] -> item. names and seen hold what stood before it."""
    if not isinstance(entry, list) or [type(value) for value in entry] != [str, int, str]:
        raise ValueError("expected [picture, label, class name] as a string, an integer and "
                         "a string")
    picture, label, name = entry
    if files.escapes(picture):
        raise ValueError("the picture must be a relative path with '/' inside the picture folder, "
                         "without './' or '//'")
    if picture in seen:
        raise ValueError(f"the picture stands in {seen[picture]} already")
    if label < 0 or datasets.unreadable(name):
        raise ValueError("expected a label from 0 and a class name")
    if names.setdefault(label, name) != name:
        raise ValueError(f"label {label} was {names[label]!r} before; a label has one name")
    seen[picture] = here
    return picture, label


def text(classnames, parts):
    """The content of a split file."""
    content = {part: [[name, label, classnames[label]] for name, label in items]
               for part, items in parts.items()}
    return json.dumps(content, indent=4)


def save(path, classnames, parts):
    """A split made here, under our own name; on a read-only disk it is made again next time."""
    with contextlib.suppress(OSError, ValueError):
        # several processes may make the same split at once
        files.write(path, text(classnames, parts), part=secrets.token_hex(4))
