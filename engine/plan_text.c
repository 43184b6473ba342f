/*
 * plan_text.c
 *	  Sizes, limits and devices as people write them.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config_json.h"
#include "plan_internal.h"

#define GB 1e9
/* Above any machine, and far from where sums overflow. */
#define MAX_SIZE ((double) ((uint64_t) 1 << 60))

/* ---- sizes ---- */

/* Digits with at most one point between them; the length, 0 when it is no number. */
static size_t
decimal_length(const char *text, size_t len)
{
	size_t whole = 0, n;

	while (whole < len && text[whole] >= '0' && text[whole] <= '9')
		whole++;
	if (whole == 0 || whole == len || text[whole] != '.')
		return whole;
	for (n = whole + 1; n < len && text[n] >= '0' && text[n] <= '9';)
		n++;
	return n > whole + 1 ? n : 0;
}

/* The power of 1024 that a unit stands for, -1 when it is none. */
static int
unit_power(const char *text, size_t len)
{
	static const char units[] = "KMGTP";
	const char *unit;

	if (len == 0 || (len == 1 && (*text == 'B' || *text == 'b')))
		return 0;
	unit = strchr(units, *text >= 'a' ? *text - 'a' + 'A' : *text);
	if (!*text || !unit)
		return -1;
	text++;
	len--;
	if (len > 0 && *text == 'i')
	{
		text++;
		len--;
	}
	return len == 0 || (len == 1 && (*text == 'B' || *text == 'b')) ? (int) (unit - units) + 1 : -1;
}

bool
qwen_parse_size(const char *text, size_t len, uint64_t *out)
{
	size_t number = decimal_length(text, len), unit = number;
	char digits[32];
	double value;
	int power;

	if (number == 0 || number >= sizeof(digits))
		return false;
	while (unit < len && text[unit] == ' ')
		unit++;
	power = unit_power(text + unit, len - unit);
	if (power < 0)
		return false;
	memcpy(digits, text, number);
	digits[number] = '\0';
	value = ldexp(strtod(digits, NULL), 10 * power);
	if (value > MAX_SIZE)
		return false;
	*out = (uint64_t) value;
	return true;
}

/* ---- lists ---- */

/* A part of a list with commas, without the blanks around it. */
typedef struct word
{
	const char *text;
	size_t len;
} word;

static word
trim(const char *text, size_t len)
{
	while (len > 0 && *text == ' ')
	{
		text++;
		len--;
	}
	while (len > 0 && text[len - 1] == ' ')
		len--;
	return (word){text, len};
}

/* Takes the next part from *rest; false at the end. */
static bool
next_word(const char **rest, word *out)
{
	size_t len;

	if (!*rest)
		return false;
	len = strcspn(*rest, ",");
	*out = trim(*rest, len);
	*rest = (*rest)[len] ? *rest + len + 1 : NULL;
	return true;
}

/* Divides at the first `at`; false when there is none, and then all of it is *after. */
static bool
divide(word w, char at, word *before, word *after)
{
	const char *found = memchr(w.text, at, w.len);

	*after = w;
	if (!found)
		return false;
	*before = trim(w.text, (size_t) (found - w.text));
	*after = trim(found + 1, w.len - (size_t) (found - w.text) - 1);
	return true;
}

static void
show(char *out, size_t size, word w)
{
	char text[64];

	snprintf(text, sizeof(text), "%.*s", (int) (w.len < sizeof(text) ? w.len : sizeof(text) - 1), w.text);
	qwen_config_printable(out, size, text);
}

static qwen_status
refuse_list(const char *what, const char *why, word w, const char *hint, qwen_error *err)
{
	char shown[64];

	show(shown, sizeof(shown), w);
	qwen_fail(err, QWEN_INVALID, "invalid %s", what);
	qwen_fail_detail(err, "\"%s\" %s.", shown, why);
	return qwen_fail_hint(err, "%s", hint);
}

/* ---- limits ---- */

static const char limit_hint[] = "qwen.max_memory is a list of devices and sizes, such as cuda:0=20GiB,cpu=64GiB.";

qwen_status
qwen_plan_unknown_device(const qwen_plan_device *devices, int n, const char *setting, const char *name, size_t len,
						 qwen_error *err)
{
	char shown[64], known[256] = "";
	size_t used = 0;

	show(shown, sizeof(shown), (word){name, len});
	for (int i = 0; i < n && used + 24 < sizeof(known); i++)
		used += (size_t) snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", devices[i].name);
	qwen_fail(err, QWEN_INVALID, "unknown device \"%s\"", shown);
	qwen_fail_detail(err, "%s names it. There %s: %s.", setting, n == 1 ? "is" : "are", n ? known : "none");
	if (!strcmp(setting, "qwen.device_map"))
		return qwen_fail_hint(err, "qwen.device_map is auto, balanced, balanced_low_0, sequential, a device, or a JSON "
								   "map.");
	return qwen_fail_hint(err, "%s", limit_hint);
}

qwen_status
qwen_plan_parse_limits(const char *text, const qwen_plan_device *devices, int n, uint64_t *limit, qwen_error *err)
{
	const char *rest = text && text[strspn(text, " ")] ? text : NULL;
	word w, name, size;

	for (int i = 0; i < n; i++)
		limit[i] = UINT64_MAX;
	while (next_word(&rest, &w))
	{
		uint64_t bytes;
		int device;

		if (!divide(w, '=', &name, &size))
			return refuse_list("qwen.max_memory", "is not a device and a size", w, limit_hint, err);
		if (!qwen_parse_size(size.text, size.len, &bytes))
			return refuse_list("qwen.max_memory", "is not a size", size, limit_hint, err);
		device = qwen_plan_find_device(devices, n, name.text, name.len);
		if (device < 0)
			return qwen_plan_unknown_device(devices, n, "qwen.max_memory", name.text, name.len, err);
		if (limit[device] != UINT64_MAX)
			return refuse_list("qwen.max_memory", "is named twice", name, limit_hint, err);
		limit[device] = bytes;
	}
	return QWEN_OK;
}

/* ---- described devices ---- */

static const char describe_hint[] =
	"Devices are described as 4x22GiB, 2x80GiB,1x24GiB or cuda:0=22GiB,cpu=64GiB; \"@900\" behind a size is its "
	"bandwidth in GB/s.";

static qwen_status
refuse_description(const char *why, word w, qwen_error *err)
{
	return refuse_list("description of devices", why, w, describe_hint, err);
}

/* "cpu", "cpu:1", "cuda:0": a number has at most three digits and no zeros in front. */
static bool
parse_name(word w, qwen_device_kind *kind)
{
	static const char *const prefixes[] = {[QWEN_DEVICE_CPU] = "cpu", [QWEN_DEVICE_CUDA] = "cuda"};

	for (int k = 0; k < 2; k++)
	{
		size_t n = strlen(prefixes[k]), digits = 0;

		if (w.len < n || memcmp(w.text, prefixes[k], n) != 0)
			continue;
		*kind = (qwen_device_kind) k;
		if (w.len == n)
			return k == QWEN_DEVICE_CPU;
		if (w.text[n] != ':')
			return false;
		while (n + 1 + digits < w.len && w.text[n + 1 + digits] >= '0' && w.text[n + 1 + digits] <= '9')
			digits++;
		return digits > 0 && digits < 4 && n + 1 + digits == w.len && (digits == 1 || w.text[n + 1] != '0');
	}
	return false;
}

/* "22GiB" or "22GiB@900". */
static bool
parse_memory(word w, qwen_plan_device *d)
{
	word size = w, rate = {0};
	char digits[32];

	if (divide(w, '@', &size, &rate))
	{
		if (rate.len == 0 || rate.len >= sizeof(digits) || decimal_length(rate.text, rate.len) != rate.len)
			return false;
		memcpy(digits, rate.text, rate.len);
		digits[rate.len] = '\0';
		d->bandwidth = strtod(digits, NULL) * GB;
	}
	if (!qwen_parse_size(size.text, size.len, &d->total) || d->total == 0)
		return false;
	d->free = d->total;
	return true;
}

/* The number before "x" in "4x22GiB", 1 without; takes it away. */
static bool
parse_count(word *w, int *count)
{
	word before, after;

	*count = 1;
	if (!divide(*w, 'x', &before, &after))
		return true;
	*w = after;
	*count = 0;
	for (size_t i = 0; i < before.len; i++)
	{
		if (before.text[i] < '0' || before.text[i] > '9' || *count > QWEN_PLAN_MAX_DEVICES)
			return false;
		*count = *count * 10 + (before.text[i] - '0');
	}
	return *count > 0;
}

/* Adds one device; name NULL: the next CUDA device. */
static qwen_status
add_device(qwen_plan_device *devices, int *n, const word *name, const qwen_plan_device *like, word w, qwen_error *err)
{
	qwen_plan_device d = *like;
	int gpus = 0;

	if (*n == QWEN_PLAN_MAX_DEVICES)
		return refuse_description("is one device too many", w, err);
	for (int i = 0; i < *n; i++)
		gpus += devices[i].kind == QWEN_DEVICE_CUDA;
	if (name)
		snprintf(d.name, sizeof(d.name), "%.*s", (int) name->len, name->text);
	else
		snprintf(d.name, sizeof(d.name), "cuda:%d", gpus);
	if (qwen_plan_find_device(devices, *n, d.name, strlen(d.name)) >= 0)
		return refuse_description("describes a device for the second time", w, err);
	devices[(*n)++] = d;
	return QWEN_OK;
}

qwen_status
qwen_plan_describe(const char *text, qwen_plan_device *devices, int *n, qwen_error *err)
{
	const char *rest = text;
	word w;

	*n = 0;
	while (next_word(&rest, &w))
	{
		qwen_plan_device d = {.kind = QWEN_DEVICE_CUDA};
		word name, memory;
		int count = 1;
		bool named = divide(w, '=', &name, &memory);

		if (named && !parse_name(name, &d.kind))
			return refuse_description("is not a device", name, err);
		if (!named && !parse_count(&memory, &count))
			return refuse_description("does not begin with a number of devices", w, err);
		if (!parse_memory(memory, &d))
			return refuse_description("is not a size", memory, err);
		for (int i = 0; i < count; i++)
		{
			qwen_status rc = add_device(devices, n, named ? &name : NULL, &d, w, err);

			if (rc != QWEN_OK)
				return rc;
		}
	}
	return QWEN_OK;
}

/* ---- several devices on one processor or GPU ---- */

/* The highest N of the names of a text that begin with `prefix`, such as "cpu:"; -1 when there is none. */
static int
highest_part(const char *text, const char *prefix)
{
	int highest = -1;

	for (const char *p = text ? strstr(text, prefix) : NULL; p; p = strstr(p + 1, prefix))
	{
		const char *digits = p + strlen(prefix);
		char *end;
		long number = strtol(digits, &end, 10);

		if (*digits >= '0' && *digits <= '9' && number <= INT16_MAX && number > highest)
			highest = (int) number;
	}
	return highest;
}

/* What is left of the whole's memory is given out: first to those that have a limit, then to the others alike. */
static void
share_memory(qwen_plan_device *parts, int n, const uint64_t *limit, uint64_t left)
{
	int unlimited = 0;

	for (int i = 0; i < n; i++)
	{
		parts[i].free = limit[i] < left ? limit[i] : left;
		if (limit[i] == UINT64_MAX)
			unlimited++;
		else
			left -= parts[i].free;
	}
	for (int i = 0; i < n; i++)
		if (limit[i] == UINT64_MAX)
			parts[i].free = left / (uint64_t) unlimited;
}

/* Puts `parts` devices, QWEN_PLAN_MAX_DEVICES at most, named prefix and number in the place of devices[at]. */
static void
put_parts(qwen_plan_device *devices, int *n, int at, int parts, const char *prefix)
{
	qwen_plan_device whole = devices[at];

	memmove(devices + at + parts, devices + at + 1, (size_t) (*n - at - 1) * sizeof(*devices));
	*n += parts - 1;
	for (uint8_t i = 0; i < parts; i++)
	{
		devices[at + i] = whole;
		snprintf(devices[at + i].name, sizeof(whole.name), "%.12s%u", prefix, i);
		devices[at + i].bandwidth = whole.bandwidth / parts;
	}
}

/* Parts in the place of one device. */
typedef struct division
{
	int first; /* of the devices */
	int parts;
	uint64_t free; /* bytes of the whole */
} division;

qwen_status
qwen_plan_divide(const qwen_plan_settings *settings, qwen_plan_device *devices, int *n, qwen_error *err)
{
	division divisions[QWEN_PLAN_MAX_DEVICES];
	uint64_t limit[QWEN_PLAN_MAX_DEVICES];
	int n_divisions = 0;
	qwen_status rc;

	for (int at = 0; at < *n; at++)
	{
		char prefix[sizeof(devices->name) + 1];
		int by_map, by_limit, parts;

		snprintf(prefix, sizeof(prefix), "%s%c", devices[at].name, devices[at].kind == QWEN_DEVICE_CPU ? ':' : '.');
		by_map = highest_part(settings->device_map, prefix);
		by_limit = highest_part(settings->max_memory, prefix);
		parts = (by_map > by_limit ? by_map : by_limit) + 1;
		if (parts == 0)
			continue;
		if (*n - 1 + parts > QWEN_PLAN_MAX_DEVICES)
			return qwen_fail(err, QWEN_INVALID, "there are more than %d devices", QWEN_PLAN_MAX_DEVICES);
		divisions[n_divisions++] = (division){at, parts, devices[at].free};
		put_parts(devices, n, at, parts, prefix);
		at += parts - 1;
	}
	if (n_divisions == 0)
		return QWEN_OK;
	if ((rc = qwen_plan_parse_limits(settings->max_memory, devices, *n, limit, err)) != QWEN_OK)
		return rc;
	for (const division *d = divisions; d < divisions + n_divisions; d++)
		share_memory(devices + d->first, d->parts, limit + d->first, d->free);
	return QWEN_OK;
}
