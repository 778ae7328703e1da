"""The command that asks a server about picture files: `atelier classify shirt.png bag.jpg`.

With `--out labels.parquet` about a whole folder or Parquet file of them: atelier/bulk/.
"""

import argparse
import sys
from pathlib import Path

from atelier.calls import DEFAULT_TARGET
from atelier.client import DEFAULT_TIMEOUT_S, Answer, Client, program_errors
from atelier.errors import MissingInputError, ProgramError, ResourceUnavailableError, UsageError
from atelier.program import can_print, report, run_program
from atelier.trusted_files import check_secret

BAR_WIDTH = 32
EIGHTHS = " ▏▎▍▌▋▊▉"


def main(arguments: list[str]) -> int:
    """Classifies each file. One that fails is reported, and the others go on; the exit code is the first failure's."""
    options = _parser().parse_args(arguments)
    if options.out or options.ray is not None:
        from atelier.bulk import run  # needs the extra `bulk`

        return run.main(options)
    options.timeout_s = DEFAULT_TIMEOUT_S if options.timeout_s is None else options.timeout_s
    if not options.files and not options.health:
        raise UsageError("NO_FILES", "there is no picture to classify", "name PNG, JPEG or WebP files")
    with connect(options) as client:
        if options.health:
            _check_health(client, options)
        exit_codes = [_exit_code_of(client, path, options) for path in options.files]
    return next(filter(None, exit_codes), 0)


def add_connection_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `connect` reads."""
    parser.add_argument(
        "--target",
        default=DEFAULT_TARGET,
        help="the server's address, or several: a:50051,b:50051 (default: %(default)s)",
    )
    parser.add_argument("--tls", action="store_true", help="speak TLS, and trust the system's authorities")
    parser.add_argument("--authority", type=Path, metavar="FILE", help="speak TLS, and trust FILE's certificates (PEM)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="send the token in FILE with every call")


def connect(options: argparse.Namespace) -> Client:
    """Returns a client as the flags say. Raises UsageError if they cannot be met."""
    try:
        if options.token_file:
            check_secret(options.token_file)
        token = options.token_file.read_text().strip() if options.token_file else ""
        return Client(options.target, tls=options.authority or options.tls, token=token)
    except ValueError as error:
        what, _, cure = str(error).partition(": ")
        word = "BAD_TARGET" if what.startswith("the target") else "BAD_ACCESS"
        raise UsageError(word, what, cure) from None
    except OSError as error:
        raise MissingInputError(
            "NO_FILE", f"{error.filename}: {error.strerror}", "check --authority and --token-file"
        ) from None


def reading_from(options: argparse.Namespace) -> dict[str, bool]:
    """Returns how `classify_pictures` is to take the pictures. Raises UsageError for flags that exclude each other."""
    if options.prepare and options.invert:
        what = "--prepare and --invert are both given, and --prepare decides itself what to invert"
        raise UsageError("BAD_PREPARE", what, "give one of them")
    prepare = not options.invert if options.prepare is None else options.prepare
    return {"prepare": prepare, "invert": options.invert}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="atelier classify", description="Classify pictures of garments.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="PNG, JPEG or WebP, 8 megapixels or more")
    add_connection_flags(parser)
    parser.add_argument(
        "--prepare",
        action=argparse.BooleanOptionalAction,
        help="take the background off, cut to the garment, and invert if it is the darker (default, but for --invert)",
    )
    parser.add_argument("--invert", action="store_true", help="only invert: the pictures are dark on light")
    parser.add_argument(
        "--top-k",
        type=int,
        choices=range(1, 11),
        default=3,
        metavar="K",
        help="classes per picture (default: %(default)s; with --out always the best one)",
    )
    parser.add_argument("--timeout-s", type=float, help=f"per request (default: {DEFAULT_TIMEOUT_S:g}, with --out 30)")
    parser.add_argument("--out", type=Path, help="label a folder or a Parquet file into this .parquet, .csv or .jsonl")
    parser.add_argument("--ray", metavar="ADDRESS", help="with --out: on this Ray cluster, such as auto")
    parser.add_argument("--health", action="store_true", help="only ask whether the server serves: exit 0 or 69")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def _check_health(client: Client, options: argparse.Namespace) -> None:
    with program_errors():
        if not client.is_serving(timeout_s=options.timeout_s):
            what = f"the server at {options.target} does not serve yet, or no more"
            raise ResourceUnavailableError("NOT_SERVING", what, "wait, or see its log")


def _exit_code_of(client: Client, path: Path, options: argparse.Namespace) -> int:
    """Classifies one file. Raises ProgramError NO_SERVER if there is nobody to ask about the others either."""
    try:
        _classify_file(client, path, options)
    except ProgramError as error:
        if error.word == "NO_SERVER":
            raise
        report(error)
        return error.exit_code
    return 0


def _classify_file(client: Client, path: Path, options: argparse.Namespace) -> None:
    """Sends one request per file: a large picture or a bad one does not delay or fail the others."""
    try:
        picture = path.read_bytes()
    except OSError as error:
        raise MissingInputError("NO_PICTURE", f"{path}: {error.strerror}", "name PNG, JPEG or WebP files") from None
    with program_errors(about=f"{path}: "):
        answer = client.classify_pictures(
            [picture], **reading_from(options), top_k=options.top_k, timeout_s=options.timeout_s
        )
    print(f"{path}{_preparation(answer)}")
    for prediction in answer.classifications[0]:
        print(f"  {prediction.name:<12} {prediction.probability:6.1%}  {_bar(prediction.probability)}".rstrip())
    if answer.light_pictures:
        print("  hint: the border is light, and the model knows black ones: try --prepare, or --invert")
    sys.stdout.flush()  # beside what is reported on stderr


def _preparation(answer: Answer) -> str:
    """Says in a few words what was done to the picture, if anything was."""
    if not answer.prepared:
        return ""
    y0, x0, y1, x1 = answer.prepared[0].box
    return f"  {'inverted, ' if answer.prepared[0].inverted else ''}{x1 - x0} x {y1 - y0} pixels at ({x0}, {y0})"


def _bar(share: float) -> str:
    """Returns blocks to an eighth of a column on a terminal, number signs elsewhere."""
    if not sys.stdout.isatty() or not can_print(EIGHTHS + "█"):
        return "#" * round(share * BAR_WIDTH)
    whole, eighths = divmod(round(share * BAR_WIDTH * 8), 8)
    return "█" * whole + EIGHTHS[eighths].strip()


if __name__ == "__main__":
    sys.exit(run_program(main, extras="bulk", packages=["grpcio", "pillow"]))
