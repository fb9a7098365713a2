"""The parser of the command line: jsonargparse's, with help and errors in words."""

from __future__ import annotations

import re
from argparse import Action
from typing import NoReturn

from jsonargparse import ArgumentParser, DefaultHelpFormatter

#: What jsonargparse expects -> in words.
WORDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'list'>": "a list as [a, b]",
    "<class 'NoneType'>": "null",
}


class Help(DefaultHelpFormatter):
    """Help without the names of Python's classes, and without a default that says nothing."""

    def _expand_help(self, action: Action) -> str:
        text = re.sub(r"<class '(\w+)'>", lambda found: found[1].lower(), super()._expand_help(action))
        if "null" not in (action.help or ""):  # where it is a value to give, the help says what for
            text = re.sub(r"(, | \()default: null\)$", lambda found: ")" if found[1] == ", " else "", text)
        return "" if text == " (required)" else text  # of the list of commands


class Parser(ArgumentParser):
    """A parser whose commands are shown with their descriptions, and whose errors name options as they are typed."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, formatter_class=Help, **kwargs)

    def add_subcommands(self, **kwargs):
        about = f"{self.prog} COMMAND --help says more of each."
        return super().add_subcommands(title="commands", description=about, required=True, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        missing = re.fullmatch("the following arguments are required: (.*)", message)
        if missing is None:
            super().error(_in_words(message), ex)
        names, parser = [name.split(".") for name in missing[1].split(", ")], self
        for command in names[0][:-1]:
            parser = next(a.choices[command] for a in parser._actions if command in (a.choices or ()))
        by_name = {a.dest: "/".join(a.option_strings) or a.metavar or a.dest for a in parser._actions}
        options = ", ".join(by_name.get(name[-1], name[-1]) for name in names)
        ArgumentParser.error(parser, f"the following arguments are required: {options}", ex)


def add_command(commands, name: str, parser: Parser) -> Parser:
    """Add ``parser`` as a command, listed with its own description."""
    commands.add_subcommand(name, parser, help=parser.description)
    parser.prog = parser.prog.replace(" [options]", "")  # there are none before a command
    return parser


def _in_words(message: str) -> str:
    """What jsonargparse says of no command and of a value of the wrong type, in a line; any other message as it is."""
    if commands := re.fullmatch(r'expected "[\w.]+" to be one of {(.+)}, but it was not provided\.', message):
        return f"no command; expected one of {commands[1].replace(',', ', ')}"
    key = re.search(r'Parser key "([\w.]+)":\n', message)
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    kinds = re.findall(r"Expected a (.+?)(?:\. Got value: .*)?$", message, re.MULTILINE)
    if not (key and value and kinds):
        return message
    expected = [re.sub(r"^(?:typing\.)?Literal\[(.*)\]$", r"one of \1", WORDS.get(kind, kind)) for kind in kinds]
    return f"{key[1]}: expected {' or '.join(expected)}, got {value[1]}"
