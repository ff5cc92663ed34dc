"""Scripts by which a shell completes verbs, recipes and file names behind `catlip`."""

from collections.abc import Iterable, Mapping

from catlip.errors import UsageError

BASH = """_catlip() {{
    local word=${{COMP_WORDS[COMP_CWORD]}}
    if [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W "{verbs} --help --version --completion" -- "$word"))
        return
    fi
    COMPREPLY=()
    case "${{COMP_WORDS[1]}}:$COMP_CWORD" in
{cases}
    esac
    case "$word" in
        -*) COMPREPLY=($(compgen -W "--help --json --quiet" -- "$word")) ;;
        *) COMPREPLY+=($(compgen -f -- "$word")) ;;
    esac
}}
complete -o filenames -F _catlip catlip"""
CASE = '        {verb}:2) COMPREPLY=($(compgen -W "{words}" -- "$word")) ;;'
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"
FISH = """complete -c catlip -n __fish_use_subcommand -f -a "{verbs}"
{cases}
complete -c catlip -l help -l json -l quiet"""
FISH_CASE = 'complete -c catlip -n "__fish_seen_subcommand_from {verb}" -a "{words}"'


def script(shell: list[str], verbs: Iterable[str], recipes: Mapping[str, Iterable[str]]) -> str:
    """The script for a shell: bash, zsh or fish. Raises UsageError for another one."""
    if shell not in (["bash"], ["zsh"], ["fish"]):
        raise UsageError("--completion bash, --completion zsh or --completion fish")
    words = {verb: " ".join(names) for verb, names in recipes.items()}
    words |= {"plan": words["pretrain"], "bench": "data"}
    each = FISH_CASE if shell == ["fish"] else CASE
    names = " ".join(dict.fromkeys(verb.split()[0] for verb in verbs))
    text = (FISH if shell == ["fish"] else BASH).format(
        verbs=names, cases="\n".join(each.format(verb=verb, words=known) for verb, known in words.items())
    )
    return ZSH + text if shell == ["zsh"] else text
