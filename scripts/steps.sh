# Sourced by scripts/check and scripts/soak: runs named steps one after the other, carries on after one that failed,
# and closes with a table of all of them. bash 3.2 is enough.

step_rows=()
failed_steps=()
failed_ends=()

# step "what it shows" COMMAND [ARGUMENT...]
step() {
    local name=$1 started=$SECONDS result=ok output
    shift
    output=$(mktemp)
    printf '\n=== %s\n' "$name"
    "$@" </dev/null 2>&1 | tee "$output" || result="FAILED (exit code $?)"
    if [[ $result != ok ]]; then
        failed_steps+=("$name")
        failed_ends+=("$(printf '=== the end of what "%s" printed' "$name"; echo; tail -n 25 "$output")")
    fi
    rm -f "$output"
    step_rows+=("$(printf '%-50s %6ds  %s' "$name" "$((SECONDS - started))" "$result")")
    printf -- '--- %s: %s, %d s\n' "$name" "$result" "$((SECONDS - started))"
}

# What failed steps printed last, the date, every step with its time, and the ones that failed. Its exit code is the run's.
print_steps() {
    if [[ ${#failed_ends[@]} -gt 0 ]]; then printf '\n%s\n' "${failed_ends[@]}"; fi
    printf '\n=== %s, %s, %s\n' "$1" "$(date -u '+%Y-%m-%d %H:%M UTC')" "$(.venv/bin/python --version 2>&1)"
    printf '%s\n' "${step_rows[@]}"
    printf '%-50s %6ds\n' "in all" "$SECONDS"
    if [[ ${#failed_steps[@]} -eq 0 ]]; then
        printf 'all steps passed\n'
        return 0
    fi
    printf 'FAILED: %s\n' "${failed_steps[@]}"
    return 1
}

# A number that differs from commit to commit and stays for one commit: where the drawn seeds of the simulator start.
commit_number() {
    local commit
    commit=$(git rev-parse HEAD 2>/dev/null) || commit=0
    printf '%d\n' "$((16#${commit:0:8}))"
}
