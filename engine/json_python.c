/*
 * json_python.c
 *	  JSON as the reference's template filter "tojson" writes it.
 *
 * The model has been trained on this spelling, so it must agree to the byte:
 * json.dumps(value, ensure_ascii=False) of Python.
 */
#include "json_python.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Only quotes, backslashes and control characters are escaped, the latter by a letter where JSON has one. */
static bool
put_string(const char *s, size_t len, qwen_bytes *out)
{
	static const char shorts[] = "\b\t\n\f\r\"\\", names[] = "btnfr\"\\";

	if (!qwen_bytes_append(out, "\"", 1))
		return false;
	for (size_t i = 0, plain; i < len; i += plain)
	{
		char escape[8];
		const char *known;

		for (plain = 0; i + plain < len; plain++)
		{
			unsigned char c = (unsigned char) s[i + plain];

			if (c < 0x20 || c == '"' || c == '\\')
				break;
		}
		if (!qwen_bytes_append(out, s + i, plain))
			return false;
		if (i + plain == len)
			break;
		known = s[i + plain] ? strchr(shorts, s[i + plain]) : NULL;
		if (known)
			snprintf(escape, sizeof(escape), "\\%c", names[known - shorts]);
		else
			snprintf(escape, sizeof(escape), "\\u%04x", (unsigned) (unsigned char) s[i + plain]);
		if (!qwen_bytes_append_str(out, escape))
			return false;
		plain++;
	}
	return qwen_bytes_append(out, "\"", 1);
}

/*
 * Python's repr of a float: the shortest digits that give the same value back, as a decimal fraction for exponents
 * from -4 to 15, else with an exponent of at least two digits.
 */
static bool
put_real(double value, qwen_bytes *out)
{
	char text[40], digits[24], buffer[64];
	int n = 0, exponent, precision = 0;
	char *e;

	do
		snprintf(text, sizeof(text), "%.*e", precision, value);
	while (strtod(text, NULL) != value && ++precision < 17);
	e = strchr(text, 'e');
	if (!e) /* not a finite number; JSON has none */
		return qwen_bytes_append_str(out, "null");
	exponent = atoi(e + 1);
	for (char *p = text; p < e; p++)
		if (*p >= '0' && *p <= '9')
			digits[n++] = *p;
	digits[n] = '\0';
	if (text[0] == '-' && !qwen_bytes_append(out, "-", 1))
		return false;
	if (exponent < -4 || exponent > 15)
		snprintf(buffer, sizeof(buffer), "%c%s%se%c%02d", digits[0], n > 1 ? "." : "", digits + 1,
				 exponent < 0 ? '-' : '+', abs(exponent));
	else if (exponent < 0)
		snprintf(buffer, sizeof(buffer), "0.%.*s%s", -exponent - 1, "000", digits);
	else if (n <= exponent + 1)
		snprintf(buffer, sizeof(buffer), "%s%.*s.0", digits, exponent + 1 - n, "000000000000000");
	else
		snprintf(buffer, sizeof(buffer), "%.*s.%s", exponent + 1, digits, digits + exponent + 1);
	return qwen_bytes_append_str(out, buffer);
}

static bool
put_integer(json_int_t value, qwen_bytes *out)
{
	char text[32];

	snprintf(text, sizeof(text), "%" JSON_INTEGER_FORMAT, value);
	return qwen_bytes_append_str(out, text);
}

static bool
put_array(const json_t *array, qwen_bytes *out)
{
	const json_t *v;
	size_t i;

	if (!qwen_bytes_append_str(out, "["))
		return false;
	json_array_foreach(array, i, v)
	{
		if ((i > 0 && !qwen_bytes_append_str(out, ", ")) || !qwen_json_python(v, out))
			return false;
	}
	return qwen_bytes_append_str(out, "]");
}

static bool
put_object(const json_t *object, qwen_bytes *out)
{
	/* The iteration functions want a pointer to something that they could change, and do not change it. */
	json_t *o = (json_t *) object;

	if (!qwen_bytes_append_str(out, "{"))
		return false;
	for (void *it = json_object_iter(o); it; it = json_object_iter_next(o, it))
	{
		const char *key = json_object_iter_key(it);

		if ((it != json_object_iter(o) && !qwen_bytes_append_str(out, ", ")) || !put_string(key, strlen(key), out) ||
			!qwen_bytes_append_str(out, ": ") || !qwen_json_python(json_object_iter_value(it), out))
			return false;
	}
	return qwen_bytes_append_str(out, "}");
}

bool
qwen_json_python(const json_t *value, qwen_bytes *out)
{
	switch (json_typeof(value))
	{
		case JSON_OBJECT:
			return put_object(value, out);
		case JSON_ARRAY:
			return put_array(value, out);
		case JSON_STRING:
			return put_string(json_string_value(value), json_string_length(value), out);
		case JSON_INTEGER:
			return put_integer(json_integer_value(value), out);
		case JSON_REAL:
			return put_real(json_real_value(value), out);
		case JSON_TRUE:
			return qwen_bytes_append_str(out, "true");
		case JSON_FALSE:
			return qwen_bytes_append_str(out, "false");
		case JSON_NULL:
			break;
	}
	return qwen_bytes_append_str(out, "null");
}
