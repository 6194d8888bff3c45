"""``xpnet completion``: shell completion scripts, generated from the parser so that they stay up to date."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field


@dataclass
class Flag:
    """One flag: its names, its help text, its values where they are few, and whether it takes one."""

    names: list[str]
    text: str
    choices: list[str] = field(default_factory=list)
    takes_value: bool = True


def commands_of(parser: argparse.ArgumentParser) -> dict[str, tuple[str, list[Flag], list[str]]]:
    """Map the name of each command to its help text, its flags, and the known values of its arguments."""
    from xpnet import data
    from xpnet.examples import NAMES

    known = {"dataset": list(data.names()), "name": list(NAMES), "model": ["mlp", "cnn"]}
    group = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    helps = {a.dest: a.help or "" for a in group._choices_actions}
    found = {}
    for name, sub in group.choices.items():
        flags, words = [], []
        for action in sub._actions:
            if action.option_strings:
                choices = [str(c) for c in action.choices or known.get(action.dest, [])]
                choices = choices or (["cpu", "cuda"] if action.dest == "device" else [])
                flags.append(Flag(list(action.option_strings), action.help or "", choices, action.nargs != 0))
            else:
                words += [str(c) for c in action.choices or known.get(action.dest, [])]
        found[name] = (helps.get(name, ""), flags, words)
    return found


def bash(parser: argparse.ArgumentParser) -> str:
    """Return a function for bash's `complete`; it completes file names where no values are known."""
    cases = []
    table = commands_of(parser)
    for name, (_, flags, words) in table.items():
        every = " ".join(n for f in flags for n in f.names)
        values = "".join(
            f'        {"|".join(f.names)}) COMPREPLY=($(compgen -W "{" ".join(f.choices)}" -- "$word")); return ;;\n'
            for f in flags
            if f.choices
        )
        files = "|".join(n for f in flags if f.takes_value and not f.choices for n in f.names)
        values += f'        {files}) COMPREPLY=($(compgen -f -- "$word")); return ;;\n' if files else ""
        cases.append(
            f"    {name})\n      case $before in\n{values}      esac\n"
            f'      if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "{every}" -- "$word"))\n'
            f'      else COMPREPLY=($(compgen -W "{" ".join(words)}" -- "$word") $(compgen -f -- "$word")); fi ;;\n'
        )
    return (
        "# completion of xpnet for bash\n"
        "_xpnet() {\n"
        "  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n"
        "  COMPREPLY=()\n"
        "  if (( COMP_CWORD == 1 )); then\n"
        f'    COMPREPLY=($(compgen -W "{" ".join(table)} --help --version" -- "$word")); return\n'
        "  fi\n"
        "  case ${COMP_WORDS[1]} in\n" + "".join(cases) + "  esac\n}\ncomplete -o filenames -F _xpnet xpnet\n"
    )


def zsh(parser: argparse.ArgumentParser) -> str:
    """Return a function for zsh's completion system, with descriptions."""
    table = commands_of(parser)
    heads = "\n".join(f"    {_quoted(f'{name}:{_escaped(text)}')}" for name, (text, _, _) in table.items())
    cases = []
    for name, (_, flags, words) in table.items():
        lines = []
        for f in flags:
            for option in f.names:
                value = ""
                if f.takes_value:
                    value = f":value:({' '.join(f.choices)})" if f.choices else ":value:_files"
                lines.append(_quoted(f"{option}[{_escaped(f.text)}]{value}"))
        both = f"*: :{{ compadd -- {' '.join(words)}; _files }}" if words else "*: :_files"
        lines.append(_quoted(both))
        cases.append(f"    {name}) _arguments " + " \\\n      ".join(lines) + " ;;\n")
    return (
        "#compdef xpnet\n_xpnet() {\n  local -a commands\n  commands=(\n" + heads + "\n  )\n"
        "  if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
        "  local command=$words[2]\n  shift words; (( CURRENT-- ))\n"
        "  case $command in\n" + "".join(cases) + '  esac\n}\nif [[ $funcstack[1] == _xpnet ]]; then _xpnet "$@"; else '
        "compdef _xpnet xpnet; fi\n"
    )


def fish(parser: argparse.ArgumentParser) -> str:
    """Return `complete` lines for fish, with descriptions."""
    lines = ["# completion of xpnet for fish"]
    for name, (text, flags, words) in commands_of(parser).items():
        lines.append(f"complete -c xpnet -n __fish_use_subcommand -f -a {name} -d {_quoted(text)}")
        there = f"-n {_quoted(f'__fish_seen_subcommand_from {name}')}"
        if words:
            lines.append(f"complete -c xpnet {there} -a {_quoted(' '.join(words))}")
        for f in flags:
            names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in f.names)
            value = ""
            if f.takes_value:
                value = f" -x -a {_quoted(' '.join(f.choices))}" if f.choices else " -r"
            lines.append(f"complete -c xpnet {there} {names}{value} -d {_quoted(f.text)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Put text into single quotes, for any of the three shells."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\N{RIGHT SINGLE QUOTATION MARK}") + "'"


def _escaped(text: str) -> str:
    """Replace the characters that _arguments and _describe treat as syntax."""
    return text.replace("[", "(").replace("]", ")").replace(":", ";")


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


def completion(args: argparse.Namespace) -> int:
    """Print the completion script of a shell."""
    from xpnet.cli.parser import make_parser

    print(SHELLS[args.shell](make_parser()), end="")
    return 0
