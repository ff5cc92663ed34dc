"""Scripts by which a shell completes verbs, their flags, recipes and file names behind `catlip`.

All that is completed stands in the script, which is written once: no Python runs while somebody presses TAB.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from catlip.errors import UsageError

COMMON = ("help", "json", "quiet")
BASH = """_catlip() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} flags=
    if [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W "{verbs} --help --version --completion" -- "$word"))
        return
    fi
    COMPREPLY=()
    case "${{COMP_WORDS[1]}}:$COMP_CWORD" in
{cases}
    esac
    case "${{COMP_WORDS[1]}}" in
{flags}
    esac
    case "$word" in
        -*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;
        *) COMPREPLY+=($(compgen -f -- "$word")) ;;
    esac
}}
complete -o filenames -F _catlip catlip"""
CASE = '        {verb}:2) COMPREPLY=($(compgen -W "{words}" -- "$word")) ;;'
FLAGS = '        {verb}) flags="{flags}" ;;'
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
FISH = """complete -c catlip -n __fish_use_subcommand -f -a "{verbs}"
{cases}
{flags}"""
FISH_CASE = 'complete -c catlip -n "__fish_seen_subcommand_from {verb}" -a "{words}"'
FISH_FLAGS = 'complete -c catlip -n "__fish_seen_subcommand_from {verb}" {flags}'


def script(shell: list[str], settings: Mapping[str, Any], recipes: Mapping[str, Any]) -> str:
    """The script for a shell: bash, zsh or fish. settings: verb -> its class of settings, or an instance; None of one
    that cannot be imported here. Raises UsageError for another shell."""
    if shell not in (["bash"], ["zsh"], ["fish"]):
        raise UsageError("--completion bash, --completion zsh or --completion fish")
    words = {verb: " ".join(names) for verb, names in recipes.items()}
    words |= {"plan": words["pretrain"], "bench": "data"}
    case, line, mark = (FISH_CASE, FISH_FLAGS, "-l ") if shell == ["fish"] else (CASE, FLAGS, "--")
    cases = [case.format(verb=verb, words=known) for verb, known in words.items()]
    flags = []
    for verb, kind in settings.items():
        more = {"recipe": verb in recipes, "objective": verb == "pretrain"}  # of no class of settings
        all_of_it = dict.fromkeys((*flag_names(kind), *(name for name, has in more.items() if has), *COMMON))
        flags.append(line.format(verb=verb.split()[0], flags=" ".join(f"{mark}{name}" for name in all_of_it)))
    names = " ".join(dict.fromkeys(verb.split()[0] for verb in settings))
    text = (FISH if shell == ["fish"] else BASH).format(verbs=names, cases="\n".join(cases), flags="\n".join(flags))
    return ZSH + text if shell == ["zsh"] else text


def settings_of(verbs: Mapping[str, Any]) -> dict[str, Any]:
    """Verb -> its class of settings; None where what it needs is not installed, as torch for catlip-labels."""
    found: dict[str, Any] = {}
    for name, verb in verbs.items():
        try:
            _, found[name] = verb.opened()
        except ImportError:
            found[name] = None
    return found


def flag_names(settings: Any) -> Iterator[str]:
    """What `--help` lists, without the dashes: the fields of a class of settings or an instance, and of those in it."""
    for field in fields(settings) if settings is not None else ():
        default = field.default if field.default_factory is MISSING else field.default_factory()
        value = default if isinstance(settings, type) else getattr(settings, field.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from flag_names(value)
        else:
            yield ("no-" if value is True else "") + field.name.replace("_", "-")
