/*
 * golden_text.h
 *	  The real tokenizers and the reference's answers for them, unpacked by
 *	  test/data/data.mk into the build folder that this test was built in.
 */
#ifndef QWEN_GOLDEN_TEXT_H
#define QWEN_GOLDEN_TEXT_H

#include <jansson.h>
#include <limits.h>
#include <unistd.h>

#include "engine/buffer.h"
#include "engine/tokenizer.h"

#define DEMO_MODEL "test/data/demo-model"

/* BUILD/unit/test_x -> BUILD/data/tokenizers/name */
static inline const char *
golden_path(const char *name, char *path)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	assert_true(n > 0);
	self[n] = '\0';
	for (int up = 0; up < 2; up++)
		*strrchr(self, '/') = '\0';
	assert_true(snprintf(path, PATH_MAX, "%.3000s/data/tokenizers/%s", self, name) < PATH_MAX);
	return path;
}

/* Calls fn with each line's object of a golden file; the number of lines. */
static inline int
golden_lines(const char *tokenizer, const char *file, void (*fn)(const json_t *row, void *arg), void *arg)
{
	char folder[PATH_MAX], path[PATH_MAX + 64], *line = NULL;
	size_t cap = 0;
	ssize_t len;
	int n = 0;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", golden_path(tokenizer, folder), file);
	f = fopen(path, "r");
	if (!f)
		fail_msg("%s is not there: test/data/data.mk unpacks it", path);
	while ((len = getline(&line, &cap, f)) >= 0)
	{
		json_t *row = json_loadb(line, (size_t) len, JSON_ALLOW_NUL, NULL);

		assert_non_null(row);
		fn(row, arg);
		json_decref(row);
		n++;
	}
	free(line);
	fclose(f);
	return n;
}

static inline void
assert_ids(const qwen_ids *got, const json_t *want, const char *about)
{
	bool same = got->len == json_array_size(want);

	for (size_t i = 0; same && i < got->len; i++)
		same = got->data[i] == json_integer_value(json_array_get(want, i));
	if (!same)
		fail_msg("other ids for \"%s\"", about);
}

#endif
