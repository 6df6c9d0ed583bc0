# Every target is one line that calls a script; without make, call the script.
.PHONY: setup lab test check soak bench proto
setup: ; @scripts/setup
lab: ; @scripts/lab
test: ; @scripts/test
check: ; @scripts/check
soak: ; @scripts/soak
bench: ; @scripts/bench
proto: ; @scripts/proto
