/*
 * checkpoint.c
 *	  The files of a safetensors checkpoint: one, or the shards of an index.
 *
 * The index is only checked: names in it must be plain file names, each
 * tensor must be in the file it names, and no tensor in two.  What is loaded
 * is what the files themselves contain.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#include "config_json.h"
#include "safetensors.h"

/* The reference's limit of a header. */
#define MAX_HEADER_BYTES 100000000u
/* Of an index: the largest real one has 4 MB. */
#define MAX_INDEX_BYTES (32u << 20)
#define MAX_FILES 4096

typedef struct checkpoint_file
{
	char *name; /* without the folder */
	int fd;
	uint64_t size;
	uint64_t data; /* where the data area begins */
} checkpoint_file;

struct qwen_checkpoint
{
	char *dir;
	checkpoint_file *files; /* [n_files] */
	int n_files;
	qwen_tensor_list tensors; /* of all files, sorted by name */
};

/* ---- reading ---- */

/* The file is shorter than when it was opened. */
static qwen_status
fail_short(const checkpoint_file *f, qwen_error *err)
{
	struct stat st = {0};

	fstat(f->fd, &st);
	qwen_fail(err, QWEN_IO, "\"%s\" ends too early", f->name);
	return qwen_fail_detail(err, "It had %llu bytes when it was opened and ends at byte %llu now.",
							(unsigned long long) f->size, (unsigned long long) st.st_size);
}

/* Reads exactly bytes bytes at an offset, in as many calls as it takes. */
static qwen_status
read_at(const checkpoint_file *f, uint64_t offset, void *dst, size_t bytes, qwen_error *err)
{
	size_t done = 0;

	while (done < bytes)
	{
		ssize_t n = pread(f->fd, (char *) dst + done, bytes - done, (off_t) (offset + done));

		if (n > 0)
			done += (size_t) n;
		else if (n == 0)
			return fail_short(f, err);
		else if (errno != EINTR)
		{
			qwen_fail(err, QWEN_IO, "could not read \"%s\": %s", f->name, strerror(errno));
			return qwen_fail_detail(err, "The failure is at byte %llu.", (unsigned long long) (offset + done));
		}
	}
	return QWEN_OK;
}

/* Opens dir/name; QWEN_NOT_FOUND when it does not exist. */
static qwen_status
open_file(const char *dir, const char *name, checkpoint_file *f, qwen_error *err)
{
	char path[PATH_MAX];
	struct stat st;

	if ((size_t) snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path))
		return qwen_fail(err, QWEN_INVALID, "the path of the model folder is too long");
	f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* not to hang on a pipe of that name */
	if (f->fd < 0)
		return qwen_fail(err, errno == ENOENT ? QWEN_NOT_FOUND : QWEN_IO, "could not open \"%s\": %s", path,
						 strerror(errno));
	if (fstat(f->fd, &st) != 0 || !S_ISREG(st.st_mode))
		return qwen_fail(err, QWEN_IO, "\"%s\" is not a regular file", path);
	f->size = (uint64_t) st.st_size;
	f->name = strdup(name);
	return f->name ? QWEN_OK : qwen_fail_memory(err, strlen(name) + 1);
}

/* Also of a file that was opened half. */
static void
close_file(checkpoint_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	free(f->name);
}

/* A file whose length contradicts its header. */
static qwen_status
fail_length(const checkpoint_file *f, const char *what, qwen_error *err)
{
	qwen_fail(err, QWEN_CORRUPT, "\"%s\" is not a valid safetensors file", f->name);
	return qwen_fail_detail(err, "The file has %llu bytes; %s.", (unsigned long long) f->size, what);
}

/* Reads and checks the header of an open file. */
static qwen_status
read_header(checkpoint_file *f, qwen_tensor_list *out, qwen_error *err)
{
	unsigned char raw[8];
	uint64_t len = 0;
	char *header;
	qwen_status rc;

	if (f->size < sizeof(raw))
		return fail_length(f, "it is too short for a header", err);
	if ((rc = read_at(f, 0, raw, sizeof(raw), err)) != QWEN_OK)
		return rc;
	for (int i = 0; i < 8; i++)
		len |= (uint64_t) raw[i] << (8 * i);
	if (len > MAX_HEADER_BYTES)
		return fail_length(f, "the length of its header is above 100000000", err);
	if (len > f->size - sizeof(raw))
		return fail_length(f, "its header would be longer than that", err);
	f->data = sizeof(raw) + len;
	header = malloc((size_t) len + 1);
	if (!header)
		return qwen_fail_memory(err, len);
	rc = read_at(f, sizeof(raw), header, (size_t) len, err);
	if (rc == QWEN_OK)
		rc = qwen_safetensors_parse(f->name, header, (size_t) len, f->size - f->data, out, err);
	free(header);
	return rc;
}

/* ---- a checkpoint of several files ---- */

/* Appends the tensors of `more`, taking them over. */
static qwen_status
take_tensors(qwen_checkpoint *c, qwen_tensor_list *more, int file, qwen_error *err)
{
	size_t n = c->tensors.n + more->n;
	qwen_tensor *items = realloc(c->tensors.items, (n ? n : 1) * sizeof(*items));

	if (!items)
		return qwen_fail_memory(err, n * sizeof(*items));
	for (size_t i = 0; i < more->n; i++)
	{
		more->items[i].file = file;
		items[c->tensors.n + i] = more->items[i];
	}
	c->tensors.items = items;
	c->tensors.n = c->tensors.cap = n;
	more->n = 0;
	return QWEN_OK;
}

/* Opens one more file of the checkpoint. */
static qwen_status
add_file(qwen_checkpoint *c, const char *name, qwen_error *err)
{
	checkpoint_file *files = realloc(c->files, (size_t) (c->n_files + 1) * sizeof(*files));
	qwen_tensor_list tensors = {0};
	checkpoint_file *f;
	qwen_status rc;

	if (!files)
		return qwen_fail_memory(err, sizeof(*files));
	c->files = files;
	f = &files[c->n_files++];
	*f = (checkpoint_file){.fd = -1};
	if ((rc = open_file(c->dir, name, f, err)) != QWEN_OK)
		return rc;
	rc = read_header(f, &tensors, err);
	if (rc == QWEN_OK)
		rc = take_tensors(c, &tensors, c->n_files - 1, err);
	qwen_tensor_list_free(&tensors);
	return rc;
}

static int
by_name(const void *a, const void *b)
{
	return strcmp(((const qwen_tensor *) a)->name, ((const qwen_tensor *) b)->name);
}

/* Sorts the tensors of all files; none may be in two. */
static qwen_status
merge_tensors(qwen_checkpoint *c, qwen_error *err)
{
	char shown[200];

	if (c->tensors.n)
		qsort(c->tensors.items, c->tensors.n, sizeof(qwen_tensor), by_name);
	for (size_t i = 1; i < c->tensors.n; i++)
	{
		const qwen_tensor *a = &c->tensors.items[i - 1], *b = &c->tensors.items[i];

		if (strcmp(a->name, b->name) != 0)
			continue;
		qwen_config_printable(shown, sizeof(shown), a->name);
		qwen_fail(err, QWEN_CORRUPT, "the checkpoint holds tensor \"%s\" twice", shown);
		return qwen_fail_detail(err, "It is in \"%s\" and in \"%s\".", c->files[a->file].name, c->files[b->file].name);
	}
	return QWEN_OK;
}

/* A name in the index must not lead out of the folder. */
static bool
plain_name(const char *name)
{
	return name && *name && !strchr(name, '/') && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
		   strlen(name) <= NAME_MAX;
}

/* The index of an open file, or -1. */
static int
find_file(const qwen_checkpoint *c, const char *name)
{
	for (int i = 0; i < c->n_files; i++)
		if (!strcmp(c->files[i].name, name))
			return i;
	return -1;
}

/* Opens each file that the weight map names, once. */
static qwen_status
open_shards(qwen_checkpoint *c, json_t *map, qwen_error *err)
{
	const char *tensor;
	json_t *value;

	json_object_foreach(map, tensor, value)
	{
		const char *name = json_string_value(value);
		qwen_status rc;

		if (!plain_name(name))
			return qwen_fail(err, QWEN_CORRUPT,
							 "model.safetensors.index.json names something that is not a plain file");
		if (find_file(c, name) >= 0)
			continue;
		if (c->n_files == MAX_FILES)
			return qwen_fail(err, QWEN_UNSUPPORTED, "model.safetensors.index.json names more than %d files", MAX_FILES);
		if ((rc = add_file(c, name, err)) != QWEN_OK)
			return rc;
	}
	return QWEN_OK;
}

/* Each listed tensor must be in the file that the map names. */
static qwen_status
check_map(const qwen_checkpoint *c, json_t *map, qwen_error *err)
{
	const char *name;
	json_t *value;

	json_object_foreach(map, name, value)
	{
		const qwen_tensor key = {.name = (char *) name};
		const qwen_tensor *t = bsearch(&key, c->tensors.items, c->tensors.n, sizeof(key), by_name);
		char shown[200];

		if (t && !strcmp(c->files[t->file].name, json_string_value(value)))
			continue;
		qwen_config_printable(shown, sizeof(shown), name);
		qwen_fail(err, QWEN_CORRUPT, "the checkpoint lacks tensor \"%s\"", shown);
		return qwen_fail_detail(err, "model.safetensors.index.json says that it is in \"%s\".",
								json_string_value(value));
	}
	return QWEN_OK;
}

/* Reads and parses the index; the caller owns *out. */
static qwen_status
read_index(const char *dir, json_t **out, qwen_error *err)
{
	checkpoint_file f = {.fd = -1};
	json_error_t where;
	char *text = NULL;
	qwen_status rc = open_file(dir, "model.safetensors.index.json", &f, err);

	if (rc == QWEN_OK && f.size > MAX_INDEX_BYTES)
		rc = qwen_fail(err, QWEN_TOO_LONG, "\"%s\" is longer than %u bytes", f.name, MAX_INDEX_BYTES);
	if (rc == QWEN_OK && !(text = malloc((size_t) f.size + 1)))
		rc = qwen_fail_memory(err, f.size);
	if (rc == QWEN_OK)
		rc = read_at(&f, 0, text, (size_t) f.size, err);
	if (rc == QWEN_OK && !(*out = json_loadb(text, (size_t) f.size, JSON_REJECT_DUPLICATES, &where)))
		rc = qwen_fail(err, QWEN_CORRUPT, "\"%s\" is not valid JSON (line %d)", f.name, where.line);
	free(text);
	close_file(&f);
	return rc;
}

/* The index says which files there are; the files say which tensors. */
static qwen_status
open_sharded(qwen_checkpoint *c, qwen_error *err)
{
	json_t *index = NULL;
	json_t *map;
	qwen_status rc = read_index(c->dir, &index, err);

	if (rc != QWEN_OK)
		return rc;
	map = json_object_get(index, "weight_map");
	if (!json_is_object(map) || json_object_size(map) == 0)
		rc = qwen_fail(err, QWEN_CORRUPT, "model.safetensors.index.json has no weight_map");
	if (rc == QWEN_OK)
		rc = open_shards(c, map, err);
	if (rc == QWEN_OK)
		rc = merge_tensors(c, err);
	if (rc == QWEN_OK)
		rc = check_map(c, map, err);
	json_decref(index);
	return rc;
}

/* ---- entry points ---- */

/* One file if there is one, as the reference prefers it, else the index. */
static qwen_status
open_files(qwen_checkpoint *c, qwen_error *err)
{
	qwen_status rc = add_file(c, "model.safetensors", err);

	if (rc == QWEN_NOT_FOUND)
	{
		c->n_files = 0; /* that entry holds neither name nor descriptor */
		rc = open_sharded(c, err);
		if (rc == QWEN_NOT_FOUND && c->n_files == 0)
		{
			qwen_fail(err, QWEN_NOT_FOUND, "the model folder has no weights");
			qwen_fail_detail(err, "Neither model.safetensors nor model.safetensors.index.json is in \"%s\".", c->dir);
			return qwen_fail_hint(err, "qwen.model must name a folder with a checkpoint in safetensors format.");
		}
	}
	return rc;
}

qwen_status
qwen_checkpoint_open(const char *model_dir, qwen_checkpoint **out, qwen_error *err)
{
	qwen_checkpoint *c = calloc(1, sizeof(*c));
	qwen_status rc;

	if (!c || !(c->dir = strdup(model_dir)))
	{
		free(c);
		return qwen_fail_memory(err, sizeof(*c));
	}
	rc = open_files(c, err);
	if (rc != QWEN_OK)
	{
		qwen_checkpoint_close(c);
		return rc;
	}
	*out = c;
	return QWEN_OK;
}

void
qwen_checkpoint_close(qwen_checkpoint *c)
{
	if (!c)
		return;
	for (int i = 0; i < c->n_files; i++)
		close_file(&c->files[i]);
	qwen_tensor_list_free(&c->tensors);
	free(c->files);
	free(c->dir);
	free(c);
}

const qwen_tensor_list *
qwen_checkpoint_tensors(const qwen_checkpoint *c)
{
	return &c->tensors;
}

qwen_status
qwen_checkpoint_read(const qwen_checkpoint *c, const qwen_tensor *t, uint64_t offset, void *dst, size_t bytes,
					 qwen_error *err)
{
	const checkpoint_file *f = &c->files[t->file];

	if (offset > t->end - t->begin || bytes > t->end - t->begin - offset)
		return qwen_fail(err, QWEN_INTERNAL, "read beyond the end of a tensor");
	return read_at(f, f->data + t->begin + offset, dst, bytes, err);
}

qwen_status
qwen_checkpoint_verify(const qwen_checkpoint *c, qwen_error *err)
{
	for (int i = 0; i < c->n_files; i++)
	{
		struct stat st;

		if (fstat(c->files[i].fd, &st) == 0 && (uint64_t) st.st_size == c->files[i].size)
			continue;
		qwen_fail(err, QWEN_IO, "\"%s\" changed while it was read", c->files[i].name);
		return qwen_fail_detail(err, "It had %llu bytes when it was opened.", (unsigned long long) c->files[i].size);
	}
	return QWEN_OK;
}
