# Completion of devctl for bash. `devctl completion bash` prints it; docs/completion.md says where it goes.

_devctl() {
    local line kind= program=${1/#\~\//$HOME/}
    COMPREPLY=()
    # the first line says how to go on, each other is a candidate
    while IFS= read -r line; do
        if [[ -z $kind ]]; then kind=$line; else COMPREPLY+=("$line"); fi
    done < <(_DEVCTL_COMPLETE=complete_bash _DEVCTL_LINE="${COMP_LINE:0:COMP_POINT}" \
        _DEVCTL_BREAKS="$COMP_WORDBREAKS" "$program" 2>/dev/null)
    case $kind in
        words) ;;
        open) compopt -o nospace 2>/dev/null ;;
        folders) compopt -o dirnames 2>/dev/null ;;
        *) compopt -o default 2>/dev/null ;;
    esac
    return 0
}

complete -F _devctl devctl
