# Completion of devctl for PowerShell. `devctl completion pwsh` prints it; docs/completion.md says where it goes.

Register-ArgumentCompleter -Native -CommandName devctl -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    # what is between the last whole word and the cursor is no part of the command's text
    $line = $commandAst.ToString().PadRight($cursorPosition - $commandAst.Extent.StartOffset)
    $line = $line.Substring(0, $cursorPosition - $commandAst.Extent.StartOffset)
    $Env:_DEVCTL_COMPLETE = "complete_pwsh"
    $Env:_DEVCTL_LINE = $line
    try { $answer = @(devctl 2>$null) }
    finally { $Env:_DEVCTL_COMPLETE = $null; $Env:_DEVCTL_LINE = $null }
    # the first line says how to go on, each other is a candidate
    $answer | Select-Object -Skip 1 | ForEach-Object {
        $word, $text = $_ -split "`t", 2
        if (-not $text) { $text = $word }
        [System.Management.Automation.CompletionResult]::new($word, $word, 'ParameterValue', $text)
    }
}
