"""What all scripts share: reading and writing files, options, and failures as one line."""
import argparse
import contextlib
import csv
import io
import math
import os
import re
import signal
import sys
from pathlib import Path, PurePosixPath

import torch
from filelock import FileLock  # torch itself depends on it

NOT_UTF8 = re.compile("[\ud800-\udfff]")            # how Python shows the bytes of such a file name
OF_A_RUN = ("result.json", "run.json", "split.json", "drawn.csv", "log.csv", "history.csv",
            "prompts.pt", "state.pt")               # what train.py leaves in a run's folder

# Files --------------------------------------------------------------------------------------------

def escapes(path):
    """True for a name that is not plainly inside its folder, or not in its one normal spelling.

    That is: empty, absolute, with '..', './', '//', a drive, a backslash, or bytes not in UTF-8.
    """
    pure = PurePosixPath(path)
    if str(pure) != path or pure.is_absolute() or not pure.parts or ".." in pure.parts:
        return True
    return bool(re.search(r"\\|\0|^[A-Za-z]:", path) or NOT_UTF8.search(path))


def read_lines(path):
    """Its lines, stripped, without the empty ones. ValueError where it is not in UTF-8."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a text file in UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def write(path, content, part="part"):
    """Write text or bytes to <path>.<part>, then rename it: the file is there whole or not at all.

    ValueError where path is there already and no plain file (a device, a folder); one line of
    OSError where the disk is full or read-only. Nothing half-written stays.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a plain file, so it is not replaced; choose another name")
    scratch = path.with_name(f"{path.name}.{part}")
    content = content if isinstance(content, bytes) else content.encode()
    try:
        scratch.write_bytes(content)
        os.replace(scratch, path)
    except BaseException as problem:
        with contextlib.suppress(OSError):
            scratch.unlink()
        if not isinstance(problem, OSError):
            raise
        raise OSError(f"{path}: can't be written ({problem.strerror or problem}); make room or "
                      "choose another place") from None


def check_output(option, path, endings=()):
    """Refuse, before any work, a file that can't be written at `path`, or is one of a run's.

    option   what the line begins with, as "--out"; endings: of the name, any where there are none
    """
    if endings and path.suffix.lower() not in endings:
        raise ValueError(f"{option} {path}: expected a name that ends in {', '.join(endings)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option} {path}: there is no folder {path.parent}: make it, or "
                                "choose another")
    if path.exists() and not path.is_file():
        raise ValueError(f"{option} {path} is no plain file: choose another name")
    if path.name in OF_A_RUN and (path.parent / "result.json").exists():
        raise ValueError(f"{option} {path} is what a run left there: choose another name")


def write_csv(path, rows):
    """Rows of words and numbers as a CSV file, through `write`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write(path, text.getvalue())


# Options and failures ---------------------------------------------------------------------------

class Parser(argparse.ArgumentParser):
    """argparse that refuses like everything else here: a ValueError of one line."""

    def error(self, message):
        raise ValueError(f"{message[:300]}; see --help")


def number(low, high=math.inf):
    """For type=: a finite number from low to high."""
    def convert(word):
        value = float(word)
        if not (low <= value <= high and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"must be from {low:g} to {high:g}, got {word[:40]}")
        return value
    convert.__name__ = "number"
    return convert


def whole(low, high=2 ** 31 - 1):
    """For type=: a whole number from low to high."""
    def convert(word):
        value = int(word)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, got {word[:40]}")
        return value
    convert.__name__ = "whole number"
    return convert


seed = whole(0, 2 ** 32 - 1)        # torch's generators see the lowest 32 bits only


def pick_device(name):
    """--device auto|cpu|cuda|mps -> torch.device; ValueError where the machine has none such.

    Of several GPUs each of torchrun's processes takes its own.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
               "cpu": True}
    if name == "auto":
        name = next(n for n in present if present[n])
    if not present[name]:
        raise ValueError(f"--device {name}: this machine has none; use auto or cpu")
    if name == "cuda":
        rank = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device(name)


def one_line(error):
    """What an exception says, in one line of bearable length."""
    text = re.split(r"\n\w+Error: ", str(error))[-1]     # a loader's worker: its traceback first
    line = " ".join(text.split()) or type(error).__name__
    return line if len(line) < 1000 else f"{line[:600]} ... {line[-300:]}"


def exit_code(job, interrupted="interrupted; nothing unfinished was kept"):
    """Run a script's job; a failure becomes one line.

    -> what the job answers, or 0; 2 where it is refused; 130 for Ctrl-C, 143 for SIGTERM
    """
    code = [130]

    def stop(*_):
        code[0] = 143
        raise KeyboardInterrupt

    if getattr(sys.stdout, "errors", "") == "strict":   # a console that lacks some letters
        sys.stdout.reconfigure(errors="backslashreplace")
    with contextlib.suppress(ValueError):               # only a main thread may set it
        signal.signal(signal.SIGTERM, stop)
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return job() or 0
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return code[0]


@contextlib.contextmanager
def alone(path):
    """Hold a file that several processes may want to make: the others wait, then find it there."""
    lock = path.with_name(f".{path.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield
        with contextlib.suppress(OSError):              # Windows keeps an open file
            lock.unlink()
