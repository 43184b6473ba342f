# results.sh: what tests print, counted. To be sourced after run.sh.

# tap_line NAME COMMAND...: runs it, and says in TAP whether it went well.
tap_line()
{
	if "${@:2}"; then
		say "ok - $1"
	else
		say "not ok - $1"
	fi
}

# What a part printed, counted: "passed failed skipped". Knows TAP, prove's summary, pg_regress before it spoke TAP, and
# loudly.
count_results()
{
	awk '
		/^\*\*\*\* SKIPPED/                  { skipped++ }
		/^ok .*# SKIP/                         { skipped++; next }
		/^ok /                                 { passed++ }
		/^not ok /                             { failed++ }
		/^(test|    ) .* \.\.\. ok /           { passed++ }
		/^(test|    ) .* \.\.\. FAILED/        { failed++ }
		/^(# )?Files=/                         { sub(/.*Tests=/, ""); passed += $0 + 0 }
		/ skipped: /                           { skipped++ }
		match($0, /less [0-9]+ skipped/)       { n = substr($0, RSTART + 5) + 0; skipped += n; passed -= n }
		match($0, /^Failed [0-9]+\/[0-9]+ sub/) { n = substr($0, 8) + 0; failed += n; passed -= n }
		END                                    { print passed + 0, failed + 0, skipped + 0 }' "$1"
}
