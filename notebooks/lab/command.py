"""push-pull COMMAND ...: one name for the course's programs, each of which `python -m` starts as well.

push-pull serve MODEL ...      python -m servers
push-pull mirror URL COPY ...  python -m lab.mirror
push-pull follow MODEL URL     python -m lab.clients
push-pull doctor               python -m lab.doctor

What follows the command is that program's; only its module is loaded.
"""

import argparse
import importlib
import sys

from servers.arguments import Parser

COMMANDS = {  # where it is, what it does
    "serve": ("servers.__main__", "tell clients what changed, by one of four models"),
    "mirror": ("lab.mirror.__main__", "keep a copy identical to what a server of file updates has"),
    "follow": ("lab.clients.__main__", "print the updates of a server as they arrive"),
    "doctor": ("lab.doctor", "look whether this machine has all that the course needs"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command that is named; return its exit status."""
    width = max(map(len, COMMANDS))
    p = Parser(
        prog="push-pull",
        usage="push-pull COMMAND ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()),
    )
    p.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of these, each with a --help of its own:")
    p.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help=argparse.SUPPRESS)
    options = p.parse_args(arguments)
    module, _ = COMMANDS[options.command]
    status: int = importlib.import_module(module).main(options.rest, f"push-pull {options.command}")
    return status


if __name__ == "__main__":
    sys.exit(main())
