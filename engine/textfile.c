/*
 * textfile.c
 *	  Reading a whole small file of a model folder, and JSON from one.
 */
#include "textfile.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config_json.h"

/* Reads all of fd, whose size was st_size when it was opened. */
static qwen_status
read_all(int fd, const char *path, size_t size, qwen_bytes *out, qwen_error *err)
{
	size_t end = out->len + size;

	if (!qwen_bytes_reserve(out, size))
		return qwen_fail_memory(err, size);
	while (out->len < end)
	{
		ssize_t n = read(fd, out->data + out->len, end - out->len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return qwen_fail(err, QWEN_IO, "could not read \"%s\": %s", path, strerror(errno));
		if (n == 0)
			return qwen_fail(err, QWEN_IO, "\"%s\" has become shorter while it was read", path);
		out->len += (size_t) n;
	}
	out->data[out->len] = '\0';
	return QWEN_OK;
}

qwen_status
qwen_read_text_file(const char *dir, const char *name, size_t max, qwen_bytes *out, qwen_error *err)
{
	char path[PATH_MAX];
	struct stat st;
	qwen_status rc;
	int fd;

	if ((size_t) snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path))
		return qwen_fail(err, QWEN_INVALID, "the path of the model folder is too long");
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* not to hang on a pipe of that name */
	if (fd < 0)
		return qwen_fail(err, errno == ENOENT || errno == ENOTDIR ? QWEN_NOT_FOUND : QWEN_IO,
						 "could not open \"%s\": %s", path, strerror(errno));
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
		rc = qwen_fail(err, QWEN_IO, "\"%s\" is not a regular file", path);
	else if ((uint64_t) st.st_size > max)
	{
		qwen_fail(err, QWEN_TOO_LONG, "\"%s\" is too large", path);
		rc = qwen_fail_detail(err, "It has %lld bytes, at most %zu are read.", (long long) st.st_size, max);
	}
	else
		rc = read_all(fd, path, (size_t) st.st_size, out, err);
	close(fd);
	return rc;
}

qwen_status
qwen_parse_json_object(const char *file, const char *text, size_t len, json_t **out, qwen_error *err)
{
	char shown[JSON_ERROR_TEXT_LENGTH];
	json_error_t where;

	*out = json_loadb(text, len, JSON_REJECT_DUPLICATES, &where);
	if (!*out && json_error_code(&where) == json_error_numeric_overflow)
		*out = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &where);
	if (json_is_object(*out))
		return QWEN_OK;
	qwen_fail(err, QWEN_CORRUPT, "%s is not a valid JSON object", file);
	if (!*out)
	{
		qwen_config_printable(shown, sizeof(shown), where.text);
		qwen_fail_detail(err, "Line %d, column %d: %s.", where.line, where.column, shown);
	}
	json_decref(*out);
	*out = NULL;
	return err->status;
}
