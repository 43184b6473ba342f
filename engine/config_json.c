/*
 * config_json.c
 *	  Checked reading of single values from a configuration file.
 */
#include "config_json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "buffer.h"

/* The length of the word NaN, Infinity or -Infinity at p, or 0. */
static size_t
python_number(const char *p, size_t left)
{
	static const char *const words[] = {"NaN", "Infinity", "-Infinity"};

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (left >= strlen(words[i]) && !memcmp(p, words[i], strlen(words[i])))
			return strlen(words[i]);
	return 0;
}

/* Copies text, with quotes around Python's words for numbers that JSON lacks. */
static bool
quote_python_numbers(const char *text, size_t len, qwen_bytes *out)
{
	bool in_string = false;
	size_t begin = 0; /* of what is not copied yet */

	for (size_t i = 0; i < len; i++)
	{
		size_t word = in_string ? 0 : python_number(text + i, len - i);

		if (in_string && text[i] == '\\')
			i++;
		else if (text[i] == '"')
			in_string = !in_string;
		if (word == 0)
			continue;
		if (!qwen_bytes_append(out, text + begin, i - begin) || !qwen_bytes_append_str(out, "\"") ||
			!qwen_bytes_append(out, text + i, word) || !qwen_bytes_append_str(out, "\""))
			return false;
		begin = i + word;
		i = begin - 1;
	}
	return qwen_bytes_append(out, text + begin, len - begin);
}

qwen_status
qwen_config_load_json(const char *file, const char *text, size_t len, json_t **out, qwen_error *err)
{
	qwen_bytes quoted = {0};
	json_error_t where;
	char shown[160];

	if (!quote_python_numbers(text, len, &quoted))
	{
		qwen_bytes_free(&quoted);
		return qwen_fail_memory(err, len);
	}
	*out = json_loadb(quoted.data, quoted.len, 0, &where);
	qwen_bytes_free(&quoted);
	if (!*out)
	{
		qwen_config_printable(shown, sizeof(shown), where.text);
		qwen_fail(err, QWEN_CORRUPT, "%s is not valid JSON", file);
		return qwen_fail_detail(err, "Line %d, column %d: %s.", where.line, where.column, shown);
	}
	if (!json_is_object(*out))
		return qwen_fail(err, QWEN_CORRUPT, "%s does not hold a JSON object", file);
	return QWEN_OK;
}

/* A value of the wrong JSON type. */
static qwen_status
fail_type(const char *key, const char *wanted, qwen_error *err)
{
	return qwen_fail(err, QWEN_CORRUPT, "model configuration: %s must be %s", key, wanted);
}

qwen_status
qwen_config_number(const json_t *object, const char *key, double fallback, double min, double max, double *out,
				   qwen_error *err)
{
	const json_t *value = json_object_get(object, key);

	*out = fallback;
	if (!value || json_is_null(value))
		return QWEN_OK;
	if (!json_is_number(value))
		return fail_type(key, "a number", err);
	*out = json_number_value(value);
	if (*out >= min && *out <= max)
		return QWEN_OK;
	qwen_fail(err, QWEN_CORRUPT, "model configuration: %s is out of range", key);
	return qwen_fail_detail(err, "It is %g and must be from %g to %g.", *out, min, max);
}

qwen_status
qwen_config_int(const json_t *object, const char *key, int32_t fallback, int32_t min, int32_t max, int32_t *out,
				qwen_error *err)
{
	double value;
	qwen_status rc = qwen_config_number(object, key, fallback, min, max, &value, err);

	if (rc != QWEN_OK)
		return rc;
	if (value != floor(value))
		return fail_type(key, "a whole number", err);
	*out = (int32_t) value;
	return QWEN_OK;
}

qwen_status
qwen_config_bool(const json_t *object, const char *key, bool fallback, bool *out, qwen_error *err)
{
	const json_t *value = json_object_get(object, key);

	*out = fallback;
	if (!value || json_is_null(value))
		return QWEN_OK;
	if (!json_is_boolean(value))
		return fail_type(key, "true or false", err);
	*out = json_is_true(value);
	return QWEN_OK;
}

void
qwen_config_printable(char *out, size_t size, const char *text)
{
	size_t i;

	for (i = 0; i + 1 < size && text[i]; i++)
		out[i] = text[i] >= ' ' && text[i] <= '~' ? text[i] : '?';
	out[i] = '\0';
}
