/*
 * scratch.h
 *	  A folder for one test, with files written as the test says, gone afterwards.
 */
#ifndef QWEN_SCRATCH_H
#define QWEN_SCRATCH_H

#include <dirent.h>
#include <limits.h>
#include <unistd.h>

typedef struct scratch
{
	char dir[128];
} scratch;

static inline void
scratch_open(scratch *s)
{
	const char *tmp = getenv("TMPDIR");

	snprintf(s->dir, sizeof(s->dir), "%.90s/qwen-unit-XXXXXX", tmp ? tmp : "/tmp");
	assert_non_null(mkdtemp(s->dir));
}

static inline const char *
scratch_path(const scratch *s, const char *name, char *path)
{
	snprintf(path, PATH_MAX, "%s/%s", s->dir, name);
	return path;
}

static inline void
scratch_write(const scratch *s, const char *name, const void *data, size_t len)
{
	char path[PATH_MAX];
	FILE *f = fopen(scratch_path(s, name, path), "wb");

	assert_non_null(f);
	assert_int_equal(fwrite(data, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
}

/* A safetensors file with that header and data_bytes of data: byte i is i modulo 251. */
static inline void
scratch_safetensors(const scratch *s, const char *name, const char *header, size_t data_bytes)
{
	size_t len = strlen(header);
	unsigned char *file = malloc(8 + len + data_bytes);

	assert_non_null(file);
	for (int i = 0; i < 8; i++)
		file[i] = (unsigned char) ((uint64_t) len >> (8 * i));
	memcpy(file + 8, header, len);
	for (size_t i = 0; i < data_bytes; i++)
		file[8 + len + i] = (unsigned char) (i % 251);
	scratch_write(s, name, file, 8 + len + data_bytes);
	free(file);
}

static inline void
scratch_close(const scratch *s)
{
	char path[PATH_MAX];
	DIR *d = opendir(s->dir);
	struct dirent *e;

	assert_non_null(d);
	while ((e = readdir(d)) != NULL)
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			remove(scratch_path(s, e->d_name, path));
	closedir(d);
	assert_int_equal(rmdir(s->dir), 0);
}

#endif
