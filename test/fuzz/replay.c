/*
 * replay.c
 *	  Feeds a fuzz target the files of a corpus, without a fuzzer.
 *
 *	  TARGET PATH...		PATH: a file, or a folder of files
 *
 * The inputs that once found something, and those that a target was started
 * with, are tests like any other: with this main they run everywhere, under
 * the sanitizers of any compiler.  An input that breaks the target ends the
 * program; its name is the last one printed.
 */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static long replayed;

static int
fail(const char *path)
{
	fprintf(stderr, "%s: %s\n", path, strerror(errno));
	return 1;
}

static int
replay_file(const char *path, size_t size)
{
	/* Exactly as long as the input, so that a read past its end is seen. */
	uint8_t *data = malloc(size ? size : 1);
	FILE *file = fopen(path, "rb");
	size_t got;

	if (!data || !file)
	{
		free(data);
		if (file)
			fclose(file);
		return fail(path);
	}
	got = fread(data, 1, size, file);
	fclose(file);
	if (got == size)
	{
		printf("%s\n", path);
		fflush(stdout);
		LLVMFuzzerTestOneInput(data, size);
		replayed++;
	}
	free(data);
	return got == size ? 0 : fail(path);
}

static int replay_path(const char *path);

static int
replay_folder(const char *path)
{
	struct dirent **entries;
	int n = scandir(path, &entries, NULL, alphasort);
	int status = 0;

	if (n < 0)
		return fail(path);
	for (int i = 0; i < n; i++)
	{
		char *inner = NULL;

		if (entries[i]->d_name[0] != '.')
		{
			if (asprintf(&inner, "%s/%s", path, entries[i]->d_name) < 0)
				abort();
			status |= replay_path(inner);
			free(inner);
		}
		free(entries[i]);
	}
	free(entries);
	return status;
}

static int
replay_path(const char *path)
{
	struct stat st;

	if (stat(path, &st) != 0)
		return fail(path);
	return S_ISDIR(st.st_mode) ? replay_folder(path) : replay_file(path, (size_t) st.st_size);
}

int
main(int argc, char **argv)
{
	int status = 0;

	for (int i = 1; i < argc; i++)
		status |= replay_path(argv[i]);
	printf("%ld inputs replayed\n", replayed);
	/* An empty corpus tests nothing, which must not look like success. */
	return replayed > 0 ? status : 1;
}
