# Completion of devctl for fish. `devctl completion fish` prints it; docs/completion.md says where it goes.

function __devctl_complete
    set -l words (commandline -opc)
    # as it is without quotes, of which one may still be open; in quotes below, so that it is a word though it be empty
    set -l typed (commandline -ct)
    set -l current (string unescape -- "$typed" 2>/dev/null; or string replace -r '^["\']' '' -- "$typed")
    set -l program $words[1]
    set -e words[1]
    set -l answer (_DEVCTL_COMPLETE=complete_fish $program $words "$current" 2>/dev/null)
    # the first line says how to go on, each other is a candidate
    set -e answer[1]
    test (count $answer) -gt 0; and printf '%s\n' $answer
end

complete -c devctl -f -a '(__devctl_complete)'
